"""Several processes that share one address, each with its own model, and the parent that keeps them running.

The parent opens the socket and every worker accepts from it. With SO_REUSEPORT each worker would have a queue of its own, and what
waits in it would be lost with the worker; here another one takes it.

    parent ──► worker     over a pipe: the drain delay. When the pipe breaks, the parent is gone, and the worker ends.
    worker ──► parent     that it is ready, or why it cannot be

A worker that ends is started again; one that has not become ready waits before that, longer each time. Where another one accepts
connections, a worker leaves them to it until it has loaded its model, so that nobody is told "loading" who could get an answer.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from spanqa.errors import BackendError, SpanQAError
from spanqa.serve.listening import ServerOptions
from spanqa.serve.metrics import FOLDER as METRICS_FOLDER
from spanqa.serve.server import Load, MakeService, Say, Server, signals

_LOG = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")

LONGEST_PAUSE = 30.0
"""Seconds before a worker that cannot start is started again, at most."""

POLL = 0.2
"""Seconds after which the parent sees a signal."""


class _Worker:
    """A place among the workers, and the process that has it now."""

    def __init__(self, number: int, arguments: tuple[Any, ...]) -> None:
        self.number, self._arguments = number, arguments
        self.failures = 0
        self.start_at = 0.0
        self.ready = self.accepts = False
        self.process: SpawnProcess | None = None
        self.pipe: Connection | None = None

    def start(self, *, at_once: bool) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        arguments = (theirs, at_once, *self._arguments)
        self.process = _SPAWN.Process(target=_work, args=arguments, name=f"spanqa-{self.number}")
        self.ready, self.accepts = False, at_once
        self.process.start()
        theirs.close()  # so that the pipe breaks when the worker ends

    def messages(self) -> Iterator[tuple[str, Any]]:
        assert self.pipe is not None
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                yield self.pipe.recv()

    def ended(self) -> str | None:
        """Return how the process ended, and when to start another one; None if it runs."""
        if self.process is None or self.process.is_alive():
            return None
        assert self.pipe is not None
        self.process.join()
        self.pipe.close()
        code, pid = self.process.exitcode or 0, self.process.pid
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
        self.process = None
        self.failures = 0 if self.ready else self.failures + 1
        pause = 0.0 if self.ready else min(LONGEST_PAUSE, 2.0 ** (self.failures - 1))
        self.ready = self.accepts = False
        self.start_at = time.monotonic() + pause
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"Worker {self.number} (process {pid}) {how}. It is started again" + (
            f" in {pause:g} seconds." if pause else "."
        )


def supervise(
    make_service: MakeService,
    load: Load,
    sockets: list[socket.socket],
    options: ServerOptions,
    limit: int,
    *,
    say: Say,
    ready: Callable[[str], None],
) -> int:
    """Run the workers until a signal says to end, and return the exit code.

    Raises:
        SpanQAError: the model cannot be loaded.
    """
    with _metrics_folder():
        arguments = (make_service, load, sockets, options, limit)
        workers = [_Worker(number + 1, arguments) for number in range(options.workers)]
        told: list[float] = []
        forced: list[int] = []
        try:
            with signals(told.append, options.drain_delay, forced.append):
                _keep_running(workers, told, say, ready)
                _drain(workers, sockets, told[0], options, forced)
        finally:
            for worker in workers:
                if worker.process is not None:
                    worker.process.kill()
                    worker.process.join()
    return 128 + forced[0] if forced else 0


def _keep_running(workers: list[_Worker], told: list[float], say: Say, ready: Callable[[str], None]) -> None:
    waiting: set[int] | None = {worker.number for worker in workers}
    while not told:
        for worker in workers:
            if worker.process is None and time.monotonic() >= worker.start_at:
                worker.start(at_once=not any(each.accepts for each in workers))
        running = [worker for worker in workers if worker.process is not None and worker.pipe is not None]
        wait([each for worker in running for each in (worker.pipe, worker.process.sentinel)], POLL)  # type: ignore[union-attr,misc]
        for worker in running:
            for kind, what in worker.messages():
                if kind == "failed" and waiting is not None:
                    raise what
                if kind == "failed":
                    say(f"Worker {worker.number}: {what}")
                else:
                    worker.ready = worker.accepts = True
                    if waiting is not None:
                        waiting.discard(worker.number)
                        if not waiting:
                            ready(what)
                            waiting = None
            how = worker.ended()
            if how is not None and not told:
                say(how)


def _drain(
    workers: list[_Worker], sockets: list[socket.socket], delay: float, options: ServerOptions, forced: list[int]
) -> None:
    for each in sockets:
        each.close()  # the workers have it too; when the last one closes it, new connections are refused
    for worker in workers:
        if worker.process is not None and worker.pipe is not None:
            with suppress(OSError):
                worker.pipe.send(delay)
    until = time.monotonic() + delay + options.drain_timeout + 5
    while time.monotonic() < until and not forced:
        running = [worker.process.sentinel for worker in workers if worker.process is not None]
        if not running:
            return
        wait(running, POLL)
        for worker in workers:
            worker.ended()


@contextmanager
def _metrics_folder() -> Iterator[None]:
    """Give the workers a folder in which prometheus_client adds up their metrics."""
    folder = tempfile.mkdtemp(prefix="spanqa-metrics-")
    os.environ[METRICS_FOLDER] = folder
    try:
        yield
    finally:
        os.environ.pop(METRICS_FOLDER, None)
        shutil.rmtree(folder, ignore_errors=True)


def _work(
    pipe: Connection,
    at_once: bool,
    make_service: MakeService,
    load: Load,
    sockets: list[socket.socket],
    options: ServerOptions,
    limit: int,
) -> None:
    """Serve in this process; what `supervise` starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells us
    code = 0
    try:
        server = Server(make_service(), load, sockets, options, limit, ready=lambda text: pipe.send(("ready", text)))
        signal.signal(signal.SIGTERM, lambda number, frame: server.drain(options.drain_delay))
        threading.Thread(target=_obey, args=(pipe, server), daemon=True).start()
        server.run(sockets, at_once=at_once)
    except SpanQAError as error:
        code = 1
        with suppress(OSError):
            pipe.send(("failed", error))
    except BaseException as error:
        code = 1
        _LOG.exception("a worker failed")
        with suppress(OSError):
            pipe.send(("failed", BackendError(f"A worker failed: {type(error).__name__}: {error}")))
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)  # libraries need 0.1 to 0.2 s to take themselves apart


def _obey(pipe: Connection, server: Server) -> None:
    try:
        while True:
            server.drain(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)
