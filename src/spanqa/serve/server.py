"""A process that serves: it listens at once, loads the model, warms up, answers, and drains when it is told to end.

    loading ──► ready ──► draining ──► end
    /ready 503   200       503          drain delay: requests are still accepted, on connections that are closed behind them
                                        then the listener closes, and requests in work have `drain_timeout` to finish

`run` serves in this process, or supervises several (`spanqa.serve.workers`). TLS ends at a proxy.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spanqa.reader import Reader
from spanqa.serve.app import make_app
from spanqa.serve.connections import BoundedConnection, Connections
from spanqa.serve.listening import BACKLOG, ServerOptions, connection_limit, listening, urls
from spanqa.serve.problems import Problem, response_of
from spanqa.serve.service import Service
from spanqa.windows import cut

MakeService = Callable[[], Service]
Load = Callable[[], Reader]
Say = Callable[[str], None]

FAST = 0.9
"""A batch is read fast at this share of the best speed."""

WARM_SECONDS = 5.0
"""So long a smaller batch is looked for."""

METRICS_PATHS = ("/metrics", "/health", "/ready")
"""What the address of the metrics shows."""


def run(
    make_service: MakeService,
    load: Load,
    options: ServerOptions,
    *,
    say: Say,
    when_ready: Callable[[str], None] = lambda url: None,
) -> int:
    """Serve until a signal says to end, and return the exit code.

    SIGTERM drains; so does Ctrl-C, without the delay: a person has no balancer. A second signal ends at once. `make_service` and
    `load` are called in each process that serves; with several workers they must be picklable. `say` gets lines for people, and
    `when_ready` the address, once requests are answered.

    Raises:
        InputError: an address cannot be had, or more connections are wanted than the system allows.
        SpanQAError: the model cannot be loaded.
    """
    limit = connection_limit(options)
    with listening(options) as sockets:
        addresses = urls(sockets)
        metrics = f", metrics on {addresses[1]}/metrics" if len(addresses) > 1 else ""
        listens = f"Listening on {addresses[0]}{metrics}."

        def ready(text: str) -> None:
            say(text)
            when_ready(addresses[0])

        if options.workers > 1:
            from spanqa.serve.workers import supervise

            say(listens)
            return supervise(make_service, load, sockets, options, limit, say=say, ready=ready)
        server = Server(make_service(), load, sockets, options, limit, ready=ready)
        with signals(server.drain, options.drain_delay, partial(_end_at_once, options)):
            say(listens)  # who reads it may send signals
            server.run(sockets)
        if server.cut_off:
            say(f"{server.cut_off} requests were not answered in {options.drain_timeout:g} seconds, and were given up.")
    return 0


class Server(uvicorn.Server):
    """uvicorn's server with our life cycle; `run` returns when it has drained, and raises the error of a model that cannot be loaded.

    `ready` is called with one line for people.
    """

    def __init__(
        self,
        service: Service,
        load: Load,
        sockets: Sequence[socket.socket],
        options: ServerOptions,
        limit: int,
        *,
        ready: Callable[[str], None],
    ) -> None:
        self.service, self.cut_off = service, 0
        self._load, self._ready = load, ready
        self._leave_at: float | None = None
        self._loaded: tuple[Reader, float, str] | BaseException | None = None
        metrics_port = sockets[1].getsockname()[1] if len(sockets) > 1 else None
        shared = Connections(limit, service.settings.body_seconds)
        connection: Any = partial(BoundedConnection, shared=shared)
        super().__init__(
            uvicorn.Config(
                cast(Any, _Front(make_app(service), service, metrics_port)),
                http=connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                forwarded_allow_ips=options.forwarded_allow_ips,
                root_path=options.root_path,
                timeout_keep_alive=cast(int, options.keep_alive),
                timeout_graceful_shutdown=cast(int, options.drain_timeout),
                backlog=BACKLOG,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None, *, at_once: bool = True) -> None:
        """Load and serve, until it has drained. Unless `at_once`, connections are left to others until the model is loaded."""
        loading = threading.Thread(target=self._prepare, name="spanqa-load", daemon=True)
        loading.start()
        while not at_once and loading.is_alive() and self._leave_at is None:
            loading.join(0.1)
        if at_once or (isinstance(self._loaded, tuple) and self._leave_at is None):
            super().run(sockets)
        self.service.close()
        if isinstance(self._loaded, BaseException):
            raise self._loaded

    def drain(self, delay: float) -> None:
        """Begin to end; requests are accepted for so many seconds more. Safe to call in signal handlers and threads."""
        if self.service.state == "loading":  # nobody sends requests here
            delay = 0.0
        self.service.drain()
        leave_at = time.monotonic() + delay
        self._leave_at = leave_at if self._leave_at is None else min(self._leave_at, leave_at)

    def _prepare(self) -> None:
        try:
            for prepare in self.service.when_loading:
                prepare()
            reader = self._load()
            speed = warm_up(reader)
            backend = reader.backend
            took = time.monotonic() - self.service.started
            self._loaded = (
                reader,
                speed,
                (
                    f"Ready in {took:.1f} s: {self.service.name or reader.checkpoint.path.name} on {backend.name} ({backend.device}, "
                    f"{backend.dtype}) reads {speed:,.0f} tokens a second."
                ),
            )
        except BaseException as error:
            self._loaded = error

    def _take_loaded(self) -> None:
        if isinstance(self._loaded, tuple) and self.service.state == "loading":
            reader, speed, text = self._loaded
            self.service.start(reader, speed)
            self._ready(text)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; where the model is there already, nobody is told that it is being loaded."""
        self._take_loaded()
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Take what the loading thread has left, and leave when it is time; uvicorn calls this ten times a second."""
        self._take_loaded()
        if isinstance(self._loaded, BaseException):
            return True
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, and wait for requests in work as long as they may take."""
        began = time.monotonic()
        await super().shutdown(sockets)
        if time.monotonic() - began >= (self.config.timeout_graceful_shutdown or 0):
            self.cut_off = len(self.server_state.tasks)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `signals`: uvicorn would raise them again at the end, and the exit code would not be 0."""
        yield


def warm_up(reader: Reader) -> float:
    """Read batches of several sizes, let the engine use the smallest that is read fast, and return tokens a second.

    Fast is 90 % of the best speed. On a CPU that may be a single window, on a GPU a full batch. A small batch ends sooner, so that a
    question that has just come waits less.
    """
    engine, size = reader.engine, reader.backend.batch_tokens
    passage = reader.prepare("word " * 2 * size)
    windows = cut("What is it?", [passage], reader.checkpoint.tokenizer, reader.windows)[0]
    length = len(windows[0])
    counts = [1]
    while 2 * counts[-1] * length <= size:
        counts.append(2 * counts[-1])

    def speed(count: int) -> float:
        began = time.perf_counter()
        engine.submit(windows[:count]).result()
        return count * length / (time.perf_counter() - began)

    speed(1)
    speed(counts[-1])
    best = speed(counts[-1])
    until = time.perf_counter() + WARM_SECONDS
    for count in counts[:-1]:
        found = max(speed(count), speed(count))
        if found >= FAST * best:
            engine.batch_tokens = count * length
            return found
        if time.perf_counter() > until:
            break
    return best


class _Front:
    """The application as it is seen from outside: closing connections while it drains, the metrics on an address of their own."""

    def __init__(self, app: ASGIApp, service: Service, metrics_port: int | None) -> None:
        self.app, self.service, self.metrics_port = app, service, metrics_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.metrics_port is not None and (scope.get("server") or ("", None))[1] == self.metrics_port:
            scope["spanqa.metrics_address"] = True
            if scope["path"].removeprefix(scope.get("root_path", "")) not in METRICS_PATHS:
                problem = Problem("not_found", f"This address shows {', '.join(METRICS_PATHS)}.")
                await response_of(problem)(scope, receive, send)
                return

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self.service.state == "draining":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self.app(scope, receive, send_closing)


@contextlib.contextmanager
def signals(drain: Callable[[float], None], delay: float, at_once: Callable[[int], None]) -> Iterator[None]:
    """Let the first signal drain, and the second one end at once. One that is ignored, as `nohup` does, stays so."""
    seen: list[int] = []

    def handle(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            at_once(number)
        drain(delay if number == signal.SIGTERM else 0.0)

    before = {}
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_once(options: ServerOptions, number: int) -> None:
    if options.uds is not None:
        with contextlib.suppress(OSError):
            options.uds.unlink()
    os._exit(128 + number)
