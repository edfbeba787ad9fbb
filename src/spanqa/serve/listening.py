"""Where the server listens: what an operator can set about it, and the sockets. It knows nothing of HTTP."""

import errno
import ipaddress
import os
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from spanqa.errors import InputError
from spanqa.serve.settings import setting

BACKLOG = 2048
"""Connections that the system holds while no worker accepts them."""

RESERVED_FILES = 128
"""Files that a process opens besides its connections: the model, its libraries, logs."""

MOST_CONNECTIONS = 16_384
"""Where nothing else is set, a process keeps no more connections open than this; 10,000 idle ones cost about 100 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Addresses, processes, and how long connections live. Times are seconds."""

    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 or :: is every address of this machine.")
    port: int = setting(8000, "Port to listen on; 0 takes a free one. AIP_HTTP_PORT (Vertex AI) sets it too.", 0)
    uds: Path | None = setting(
        None, "Listen on this unix socket instead of a port; the user and the group of the server may connect."
    )
    workers: int = setting(1, "Processes that share the address, each with a model of its own.", 1)
    metrics_host: str = setting("127.0.0.1", "Address of the metrics, with --metrics-port.")
    metrics_port: int | None = setting(
        None, "Port of an address of its own for /metrics; the main one then shows it only to those with a key.", 0
    )
    root_path: str = setting("", "Path under which a proxy shows the server, such as /qa; the proxy takes it off.")
    forwarded_allow_ips: str = setting(
        "127.0.0.1,::1",
        "Addresses or networks of proxies whose X-Forwarded-For and -Proto are trusted, with commas; * trusts all.",
    )
    keep_alive: float = setting(
        75.0, "Close a connection without a request after this many seconds; a balancer's time must be shorter.", 1
    )
    drain_delay: float = setting(
        5.0, "After SIGTERM, accept requests for this many seconds, until the balancer has seen /ready say 503.", 0
    )
    drain_timeout: float = setting(30.0, "After that, wait at most this many seconds for requests in work.", 0)
    max_connections: int | None = setting(
        None,
        "Most open connections of a process. Default: three quarters of the open files that the system allows, at most 16,384.",
        1,
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value, least = getattr(self, each.name), each.metadata["least"]
            if least is not None and value is not None and not value >= least:
                raise InputError(f"{each.name} is {value!r}; expected at least {least}.")
        for name in ("port", "metrics_port"):
            if (getattr(self, name) or 0) > 65_535:
                raise InputError(f"{name} is {getattr(self, name)}; expected at most 65535.")
        if self.metrics_port and self.uds is None and self.metrics_port == self.port:
            raise InputError(f"port and metrics_port are both {self.port}; the metrics need a port of their own.")
        if self.root_path and not (self.root_path.startswith("/") and not self.root_path.endswith("/")):
            raise InputError(
                f"root_path is {self.root_path!r}; expected a path that begins with / and does not end with it."
            )
        if self.uds is not None and not hasattr(socket, "AF_UNIX"):
            raise InputError("uds is given, but this system has no unix sockets. Use a port.")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@contextmanager
def listening(options: ServerOptions) -> Iterator[list[socket.socket]]:
    """Hold the socket of the main address, and behind it that of the metrics if there is one; both listen.

    Raises:
        InputError: an address cannot be had.
    """
    opened: list[socket.socket] = []
    made: os.stat_result | None = None
    try:
        if options.uds is None:
            opened.append(_listen(options.host, options.port, "port"))
        else:
            opened.append(_listen_unix(options.uds))
            made = options.uds.stat()
        if options.metrics_port is not None:
            opened.append(_listen(options.metrics_host, options.metrics_port, "metrics-port"))
        yield opened
    finally:
        for each in opened:
            each.close()
        if made is not None and options.uds is not None:
            with suppress(OSError):
                if os.path.samestat(made, options.uds.stat()):  # not the socket of a server that came after us
                    options.uds.unlink()


def _listen(host: str, port: int, option: str) -> socket.socket:
    made: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there it would let two servers have one port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as error:
        if made is not None:
            made.close()
        hint = f"Choose another --{option}." if error.errno == errno.EADDRINUSE else "Choose another address."
        raise InputError(f"{host}:{port} cannot be listened on: {error.strerror or error}. {hint}") from None
    return made


def _listen_unix(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        before = os.umask(0o117)  # the mode is there from the first moment: 0660
        try:
            made.bind(os.fspath(path))
        finally:
            os.umask(before)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise InputError(
            f"{str(path)!r} cannot be listened on: {error.strerror or error}. Choose another --uds."
        ) from None
    return made


def _remove_stale(path: Path) -> None:
    """Remove a socket that a server left behind when it was killed; one that somebody listens on stays."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(errno.EEXIST, "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass
    raise OSError(errno.EADDRINUSE, "another server listens there")


def urls(sockets: Sequence[socket.socket]) -> list[str]:
    """Return the address of each socket as people write it; one that is every address is shown as this machine's own."""
    return [_url(each) for each in sockets]


def _url(listener: socket.socket) -> str:
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    host, port = name[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def connection_limit(options: ServerOptions) -> int:
    """Return how many connections a process may keep open, after allowing it as many files as the system lets it have.

    Raises:
        InputError: more connections are wanted than files are allowed.
    """
    files = _allow_files()
    if options.max_connections is None:
        return max(16, min(MOST_CONNECTIONS, files * 3 // 4))
    if options.max_connections > files - RESERVED_FILES:
        raise InputError(
            f"max_connections is {options.max_connections:,}, but the system allows this process {files:,} open files, and it "
            f"needs {RESERVED_FILES} for itself. Allow more (`ulimit -n`), or fewer connections."
        )
    return options.max_connections


def _allow_files() -> int:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS refuses what it calls unlimited
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft
