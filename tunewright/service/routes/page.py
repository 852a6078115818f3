"""The page at `/`: plain files beside this code. It holds no data: what it shows, it asks for with the user's key."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from tunewright.service.errors import missing

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent.parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; frame-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
FRAME = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        "frame-ancestors 'self'; base-uri 'none'; form-action 'none'; sandbox allow-same-origin"
    ),
    "X-Frame-Options": "SAMEORIGIN",
}
"""Of the empty document into which the page puts a job's report: styles stand in a report, scripts do not act."""


@router.get("/")
def page() -> FileResponse:
    return asset("index.html")


@router.get("/page/{name}")
def asset(name: str) -> FileResponse:
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in KINDS}
    if name not in files:
        raise missing("page", name)
    policy = FRAME if name == "report.html" else {"Content-Security-Policy": POLICY}
    headers = {**policy, "Cache-Control": "no-cache"}
    return FileResponse(files[name], media_type=KINDS[files[name].suffix], headers=headers)
