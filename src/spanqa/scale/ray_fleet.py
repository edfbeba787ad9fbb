"""What a job wants of Ray: which one, and how many actors of which size."""

import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spanqa.checkpoint import BUNDLED
from spanqa.errors import BackendError, InputError

_CPUS = 4
_LEAST_SHARE = 0.0001  # of a CPU or GPU; Ray counts in such parts
_STORE_BYTES = 200 << 20  # of a Ray that we start; chunks in flight take a few MB, and what is more goes to disk
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, this keeps Ray to 127.0.0.1, as it does by itself on Windows and macOS; _node_ip_address alone does not on Linux."""
_CONNECT_SECONDS = 10.0
_OWN_THREADS = ("numpy", "jax")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The actors of a job, each with a model of its own.

    `least` are asked for at once, and more while chunks wait, up to `most`; None: as many as Ray has room for. `cpus` and `gpus` are
    what Ray sets aside for each: 0.5 puts two actors on one GPU. `cpus` None: 1 beside a GPU, else 4, or all that the largest
    machine has. `address` is that of a running Ray, "auto" for the one of this machine; None: $RAY_ADDRESS, or else a Ray is started
    here, on 127.0.0.1 and for as long as the job lasts.

    Raises:
        InputError: a number is impossible.
    """

    least: int = 1
    most: int | None = None
    cpus: float | None = None
    gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise InputError(
                f"The number of actors is {self.least} to {self.most}; expected at least 1, and the second not below the first."
            )
        if self.cpus is not None and not _LEAST_SHARE <= self.cpus < math.inf:
            raise InputError(f"cpus is {self.cpus}; expected a number from {_LEAST_SHARE} on.")
        if not (self.gpus == 0 or _LEAST_SHARE <= self.gpus < math.inf) or (self.gpus > 1 and self.gpus % 1):
            raise InputError(f"gpus is {self.gpus}; expected a part of one, such as 0.5, or a whole number.")


@contextmanager
def joined(address: str | None, namespace: str | None = None) -> Iterator[bool]:
    """Join a Ray for the `with` block, or start one, which is then ours alone and on 127.0.0.1; its usage is not reported.

    A caller who has joined one already stays in it. `namespace` is Ray's, for actors with names.

    Raises:
        BackendError: there is none at the address, or none can be started.
    """
    before = sys.modules.get("ray")
    if before is not None and before.is_initialized():
        yield False
        return
    address = address_of(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    how: dict[str, Any] = {"address": address}
    if address is None:
        os.environ[_LOOPBACK_ONLY] = "0"
        how = {"address": "local", "_node_ip_address": "127.0.0.1", "object_store_memory": _STORE_BYTES}
        how |= {"include_dashboard": False}
    else:
        _check_reachable(address)
    import ray  # it reads the variables now

    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**how, namespace=namespace, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of many types
        what = "Ray cannot be started here" if address is None else f"There is no Ray to join at {address!r}"
        raise BackendError(f"{what}: {error}") from error
    try:
        if threading.current_thread() is threading.main_thread():  # Ray has put its own in the place
            signal.signal(signal.SIGTERM, at_sigterm)
        if address is None and ray.util.get_node_ip_address() != "127.0.0.1":
            raise BackendError(
                "Ray was imported before this job, and would now listen on all addresses of this machine. Call ray.init first."
            )
        yield address is None
    finally:
        ray.shutdown()


def address_of(given: str | None) -> str | None:
    """Return the address of the Ray to join, $RAY_ADDRESS where none is given; None: one is to be started, which Ray calls "local"."""
    address = given or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def _check_reachable(address: str) -> None:
    """Check that something listens at an address, which Ray would go on trying for a quarter of an hour.

    Raises:
        BackendError: nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:  # a port or a name that cannot be
        raise BackendError(
            f"There is no Ray to join at {address!r}: {getattr(error, 'strerror', None) or error}. `ray status --address {address}` on a machine of the "
            "cluster shows whether it runs."
        ) from error


def with_room(fleet: Fleet, *, alone: bool) -> Fleet:
    """Return the fleet with its numbers filled in from the machines of Ray; `alone`: no machine will ever be added.

    Raises:
        BackendError: Ray is alone and has no room for the least number of actors.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = fleet.cpus or (1.0 if fleet.gpus else min(_CPUS, max(node.get("CPU", 0.0) for node in nodes) or 1.0))
    room = sum(
        int(min(node.get("CPU", 0.0) / cpus, node.get("GPU", 0.0) / fleet.gpus if fleet.gpus else math.inf))
        for node in nodes
    )
    if alone and room < fleet.least:
        raise BackendError(
            f"{wanted(fleet.least, cpus, fleet.gpus)}, but this machine has room for {room}: {total()}. Ask for less, or "
            "join a Ray of more machines: --address."
        )
    most = fleet.most or max(fleet.least, room)
    return replace(fleet, cpus=cpus, most=min(most, room) if alone else most)


def wanted(actors: int, cpus: float | None, gpus: float) -> str:
    """Return what is wanted, for a message."""
    each = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    return f"Wanted: {actors} actor{'' if actors == 1 else 's'} of {each}"


def total() -> str:
    """Return what there is, for a message."""
    import ray

    found = ray.cluster_resources()
    return f"Ray has {found.get('CPU', 0):g} CPU and {found.get('GPU', 0):g} GPU in all"


def last_line(error: object) -> str:
    """Return the last line of a message that may hold tracebacks of other machines, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def threads_of(backend: str, cpus: float) -> int | None:
    """Return how many threads a reader has beside so many CPUs; None for backends whose library Ray tells by OMP_NUM_THREADS."""
    return None if backend in _OWN_THREADS else max(1, int(cpus))


def device_of(device: str, gpus: float, option: str) -> str:
    """Return the device of a process for which Ray has set aside so many GPUs: "auto" is then "cuda", else "cpu".

    Ray leaves all GPUs of a machine visible to a process that has none.

    Raises:
        InputError: a GPU is wanted, and none set aside; the message names the option that does.
    """
    if device == "auto":
        return "cuda" if gpus else "cpu"
    if device.startswith(("cuda", "gpu")) and not gpus:
        raise InputError(f"device is {device!r}, but no GPU is set aside for it on Ray. Set some aside: {option}.")
    return device


def on_every_machine(model: str | os.PathLike[str]) -> str:
    """Return a model's name as processes in other folders, and on other machines, find it: a folder by its full path."""
    name = os.fspath(model)
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - unlike Path, it leaves the name of a user that does not exist
    return str(path.absolute()) if name not in BUNDLED and path.is_dir() else name
