"""What the OpenAPI document says is asked at random (schemathesis): nothing is a 5xx, and answers are as documented."""

from __future__ import annotations

import zlib
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.service.hosted import Hosted, hosted

EXAMPLES = 25
CHECKS: list[Any] = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, ignored_auth,
    unsupported_method,
]  # fmt: skip
CONFIG = SchemathesisConfig(
    seed=1,
    projects=ProjectsConfig(default=ProjectConfig(generation=GenerationConfig(deterministic=True))),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Hosted:
    return hosted(tmp_path_factory.mktemp("openapi"))


@pytest.fixture(scope="module")
def things(service: Hosted) -> dict[str, str]:
    return service.belongings("acme")


@pytest.fixture(scope="module")
def document(service: Hosted) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", service.app, config=CONFIG)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_nothing_that_is_asked_by_the_document_is_a_5xx(
    document: Any, service: Hosted, things: dict[str, str], mode: GenerationMode
) -> None:
    """As the document says, and as it does not. Half of the ids are those of things that are there."""
    fitting = [thing for kind, thing in things.items() if kind not in ("job", "key")]
    failures = []
    for found in document.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            for name, value in case.path_parameters.items():
                if (chosen := zlib.crc32(str(value).encode())) % 2:
                    case.path_parameters[name] = fitting[chosen // 2 % len(fitting)]
            if isinstance(case.body, dict) and zlib.crc32(repr(case.body).encode()) % 2:
                known = {"model": "tiny", "training_file": things["file"], "baseModel": things["model"]}
                case.body.update({name: value for name, value in known.items() if name in case.body})
            case.call_and_validate(headers=service.headers(), checks=CHECKS)

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:
            continue  # there is no wrong way to ask for it
        except (BaseExceptionGroup, AssertionError) as error:
            failures.append(f"{operation.label}: {error}")
    assert not failures, "\n\n".join(failures)
