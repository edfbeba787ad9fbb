"""Who may ask, and how much: what is checked of each request before a route sees it. Pure ASGI; it knows paths, but no route.

    host      Without keys, the Host header must be an address, localhost, or one of `settings.hosts`: a page of a stranger whose name
              was made to point at this machine (DNS rebinding) sends its own name. "*" allows every name. A load balancer or probe
              that uses an address passes; a service name such as spanqa.default.svc must be listed. With keys every name is fine,
              since such a page has no key; so it is for health routes, on a unix socket, on the address of the metrics, and without
              the header, which every browser sends.
    origin    A web page of another origin may not ask, unless it is one of `settings.cors_origins`, for which CORS is answered. The
              page's own origin is that of the Host header, or any on a name of `settings.hosts`. "null" is no origin.
    key       `Authorization: Bearer KEY` or `X-API-Key: KEY`, if there are any keys. Health routes and the page need none, and
              /metrics needs none if `settings.open_metrics`; if not, a server without keys has no /metrics.
    rate      `settings.rate_limit` requests a minute for each key, or each client's address; an IPv6 network of 64 bits is one client.
    form      JSON needs its Content-Type, since a form of any page can send other types; Open Inference, SageMaker and Vertex routes
              do not, since their clients send none. Parameters are in the body and not in the query.
    body      It is read here, at most `settings.max_body` bytes in `settings.body_seconds`, whatever Content-Length says.

What is refused gets the one form of error (`spanqa.serve.problems`). Every response gets X-Request-Id and headers for safety.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Collection
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spanqa.errors import InputError
from spanqa.serve.keys import known
from spanqa.serve.limiter import RateLimiter
from spanqa.serve.problems import Problem, problem_of, response_of
from spanqa.serve.settings import ServeSettings

_LOG = logging.getLogger(__name__)

PROBES = frozenset({"/health", "/ready", "/ping", "/v2/health/live", "/v2/health/ready"})
"""Routes that load balancers and platforms ask; they say nothing about texts."""

_PAGE = re.compile(r"/|/docs(/.*)?|/assets/.*|/openapi\.json")
_UNTYPED = re.compile(r"/v2(/.*)?|/invocations")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")

_SAFETY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST"),
    (
        b"access-control-allow-headers",
        b"Authorization, Content-Type, Inference-Header-Content-Length, Traceparent, X-API-Key, X-Request-Id",
    ),
    (b"access-control-max-age", b"600"),
]
_EXPOSED = b"Inference-Header-Content-Length, Retry-After, X-Request-Id"

_Headers = dict[bytes, list[bytes]]


class Guard:
    """ASGI middleware that checks each request; `probes` and `untyped` are further routes for health and without Content-Type.

    In the scope, `spanqa.metrics_address` says that a request came to an address that shows no answers. It leaves there
    `spanqa.request_id`, `spanqa.key` (the beginning of the key's digest, or None), `spanqa.body_bytes`, and
    `spanqa.problem` where it refuses.

    Raises:
        InputError: an origin or a key's digest in the settings is none.
    """

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, *, probes: Collection[str] = (), untyped: Collection[str] = ()
    ) -> None:
        self.app, self.settings = app, settings
        self._probes, self._untyped = PROBES | set(probes), frozenset(untyped)
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        self._origins = frozenset(origin.lower() for origin in settings.cors_origins)
        self._limiter = None if settings.rate_limit is None else RateLimiter(settings.rate_limit)
        self._arriving = 0  # bytes of bodies that have not arrived as a whole
        for origin in self._origins - {"*"}:
            if not _ORIGIN.fullmatch(origin):
                raise InputError(f"cors_origins has {origin!r}; expected an origin such as https://example.org, or *.")
        if not all(re.fullmatch("[0-9a-f]{64}", each) for each in settings.keys):
            raise InputError("keys has something that is no SHA-256 in hexadecimal; spanqa.serve.keys makes them.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: _Headers = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        scope["spanqa.request_id"] = request_id = _request_id(headers)
        scope["spanqa.key"] = None
        response = _Response(send, [(b"x-request-id", request_id.encode()), *_SAFETY])
        body = _Body(receive, expected=b"expect" not in headers)
        try:
            origin = self._check_source(scope, headers)
            if origin is not None:
                response.headers += _cors(origin)
            if origin is not None and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await response.send({"type": "http.response.start", "status": 204, "headers": _PREFLIGHT})
                await response.send({"type": "http.response.body"})
                return
            self._check_key(scope, headers)
            if _has_body(headers) or scope["method"] not in _READS:
                self._check_form(scope, headers)
                await self._read(body, headers)
                scope["spanqa.body_bytes"] = len(body.content)
        except Problem as problem:
            scope["spanqa.problem"] = problem
            await _refuse(problem, body, response, scope)
            return
        await self._run(scope, body, response)

    async def _run(self, scope: Scope, body: "_Body", response: "_Response") -> None:
        try:
            await self.app(scope, body.replay, response.send)
        except Exception as error:
            answered = "spanqa.problem" in scope
            problem = scope.setdefault("spanqa.problem", problem_of(error))
            if not answered:
                _LOG.error("a request failed: %s", type(error).__name__, exc_info=error)
            if not response.started:
                await response_of(problem)(scope, body.replay, response.send)
            elif not answered:
                raise  # the server cuts the connection, so that the client sees that the response is not whole

    def _check_source(self, scope: Scope, headers: _Headers) -> str | None:
        """Check the host and the origin, and return the origin if it is a stranger's that may ask."""
        settings = self.settings
        hosts = headers.get(b"host", [])
        if len(hosts) > 1 or (hosts and not _HOST.fullmatch(hosts[0])):
            raise Problem("bad_request", "Send one Host header, with a name or an address.")
        host = hosts[0].decode().lower() if hosts else ""
        local = scope.get("server") is not None and scope["server"][1] is None  # a unix socket
        if hosts and not (settings.keys or local or self._is_operators(scope) or self._is_ours(host)):
            raise Problem(
                "misdirected",
                "This server does not know the name in the Host header. Its option --allowed-host lists the names.",
            )
        origins = headers.get(b"origin", [])
        if not origins:
            if headers.get(b"sec-fetch-site") == [b"cross-site"] and scope["method"] not in _READS:
                raise _foreign()
            return None
        origin = origins[0].decode("latin-1").lower()
        match = _ORIGIN.fullmatch(origin)
        if len(origins) > 1 or match is None:
            raise _foreign()
        if _without_port(origin.partition("://")[2]) == _without_port(host) or match[1] in self._hosts:
            return None
        if origin in self._origins or "*" in self._origins:
            return origin
        raise _foreign()

    def _is_operators(self, scope: Scope) -> bool:
        return route_path(scope) in self._probes or scope.get("spanqa.metrics_address", False)

    def _is_ours(self, host: str) -> bool:
        name = re.sub(r":[0-9]*$", "", host).rstrip(".")
        if name == "localhost" or name.endswith(".localhost") or name in self._hosts or "*" in self._hosts:
            return True
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name.strip("[]")))
        return False

    def _check_key(self, scope: Scope, headers: _Headers) -> None:
        """Check the key, and that its holder does not ask too often."""
        settings, path = self.settings, route_path(scope)
        if self._is_operators(scope) or (scope["method"] in _READS and _PAGE.fullmatch(path)):
            return
        if path == "/metrics" and (settings.open_metrics or not settings.keys):
            if not settings.open_metrics:
                raise Problem("not_found", "There is nothing at this address. GET /openapi.json lists what there is.")
            return
        who = _address(scope)
        if settings.keys:
            presented = _presented(headers)
            found = known(presented[0], settings.keys) if len(presented) == 1 else None
            if found is None:
                says = "This API key is not known." if presented else "An API key is needed."
                raise Problem(
                    "unauthorized",
                    f"{says} Send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
                    headers={"www-authenticate": "Bearer"},
                )
            who, scope["spanqa.key"] = found, found[:8]
        wait = 0.0 if self._limiter is None else self._limiter.wait(who)
        if wait:
            raise Problem(
                "rate_limited",
                f"At most {settings.rate_limit:g} requests a minute are allowed. Try again in {wait:.0f} seconds.",
                retry_after=wait,
            )

    def _check_form(self, scope: Scope, headers: _Headers) -> None:
        """Check what is said about a body: its type, its encoding, and that all parameters are in it."""
        path = route_path(scope)
        if any(each.strip().lower() not in (b"", b"identity") for each in headers.get(b"content-encoding", [])):
            raise Problem("unsupported_media_type", "Send the body without Content-Encoding.")
        if _has_body(headers) and not (_UNTYPED.fullmatch(path) or path in self._untyped or _is_json(headers)):
            raise Problem("unsupported_media_type", "Send JSON, with 'Content-Type: application/json'.")
        names = [
            name for name, _ in parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        ]
        if names:
            raise Problem(
                "validation", f"query: unknown parameter {names[0][:50]!a}. Parameters are fields of the body."
            )

    async def _read(self, body: "_Body", headers: _Headers) -> None:
        """Read the body as it arrives.

        Raises:
            Problem: it is too large or too slow, too many bodies arrive at once, or the client has gone.
        """
        settings = self.settings
        for length in headers.get(b"content-length", []):
            if length.isdigit() and (len(length) > 18 or int(length) > settings.max_body):
                raise _too_large(settings)
        chunks, size = [], 0
        try:
            async with asyncio.timeout(settings.body_seconds):
                while not body.whole:
                    chunks.append(await body.next())
                    size += len(chunks[-1])
                    self._arriving += len(chunks[-1])
                    if size > settings.max_body:
                        raise _too_large(settings)
                    if self._arriving > max(size, settings.max_bytes):
                        raise Problem("overloaded", "Too many bodies arrive at once. Try again later.", retry_after=1)
        except TimeoutError:
            raise Problem(
                "request_timeout", f"The body did not arrive within {settings.body_seconds:g} seconds."
            ) from None
        finally:
            self._arriving -= size
        if body.gone:
            raise Problem("client_gone", "The client has gone.")
        body.content = b"".join(chunks)
        body.read = True


class _Body:
    """The body of a request: as it arrives, and once more for the application."""

    def __init__(self, receive: Receive, *, expected: bool) -> None:
        self._receive = receive
        self.content = b""
        self.expected = expected  # the client sends it without being asked to
        self.whole = self.gone = self.read = False

    async def next(self) -> bytes:
        message = await self._receive()
        self.gone = message["type"] == "http.disconnect"
        self.whole = self.gone or not message.get("more_body", False)
        content: bytes = message.get("body", b"")
        return content

    async def skip(self, most: int, seconds: float) -> None:
        """Read on, and keep nothing of it, until the end or one of these limits."""
        until = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while not self.whole and most > 0 and time.monotonic() < until:
                async with asyncio.timeout(until - time.monotonic()):
                    most -= len(await self.next())

    async def replay(self) -> Message:
        if not self.read:
            return await self._receive()
        self.read = False
        content, self.content = self.content, b""
        return {"type": "http.request", "body": content, "more_body": False}


class _Response:
    """Sends a response, with some more headers than the application gave it."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self.headers = headers
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            given = list(message.get("headers", ()))
            present = {name.lower() for name, _ in given}
            message = {**message, "headers": given + [each for each in self.headers if each[0] not in present]}
        await self._send(message)


async def _refuse(problem: Problem, body: _Body, response: _Response, scope: Scope) -> None:
    """Say why a request is not answered.

    A client that still sends its body may miss what is said when the connection is cut. What is small is read and dropped; of what is
    not, a part is read after the response, and then the connection is closed.
    """
    if body.gone:
        return
    if body.expected:
        await body.skip(65_536, 0.02)
    said = response_of(problem)
    headers = said.raw_headers
    if not body.whole and scope.get("http_version", "1.1") in ("1.0", "1.1"):
        headers = [*headers, (b"connection", b"close")]
    await response.send({"type": "http.response.start", "status": said.status_code, "headers": headers})
    await response.send({"type": "http.response.body", "body": said.body, "more_body": not body.whole})
    if not body.whole:
        await body.skip(16_000_000, 1.0 if body.expected else 0.0)
        await response.send({"type": "http.response.body", "body": b""})


def route_path(scope: Scope) -> str:
    """Return the path below the place where the application is mounted."""
    path, root = str(scope["path"]), scope.get("root_path", "").rstrip("/")
    return (path[len(root) :] if path == root or path.startswith(root + "/") else path) or "/"


def _request_id(headers: _Headers) -> str:
    given = headers.get(b"x-request-id", [b""])[0]
    return given.decode() if re.fullmatch(rb"[!-~]{1,100}", given) else secrets.token_hex(8)


def _has_body(headers: _Headers) -> bool:
    return headers.get(b"content-length", [b"0"]) != [b"0"] or b"transfer-encoding" in headers


def _is_json(headers: _Headers) -> bool:
    kind = headers.get(b"content-type", [b""])[0].partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def _presented(headers: _Headers) -> list[bytes]:
    """Return the keys of a request, each once."""
    given = [value.strip() for value in headers.get(b"x-api-key", [])]
    for value in headers.get(b"authorization", []):
        scheme, _, key = value.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            given.append(key.strip())
    return list(dict.fromkeys(filter(None, given)))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    address = client[0] if client else ""
    if ":" in address:
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    return str(address)


def _without_port(host: str) -> str:
    return re.sub(r":(80|443)$", "", host)


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    ]


def _foreign() -> Problem:
    return Problem(
        "forbidden_origin",
        "A web page of this origin may not ask. The server's option --cors-origin lists those that may.",
    )


def _too_large(settings: ServeSettings) -> Problem:
    return Problem("body_too_large", f"The body has more than the {settings.max_body:,} bytes that are allowed.")
