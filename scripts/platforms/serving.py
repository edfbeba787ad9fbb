"""What the tests of `spanqa serve` share: servers in processes of their own, and steady load. It is not a test itself."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-dev" / "bin" / "python"
PASSAGE = (
    "The pier was built in 1871 by Anna Kestrel, a bridge engineer. It burned in 1902 and was built again of steel."
)
BODY = json.dumps({"inputs": {"question": "Who built the pier?", "context": PASSAGE}}).encode()
HEADERS = {"Content-Type": "application/json"}
SKIPPED = 77


def use_environment(python: Path = PYTHON) -> None:
    """Go on in the development environment, or another one that has spanqa's packages."""
    if Path(sys.prefix).resolve() != python.parents[1].resolve():
        os.execv(python, [str(python), *sys.argv])
    os.environ["PYTHONPATH"] = str(ROOT / "src")


def skip(why: str) -> NoReturn:
    print(why)
    sys.exit(SKIPPED)


def fail(why: str) -> NoReturn:
    raise AssertionError(why)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """`spanqa serve` on a port of 127.0.0.1; `lines` are what it says."""

    def __init__(self, port: int, *options: str) -> None:
        self.port = port
        command = [sys.executable, "-m", "spanqa", "serve", "--port", str(port), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def ready(self) -> "Served":
        until(lambda: any("Ready in" in line for line in self.lines), "it becomes ready", self)
        return self

    def end(self) -> None:
        """Send SIGTERM, and check that it ends with 0."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        if code:
            fail(f"the server ended with {code} after SIGTERM: {''.join(self.lines[-5:])}")


@contextmanager
def served(port: int, *options: str) -> Iterator[Served]:
    server = Served(port, *options)
    try:
        yield server.ready()
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.process.kill()


def until(condition: Callable[[], object], what: str, server: Served | None = None, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if server is not None and server.process.poll() is not None:
            fail(f"the server ended before {what}: {''.join(server.lines)}")
        if time.monotonic() > end:
            fail(f"{seconds:g} seconds were not enough until {what}")
        time.sleep(0.05)


def ask(
    port: int, method: str = "POST", path: str = "/predict", body: bytes | None = BODY, timeout: float = 30
) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, None if method == "GET" else body, HEADERS)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def status_of(port: int, path: str = "/ready") -> int:
    try:
        return ask(port, "GET", path)[0]
    except (OSError, HTTPException):
        return 0


def counted(port: int, name: str) -> float:
    """Return the sum of a metric over its labels."""
    status, text = ask(port, "GET", "/metrics")
    if status != 200:
        fail(f"/metrics says {status}")
    values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text.decode(), re.MULTILINE)
    return sum(map(float, values))


class Load:
    """Clients that ask one question after the other; half of them keep their connection. `outcomes` counts statuses and errors."""

    def __init__(self, port: int, clients: int = 8, pause: float = 0.05, timeout: float = 30) -> None:
        self.port, self.pause, self.timeout = port, pause, timeout
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return self.outcomes["200"]

    @property
    def lost(self) -> int:
        return self.outcomes.total() - self.answered

    def _ask(self, keep: bool) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        while not self._stop.wait(self.pause):
            began = time.monotonic()
            try:
                connection.request("POST", "/predict", BODY, HEADERS)
                response = connection.getresponse()
                outcome = str(response.status)
                if b"Anna Kestrel" not in response.read():
                    outcome += " without the answer"
            except (OSError, HTTPException) as error:
                outcome = type(error).__name__
                connection.close()
            self.outcomes[outcome] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            if not keep:
                connection.close()
        connection.close()
