"""The routes of SageMaker, Vertex AI and KServe's first protocol, in process: they answer as `POST /` does."""

from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from serving import PASSAGE, ask
from spanqa.errors import InputError
from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service, make_app
from spanqa.serve.problems import STATUS

PAIR = {"question": "Who built the first pier?", "context": PASSAGE}
OTHER = {"question": "When did it burn down?", "context": PASSAGE}
VERTEX = {
    "AIP_HEALTH_ROUTE": "/v1/endpoints/7/deployedModels/8",
    "AIP_PREDICT_ROUTE": "/v1/endpoints/7/deployedModels/8:predict",
}
PREDICT = (VERTEX["AIP_PREDICT_ROUTE"], "/v1/models/a-model:predict")
READY = ("/ping", VERTEX["AIP_HEALTH_ROUTE"], "/v1/models/a-model")


@pytest.fixture(scope="module")
def app(mini: Reader) -> Any:
    return served(mini, VERTEX)


def served(reader: Reader, environ: dict[str, str]) -> Any:
    service = Service(ServeSettings(max_questions=3, max_top_k=4), name="a-model")
    service.start(reader)
    return make_app(service, environ)


def assert_refused(response: Any, error_type: str, words: str) -> None:
    assert (response.json()["error_type"], response.status_code) == (error_type, STATUS[error_type]), response.text
    assert words in response.json()["error"]


def test_sagemaker_gets_what_hugging_face_gets(app: Any) -> None:
    for body in ({"inputs": PAIR}, {"inputs": PAIR, "parameters": {"top_k": 2}}, {"inputs": [PAIR, OTHER]}):
        found, expected = (ask(app, "POST", path, json=body) for path in ("/invocations", "/"))
        assert found.status_code == 200
        assert found.json() == expected.json()
    assert ask(app, "POST", "/invocations", json={"inputs": PAIR}).json()["answer"] == "Anna Kestrel"
    assert_refused(
        ask(app, "POST", "/invocations", json={"instances": [PAIR]}), "validation", "instances: there is no such"
    )


@pytest.mark.parametrize("path", PREDICT)
def test_instances_get_predictions(app: Any, path: str) -> None:
    response = ask(app, "POST", path, json={"instances": [PAIR, OTHER]})
    assert response.status_code == 200
    assert response.json() == {"predictions": ask(app, "POST", "/", json={"inputs": [PAIR, OTHER]}).json()}
    assert [each["answer"] for each in response.json()["predictions"]] == ["Anna Kestrel", "1902"]
    [several] = ask(app, "POST", path, json={"instances": [PAIR], "parameters": {"top_k": 2}}).json()["predictions"]
    assert len(several) == 2


@pytest.mark.parametrize("path", PREDICT)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"instances": []}, "instances: is an empty list"),
        ({"instances": [PAIR] * 4}, "There are 4 questions; at most 3 are allowed at once."),
        ({"instances": [PAIR, {"question": " ", "context": "A"}]}, "instances.1.question: is empty"),
        ({"instances": [{"question": "Who?"}]}, "instances.0.context: field required"),
        ({"instances": PAIR}, "instances: input should be a valid list"),
        ({"instances": [PAIR], "parameters": {"topk": 2}}, "parameters.topk: there is no such field"),
        ({"instances": [PAIR], "signature_name": "a"}, "signature_name: there is no such field"),
        ({"inputs": PAIR}, "instances: field required"),
    ],
)
def test_instances_that_are_not_understood_are_refused(app: Any, path: str, body: dict[str, Any], words: str) -> None:
    assert_refused(ask(app, "POST", path, json=body), "validation", words)


def test_they_are_ready_when_questions_should_be_sent(mini: Reader) -> None:
    service = Service(name="a-model")
    app = make_app(service, VERTEX)
    for path in (*READY, "/v1/models"):
        assert_refused(ask(app, "GET", path), "loading", "The model is being loaded")
    service.start(mini)
    assert [ask(app, "GET", path).json() for path in READY] == [
        {"status": "ready"},
        {"status": "ready"},
        {"name": "a-model", "ready": True},
    ]
    assert ask(app, "GET", "/v1/models").json() == {"models": ["a-model"]}
    service.drain()
    for path in READY:
        assert_refused(ask(app, "GET", path), "draining", "being stopped")


def test_another_model_is_not_found(app: Any) -> None:
    assert_refused(ask(app, "GET", "/v1/models/other"), "not_found", "only 'a-model'")
    assert_refused(
        ask(app, "POST", "/v1/models/other:predict", json={"instances": [PAIR]}), "not_found", "only 'a-model'"
    )


def test_vertex_has_routes_only_where_the_environment_names_them(mini: Reader) -> None:
    app = served(mini, {"AIP_HEALTH_ROUTE": ""})
    assert ask(app, "GET", VERTEX["AIP_HEALTH_ROUTE"]).status_code == 404
    assert not [path for path in ask(app, "GET", "/openapi.json").json()["paths"] if "endpoints" in path]


def test_vertex_may_take_a_path_of_ours(mini: Reader) -> None:
    app = served(mini, {"AIP_HEALTH_ROUTE": "/health", "AIP_PREDICT_ROUTE": "/predict"})
    assert ask(app, "GET", "/health").json() == {"status": "ready"}
    [found] = ask(app, "POST", "/predict", json={"instances": [PAIR]}).json()["predictions"]
    assert found == ask(app, "POST", "/", json={"inputs": PAIR}).json()
    paths = ask(app, "GET", "/openapi.json").json()["paths"]
    assert paths["/predict"]["post"]["tags"] == paths["/health"]["get"]["tags"] == ["Vertex AI"]


@pytest.mark.parametrize("path", ["predict", "/{name}", "/a b", "http://a/b", "/a?b"])
def test_a_route_that_is_no_path_is_refused(mini: Reader, path: str) -> None:
    with pytest.raises(InputError, match=r"AIP_PREDICT_ROUTE is '.*'. Expected a path that begins with /"):
        served(mini, {"AIP_PREDICT_ROUTE": path})


def test_options_of_old_clients_change_nothing_and_others_are_refused(app: Any) -> None:
    options = {"use_cache": False, "wait_for_model": True, "use_gpu": False}
    found = ask(app, "POST", "/", json={"inputs": PAIR, "parameters": {}, "options": options})
    assert found.json() == ask(app, "POST", "/", json={"inputs": PAIR}).json()
    refused = ask(app, "POST", "/", json={"inputs": PAIR, "options": {"top_k": 3}})
    assert_refused(refused, "validation", "options.top_k: there is no such field")
