"""The backends there are, and the choice among them.

A backend is asked for by name; `auto` is a rule, reported with its reason; nothing falls back silently.
"""

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

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known of a backend without loading it.

    `dtypes` and `devices` are those it can be asked for, where the machine has them. `after_fork`: whether it can be loaded
    again in a process that was forked after its library had computed; torch crashes there, JAX and TensorFlow hang. The packages
    it needs are listed in `spanqa.extras.NEEDS`, under its name.
    """

    name: str
    dtypes: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)
    after_fork: bool = False

    @property
    def architectures(self) -> str:
        """The model types that it runs."""
        return "all of transformers" if self.name == "torch" else ", ".join(FAMILIES)

    @property
    def installed(self) -> bool:
        """Whether its packages are installed; nothing is imported."""
        return installed(self.name)

    def can(self, device: str, dtype: str) -> bool:
        """Whether it can be asked for this device, or several of one kind, and this dtype; either may be "auto"."""
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
"""Every backend, in the order in which `auto` tries those that are installed."""


def choose_backend(model_type: str, device: str = "auto", dtype: str = "auto") -> tuple[str, str]:
    """Return what `auto` takes for an architecture, a device and a dtype, and why.

    Among the backends that can do them: torch where it is installed and sees a GPU, else OpenVINO, else what is installed;
    torch also for architectures that only it can run.

    Raises:
        BackendError: no installed backend can do them.
    """
    if model_type not in FAMILIES:
        return "torch", f"only torch runs the architecture {model_type!r}"
    there = [info for info in BACKENDS.values() if info.installed]
    able = [info.name for info in there if info.can(device, dtype)]
    asked = " and ".join(
        f"{kind} {value!r}" for kind, value in (("device", device), ("dtype", dtype)) if value != "auto"
    )
    if "torch" in able and _torch_sees_gpu() and not device.startswith("cpu"):
        return "torch", "torch is installed and sees a GPU"
    if able[:1] == ["openvino"]:
        return "openvino", "it comes with spanqa and is the fastest on CPUs"
    if able and there[0].name == "openvino":
        return able[0], f"it is the first installed backend that can do {asked}"
    if able:
        return able[0], "openvino is not installed here"
    lacking = [info.name for info in BACKENDS.values() if info.can(device, dtype)]
    raise BackendError(
        f"No installed backend can do {asked}. "
        + (
            f"Install one that can: {', '.join(lacking)} (see `spanqa info`)."
            if lacking
            else "No backend of spanqa can."
        )
    )


def _torch_sees_gpu() -> bool:
    """Whether this machine has a GPU for torch. Torch, slow to import, is asked only where a driver is to be found."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/proc/driver/nvidia")
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in drivers):
        return False
    import torch

    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


def load_backend(
    name: str, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", threads: int | None = None
) -> tuple[Backend, str]:
    """Return a backend that holds the model, and the reason why it is this one.

    Raises:
        BackendError: no such backend, device or dtype, or one that this backend or machine does not have.
        NotInstalledError: its packages are not installed.
        CheckpointError: the weights do not fit, or only another backend can run the model.
    """
    reason = "it was asked for"
    if name == "auto":
        _check_dtype(dtype)
        name, reason = choose_backend(checkpoint.model_type, device, dtype)
    info = _find(name)
    _check_dtype(dtype)
    if dtype != "auto" and dtype not in info.dtypes:
        raise BackendError(f"Backend {name!r} does not compute in {dtype}. It has {', '.join(info.dtypes)}.")
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BackendError(f"threads is {threads!r}; expected a whole number, at least 1, or none for all cores.")
    require(name)
    load = import_module(f"spanqa.backends.{name}").load
    replicas: list[Backend] = [
        load(checkpoint, device=each.strip(), dtype=dtype, threads=threads) for each in device.split(",")
    ]
    if len(replicas) == 1:
        return replicas[0], reason
    return Replicas(replicas), reason


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise BackendError(f"There is no dtype {dtype!r}. Choose one of {', '.join(DTYPES)}.")


def _find(name: str) -> BackendInfo:
    if name in BACKENDS:
        return BACKENDS[name]
    close = get_close_matches(name, BACKENDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BackendError(f"There is no backend {name!r}.{hint} Choose auto or one of {', '.join(BACKENDS)}.")
