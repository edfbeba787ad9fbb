"""The routes of answers, in process: Hugging Face's forms, /v1, the state of the server, and one form of error."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from threading import Event
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from spanqa import __version__
from spanqa.errors import BackendError
from spanqa.explain.attribute import attribute
from spanqa.pipelines import pipeline
from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service, make_app
from spanqa.serve.keys import digest
from spanqa.serve.problems import STATUS

KEY = "0123456789abcdef"
PASSAGE = "The pier was built in 1873 by Anna Kestrel. It is made of granite and 240 metres long."
PAIR = {"question": "Who built the pier?", "context": PASSAGE}


def explain(reader: Reader, question: str, passage: Any, **options: Any) -> Any:
    return attribute(reader, question, passage, **options)


def served(reader: Reader | None, settings: ServeSettings = ServeSettings()) -> Service:
    service = Service(settings, explain=explain, name="a-model")
    if reader is not None:
        service.start(reader)
    return service


def talk(service: Service, *calls: tuple[str, str, Any], **options: Any) -> list[Any]:
    """Send requests one after the other, and return the responses."""

    async def run(client: Any) -> list[Any]:
        return [await client.request(method, path, json=body, **options) for method, path, body in calls]

    return with_client(service, run)


def with_client(service: Service, run: Callable[[Any], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        transport = httpx.ASGITransport(make_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await run(client)

    return asyncio.run(main())


def post(service: Service, path: str, body: Any) -> Any:
    [response] = talk(service, ("POST", path, body))
    return response


def assert_refused(response: Any, error_type: str, *words: str) -> None:
    body = response.json()
    assert set(body) == {"error", "error_type"}
    assert (body["error_type"], response.status_code) == (error_type, STATUS[error_type])
    for word in words:
        assert word in body["error"]


# --- Hugging Face


def test_one_question_gives_what_the_pipeline_gives(mini: Reader) -> None:
    qa = pipeline(model=mini)
    for path in ("/", "/predict"):
        response = post(served(mini), path, {"inputs": PAIR, "parameters": {}})
        assert response.status_code == 200
        expected = qa(**PAIR)
        assert response.json() == expected | {
            name: pytest.approx(expected[name], abs=1e-5) for name in ("score", "probability")
        }


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 3},
        {"top_k": 2, "handle_impossible_answer": True},
        {"max_answer_len": 1, "align_to_words": False},
        {"max_seq_len": 24, "doc_stride": 4, "max_question_len": 5},
    ],
)
def test_parameters_mean_what_they_mean_to_the_pipeline(mini: Reader, parameters: dict[str, Any]) -> None:
    found = post(served(mini), "/", {"inputs": PAIR, "parameters": parameters}).json()
    expected = pipeline(model=mini)(**PAIR, **parameters)
    expected = expected if isinstance(expected, list) else [expected]
    assert isinstance(found, list) == (parameters.get("top_k", 1) > 1)
    found = found if isinstance(found, list) else [found]
    assert [(each["answer"], each["start"], each["end"]) for each in found] == [
        (each["answer"], each["start"], each["end"]) for each in expected
    ]
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-5)


def test_no_answer_is_given_only_where_it_is_allowed(mini: Reader) -> None:
    nothing = {"question": "Who was the king of Spain?", "context": PASSAGE}
    given = post(served(mini), "/", {"inputs": nothing}).json()
    assert given["answer"]
    none = post(served(mini), "/", {"inputs": nothing, "parameters": {"handle_impossible_answer": True}}).json()
    assert (none["answer"], none["start"], none["end"]) == ("", 0, 0)
    assert 0 <= none["score"] <= 1


def test_lists_of_both_forms_give_lists(mini: Reader) -> None:
    other = {"question": "How long is it?", "context": PASSAGE}
    bodies = [
        {"inputs": [PAIR, other]},
        {"inputs": {"question": [PAIR["question"], other["question"]], "context": [PASSAGE, PASSAGE]}},
        {"inputs": {"question": [PAIR["question"], other["question"]], "context": PASSAGE}},
    ]
    for body in bodies:
        assert [each["answer"] for each in post(served(mini), "/", body).json()] == ["Anna Kestrel", "240 metres"]
    [several] = post(served(mini), "/", {"inputs": [PAIR], "parameters": {"top_k": 2}}).json()
    assert [type(each) for each in several] == [dict, dict]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["inputs: field required"]),
        ({"inputs": PAIR, "parameter": {}}, ["parameter: there is no such field"]),
        ({"inputs": PAIR, "parameters": {"topk": 3}}, ["parameters.topk: there is no such field"]),
        ({"inputs": PAIR, "parameters": {"top_k": "3"}}, ["parameters.top_k", "integer"]),
        ({"inputs": PAIR, "parameters": {"top_k": True}}, ["parameters.top_k", "integer"]),
        ({"inputs": PAIR, "parameters": {"top_k": 0}}, ["parameters.top_k: is 0; expected 1 to 100"]),
        ({"inputs": PAIR, "parameters": {"max_answer_len": 0}}, ["max_answer_len is 0"]),
        ({"inputs": PAIR, "parameters": {"max_seq_len": 5000}}, ["parameters.max_seq_len", "at most 512"]),
        ({"inputs": PAIR, "parameters": {"max_seq_len": 20, "doc_stride": 20}}, ["overlap"]),
        ({"inputs": PAIR, "parameters": {"top_k": 10**400}}, ["parameters.top_k"]),
        ({"inputs": {"question": "Who?"}}, ["inputs.context: field required"]),
        ({"inputs": {"question": "Who?", "context": 3}}, ["inputs.context"]),
        ({"inputs": {"question": "Who?", "context": ["a", "b"]}}, ["inputs.context: is a list"]),
        ({"inputs": {"question": ["Who?", "Why?"], "context": ["a"]}}, ["2 questions and 1 contexts"]),
        ({"inputs": {"question": [], "context": []}}, ["0 questions"]),
        ({"inputs": []}, ["empty list"]),
        ({"inputs": [PAIR, {"question": "Who?"}]}, ["inputs.1.context: field required"]),
        ({"inputs": [PAIR, {"question": " ", "context": "x"}]}, ["inputs.1.question: is empty"]),
        ({"inputs": {"question": "Who?", "context": "  "}}, ["inputs.context: is empty"]),
        ({"inputs": {"question": "Who\ud800?", "context": "x"}}, ["surrogate"]),
        ("text", ["body"]),
        ([1], ["body"]),
        (None, ["body"]),
    ],
)
def test_a_body_that_is_not_understood_is_refused_by_field(
    tiny_reader: Callable[..., Reader], body: Any, words: list[str]
) -> None:
    service = served(tiny_reader())
    content = json.dumps(body).encode()

    async def run(client: Any) -> Any:
        return await client.post("/", content=content, headers={"content-type": "application/json"})

    response = with_client(service, run)
    if "at most 512" in words:
        words = ["parameters.max_seq_len", "at most 64"]
    assert_refused(response, "validation", *words)
    assert "Anna" not in response.text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"inputs": nope}'])
def test_what_is_no_json_is_refused(tiny_reader: Callable[..., Reader], content: bytes) -> None:
    async def run(client: Any) -> Any:
        return await client.post("/", content=content, headers={"content-type": "application/json"})

    response = with_client(served(tiny_reader()), run)
    assert response.status_code in (400, 422)
    assert response.json()["error_type"] in ("invalid_json", "bad_request", "validation")


def test_limits_are_kept(tiny_reader: Callable[..., Reader]) -> None:
    service = served(
        tiny_reader(),
        ServeSettings(max_question=10, max_passage=20, max_passages=2, max_questions=2, max_top_k=4),
    )
    hf, v1 = {"question": "Who?", "context": "A pier."}, {"question": "Who?", "passages": ["A pier."]}
    refused = [
        ("/", {"inputs": hf | {"question": "Who is it?!"}}, "inputs.question: has 11 characters; at most 10"),
        ("/", {"inputs": hf | {"context": "x" * 21}}, "inputs.context: has 21 characters; at most 20"),
        ("/", {"inputs": [hf] * 3}, "There are 3 questions; at most 2"),
        ("/", {"inputs": hf, "parameters": {"top_k": 5}}, "parameters.top_k: is 5; expected 1 to 4"),
        ("/v1/answers", v1 | {"passages": ["a"] * 3}, "passages: has 3 items; expected 1 to 2"),
        ("/v1/answers", v1 | {"passages": ["a", "x" * 21]}, "passages.1: has 21 characters"),
        ("/v1/answers", v1 | {"top_k": 5}, "top_k: is 5; expected 1 to 4"),
        ("/v1/explain", {"question": "Who?", "passage": "x" * 21}, "passage: has 21 characters"),
    ]
    for path, body, words in refused:
        assert_refused(post(service, path, body), "validation", words)
    for path, body in (("/", {"inputs": [hf] * 2, "parameters": {"top_k": 4}}), ("/v1/answers", v1 | {"top_k": 4})):
        assert post(service, path, body).status_code == 200


# --- /v1


def test_v1_gives_what_the_reader_ranks(mini: Reader) -> None:
    passages = ["It rained.", {"text": PASSAGE, "source": "pier.txt"}]
    question = "How long is the pier?"
    found = post(served(mini), "/v1/answers", {"question": question, "passages": passages, "top_k": 3}).json()
    expected = mini.rank(question, ["It rained.", mini.prepare(PASSAGE, "pier.txt")], 3)
    assert [each["text"] for each in found["answers"]] == [answer.text for answer in expected]
    best, answer = found["answers"][0], expected[0].as_json(question)
    assert best == {
        name: pytest.approx(answer[name], abs=1e-5) if isinstance(answer[name], float) else answer[name]
        for name in best
    }
    assert best["source"] == "pier.txt"
    assert (found["no_answer"], found["closest"], found["calibrated"], found["model"]) == (False, None, True, "a-model")


def test_v1_says_that_there_is_no_answer_and_what_is_closest(mini: Reader) -> None:
    body = {"question": "Who was the king of Spain?", "passages": [PASSAGE]}
    found = post(served(mini), "/v1/answers", body).json()
    expected = mini.ask(body["question"], PASSAGE)
    assert (found["answers"], found["no_answer"]) == ([], True)
    assert expected.closest is not None
    assert found["closest"]["text"] == expected.closest.text
    assert found["score"] == pytest.approx(expected.score, abs=1e-4)
    for option in ({"no_answer": "off"}, {"threshold": -1000.0}):
        always = post(served(mini), "/v1/answers", body | option).json()
        assert [each["text"] for each in always["answers"]] == [expected.closest.text]
    sure = post(
        served(mini), "/v1/answers", {"question": "Who built the pier?", "passages": [PASSAGE], "min_probability": 1.0}
    ).json()
    assert (sure["no_answer"], sure["closest"]["text"]) == (True, "Anna Kestrel")


def test_v1_has_null_for_a_score_where_there_was_nothing_to_read(mini: Reader) -> None:
    found = post(served(mini), "/v1/answers", {"question": "Who?", "passages": ["\u200b"]})
    assert found.status_code == 200
    assert found.json()["score"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"passages": []}, "passages: has 0 items"),
        ({"passages": [" ", ""]}, "passages: is empty"),
        ({"passages": [{"text": "x", "title": "y"}]}, "passages.0.title: there is no such field"),
        ({"passages": [{"text": "x", "source": "\ud800"}]}, "passages.source: is not valid Unicode"),
        ({"passages": [3]}, "passages.0"),
        ({"passages": "text"}, "passages"),
        ({"no_answer": "maybe"}, "no_answer: input should be 'auto', 'on' or 'off'"),
        ({"no_answer": "off", "threshold": 1.0}, "threshold is 1.0"),
        ({"min_probability": 2}, "min_probability"),
        ({"threshold": "1"}, "threshold"),
        ({"question": ""}, "question: is empty"),
        ({"question": "why " * 400}, "The question has"),
        ({"topk": 3}, "topk: there is no such field"),
    ],
)
def test_v1_refuses_what_it_does_not_understand(
    tiny_reader: Callable[..., Reader], change: dict[str, Any], words: str
) -> None:
    body = json.dumps(
        {"question": "Who built it?", "passages": [PASSAGE]} | change
    )  # ASCII: it holds what UTF-8 cannot

    async def run(client: Any) -> Any:
        return await client.post("/v1/answers", content=body, headers={"content-type": "application/json"})

    assert_refused(with_client(served(tiny_reader()), run), "validation", words)


def test_infinity_and_nan_are_no_thresholds(tiny_reader: Callable[..., Reader]) -> None:
    async def run(client: Any) -> list[Any]:
        return [
            await client.post(
                "/v1/answers",
                content=f'{{"question": "Who?", "passages": ["x"], "threshold": {value}}}',
                headers={"content-type": "application/json"},
            )
            for value in ("NaN", "Infinity", "-Infinity")
        ]

    for response in with_client(served(tiny_reader()), run):
        assert_refused(response, "validation", "threshold")


def test_an_answer_is_explained(mini: Reader) -> None:
    body = {"question": "Who built the pier?", "passage": {"text": PASSAGE, "source": "pier.txt"}, "trust": False}
    found = post(served(mini), "/v1/explain", body).json()
    expected = attribute(mini, body["question"], PASSAGE, trust=False)  # type: ignore[arg-type]
    assert (found["format"], found["source"], found["answer"]["text"]) == (
        "spanqa.explanation/1",
        "pier.txt",
        "Anna Kestrel",
    )
    assert [word["score"] for word in found["words"]] == pytest.approx(expected.scores, abs=1e-3)
    span = post(served(mini), "/v1/explain", body | {"against": [70, 80]}).json()
    assert span["other"]["text"] == "240 metres"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "magic"}, "There is no method 'magic'"),
        ({"method": "integrated_gradients"}, "method: Backend 'openvino' computes no gradients"),
        ({"against": "someone"}, "against"),
        ({"against": [1]}, "against"),
        ({"against": [5, 5000]}, "5000"),
        ({"passage": "  "}, "passage: is empty"),
        ({"heads": True}, "heads: there is no such field"),
    ],
)
def test_an_explanation_refuses_what_it_does_not_understand(mini: Reader, change: dict[str, Any], words: str) -> None:
    body = {"question": "Who built the pier?", "passage": PASSAGE, "trust": False}
    assert_refused(post(served(mini), "/v1/explain", body | change), "validation", words)


def test_one_answer_is_explained_at_a_time(mini: Reader) -> None:
    begun, gate = Event(), Event()

    def slowly(reader: Reader, question: str, passage: Any, **options: Any) -> Any:
        begun.set()
        assert gate.wait(30)
        return attribute(reader, question, passage, **options)

    service = Service(explain=slowly)
    service.start(mini)
    body = {"question": "Who built the pier?", "passage": PASSAGE, "trust": False}

    async def run(client: Any) -> Any:
        first = asyncio.ensure_future(client.post("/v1/explain", json=body))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        second = await client.post("/v1/explain", json=body)
        gate.set()
        return await first, second

    first, second = with_client(service, run)
    assert first.status_code == 200
    assert_refused(second, "overloaded")
    assert int(second.headers["retry-after"]) >= 1


def test_a_server_without_explanations_says_so(tiny_reader: Callable[..., Reader]) -> None:
    service = Service()
    service.start(tiny_reader())
    assert_refused(
        post(service, "/v1/explain", {"question": "Who?", "passage": "x"}), "not_found", "explains no answers"
    )


# --- states and errors


def test_it_says_that_the_model_is_being_loaded_and_that_it_is_being_stopped(
    tiny_reader: Callable[..., Reader],
) -> None:
    service = served(None)
    health, *others = talk(
        service,
        ("GET", "/health", None),
        ("GET", "/ready", None),
        ("GET", "/info", None),
        ("POST", "/", {"inputs": PAIR}),
    )
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    for response in others:
        assert_refused(response, "loading")
        assert response.headers["retry-after"] == "1"
    service.start(tiny_reader())
    assert [each.status_code for each in talk(service, ("GET", "/ready", None), ("POST", "/", {"inputs": PAIR}))] == [
        200,
        200,
    ]
    told_early = served(None)
    told_early.drain()
    for response, error_type in zip(
        talk(told_early, ("GET", "/ready", None), ("POST", "/", {"inputs": PAIR})), ("draining", "loading"), strict=True
    ):
        assert_refused(response, error_type)
    service.drain()
    ready, answer = talk(service, ("GET", "/ready", None), ("POST", "/", {"inputs": PAIR}))
    assert_refused(ready, "draining")
    assert answer.status_code == 200  # it was sent before the balancer knew


def test_probes_may_ask_for_the_head_only(tiny_reader: Callable[..., Reader]) -> None:
    calls = [("HEAD", path, None) for path in ("/health", "/ready", "/ping")]
    assert [each.status_code for each in talk(served(tiny_reader()), *calls)] == [200, 200, 200]
    assert [each.status_code for each in talk(served(None), *calls)] == [200, 503, 503]


def test_info_names_the_model_and_the_limits_and_no_keys(mini: Reader) -> None:
    service = served(mini, ServeSettings(keys=(digest(KEY),), max_top_k=7))
    [response] = talk(service, ("GET", "/info", None), headers={"x-api-key": KEY})
    info = response.json()
    assert (info["model"], info["version"], info["limits"]["max_top_k"], info["keys"]) == (
        "a-model",
        __version__,
        7,
        True,
    )
    assert KEY not in response.text
    assert digest(KEY)[:8] not in response.text
    assert str(mini.checkpoint.path) not in response.text


def test_every_wrong_address_and_method_has_the_one_form_of_error(tiny_reader: Callable[..., Reader]) -> None:
    service = served(tiny_reader())
    missing, wrong, put = talk(service, ("GET", "/nothing", None), ("POST", "/health", {}), ("PUT", "/v1/answers", {}))
    assert_refused(missing, "not_found")
    assert_refused(wrong, "method_not_allowed", "POST")
    assert_refused(put, "method_not_allowed", "PUT")
    assert put.headers["allow"] == "POST"


def test_an_error_inside_is_told_without_details(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError("a secret path"), BackendError("a secret path")):

        def broken(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(type(mini.backend), "forward", broken)
            response = post(served(mini), "/", {"inputs": PAIR})
        assert_refused(response, "internal")
        assert "secret" not in response.text
    assert post(served(mini), "/", {"inputs": PAIR}).status_code == 200


def test_the_deadline_is_504(mini: Reader) -> None:
    assert_refused(
        post(served(mini, ServeSettings(deadline=0.001)), "/", {"inputs": PAIR | {"context": PASSAGE * 500}}),
        "deadline_exceeded",
    )


def test_too_many_requests_are_429_with_retry_after(mini: Reader) -> None:
    service = served(mini, ServeSettings(max_requests=1))

    async def run(client: Any) -> Any:
        body = {"inputs": PAIR | {"context": PASSAGE * 200}}
        return await asyncio.gather(*(client.post("/", json=body) for _ in range(5)))

    responses = with_client(service, run)
    assert sorted({each.status_code for each in responses}) == [200, 429]
    for each in responses:
        if each.status_code == 429:
            assert_refused(each, "overloaded")
            assert int(each.headers["retry-after"]) >= 1


def test_a_client_that_goes_away_cancels_its_work(mini: Reader) -> None:
    """The ASGI messages of a server whose client hangs up while its question waits."""
    service = served(mini)
    body = json.dumps({"inputs": {"question": "Who?", "context": PASSAGE * 3000}}).encode()
    sent: list[Any] = []
    requests: list[int] = []

    async def run() -> None:
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            while not service.queue.requests:
                await asyncio.sleep(0.001)
            requests.append(service.queue.requests)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": "/", "raw_path": b"/", "root_path": "", "scheme": "http",
            "query_string": b"", "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await make_app(service)(scope, receive, send)

    asyncio.run(run())
    assert requests == [1]
    assert service.queue.requests == 0
    assert sent[0]["status"] == 499
    end = time.monotonic() + 20
    while mini.engine.waiting_tokens:
        assert time.monotonic() < end


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_body is 0; expected at least 1"):
        ServeSettings(max_body=0)
    with pytest.raises(ValueError, match="deadline is nan"):
        ServeSettings(deadline=float("nan"))
    assert replace(ServeSettings(), rate_limit=None).rate_limit is None


def test_that_the_model_is_loading_is_said_where_python_leaves_out_assertions() -> None:
    code = """
from spanqa.serve import Service
from spanqa.serve.problems import Problem
from spanqa.serve.routes.operation import model_name
for ask in (lambda service: service.queue, model_name):
    try:
        print(ask(Service()))
    except Problem as problem:
        print(problem.error_type)
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "loading\nloading\n"
