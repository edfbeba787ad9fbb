"""The OpenAPI document tells the truth: schemathesis makes requests from it, right and wrong ones, and checks what comes back."""

from typing import Any

import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, settings

from spanqa.explain.attribute import attribute
from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service, make_app

ENVIRON = {"AIP_HEALTH_ROUTE": "/vertex/health", "AIP_PREDICT_ROUTE": "/vertex:predict"}
SERVICE = Service(
    ServeSettings(max_questions=4, max_top_k=5, explain_seconds=0.05, hosts=("testserver",)),
    explain=attribute,
    name="a-model",
)
SAME_FUNCTION = "^/predict$|^/invocations$|^/vertex:predict$|/versions/"
"""Paths that are not tried: behind each is the function, and the body, of a path that is."""
BEYOND_A_SCHEMA = {
    # Refused although the document allows it: what depends on the limits of the server, and what two fields mean together.
    "positive_data_acceptance": {"expected-statuses": ["2xx", "404", "422"]},
}
BEYOND_A_SCHEMA_OF_BYTES = {
    # Besides, a body whose length, or whose bytes behind the JSON, are not those that its header and its tensors say.
    "positive_data_acceptance": {"expected-statuses": ["2xx", "404", "422", "400"]},
}
PAGE = {
    # GET is allowed there, although the document has only POST: it gives the page, which is no part of the interface.
    "unsupported_method": {"enabled": False},
    "allow_header_conformance": {"enabled": False},
}
CONFIG = schemathesis.Config.from_dict(
    {
        "parameters": {"path.model": "a-model"},
        "checks": BEYOND_A_SCHEMA,
        "operations": [
            {"include-path-regex": "/infer$", "checks": BEYOND_A_SCHEMA_OF_BYTES},
            {"include-path": "/", "checks": BEYOND_A_SCHEMA | PAGE},
        ],
        "phases": {"coverage": {"unexpected-methods": ["GET", "DELETE", "OPTIONS"]}},
        "generation": {"deterministic": True, "database": "none"},
    }
)
DOCUMENT = schemathesis.openapi.from_asgi("/openapi.json", make_app(SERVICE, ENVIRON), config=CONFIG)
SCHEMA = DOCUMENT.exclude(path_regex=SAME_FUNCTION)
STATUSES: dict[str, set[int]] = {}


@pytest.fixture(scope="module", autouse=True)
def _started(mini: Reader) -> None:
    SERVICE.start(mini)


@SCHEMA.parametrize()
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_the_document_promises_is_kept(case: Any) -> None:
    response = case.call_and_validate()
    STATUSES.setdefault(case.operation.label, set()).add(response.status_code)


def test_some_of_the_requests_were_answered_and_some_refused() -> None:
    assert len(STATUSES) == len(list(SCHEMA.get_all_operations()))
    for operation, statuses in STATUSES.items():
        assert 200 in statuses, operation
        assert statuses - {200}, operation
