"""Google's addresses beside those of jobs and answers, as google-genai asks at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from google import genai
from google.genai import errors, types

from tests.service.hosted import Hosted, hosted


@dataclass(frozen=True)
class Asking:
    """A service with two tenants' models, and a client of the first."""

    service: Hosted
    address: str
    mine: dict[str, str]
    theirs: dict[str, str]

    def client(self, tenant: str = "acme") -> genai.Client:
        """It closes itself when nobody holds it any more."""
        options = types.HttpOptions(base_url=self.address)
        return genai.Client(vertexai=True, api_key=self.service.key(tenant), http_options=options)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    service = hosted(tmp_path_factory.mktemp("google"))
    for name in ("owner/small", "other"):
        service.bringing.bases[name] = service.bringing.bases["tiny"]
    service.bringing.bases["gone"] = service.root / "gone"
    mine, theirs = service.belongings("acme"), service.belongings("globex")
    with service.served() as address:
        yield Asking(service, address, mine, theirs)


def test_bases_and_tuned_models_are_listed_apart(asking: Asking) -> None:
    client, others = asking.client(), asking.client("globex")
    assert [one.name for one in client.models.list()] == ["tiny", "owner/small", "other"]
    tuned = list(client.models.list(config={"query_base": False}))
    assert {one.name for one in tuned} == {asking.mine["model"], asking.mine["checkpoint"]}
    theirs = others.models.list(config={"query_base": False})
    assert {one.name for one in theirs} == {asking.theirs["model"], asking.theirs["checkpoint"]}


@pytest.mark.parametrize("base, count", [(True, 3), (False, 2)])
def test_clients_page_through_models(asking: Asking, base: bool, count: int) -> None:
    client = asking.client()
    whole = [one.name for one in client.models.list(config={"query_base": base})]
    assert len(whole) == len(set(whole)) == count
    for size in (1, 2, 3):
        pages = client.models.list(config={"query_base": base, "page_size": size})
        assert [one.name for one in pages.page] == whole[:size]
        assert [one.name for one in pages] == whole


@pytest.mark.parametrize("base", [True, False])
def test_what_a_list_of_models_cannot_do_is_refused(asking: Asking, base: bool) -> None:
    client = asking.client()
    wrong = ({"filter": "display_name=x"}, "leave it out"), ({"page_token": "none"}, "there is no none in this list")
    for config, said in wrong:
        with pytest.raises(errors.ClientError, match=said) as refused:
            client.models.list(config={"query_base": base, **config})
        assert refused.value.code == 400


def test_a_model_is_told(asking: Asking) -> None:
    client, name = asking.client(), asking.mine["model"]
    for asked in (name, f"models/{name}", f"projects/p/locations/l/models/{name}"):
        found = client.models.get(model=asked)
        assert found.name == name and found.endpoints and found.endpoints[0].name == name
        assert found.tuned_model_info and found.tuned_model_info.base_model == "tiny"
        assert found.tuned_model_info.create_time
    assert client.models.get(model=f"{name}@0.5").name == f"{name}@0.5"
    for base in ("tiny", "owner/small"):
        told = client.models.get(model=base)
        assert told.name == base and not told.endpoints
    for missing in ("none", "gone", asking.theirs["model"], "projects/p/locations/l/models/none"):
        with pytest.raises(errors.ClientError) as refused:
            client.models.get(model=missing)
        assert (refused.value.code, refused.value.status) == (404, "NOT_FOUND")


def test_tokens_are_counted(asking: Asking) -> None:
    """By the engine, for the model that is named: Echo counts characters."""
    client, name = asking.client(), asking.mine["model"]
    config = types.CountTokensConfig(system_instruction="Be brief.")
    for model in ("tiny", name, f"{name}@0.5"):
        assert client.models.count_tokens(model=model, contents="Hi").total_tokens == 2
        assert client.models.count_tokens(model=model, contents="Hi", config=config).total_tokens == 11
    for model in ("none", asking.theirs["model"]):
        with pytest.raises(errors.ClientError) as refused:
            client.models.count_tokens(model=model, contents="Hi")
        assert refused.value.code == 404
