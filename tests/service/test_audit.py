"""The audit log: whatever a key changes stands in it, together with the change or not at all, and so does a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.service.hosted import ROWS, Hosted, hosted
from tunewright.service.entities import Status


def lines(service: Hosted, tenant: str = "acme") -> list[tuple[str, str | None]]:
    """Oldest first."""
    return [(entry.action, entry.object) for entry in reversed(service.store.audit.entries(tenant)) if entry.key]


def test_every_change_has_its_line(tmp_path: Path) -> None:
    service = hosted(tmp_path)
    things = service.belongings("acme")
    job, named = f"/v1/fine_tuning/jobs/{things['job']}", f"/v1/fine_tuning/checkpoints/{things['checkpoint']}"
    whole, upload = {"part_ids": [things["part"]]}, {"filename": "x", "purpose": "fine-tune", "bytes": 4}
    asked: list[tuple[str, str, str, Any]] = [
        ("files.create", "POST", "/v1/files", {"files": {"file": ROWS}, "data": {"purpose": "fine-tune"}}),
        ("uploads.create", "POST", "/v1/uploads", {"json": upload}),
        ("uploads.complete", "POST", f"/v1/uploads/{things['upload']}/complete", {"json": whole}),
        ("uploads.cancel", "POST", f"/v1/uploads/{things['begun']}/cancel", {}),
        ("jobs.create", "POST", "/v1/fine_tuning/jobs", {"json": {"model": "tiny", "training_file": things["file"]}}),
        ("jobs.resume", "POST", f"/v1/fine_tuning/jobs/{things['paused']}/resume", {}),
        ("jobs.pause", "POST", f"/v1/fine_tuning/jobs/{things['paused']}/pause", {}),
        ("jobs.cancel", "POST", f"{job}/cancel", {}),
        ("checkpoints.permit", "POST", f"{named}/permissions", {"json": {"project_ids": ["b"]}}),
        ("checkpoints.forbid", "DELETE", f"{named}/permissions/{things['permission']}", {}),
        ("models.delete", "DELETE", f"/v1/models/{things['model']}", {}),
        ("files.delete", "DELETE", f"/v1/files/{things['file']}", {}),
        ("keys.create", "POST", "/v1/keys", {"json": {"name": "x"}}),
        ("keys.revoke", "DELETE", f"/v1/keys/{things['key']}", {}),
    ]  # fmt: skip
    for action, method, path, options in asked:
        answer = service.ask(method, path, **options)
        assert answer.is_success, (action, answer.text)
        entry = service.store.audit.entries("acme", limit=1)[0]
        assert (entry.action, entry.request) == (action, answer.headers["x-request-id"])
        assert entry.key and entry.object and entry.object in (path + answer.text)
    assert len(lines(service)) == len(asked)
    assert not service.ask("POST", f"{job}/cancel").is_success and len(lines(service)) == len(asked), "nothing was done"


def test_nothing_is_done_that_cannot_be_written_down(tmp_path: Path) -> None:
    service = hosted(tmp_path)
    things = service.belongings("acme")
    headers = service.headers()
    with service.store.database.write() as connection:
        connection.exec_driver_sql("DROP TABLE audit")
    for method, path in (
        ("POST", f"/v1/fine_tuning/jobs/{things['job']}/cancel"), ("DELETE", f"/v1/files/{things['file']}"),
        ("DELETE", f"/v1/models/{things['model']}"), ("DELETE", f"/v1/keys/{things['key']}"),
        ("POST", f"/v1/uploads/{things['begun']}/cancel"),
    ):  # fmt: skip
        assert service.ask(method, path, None, headers=headers).status_code == 503
    store = service.store
    assert store.jobs.get("acme", things["job"]).status is not Status.CANCELLED
    assert store.files.get("acme", things["file"]) and store.models.get("acme", things["model"])
    assert store.uploads.get("acme", things["begun"]).status == "pending"
    assert not any(key.revoked_at for key in store.keys.list("acme"))


def test_a_known_key_that_is_refused_is_written_down_once_a_minute(tmp_path: Path) -> None:
    service = hosted(tmp_path)
    narrow, secret = service.store.keys.create("acme", "narrow", ["models", "keys"])
    for _ in range(3):
        assert service.ask("GET", "/v1/files/x", None, headers={"api-key": secret}).status_code == 403
    asked = {"name": "wider", "scopes": ["files"]}
    assert service.ask("POST", "/v1/keys", None, headers={"api-key": secret}, json=asked).status_code == 403
    assert lines(service) == [
        ("refused.insufficient_scope", "GET /files/{id}"), ("refused.insufficient_scope", "POST /v1/keys"),
    ]  # fmt: skip
    service.store.keys.revoke("acme", narrow.id)
    assert service.ask("GET", "/v1/files", None, headers={"api-key": secret}).status_code == 401
    assert service.ask("GET", "/v1/files", None, headers={"api-key": "tw-unknown"}).status_code == 401
    assert lines(service)[2:] == [("refused.invalid_api_key", "GET /files")]
    assert {entry.key for entry in service.store.audit.entries("acme") if entry.key} == {narrow.id}
