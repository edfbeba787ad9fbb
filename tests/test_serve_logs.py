"""The log of the server: a line for each request, in both forms, and never what a user wrote."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service
from spanqa.serve.app import all_routes
from spanqa.serve.keys import digest
from spanqa.serve.logs import configure
from spanqa.serve.metrics import Metrics
from spanqa.serve.middleware import wrap

PASSAGE = "The pier was built in 1873 by Anna Kestrel. It is made of granite."
ASKED = {"question": "Who built the pier?", "passages": [PASSAGE]}
KEY = "a-key-of-24-characters-1"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A stream for the log, and the log as it was afterwards."""
    root, loggers = logging.getLogger(), [logging.getLogger(name) for name in ("spanqa", "uvicorn")]
    handlers, levels = list(root.handlers), [each.level for each in (root, *loggers)]
    root.handlers = []  # pytest's own would be closed
    yield io.StringIO()
    root.handlers = handlers
    for each, level in zip((root, *loggers), levels, strict=True):
        each.setLevel(level)


def talk(service: Service, *calls: tuple[str, str, Any], app: Any = None, **headers: str) -> list[Any]:
    wrapped = wrap(app or all_routes(service), service, Metrics())

    async def main() -> list[Any]:
        transport = httpx.ASGITransport(wrapped, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [
                await client.request(
                    method, path, **{"content" if isinstance(body, bytes) else "json": body}, headers=headers
                )
                for method, path, body in calls
            ]

    return asyncio.run(main())


def served(reader: Reader, **settings: Any) -> Service:
    service = Service(ServeSettings(**settings), name="a-model")
    service.start(reader)
    return service


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_object_with_what_an_operator_needs(mini: Reader, stream: io.StringIO) -> None:
    configure("json", stream=stream)
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    service = served(mini, keys=(digest(KEY),))
    talk(service, ("POST", "/v1/answers", ASKED), **{"x-api-key": KEY, "x-request-id": "an-id", "traceparent": trace})
    [line] = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("bytes") > len(PASSAGE)
    assert line.pop("tokens") > 20
    assert all(0 < line.pop(stage) < 60 for stage in ("seconds", "prepare", "read", "decode"))
    assert line == {
        "level": "info",
        "logger": "spanqa.access",
        "message": "POST /v1/answers 200",
        "request_id": "an-id",
        "trace_id": "ab" * 16,
        "method": "POST",
        "route": "/v1/answers",
        "status": 200,
        "key": digest(KEY)[:8],
        "questions": 1,
        "characters": len(ASKED["question"]) + len(PASSAGE),
    }
    assert KEY not in stream.getvalue()


@pytest.mark.parametrize(
    "given",
    ["", "zz", f"ff-{'ab' * 16}-{'cd' * 8}-01", f"00-{'0' * 32}-{'cd' * 8}-01", f"00-{'AB' * 16}-{'cd' * 8}-01", f"00-{'ab' * 16}-{'0' * 16}-01"],
)  # fmt: skip
def test_a_traceparent_that_is_none_is_not_logged(given: str, stream: io.StringIO) -> None:
    configure("json", stream=stream)
    talk(Service(), ("GET", "/info", None), traceparent=given)
    assert "trace_id" not in lines(stream)[0]


def test_text_is_for_people(mini: Reader, stream: io.StringIO) -> None:
    configure("text", stream=stream)
    talk(served(mini), ("POST", "/v1/answers", ASKED), ("GET", "/nope", None))
    first, second = stream.getvalue().splitlines()
    assert re.search(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO +POST /v1/answers 200 \d+\.\d ms request_id=\w+ bytes=\d+ questions=1 "
        r"characters=\d+ tokens=\d+ prepare=[\d.]+ms read=[\d.]+ms decode=[\d.]+ms$",
        first,
    )
    assert re.search(r"GET other 404 .* error_type=not_found", second)


SECRET = "kestrel"


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_user_wrote_is_in_no_line(form: Any, mini: Reader, stream: io.StringIO) -> None:
    configure(form, "debug", stream=stream)
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    app = all_routes(service := served(mini))

    @app.get("/fails")
    async def fails() -> None:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise RuntimeError(SECRET) from error

    asked = {"question": SECRET, "passages": [SECRET]}
    calls = [
        ("POST", "/v1/answers", asked),
        ("POST", "/v1/answers", {**asked, SECRET: SECRET}),
        ("POST", "/v1/answers", {**asked, "top_k": SECRET}),
        ("POST", "/v1/answers", {"question": SECRET, "passages": [{"text": SECRET, SECRET: 1}]}),
        ("POST", "/predict", {"inputs": {"question": SECRET, "context": SECRET}, "parameters": {SECRET: 1}}),
        ("POST", f"/v2/models/{SECRET}/infer", {"inputs": [{"name": SECRET, "shape": [1], "datatype": "BYTES", "data": [SECRET]}]}),
        ("POST", "/v2/models/a-model/infer", {"inputs": [{"name": SECRET, "shape": [1], "datatype": "BYTES", "data": [SECRET]}], "parameters": {SECRET: 1}}),
        ("POST", "/v1/answers", b'{"' + SECRET.encode()),
        ("POST", f"/v1/answers?{SECRET}={SECRET}", asked),
        ("GET", f"/{SECRET}?{SECRET}", None),
        ("GET", "/fails", None),
        (SECRET.upper(), "/", None),
    ]  # fmt: skip
    headers = {
        "x-api-key": SECRET,
        "user-agent": SECRET,
        "referer": f"http://localhost/{SECRET}",
        "content-type": "application/json",
    }
    replies = talk(service, *calls, app=app, **headers)
    assert [each.status_code for each in replies] == [200, 422, 422, 422, 422, 404, 422, 400, 422, 404, 500, 405]
    assert stream.getvalue().count("request_id") == len(calls)
    assert SECRET not in stream.getvalue().lower()


def test_the_field_of_a_mistake_is_named(mini: Reader, stream: io.StringIO) -> None:
    configure("json", stream=stream)
    talk(
        served(mini, max_question=5),
        ("POST", "/v1/answers", {**ASKED, "top_k": "two"}),
        ("POST", "/v1/answers", ASKED),
        ("POST", "/v1/answers", {**ASKED, "my name": 1}),
        ("POST", "/predict", {"inputs": [{"question": "Who?"}]}),
        ("POST", "/predict", {"inputs": {"question": "Who?", "context": ""}}),
        ("POST", "/predict?top_k=3", {}),
    )
    assert [(each["error_type"], each["field"]) for each in lines(stream)] == [
        ("validation", "top_k"),
        ("validation", "question"),
        ("validation", "?"),
        ("validation", "inputs.0.context"),
        ("validation", "inputs.context"),
        ("validation", "query"),
    ]


def test_questions_are_logged_if_the_operator_wants_them(mini: Reader, stream: io.StringIO) -> None:
    configure("json", stream=stream)
    talk(served(mini, log_text=True), ("POST", "/v1/answers", ASKED))
    assert lines(stream)[0]["question"] == ["Who built the pier?"]
    assert "granite" not in stream.getvalue()


def test_an_object_is_a_line_on_every_stream(mini: Reader) -> None:
    written = io.BytesIO()
    configure("json", stream=io.TextIOWrapper(written, "ascii", "backslashreplace", write_through=True))
    question = "Who built the m\u00f4le, \U0001f600\u2028 and why?\x85"
    talk(served(mini, log_text=True), ("POST", "/v1/answers", {**ASKED, "question": question}))
    [line] = written.getvalue().decode().splitlines()
    assert json.loads(line)["question"] == [question]


def test_probes_are_logged_for_debugging_only(stream: io.StringIO) -> None:
    configure("json", stream=stream)
    probes = [("GET", path, None) for path in ("/health", "/ready", "/ping", "/v2/health/live", "/v2/health/ready")]
    talk(Service(), *probes)
    assert lines(stream) == []
    configure("json", "debug", stream=stream)
    talk(Service(), *probes)
    assert [line["level"] for line in lines(stream) if line["logger"] == "spanqa.access"] == ["debug"] * 5


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_unforeseen_error_shows_where_and_only_if_asked_what(form: Any, stream: io.StringIO) -> None:
    secret = "what the user " + "wrote"

    def fail() -> None:
        raise ValueError(secret)

    for text in (False, True):
        said = io.StringIO()
        configure(form, text=text, stream=said)
        try:
            fail()
        except ValueError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
        for words in ("Exception in ASGI application", "in fail", "ValueError"):
            assert words in said.getvalue()
        assert (secret in said.getvalue()) == text
