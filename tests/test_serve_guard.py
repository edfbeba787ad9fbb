"""Limits and safety of the server, request by request: hosts, origins, keys, rates, bodies and headers, without a network."""

import asyncio
import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from hypothesis import given
from hypothesis import strategies as st

from spanqa.errors import InputError
from spanqa.serve.guard import Guard
from spanqa.serve.keys import digest, read_keys
from spanqa.serve.limiter import RateLimiter
from spanqa.serve.problems import STATUS
from spanqa.serve.settings import ServeSettings

KEY, OTHER = "a-key-of-24-characters-1", "a-key-of-24-characters-2"
KEYED = ServeSettings(keys=(digest(KEY), digest(OTHER)))
JSON = ("Content-Type", "application/json")


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    scope: dict[str, Any]
    read: list[bytes]
    """Bodies that the application got: none if the request was refused."""
    received: int
    """Messages that were taken from the client."""

    @property
    def error_type(self) -> str:
        body = json.loads(self.body)
        assert set(body) == {"error", "error_type"}
        assert self.status == STATUS[body["error_type"]]
        assert self.headers["content-type"] == "application/json"
        return str(body["error_type"])

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body."""
    message = await receive()
    scope["read"].append(message.get("body", b""))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(len(message.get("body", b""))).encode()})


def body_of(chunks: Sequence[bytes]) -> Iterable[dict[str, Any]]:
    for number, chunk in enumerate(chunks):
        yield {"type": "http.request", "body": chunk, "more_body": number + 1 < len(chunks)}
    while True:
        yield {"type": "http.disconnect"}


async def sent(
    app: Any,
    method: str = "POST",
    path: str = "/v1/answers",
    *headers: tuple[str, str | bytes],
    chunks: Sequence[bytes] = (b"{}",),
    messages: Callable[[], Awaitable[dict[str, Any]]] | None = None,
    **scope: Any,
) -> Reply:
    """Send a request to an ASGI application; a Host header is added unless there is one."""
    given = [(name.lower().encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers]
    if not any(name == b"host" for name, _ in given):
        given.append((b"host", b"localhost:8000"))
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": given,
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50_000),
        "read": [],
    } | scope
    incoming, out, received = iter(body_of(chunks)), [], 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return next(incoming) if messages is None else await messages()

    async def send(message: dict[str, Any]) -> None:
        out.append(message)

    await app(scope, receive, send)
    status = out[0]["status"] if out else 0
    replied = {name.decode(): value.decode() for name, value in (out[0]["headers"] if out else ())}
    assert not out or (out[-1]["type"] == "http.response.body" and not out[-1].get("more_body"))
    body = b"".join(message.get("body", b"") for message in out[1:])
    return Reply(status, replied, body, scope, scope["read"], received)


def talk(settings: ServeSettings, *request: Any, **options: Any) -> Reply:
    return asyncio.run(sent(Guard(echo, settings), *request, **options))


def post(settings: ServeSettings, *headers: tuple[str, str | bytes], **options: Any) -> Reply:
    return talk(
        settings, "POST", options.pop("path", "/v1/answers"), JSON, ("Content-Length", "2"), *headers, **options
    )


OPEN = ServeSettings()


# --- the body


def test_a_body_reaches_the_application_as_one_piece() -> None:
    reply = post(OPEN, chunks=[b"{", b"", b"}"])
    assert (reply.status, reply.read, reply.scope["spanqa.body_bytes"]) == (200, [b"{}"], 2)


@pytest.mark.parametrize(
    "length", ["1001", "10" * 20, "9" * 5_000], ids=["one too many", "many digits", "more than int takes"]
)
def test_a_body_that_says_it_is_too_large_is_not_read(length: str) -> None:
    reply = talk(
        ServeSettings(max_body=1_000), "POST", "/", JSON, ("Content-Length", length), ("Expect", "100-continue")
    )
    assert (reply.error_type, reply.read, reply.received) == ("body_too_large", [], 0)
    assert reply.headers["connection"] == "close"
    assert "1,000 bytes" in reply.error


@pytest.mark.parametrize("header", [("Content-Length", "2"), ("Transfer-Encoding", "chunked")])
def test_a_body_that_is_larger_than_it_says_is_cut_off(header: tuple[str, str]) -> None:
    largest = ServeSettings(max_body=1_000)
    assert talk(largest, "POST", "/", JSON, header, chunks=[b"x" * 500] * 2).status == 200
    reply = talk(largest, "POST", "/", JSON, header, chunks=[b"x" * 500] * 3)
    assert (reply.error_type, reply.read) == ("body_too_large", [])
    assert "connection" not in reply.headers  # all of it has come


def test_what_is_read_of_a_body_without_end_is_bounded() -> None:
    async def endless() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 1_000_000, "more_body": True}

    reply = talk(ServeSettings(max_body=1_000), "POST", "/", JSON, ("Content-Length", "2"), messages=endless)
    assert reply.error_type == "body_too_large"
    assert reply.headers["connection"] == "close"
    assert reply.received < 50


def test_a_body_that_comes_too_slowly_is_given_up() -> None:
    async def slow() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    settings = ServeSettings(body_seconds=0.1)
    reply = talk(settings, "POST", "/", JSON, ("Content-Length", "1000"), messages=slow)
    assert (reply.error_type, reply.headers["connection"]) == ("request_timeout", "close")
    assert "0.1 seconds" in reply.error
    assert (
        reply.received <= 60
    )  # each took 0.02 seconds or more: 0.1 seconds, and then one to see whether the client ends


def test_a_client_that_goes_while_it_sends_gets_nothing() -> None:
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def going() -> dict[str, Any]:
        return next(parts)

    reply = talk(OPEN, "POST", "/", JSON, ("Content-Length", "1000"), messages=going)
    assert (reply.status, reply.read) == (0, [])
    assert reply.scope["spanqa.problem"].error_type == "client_gone"


def test_bodies_that_arrive_are_bounded_together_and_forgotten_at_the_end() -> None:
    guard = Guard(echo, ServeSettings(max_bytes=1_000))
    more = asyncio.Event()

    parts = iter([b"x" * 800, b""])

    async def held() -> dict[str, Any]:
        part = next(parts)
        if not part:
            await more.wait()
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def main() -> tuple[Reply, Reply, Reply]:
        form = ("POST", "/", JSON, ("Content-Length", "800"))
        first = asyncio.ensure_future(sent(guard, *form, messages=held))
        await asyncio.sleep(0.01)
        second = await sent(guard, *form, chunks=[b"x" * 300])
        more.set()
        done = await first
        return done, second, await sent(guard, *form, chunks=[b"x" * 300])

    first, second, third = asyncio.run(main())
    assert (first.status, second.error_type, third.status) == (200, "overloaded", 200)
    assert int(second.headers["retry-after"]) >= 1


def test_a_request_without_a_body_is_not_waited_for() -> None:
    assert talk(OPEN, "GET", "/info", chunks=[b""]).received == 1  # by the application


# --- what the body is said to be


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=utf-8", "application/ld+json"],
)
def test_json_may_be_called_so_in_many_ways(kind: str) -> None:
    assert talk(OPEN, "POST", "/", ("Content-Type", kind), ("Content-Length", "2")).status == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json", None, "\xe9"]
)
def test_json_needs_its_content_type(kind: str | None) -> None:
    headers = [("Content-Length", "2")] if kind is None else [("Content-Type", kind), ("Content-Length", "2")]
    reply = talk(OPEN, "POST", "/", *headers)
    assert (reply.error_type, reply.read) == ("unsupported_media_type", [])


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/invocations", "/vertex/predict"])
def test_clients_of_some_protocols_send_no_content_type(path: str) -> None:
    guard = Guard(echo, OPEN, untyped=["/vertex/predict"])
    assert asyncio.run(sent(guard, "POST", path, ("Content-Length", "2"))).status == 200
    refused = asyncio.run(sent(guard, "POST", path + "x/../v1", ("Content-Length", "2"), ("Content-Encoding", "gzip")))
    assert refused.error_type == "unsupported_media_type"


def test_a_compressed_body_is_refused() -> None:
    assert post(OPEN, ("Content-Encoding", "identity")).status == 200
    assert "Content-Encoding" in post(OPEN, ("Content-Encoding", "gzip")).error


def test_parameters_in_the_query_are_refused_by_name() -> None:
    reply = post(OPEN, query_string=b"top_k=3")
    assert (reply.error_type, reply.read) == ("validation", [])
    assert "unknown parameter 'top_k'" in reply.error
    assert post(OPEN, query_string=b"").status == 200
    assert talk(OPEN, "GET", "/", query_string=b"from=mail", chunks=[b""]).status == 200
    odd = post(OPEN, query_string=b"%ff%0a\xe9" * 1_000)
    assert odd.error_type == "validation"
    assert len(odd.body) < 600


# --- hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "page.localhost",
        "localhost.",
        "127.0.0.1:8000",
        "10.42.0.7",
        "[::1]:8000",
        "[fe80::1]",
    ],
)
def test_addresses_and_localhost_are_known(host: str) -> None:
    assert post(OPEN, ("Host", host)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.1"]
)
def test_another_name_is_misdirected(host: str) -> None:
    reply = post(OPEN, ("Host", host))
    assert (reply.error_type, reply.read) == ("misdirected", [])
    assert "--allowed-host" in reply.error


def test_other_names_are_known_if_listed_or_with_keys_or_on_a_unix_socket_or_for_probes() -> None:
    name = ("Host", "Spanqa.default.svc:80")
    assert post(OPEN, name).error_type == "misdirected"
    assert post(ServeSettings(hosts=("spanqa.default.SVC",)), name).status == 200
    assert post(ServeSettings(hosts=("*",)), name).status == 200
    assert post(KEYED, name, ("X-API-Key", KEY)).status == 200
    assert post(OPEN, name, server=("/run/spanqa.sock", None)).status == 200
    assert talk(OPEN, "GET", "/ready", name, chunks=[b""]).status == 200
    guard = Guard(echo, OPEN, probes=["/alive"])
    assert asyncio.run(sent(guard, "GET", "/alive", name, chunks=[b""])).status == 200


@pytest.mark.parametrize("host", [b"", b"a b", b"a/b", b"\xff\xfe", b"[::1", b"a:b:c", b"localhost@evil.example"])
def test_a_host_that_is_none_is_refused(host: bytes) -> None:
    assert post(OPEN, ("Host", host)).error_type == "bad_request"


def test_two_hosts_are_refused_and_none_is_an_old_probe() -> None:
    assert post(OPEN, ("Host", "localhost"), ("Host", "localhost")).error_type == "bad_request"
    guard = Guard(echo, OPEN)
    assert asyncio.run(sent(guard, "GET", "/info", chunks=[b""], headers=[])).status == 200


# --- origins


def test_the_page_may_ask_from_its_own_origin() -> None:
    assert post(OPEN, ("Origin", "http://localhost:8000")).status == 200
    assert post(OPEN, ("Origin", "https://localhost"), ("Host", "localhost")).status == 200  # TLS ends at the proxy
    assert post(OPEN, ("Origin", "http://127.0.0.1"), ("Host", "127.0.0.1:80")).status == 200
    behind = ServeSettings(hosts=("qa.example.org",))
    assert post(behind, ("Origin", "https://qa.example.org"), ("Host", "10.0.0.7:8000")).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:8001",
        "null",
        "",
        "http://[::1",
        "file://",
        "http://localhost:8000/x",
        b"\xff",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_pages_of_other_origins_may_not(origin: str | bytes, method: str) -> None:
    reply = talk(
        OPEN, method, "/v1/answers", JSON, ("Origin", origin), ("Access-Control-Request-Method", "POST"), chunks=[b""]
    )
    assert (reply.error_type, reply.read) == ("forbidden_origin", [])
    assert "access-control-allow-origin" not in reply.headers


def test_a_form_of_another_site_is_refused_but_a_link_is_not() -> None:
    assert post(OPEN, ("Sec-Fetch-Site", "cross-site")).error_type == "forbidden_origin"
    assert post(OPEN, ("Sec-Fetch-Site", "same-origin")).status == 200
    assert talk(OPEN, "GET", "/", ("Sec-Fetch-Site", "cross-site"), chunks=[b""]).status == 200


def test_origins_that_are_listed_get_cors() -> None:
    settings = ServeSettings(cors_origins=("https://app.example.org",), keys=KEYED.keys)
    origin = ("Origin", "https://app.example.org")
    preflight = talk(
        settings, "OPTIONS", "/v1/answers", origin, ("Access-Control-Request-Method", "POST"), chunks=[b""]
    )
    assert (preflight.status, preflight.body, preflight.read) == (204, b"", [])
    assert preflight.headers["access-control-allow-origin"] == "https://app.example.org"
    assert "X-API-Key" in preflight.headers["access-control-allow-headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    answer = post(settings, origin, ("X-API-Key", KEY))
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://app.example.org")
    assert answer.headers["vary"] == "Origin"
    refused = post(settings, origin)  # its page may read why
    assert (refused.error_type, refused.headers["access-control-allow-origin"]) == (
        "unauthorized",
        "https://app.example.org",
    )
    assert post(settings, ("Origin", "https://app.example.org.evil.example")).error_type == "forbidden_origin"
    everyone = ServeSettings(cors_origins=("*",))
    assert post(everyone, ("Origin", "https://any.example")).status == 200
    assert post(everyone, ("Origin", "null")).error_type == "forbidden_origin"
    assert talk(settings, "OPTIONS", "/v1/answers", ("X-API-Key", KEY), chunks=[b""]).read == [b""]  # no preflight


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "null", "ftp://x"])
def test_a_listed_origin_must_be_one(origin: str) -> None:
    with pytest.raises(InputError, match=r"expected an origin such as https://example\.org"):
        Guard(echo, ServeSettings(cors_origins=(origin,)))


# --- keys


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {KEY}")],
        [("authorization", f"bearer  {OTHER} ")],
        [("X-API-Key", KEY)],
        [("X-API-Key", KEY), ("Authorization", f"Bearer {KEY}")],
        [("X-API-Key", KEY), ("Authorization", "Basic dXNlcjpwYXNz")],
    ],
)
def test_a_key_is_taken_from_two_headers(headers: list[tuple[str, str]]) -> None:
    reply = post(KEYED, *headers)
    assert reply.status == 200
    assert reply.scope["spanqa.key"] in (digest(KEY)[:8], digest(OTHER)[:8])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-API-Key", "")],
        [("X-API-Key", KEY[:-1])],
        [("X-API-Key", KEY + "x")],
        [("X-API-Key", digest(KEY))],
        [("Authorization", KEY)],
        [("Authorization", f"Basic {KEY}")],
        [("X-API-Key", KEY), ("X-API-Key", OTHER)],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer wrong-and-long-enough")],
        [("X-API-Key", b"\xff\x00" * 12)],
    ],
)
def test_without_a_known_key_nothing_is_read(headers: list[tuple[str, str | bytes]]) -> None:
    reply = post(KEYED, *headers)
    assert (reply.error_type, reply.read, reply.scope["spanqa.key"]) == ("unauthorized", [], None)
    assert reply.headers["www-authenticate"] == "Bearer"
    assert KEY not in reply.error


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/docs/swagger-ui.css",
        "/assets/app.js",
        "/openapi.json",
        "/health",
        "/ready",
        "/ping",
        "/v2/health/live",
        "/metrics",
    ],
)
def test_health_and_the_page_need_no_key(path: str) -> None:
    assert talk(KEYED, "GET", path, chunks=[b""]).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/info"),
        ("GET", "/v2"),
        ("POST", "/"),
        ("POST", "/docs"),
        ("GET", "/v2/models"),
        ("GET", "/docsx"),
        ("GET", "//health"),
    ],
)
def test_everything_else_does(method: str, path: str) -> None:
    assert talk(KEYED, method, path, chunks=[b""]).error_type == "unauthorized"


def test_the_metrics_are_open_or_not() -> None:
    def get(settings: ServeSettings, *headers: tuple[str, str], **scope: Any) -> Reply:
        return talk(settings, "GET", "/metrics", *headers, chunks=[b""], **scope)

    closed = ServeSettings(open_metrics=False, keys=KEYED.keys)
    assert get(KEYED).status == 200
    assert get(closed).error_type == "unauthorized"
    assert get(closed, ("X-API-Key", KEY)).status == 200
    assert get(ServeSettings(open_metrics=False)).error_type == "not_found"
    own = {"spanqa.metrics_address": True}
    assert get(closed, ("Host", "prometheus.example"), **own).status == 200


def test_under_a_root_path_the_same_holds() -> None:
    assert talk(KEYED, "GET", "/qa/health", root_path="/qa", chunks=[b""]).status == 200
    assert talk(KEYED, "GET", "/qa", root_path="/qa", chunks=[b""]).status == 200
    assert talk(KEYED, "GET", "/qa/info", root_path="/qa", chunks=[b""]).error_type == "unauthorized"


def test_settings_hold_digests_and_show_no_key() -> None:
    assert KEY not in repr(KEYED)
    with pytest.raises(InputError, match="no SHA-256"):
        Guard(echo, ServeSettings(keys=(KEY,)))


def test_keys_are_read_from_a_file_and_the_environment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "spanqa.serve.keys")
    path = tmp_path / "keys"
    path.write_text(f"\ufeff# for tests\n\n  {KEY}  \n{OTHER}\r\n", "utf-8")
    path.chmod(0o600)
    assert read_keys(path, {}) == (digest(KEY), digest(OTHER))
    third = "a-key-of-24-characters-3"
    assert read_keys(path, {"SPANQA_API_KEYS": f" {OTHER},\n{third} "}) == (digest(KEY), digest(OTHER), digest(third))
    assert read_keys(None, {}) == ()
    assert not caplog.records
    if os.name == "posix":
        path.chmod(0o644)
        read_keys(path, {})
        assert "chmod 600" in caplog.text
        assert KEY not in caplog.text
        path.chmod(0o620)
        with pytest.raises(InputError, match="Other users can write the file"):
            read_keys(path, {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"# none\n", "holds no key"),
        (b"\n0123456789abcde\n", r"line 2: an API key has 15 characters; expected at least 16"),
        (b"two words of a key\n", "which no header can carry"),
        ("schlüssel-mit-umlaut".encode(), "which no header can carry"),
        (b"\xff\xfe", "is not text in UTF-8"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match=words) as caught:
        read_keys(path, {})
    assert "0123456789abcde" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "missing", {})
    with pytest.raises(InputError, match="SPANQA_API_KEYS is set, but holds no key"):
        read_keys(None, {"SPANQA_API_KEYS": " , "})
    with pytest.raises(InputError, match=r"SPANQA_API_KEYS: an API key has 5 characters"):
        read_keys(None, {"SPANQA_API_KEYS": "short"})


# --- rates


def limited(per_minute: float, **options: Any) -> tuple[RateLimiter, Callable[[float], None]]:
    now = [1_000.0]

    def forward(seconds: float) -> None:
        now[0] += seconds

    return RateLimiter(per_minute, clock=lambda: now[0], **options), forward


def test_as_many_as_are_allowed_in_a_minute_may_come_at_once() -> None:
    limiter, forward = limited(60)
    assert [limiter.wait("a") for _ in range(60)] == [0.0] * 60
    assert limiter.wait("a") == pytest.approx(1.0)
    assert limiter.wait("b") == 0.0
    forward(0.5)
    assert limiter.wait("a") == pytest.approx(0.5)  # to be refused costs nothing
    forward(0.5)
    assert limiter.wait("a") == 0.0
    assert limiter.wait("a") > 0.0
    forward(3_600)
    assert [limiter.wait("a") for _ in range(61)].count(0.0) == 60


def test_less_than_one_a_minute_can_be_allowed() -> None:
    limiter, forward = limited(0.5)
    assert (limiter.wait("a"), limiter.wait("a")) == (0.0, pytest.approx(120.0))
    forward(120)
    assert limiter.wait("a") == 0.0


@given(st.floats(0.1, 200), st.lists(st.floats(0, 30), max_size=100))
def test_no_stretch_of_time_has_more_than_its_share(per_minute: float, pauses: list[float]) -> None:
    limiter, forward = limited(per_minute)
    now, let_in = 0.0, []
    for pause in pauses:
        forward(pause)
        now += pause
        if limiter.wait("a") == 0.0:
            let_in.append(now)
    for first, start in enumerate(let_in):
        for last in range(first, len(let_in)):
            most = max(1.0, per_minute) + (let_in[last] - start) * per_minute / 60
            assert last - first + 1 <= most + 1e-6


def test_a_limiter_remembers_only_so_many() -> None:
    limiter, _ = limited(1, most=3)
    for name in "abcd":
        assert limiter.wait(name) == 0.0
    assert len(limiter) == 3
    assert limiter.wait("d") > 0.0
    assert limiter.wait("a") == 0.0  # was forgotten


def test_each_key_has_its_rate_and_without_keys_each_address() -> None:
    async def statuses(settings: ServeSettings, *requests: dict[str, Any]) -> list[Reply]:
        guard = Guard(echo, settings)
        return [
            await sent(guard, "POST", "/", JSON, ("Content-Length", "2"), *each.pop("headers", ()), **each)
            for each in requests
        ]

    mine, yours = {"headers": [("X-API-Key", KEY)]}, {"headers": [("X-API-Key", OTHER)]}
    by_key = asyncio.run(statuses(ServeSettings(keys=KEYED.keys, rate_limit=2), *map(dict, (mine, mine, mine, yours))))
    assert [each.status for each in by_key] == [200, 200, 429, 200]
    assert (by_key[2].error_type, by_key[2].read) == ("rate_limited", [])
    assert 30 <= int(by_key[2].headers["retry-after"]) <= 31
    clients = [
        {"client": (each, 1)}
        for each in ("10.0.0.1", "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")
    ]
    by_address = asyncio.run(statuses(ServeSettings(rate_limit=1), *clients, {"client": None}))
    assert [each.status for each in by_address] == [200, 429, 200, 200, 429, 200, 200]


def test_health_is_not_limited() -> None:
    guard = Guard(echo, ServeSettings(rate_limit=1))

    async def main() -> list[int]:
        return [(await sent(guard, "GET", "/ready", chunks=[b""])).status for _ in range(3)]

    assert asyncio.run(main()) == [200, 200, 200]


# --- responses


@pytest.mark.parametrize("given", ["abc-123", "!" * 100, "00-trace/id~"])
def test_a_request_id_comes_back(given: str) -> None:
    reply = post(OPEN, ("X-Request-Id", given))
    assert (reply.headers["x-request-id"], reply.scope["spanqa.request_id"]) == (given, given)
    assert post(OPEN, ("X-Request-Id", given), ("Origin", "null")).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 101, "é", b"\xff", "a\r\nSet-Cookie: a=b", "a\x00b"])
def test_a_request_id_that_cannot_be_sent_back_is_replaced(given: str | bytes) -> None:
    first, second = (post(OPEN, ("X-Request-Id", given)).headers["x-request-id"] for _ in range(2))
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert first != second


def test_every_response_has_headers_for_safety() -> None:
    for reply in (post(OPEN), post(OPEN, ("Host", "evil.example")), talk(OPEN, "GET", "/nope", chunks=[b""])):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-store"


def test_the_application_may_choose_its_own_headers() -> None:
    async def asset(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Cache-Control", b"max-age=60")]})
        await send({"type": "http.response.body"})

    headers = asyncio.run(sent(Guard(asset, OPEN), "GET", "/assets/a.js", chunks=[b""])).headers
    assert (headers["Cache-Control"], "cache-control" in headers) == ("max-age=60", False)


def test_an_application_that_fails_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("what the user wrote")

    reply = asyncio.run(sent(Guard(fails, OPEN), "GET", "/info", chunks=[b""]))
    assert reply.error_type == "internal"
    assert "user" not in reply.error
    assert [record.getMessage() for record in caplog.records] == ["a request failed: RuntimeError"]
    with pytest.raises(RuntimeError):  # the connection is cut, so that nobody takes a part for the whole
        asyncio.run(sent(Guard(fails, OPEN), "GET", "/late", chunks=[b""]))


_bytes = st.binary(max_size=40)
_names = st.sampled_from(
    ["host", "origin", "authorization", "x-api-key", "content-type", "content-length", "content-encoding", "x-request-id",
     "traceparent", "sec-fetch-site", "transfer-encoding", "expect", "access-control-request-method", "x-forwarded-for"]
)  # fmt: skip


@given(
    st.lists(st.tuples(_names, _bytes), max_size=8),
    st.sampled_from(["GET", "POST", "OPTIONS", "BREW"]),
    st.text(max_size=10).map("/".__add__),
    _bytes,
    st.sampled_from([OPEN, ServeSettings(keys=KEYED.keys, cors_origins=("*",), rate_limit=1e6)]),
)
def test_whatever_the_headers_hold_there_is_a_clear_answer(
    headers: list[tuple[str, bytes]], method: str, path: str, query: bytes, settings: ServeSettings
) -> None:
    reply = talk(settings, method, path, *headers, query_string=query)
    assert reply.status == 204 or reply.read or reply.error_type != "internal"
    assert not any(set(value) & set("\r\n\x00") for value in reply.headers.values())
