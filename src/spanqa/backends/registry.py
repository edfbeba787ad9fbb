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
from spanqa.batches import BatchLayout
from spanqa.checkpoint import Checkpoint
from spanqa.encoder import FAMILIES
from spanqa.errors import BackendError
from spanqa.extras import installed, require

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known of a backend without loading it.

    `dtypes` and `devices` are those it can be asked for, where the machine has them. The packages it needs are listed in
    `spanqa.extras.NEEDS`, under its name.
    """

    name: str
    dtypes: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)

    @property
    def architectures(self) -> str:
        """The model types that it runs."""
        return "all of transformers" if self.name == "torch" else ", ".join(FAMILIES)

    @property
    def installed(self) -> bool:
        """Whether its packages are installed; nothing is imported."""
        return installed(self.name)


BACKENDS: dict[str, BackendInfo] = {
    info.name: info
    for info in (
        BackendInfo("openvino", ("fp32", "bf16", "fp16", "int8"), ("cpu", "gpu")),
        BackendInfo("torch", ("fp32", "bf16", "fp16"), ("cpu", "cuda", "mps")),
        BackendInfo("onnx", ("fp32", "fp16"), ("cpu", "cuda")),
        BackendInfo("jax", ("fp32", "bf16"), ("cpu", "gpu", "tpu")),
        BackendInfo("tensorflow", ("fp32", "bf16"), ("cpu", "gpu")),
        BackendInfo("numpy", ("fp32",)),
    )
}
"""Every backend, in the order in which `auto` tries those that are installed."""


def choose_backend(model_type: str) -> tuple[str, str]:
    """Return what `auto` takes for an architecture, and why.

    Torch where it is installed and sees a GPU, else OpenVINO, else what is installed; torch also for architectures that
    only it can run.
    """
    if model_type not in FAMILIES:
        return "torch", f"only torch runs the architecture {model_type!r}"
    if BACKENDS["torch"].installed and _torch_sees_gpu():
        return "torch", "torch is installed and sees a GPU"
    for info in BACKENDS.values():
        if info.installed and info.name == "openvino":
            return info.name, "it comes with spanqa and is the fastest on CPUs"
        if info.installed:
            return info.name, "openvino is not installed here"
    raise AssertionError("numpy is always installed")


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
        name, reason = choose_backend(checkpoint.model_type)
    info = _find(name)
    if dtype not in DTYPES:
        raise BackendError(f"There is no dtype {dtype!r}. Choose one of {', '.join(DTYPES)}.")
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


def preferred_layout(backend: Backend) -> BatchLayout:
    """Return how batches for a backend are best laid out.

    Flat where torch has variable-length attention kernels (CUDA, half precision), else padded, sorted by length.
    """
    on_gpu = backend.name == "torch" and backend.device.startswith("cuda") and backend.dtype in ("bf16", "fp16")
    return "flat" if on_gpu else "padded"


def _find(name: str) -> BackendInfo:
    if name in BACKENDS:
        return BACKENDS[name]
    close = get_close_matches(name, BACKENDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BackendError(f"There is no backend {name!r}.{hint} Choose auto or one of {', '.join(BACKENDS)}.")
