"""The list of backends, and the choice among them.

The caller names a backend, or `auto` chooses one by a rule and reports the reason. Nothing falls back silently.
"""

import logging
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from spanqa.backends.base import Backend
from spanqa.backends.replicas import Replicas
from spanqa.checkpoint import Checkpoint
from spanqa.errors import BackendError
from spanqa.extras import installed, require
from spanqa.families import FAMILIES

_LOG = logging.getLogger(__name__)

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known about a backend without loading it.

    `dtypes` and `devices` are those that the backend supports, if the machine has them. `after_fork`: whether it can be loaded
    again in a process that was forked after its library had computed; torch crashes there, JAX and TensorFlow hang.
    `spanqa.extras.NEEDS` lists the packages it needs, under its name.
    """

    name: str
    dtypes: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)
    after_fork: bool = False

    @property
    def architectures(self) -> str:
        """The model types that the backend runs."""
        return "all of transformers" if self.name == "torch" else ", ".join(FAMILIES)

    @property
    def installed(self) -> bool:
        """Whether its packages are installed. Nothing is imported."""
        return installed(self.name)

    def can(self, device: str, dtype: str) -> bool:
        """Return whether it supports this device (or several of one kind) and this dtype. Either may be "auto"."""
        kinds = {each.strip().partition(":")[0] for each in device.split(",")}
        return (dtype == "auto" or dtype in self.dtypes) and (device == "auto" or kinds <= set(self.devices))


BACKENDS: dict[str, BackendInfo] = {
    info.name: info
    for info in (
        BackendInfo("openvino", ("fp32", "bf16", "fp16", "int8"), ("cpu", "gpu"), after_fork=True),
        BackendInfo("torch", ("fp32", "bf16", "fp16"), ("cpu", "cuda", "mps")),
        BackendInfo("onnx", ("fp32", "fp16"), ("cpu", "cuda"), after_fork=True),
        BackendInfo("jax", ("fp32", "bf16"), ("cpu", "gpu", "cuda", "tpu")),
        BackendInfo("tensorflow", ("fp32", "bf16"), ("cpu", "gpu", "cuda")),
        BackendInfo("numpy", ("fp32",), after_fork=True),
    )
}
"""Every backend, in the order in which `auto` tries the installed ones."""


def choose_backend(model_type: str, device: str = "auto", dtype: str = "auto") -> tuple[str, str]:
    """Return the backend that `auto` chooses for an architecture, a device and a dtype, and why.

    Of the installed backends that support them, `auto` chooses torch if it sees a GPU, else OpenVINO, else the first one. It
    also chooses torch for architectures that only torch runs.

    Raises:
        BackendError: no installed backend supports them.
    """
    if model_type not in FAMILIES:
        return "torch", f"only torch runs the architecture {model_type!r}"
    present = [info for info in BACKENDS.values() if info.installed]
    able = [info.name for info in present if info.can(device, dtype)]
    asked = " and ".join(
        f"{kind} {value!r}" for kind, value in (("device", device), ("dtype", dtype)) if value != "auto"
    )
    if "torch" in able and _torch_sees_gpu() and not device.startswith("cpu"):
        return "torch", "torch is installed and sees a GPU"
    if able[:1] == ["openvino"]:
        return "openvino", "it is installed with spanqa and is the fastest on CPUs"
    if able and present[0].name == "openvino":
        return able[0], f"it is the first installed backend that supports {asked}"
    if able:
        return able[0], "openvino is not installed"
    lacking = [info.name for info in BACKENDS.values() if info.can(device, dtype)]
    raise BackendError(
        f"No installed backend supports {asked}. "
        + (
            f"Install one that does: {', '.join(lacking)} (see `spanqa info`)."
            if lacking
            else "No backend of spanqa does. Choose another device or dtype."
        )
    )


def _torch_sees_gpu() -> bool:
    """Return whether torch sees a GPU. Torch is slow to import, so it is imported only if a GPU driver is found."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/proc/driver/nvidia")
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in drivers):
        return False
    import torch

    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


def load_backend(
    name: str, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", threads: int | None = None
) -> tuple[Backend, str]:
    """Return a backend with the model loaded, and the reason why this backend was chosen.

    Raises:
        BackendError: the backend, device or dtype does not exist, or this backend or machine does not have it.
        NotInstalledError: the packages of the backend are not installed.
        CheckpointError: the weights do not match the config, or only another backend can run the model.
    """
    _check_dtype(dtype)
    reason = "it was asked for"
    if name == "auto":
        name, reason = choose_backend(checkpoint.model_type, device, dtype)
    info = _find(name)
    if dtype != "auto" and dtype not in info.dtypes:
        raise BackendError(
            f"Backend {name!r} does not support dtype {dtype!r}. Choose one of auto, {', '.join(info.dtypes)}."
        )
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BackendError(f"threads is {threads!r}. Expected a whole number, at least 1, or None for all cores.")
    require(name)
    _LOG.info("backend %s, device %s, dtype %s: %s", name, device, dtype, reason)
    load = import_module(f"spanqa.backends.{name}").load
    replicas: list[Backend] = [
        load(checkpoint, device=each.strip(), dtype=dtype, threads=threads) for each in device.split(",")
    ]
    if len(replicas) == 1:
        return replicas[0], reason
    return Replicas(replicas), reason


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise BackendError(f"Unknown dtype {dtype!r}. Choose one of {', '.join(DTYPES)}.")


def _find(name: str) -> BackendInfo:
    if name in BACKENDS:
        return BACKENDS[name]
    close = get_close_matches(name, BACKENDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BackendError(f"Unknown backend {name!r}.{hint} Choose auto or one of {', '.join(BACKENDS)}.")
