"""The OpenAPI document tells the truth: schemathesis makes requests from it, right and wrong ones, and checks what comes back."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, settings  # noqa: E402

from spanqa.explain.attribute import attribute  # noqa: E402
from spanqa.reader import Reader  # noqa: E402
from spanqa.serve import ServeSettings, Service, make_app  # noqa: E402

ENVIRON = {"AIP_HEALTH_ROUTE": "/vertex/health", "AIP_PREDICT_ROUTE": "/vertex:predict"}
SERVICE = Service(ServeSettings(max_questions=4, max_top_k=5, explain_seconds=0.05), explain=attribute, name="a-model")
ACCEPTED = ["2xx", "404"]
BEYOND_A_SCHEMA = {
    # Refused although the document allows it: what depends on the limits of the server, and what two fields mean together.
    "positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "422"]},
}
BEYOND_A_SCHEMA_OF_BYTES = {
    # Besides, a body whose length, or whose bytes behind the JSON, are not those that its header and its tensors say.
    "positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400", "422"]},
}
CONFIG = schemathesis.Config.from_dict(
    {
        "parameters": {"path.model": "a-model", "path.version": "1"},
        "checks": BEYOND_A_SCHEMA,
        "operations": [{"include-path-regex": "/infer$", "checks": BEYOND_A_SCHEMA_OF_BYTES}],
        "generation": {"deterministic": True, "database": "none"},
    }
)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", make_app(SERVICE, ENVIRON), config=CONFIG)


@pytest.fixture(scope="module", autouse=True)
def _started(mini: Reader) -> None:
    SERVICE.start(mini)


@SCHEMA.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_the_document_promises_is_kept(case: Any) -> None:
    case.call_and_validate()
