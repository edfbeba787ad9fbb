"""The life of a server: loading, ready, draining, its workers, and what a client may do with a connection.

Where one thread is enough, the server runs in one of this process, with its real sockets and a tiny model.
"""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from fastapi import FastAPI

from spanqa.batches import Batch, Capture, SpanLogits
from spanqa.errors import CheckpointError, InputError
from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service, connections
from spanqa.serve.listening import ServerOptions, connection_limit, listening
from spanqa.serve.server import Server, warm_up
from spanqa.serve.workers import supervise

pytestmark = pytest.mark.enable_socket

QUESTION = {"question": "Who built the lighthouse?", "context": "The old lighthouse was built by Anna Kestrel in 1891."}
ASKED = json.dumps({"inputs": QUESTION}).encode()
EXPLAINED = {"question": QUESTION["question"], "passage": QUESTION["context"]}
JSON = {"Content-Type": "application/json"}
LOCAL = ServerOptions(port=0, drain_delay=0, drain_timeout=20)
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and unix sockets")


class Serving:
    """A server in a thread of this process; `error` is what `run` raised, `says` what it said when it was ready."""

    def __init__(self, server: Server, sockets: list[socket.socket], at_once: bool) -> None:
        self.server, self.ports = server, [each.getsockname()[1] for each in sockets]
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(sockets, at_once))
        self.thread.start()

    def _run(self, sockets: list[socket.socket], at_once: bool) -> None:
        try:
            self.server.run(sockets, at_once=at_once)
        except BaseException as error:
            self.error = error

    def connect(self, which: int = 0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[which]), timeout=30)

    def ask(
        self, method: str = "POST", path: str = "/predict", body: Any = None, which: int = 0
    ) -> tuple[int, Any, Any]:
        return ask(self.ports[which], method, path, body)


def ask(port: int, method: str = "POST", path: str = "/predict", body: Any = None) -> tuple[int, Any, Any]:
    """Status, headers and JSON of a response."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, None if method == "GET" else json.dumps(body or {"inputs": QUESTION}), JSON)
        response = connection.getresponse()
        return response.status, response.headers, json.loads(response.read())
    finally:
        connection.close()


@pytest.fixture
def serve(tiny: Callable[..., Path]) -> Iterator[Callable[..., Serving]]:
    """`serve()` starts a server that ends with the test; `load` makes its reader."""
    with contextlib.ExitStack() as stack:

        def start(
            load: Callable[[], Reader] | None = None,
            options: ServerOptions = LOCAL,
            limit: int = 100,
            explain: Any = None,
            ready: Callable[[str], None] = lambda text: None,
            at_once: bool = True,
            settings: ServeSettings = ServeSettings(),
        ) -> Serving:
            sockets = stack.enter_context(listening(options))
            service = Service(settings, explain=explain)
            load = load or (lambda: Reader.load(tiny("bert"), backend="numpy"))
            serving = Serving(Server(service, load, sockets, options, limit, ready=ready), sockets, at_once)
            stack.callback(serving.thread.join)
            stack.callback(serving.server.drain, 0.0)
            return serving

        yield start


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, as soon as that is true; the test's own time limit is a minute."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
    return found


def ready(serving: Serving) -> Serving:
    until(lambda: serving.server.service.state == "ready")
    return serving


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def all_of(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    parts = []
    with connection, contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def request(body: bytes = ASKED, *more: str) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body


def test_it_answers_health_while_it_loads_and_questions_when_it_is_ready(
    serve: Callable[..., Serving], tiny: Callable[..., Path]
) -> None:
    may_load, said = threading.Event(), []

    def load() -> Reader:
        may_load.wait()
        return Reader.load(tiny("bert"), backend="numpy")

    serving = serve(load, ready=said.append)
    try:
        assert serving.ask("GET", "/health")[0] == 200
        status, headers, body = serving.ask("GET", "/ready")
        assert (status, body["error_type"], headers["retry-after"]) == (503, "loading", "1")
        assert serving.ask()[2]["error_type"] == "loading"
        assert said == []
    finally:
        may_load.set()
    until(lambda: serving.ask("GET", "/ready")[0] == 200)
    assert serving.ask()[0] == 200
    assert len(said) == 1 and "on numpy (cpu, fp32) reads" in said[0]


def test_a_model_that_cannot_be_loaded_ends_the_server(serve: Callable[..., Serving]) -> None:
    def load() -> Reader:
        raise CheckpointError("It is damaged.")

    serving = serve(load)
    serving.thread.join()
    assert isinstance(serving.error, CheckpointError)
    assert refused(serving.ports[0])


def test_a_server_that_is_told_to_end_while_it_loads_does_not_wait(serve: Callable[..., Serving]) -> None:
    never = threading.Event()
    serving = serve(never.wait)
    try:
        assert serving.ask("GET", "/health")[0] == 200
        serving.server.drain(3600)
        serving.thread.join()
    finally:
        never.set()
    assert serving.error is None


def test_a_worker_that_comes_later_accepts_when_it_has_its_model(
    serve: Callable[..., Serving], tiny: Callable[..., Path]
) -> None:
    may_load, folder = threading.Event(), tiny("bert")

    def load() -> Reader:
        may_load.wait()
        return Reader.load(folder, backend="numpy")

    serving = serve(load, at_once=False)
    with serving.connect() as connection:
        connection.sendall(request())
        assert not serving.server.started
        may_load.set()
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_worker_that_comes_later_and_is_told_to_end_accepts_nothing(serve: Callable[..., Serving]) -> None:
    never = threading.Event()
    serving = serve(never.wait, at_once=False)
    serving.server.drain(3600)
    serving.thread.join()
    never.set()
    assert serving.error is None and not serving.server.started


class Paced:
    """A backend that takes so many seconds for a batch, and so many for a token, of a clock of its own."""

    name, device, dtype, layouts, batch_tokens, batches_at_once = "paced", "cpu", "fp32", ("padded",), 1024, 1

    def __init__(self, batch: float, token: float) -> None:
        self.batch, self.token, self.now = batch, token, 0.0

    def perf_counter(self) -> float:
        return self.now

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        self.now += self.batch + self.token * batch.input_ids.size
        return SpanLogits(np.zeros(batch.shape, np.float32), np.zeros(batch.shape, np.float32))


@pytest.mark.parametrize(("batch", "token", "tokens"), [(0.0, 2e-4, 64), (0.02, 0.0, 1024), (0.02, 2e-4, 512)])
def test_the_smallest_batch_that_is_read_fast_is_used(
    batch: float, token: float, tokens: int, tiny_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    paced = Paced(batch, token)
    monkeypatch.setattr("spanqa.serve.server.time", paced)
    reader = Reader(tiny_reader("bert").checkpoint, paced)  # type: ignore[arg-type]
    speed = warm_up(reader)
    assert reader.engine.batch_tokens == tokens
    assert 0 < speed <= tokens / (batch + token * tokens) * 1.000001
    reader.close()


class Blocked:
    """An explanation that is in work until `release`."""

    def __init__(self) -> None:
        self.begun, self.release = threading.Event(), threading.Event()

    def __call__(self, *_: object, progress: Callable[[int, int], None], **options: object) -> "Blocked":
        self.begun.set()
        while not self.release.wait(0.01):
            progress(0, 1)
        return self

    def as_json(self) -> dict[str, object]:
        return {"explained": True}


def begin(serving: Serving, path: str, body: Any) -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1", serving.ports[0], timeout=30)
    connection.request("POST", path, json.dumps(body), JSON)
    return connection


def test_a_drain_answers_what_comes_before_the_delay_and_finishes_what_is_in_work(
    serve: Callable[..., Serving],
) -> None:
    explain = Blocked()
    serving = ready(serve(explain=explain))
    idle = serving.connect()
    kept = HTTPConnection("127.0.0.1", serving.ports[0], timeout=30)
    kept.request("GET", "/ready")
    assert kept.getresponse().read() == b'{"status":"ready"}'
    in_work = begin(serving, "/v1/explain", EXPLAINED)
    explain.begun.wait()

    serving.server.drain(3600)
    assert serving.ask("GET", "/ready")[2]["error_type"] == "draining"
    assert serving.ask()[0] == 200
    kept.request("POST", "/predict", ASKED, JSON)
    last = kept.getresponse()
    assert (last.status, last.headers["connection"]) == (200, "close")
    last.read()

    serving.server.drain(0)
    until(lambda: refused(serving.ports[0]))
    assert all_of(idle) == b""
    assert serving.thread.is_alive()
    explain.release.set()
    response: HTTPResponse = in_work.getresponse()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert json.loads(response.read()) == {"explained": True}
    serving.thread.join()
    assert (serving.error, serving.server.cut_off) == (None, 0)
    for each in (in_work, kept):
        each.close()


def test_a_drain_gives_up_what_takes_too_long(serve: Callable[..., Serving]) -> None:
    explain = Blocked()
    serving = ready(serve(explain=explain, options=replace(LOCAL, drain_timeout=0.1)))
    in_work = begin(serving, "/v1/explain", EXPLAINED)
    explain.begun.wait()
    serving.server.drain(0)
    serving.thread.join()
    assert serving.server.cut_off == 1
    in_work.close()


def test_idle_connections_keep_nobody_out(serve: Callable[..., Serving]) -> None:
    explain = Blocked()
    serving = ready(serve(limit=3, explain=explain))
    in_work = begin(serving, "/v1/explain", EXPLAINED)
    explain.begun.wait()
    first, second = serving.connect(), serving.connect()
    until(lambda: len(serving.server.server_state.connections) == 3)
    assert serving.ask()[0] == 200  # a fourth connection
    assert all_of(first) == b""
    second.sendall(request())
    assert second.recv(12) == b"HTTP/1.1 200"
    explain.release.set()
    assert in_work.getresponse().status == 200
    for each in (second, in_work):
        each.close()


def test_a_connection_that_only_idles_is_closed(serve: Callable[..., Serving]) -> None:
    serving = serve(options=replace(LOCAL, keep_alive=1))
    silent, blank = serving.connect(), serving.connect()
    blank.sendall(b"\r\n")
    assert all_of(silent) == b""
    assert all_of(blank) == b""


@pytest.mark.parametrize(
    ("sent", "status", "error_type"),
    [
        (b"GET /health HTTP/1.1\r\nHost: loc", 408, "request_timeout"),
        (b"GET /health HTTP/1.1\r\nX: " + b"y" * 600_000, 431, "headers_too_large"),
        (b"\r\n" * 70_000, 431, "headers_too_large"),
        (b"hello\r\n\r\n", 400, "bad_request"),
    ],
    ids=["slow", "large", "blank", "no HTTP"],
)
def test_a_head_that_cannot_be_read_gets_the_one_error_form(
    sent: bytes, status: int, error_type: str, serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    if status == 408:
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.05)
    connection = serve().connect()
    with contextlib.suppress(ConnectionError):  # it closes before it has read all
        connection.sendall(sent)
    answer = all_of(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"connection: close" in head
    assert json.loads(body)["error_type"] == error_type


def test_the_document_of_the_routes_is_made_beside_the_model_and_keeps_no_request_waiting(
    serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = []
    make = FastAPI.openapi

    def noted(app: FastAPI) -> Any:
        if app.openapi_schema is None:
            makers.append(threading.current_thread().name)
        return make(app)

    monkeypatch.setattr(FastAPI, "openapi", noted)
    serving = ready(serve())
    assert serving.ask("GET", "/nope")[0] == 404
    assert makers == ["spanqa-load"]


def test_a_body_that_does_not_arrive_is_not_waited_for(
    serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = ready(serve(settings=ServeSettings(body_seconds=0.2)))
    connection = serving.connect()
    connection.sendall(request()[:-5])
    assert b"The body did not arrive within 0.2 seconds." in all_of(connection)
    monkeypatch.setattr(connections, "BODY_GRACE", -0.15)  # before the guard
    connection = serving.connect()
    connection.sendall(request()[:-5])
    assert all_of(connection) == b""
    assert serving.ask()[0] == 200


def test_trailers_are_bounded_and_small_chunks_are_not(serve: Callable[..., Serving]) -> None:
    serving = ready(serve())
    chunked = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps({"inputs": {**QUESTION, "context": "word" + " " * 100_000}}).encode()  # more than one read
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with serving.connect() as connection:
        connection.sendall(chunked + chunks + b"0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
    flood = serving.connect()
    with contextlib.suppress(ConnectionError):
        flood.sendall(chunked + b"1\r\n{\r\n0\r\n" + b"X: y\r\n" * 200_000)
    assert b" 200 " not in all_of(flood)


def test_pipelined_requests_are_answered_in_order(serve: Callable[..., Serving]) -> None:
    serving = ready(serve())
    connection = serving.connect()
    connection.sendall(request() + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = all_of(connection)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.index(b'"score"') < answer.index(b'{"status":"ok"}')


@pytest.mark.parametrize("at", [-30, -len(ASKED), None])
def test_a_request_for_another_protocol_is_answered_and_its_body_is_no_request(
    at: int | None, serve: Callable[..., Serving]
) -> None:
    sent = request(ASKED, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    connection = ready(serve()).connect()
    connection.sendall(sent[:at])
    if at is not None:
        time.sleep(0.05)  # so that it arrives in two parts
        connection.sendall(sent[at:])
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = all_of(connection)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200") == 2
    assert answer.index(b'"score"') < answer.index(b'{"status":"ok"}')


def test_the_address_of_the_metrics_shows_nothing_else(serve: Callable[..., Serving]) -> None:
    serving = ready(serve(options=replace(LOCAL, metrics_port=0)))
    assert serving.ask("GET", "/ready", which=1)[0] == 200
    assert serving.ask(which=1)[2]["error_type"] == "not_found"
    assert serving.ask("GET", "/info", which=1)[2]["error_type"] == "not_found"
    assert serving.ask()[0] == 200


def test_a_proxy_may_show_the_server_under_a_path(serve: Callable[..., Serving]) -> None:
    serving = ready(serve(options=replace(LOCAL, root_path="/qa", metrics_port=0)))
    assert serving.ask()[0] == 200
    assert serving.ask("GET", "/ready", which=1)[0] == 200


# Sockets.


@posix
def test_a_unix_socket_is_for_user_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "spanqa.sock"
    with listening(ServerOptions(uds=path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with pytest.raises(InputError, match="another server listens there"), listening(ServerOptions(uds=path)):
            pass
        assert path.exists()
    assert not path.exists()


@posix
def test_a_socket_that_a_killed_server_left_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "spanqa.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(ServerOptions(uds=path)) as (listener,):
        assert listener.getsockname() == str(path)
    path.write_text("mine")
    with pytest.raises(InputError, match="there is something that is no socket"), listening(ServerOptions(uds=path)):
        pass
    assert path.read_text() == "mine"


@posix
def test_the_socket_of_a_server_that_came_later_stays(tmp_path: Path) -> None:
    path = tmp_path / "spanqa.sock"
    with listening(ServerOptions(uds=path)):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as later:
            later.bind(str(path))
    assert path.exists()


def test_an_address_that_is_taken_or_unknown_is_said() -> None:
    with listening(LOCAL) as (taken,):
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be .* Choose another --port"):
            listening(ServerOptions(port=port)).__enter__()
        with pytest.raises(InputError, match="Choose another --metrics-port"):
            listening(ServerOptions(port=0, metrics_port=port)).__enter__()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"port": 65_536}, "port is 65536; expected at most 65535"),
        ({"workers": 0}, "workers is 0; expected at least 1"),
        ({"port": 9000, "metrics_port": 9000}, "need a port of their own"),
        ({"root_path": "qa/"}, "expected a path that begins with /"),
        ({"keep_alive": float("nan")}, "keep_alive is nan"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ServerOptions(**given)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("qa.lan", False)]
)
def test_which_addresses_only_this_machine_reaches(host: str, local: bool) -> None:
    assert ServerOptions(host=host).local is local


@posix
def test_no_more_connections_are_promised_than_files_are_allowed() -> None:
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert connection_limit(ServerOptions()) < files
    with pytest.raises(InputError, match=r"max_connections is .* allows this process .* open files"):
        connection_limit(ServerOptions(max_connections=1 << 40))


# Processes.


class Process:
    """`spanqa serve` with a tiny model in a process of its own; `lines` are what it has said."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "spanqa", "serve", "--port", "0", "--model", folder, "--backend", "numpy"]
        environment = {**os.environ, "SPANQA_DRAIN_DELAY": "0", "NO_COLOR": "1"}
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self.reading = threading.Thread(target=self._read)
        self.reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def says(self, text: str) -> str:
        return until(lambda: next((line for line in list(self.lines) if text in line), ""))

    @property
    def port(self) -> int:
        return int(self.says("Listening on").rpartition(":")[2].rstrip(".\n"))

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        for each in [*psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []:
            each.kill()
        self.process.kill()
        self.process.wait()
        self.reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@posix
def test_a_server_that_says_that_it_listens_can_be_told_to_end(tiny: Callable[..., Path]) -> None:
    with Process(tiny("bert")) as server:
        server.says("Listening on")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0


@posix
def test_sigterm_lets_a_request_in_work_finish_and_ends_with_0(tiny: Callable[..., Path]) -> None:
    with Process(tiny("bert")) as server:
        server.says("Ready in")
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(request()[:-5])
            assert ask(server.port, "GET", "/health")[0] == 200  # so the part of the request has arrived as well
            server.process.send_signal(signal.SIGTERM)
            until(lambda: refused(server.port))
            connection.sendall(request()[-5:])
            answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer
        assert server.process.wait() == 0
        assert len([line for line in server.lines if line.startswith("spanqa: ")]) == 2


@posix
def test_a_server_without_files_goes_on_and_a_second_signal_ends_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    import resource

    with Process(tiny("bert")) as server, contextlib.ExitStack() as clients:
        server.says("Ready in")
        pid = server.process.pid
        few = psutil.Process(pid).num_fds() + 10
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, before))
        for _ in range(40):
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        clients.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (before, before))

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return ask(server.port)[0] == 200
            return False

        until(answers)
        in_work = clients.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        in_work.sendall(request()[:-5])
        assert ask(server.port, "GET", "/health")[0] == 200
        server.process.send_signal(signal.SIGINT)
        until(lambda: refused(server.port))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 128 + signal.SIGTERM


def workers_of(server: Process) -> dict[int, Any]:
    """Those that serve, by process id; multiprocessing runs a process of its own beside them."""
    children = psutil.Process(server.process.pid).children()
    return {each.pid: each for each in children if "spawn_main" in " ".join(each.cmdline())}


@posix
def test_a_worker_that_is_killed_comes_back_while_another_answers(tiny: Callable[..., Path]) -> None:
    with Process(tiny("bert"), "--workers", "2") as server:
        server.says("Ready in")
        before = workers_of(server)
        assert len(before) == 2
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        assert "SIGKILL. It is started again.\n" in server.says(f"(process {killed})")
        assert ask(server.port)[0] == 200
        until(lambda: len(workers_of(server).keys() - {killed}) == 2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0
        assert refused(server.port)
        assert not any(each.is_running() for each in before.values())


PARENT = """
import sys
from functools import partial
from spanqa.reader import Reader
from spanqa.serve.listening import ServerOptions, listening
from spanqa.serve.service import Service
from spanqa.serve.workers import supervise

options = ServerOptions(port=0)
with listening(options) as sockets:
    print(sockets[0].getsockname()[1], flush=True)
    load = partial(Reader.load, sys.argv[1], backend="numpy")
    supervise(Service, load, sockets, options, 10, say=print, ready=partial(print, flush=True))
"""


@posix
def test_workers_do_not_outlive_their_parent(tiny: Callable[..., Path]) -> None:
    command = [sys.executable, "-c", PARENT, tiny("bert")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert "Ready in" in parent.stdout.readline()
        assert ask(port)[0] == 200
        parent.kill()
        until(lambda: refused(port))


def test_workers_that_cannot_load_the_model_end_the_parent(tmp_path: Path) -> None:
    said: list[str] = []
    load = partial(Reader.load, tmp_path / "nowhere")
    with listening(LOCAL) as sockets, pytest.raises(CheckpointError, match="nowhere"):
        supervise(Service, load, sockets, LOCAL, 10, say=said.append, ready=said.append)
    assert said == []
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
