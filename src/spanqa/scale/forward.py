"""HTTP requests from the process that took them to one that answers: whole there, and whole back. It knows nothing of Ray.

    client ──► ingress: routed ──► guard ──► Forward ──► a replica of the model: answer ──► serve's app

Which model a path means:

    /models/NAME/...                          the model of that name, with what follows as the path
    /v2/models/NAME..., /v1/models/NAME...    the model of that name (Open Inference Protocol, KServe)
    everything else                           the first model
    GET /models                               the names; /v1/models and /v2/repository/index list all models, too
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spanqa.errors import QueueFullError

_LOG = logging.getLogger(__name__)

Headers = tuple[tuple[bytes, bytes], ...]

_MOUNTED = re.compile(r"(/models/([^/]+))(/.*)?", re.DOTALL)
_NAMED = re.compile(r"/v[12]/models/([^/:]+)(?:[/:].*)?", re.DOTALL)
_LISTS = {("GET", "/v1/models"): "models", ("POST", "/v2/repository/index"): None}
"""Lists of models, and the field that holds each."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, whole. `path` begins with `root_path`."""

    method: str
    path: str
    root_path: str = ""
    query: bytes = b""
    headers: Headers = ()
    body: bytes = field(default=b"", repr=False)
    scheme: str = "http"
    http_version: str = "1.1"
    client: tuple[str, int] | None = None
    server: tuple[str, int | None] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, whole."""

    status: int
    headers: Headers = ()
    body: bytes = field(default=b"", repr=False)


class ReplicaLostError(Exception):
    """The process that worked on a request is gone, and nobody knows how far it came."""


Ask = Callable[[Sent], Awaitable[Reply]]
"""Have a request answered by some replica of a model. Raises QueueFullError and ReplicaLostError."""


GONE_SECONDS = 5.0
"""So long may an application take to end a request whose client has gone."""


async def answer(app: ASGIApp, sent: Sent) -> Reply:
    """Let an application answer a request in this process. When this task is cancelled, it is told that the client has gone."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": sent.http_version,
        "method": sent.method,
        "scheme": sent.scheme,
        "path": sent.path,
        "raw_path": None,
        "root_path": sent.root_path,
        "query_string": sent.query,
        "headers": list(sent.headers),
        "client": sent.client,
        "server": sent.server,
        "state": {},
    }
    bodies, gone = [sent.body], asyncio.Event()

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    task = asyncio.ensure_future(collect(app, scope, receive))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        gone.set()
        await asyncio.wait([task], timeout=GONE_SECONDS)
        task.cancel()
        raise


async def collect(app: ASGIApp, scope: Scope, receive: Receive) -> Reply:
    """Return the response of an application to a request that arrives."""
    status, parts = 500, list[bytes]()
    headers: Headers = ()

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = (
                message["status"],
                tuple((bytes(name), bytes(value)) for name, value in message["headers"]),
            )
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return Reply(status, headers, b"".join(parts))


def routed(app: ASGIApp) -> ASGIApp:
    """Return an application that knows under which path the model of a request is mounted, as the guard must."""

    async def mounting(scope: Scope, receive: Receive, send: Send) -> None:
        match = _MOUNTED.fullmatch(_below(scope))
        if match is not None:
            scope = {**scope, "root_path": scope.get("root_path", "").rstrip("/") + match[1]}
        await app(scope, receive, send)

    return mounting


def _below(scope: Scope) -> str:
    path, root = str(scope["path"]), scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


class Forward:
    """The application that hands each request to a replica of its model.

    A replica that dies under a request loses nothing: requests change nothing, so that another replica is asked, once. `seconds` is the
    longest time for both. A route of `probes` says 200 where the queue is full: a server that is busy is alive, and must not be
    restarted.
    """

    def __init__(self, models: Mapping[str, Ask], seconds: float, probes: Collection[str] = ()) -> None:
        self._models, self._seconds, self._probes = models, seconds, frozenset(probes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = await _read(scope, receive)
        reply = await self._reply(sent)
        await send({"type": "http.response.start", "status": reply.status, "headers": list(reply.headers)})
        await send({"type": "http.response.body", "body": b"" if sent.method == "HEAD" else reply.body})

    async def _reply(self, sent: Sent) -> Reply:
        below = sent.path.removeprefix(sent.root_path) or "/"
        mounted = re.search(r"/models/([^/]+)$", sent.root_path)
        named = _NAMED.fullmatch(below)
        name = mounted[1] if mounted else named[1] if named else next(iter(self._models))
        if name not in self._models:
            return refusal(404, "not_found", f"There is no such model here, only {', '.join(map(repr, self._models))}.")
        if mounted and sent.path == sent.root_path and sent.method in ("GET", "HEAD"):  # the page's links are relative
            return Reply(307, ((b"location", f"{name}/".encode()), (b"content-length", b"0")))
        if not mounted and (sent.method, below) == ("GET", "/models"):
            return _json(200, {"models": list(self._models)})
        if not mounted and (sent.method, below) in _LISTS:
            return _merged(
                await asyncio.gather(*(self._ask(each, sent) for each in self._models)), _LISTS[sent.method, below]
            )
        reply = await self._ask(name, sent)
        if reply.status == 429 and below in self._probes:
            return _json(200, {"status": "busy"})
        return reply

    async def _ask(self, name: str, sent: Sent) -> Reply:
        ask = self._models[name]
        try:
            async with asyncio.timeout(self._seconds):
                try:
                    return await ask(sent)
                except ReplicaLostError:
                    _LOG.warning("a replica of %s died under a request; another is asked", name)
                    return await ask(sent)
        except QueueFullError:
            return refusal(
                429,
                "overloaded",
                "All replicas are busy, and others wait already. Try again later.",
                ("retry-after", "1"),
            )
        except ReplicaLostError:
            says = "Two replicas died while they worked on this request. Try again later."
            return refusal(503, "loading", says, ("retry-after", "1"))
        except TimeoutError:
            says = "There was no answer before the deadline. Ask less at once, or try again later."
            return refusal(504, "deadline_exceeded", says)
        except Exception as error:
            _LOG.error("a request could not be handed to a replica of %s: %s", name, type(error).__name__)
            return refusal(500, "internal", "Something went wrong in the server. Its log says more.")


async def _read(scope: Scope, receive: Receive) -> Sent:
    """Return the request whole; the guard has seen to its size."""
    parts, more = list[bytes](), True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
    client, server = scope.get("client"), scope.get("server")
    return Sent(
        scope["method"],
        scope["path"],
        scope.get("root_path", ""),
        scope.get("query_string", b""),
        tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
        b"".join(parts),
        scope.get("scheme", "http"),
        scope.get("http_version", "1.1"),
        None if client is None else (client[0], client[1]),
        None if server is None else (server[0], server[1]),
    )


def refusal(status: int, error_type: str, message: str, *headers: tuple[str, str]) -> Reply:
    """Return the response to a request that is not answered, in the form that serve's app has."""
    return _json(status, {"error": message, "error_type": error_type}, *headers)


def _json(status: int, value: object, *headers: tuple[str, str]) -> Reply:
    body = json.dumps(value, separators=(",", ":")).encode()
    given = [("content-type", "application/json"), ("content-length", str(len(body))), *headers]
    return Reply(status, tuple((name.encode(), value.encode()) for name, value in given), body)


def _merged(replies: Sequence[Reply], name: str | None) -> Reply:
    """Return one list of the lists that all models gave, or what one of them said instead."""
    for reply in replies:
        if reply.status != 200:
            return reply
    lists = [json.loads(reply.body) for reply in replies]
    together = [each for one in lists for each in (one if name is None else one[name])]
    return _json(200, together if name is None else {name: together})
