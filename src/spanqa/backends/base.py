"""The contract of a backend, the table of those there are, and the choice among them.

A backend takes a batch of NumPy arrays and returns logits as NumPy arrays. Device, precision, compilation and shape
buckets are its own business. It is asked for by name; `auto` is a rule, told with its reason; nothing falls back silently.
"""

import importlib.util
import sys
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Protocol

from spanqa.batches import Batch, SpanLogits
from spanqa.checkpoint import Checkpoint
from spanqa.encoder import FAMILIES
from spanqa.errors import BackendError, BackendNotInstalledError, InputError

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")


class Backend(Protocol):
    """Something that turns a batch into logits.

    `device` and `dtype` say where and in what precision it computes, after "auto" has been settled.
    """

    name: str
    device: str
    dtype: str

    def forward(self, batch: Batch, *, attention: Collection[int] | None = None) -> SpanLogits:
        """Return the logits of a batch, and the attention of the layers named in `attention`, counted from zero."""


def chosen_layers(attention: Collection[int] | None, layers: int) -> tuple[int, ...]:
    """Return the layers named in `attention`, each once and in order.

    Raises:
        InputError: the model does not have one of them.
    """
    for layer in attention or ():
        if layer not in range(layers):
            raise InputError(f"The model has no layer {layer!r}; it has {layers}, counted from 0 to {layers - 1}.")
    return tuple(sorted(set(attention or ())))


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known of a backend without loading it.

    `module` and `function` make it; `packages` are what it imports; `extra` is how pip names them together ("" is the
    base installation). `dtypes` are those it can be asked for.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    extra: str
    dtypes: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """Whether its packages are there; nothing is imported."""
        return all(importlib.util.find_spec(package) is not None for package in self.packages)


BACKENDS: dict[str, BackendInfo] = {
    info.name: info
    for info in (
        BackendInfo("openvino", "spanqa.backends.openvino", ("openvino",), "", ("fp32", "bf16", "fp16")),
        BackendInfo("torch", "spanqa.backends.torch", ("torch", "transformers"), "torch", ("fp32", "bf16", "fp16")),
        BackendInfo("numpy", "spanqa.backends.numpy", (), "", ("fp32",)),
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
        BackendNotInstalledError: its packages are not installed.
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
    if not info.installed:
        lacking = [package for package in info.packages if importlib.util.find_spec(package) is None]
        target = f"spanqa[{info.extra}]" if info.extra else "spanqa"
        raise BackendNotInstalledError(
            f"Backend {name!r} needs {' and '.join(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not installed. "
            f"Install with: pip install '{target}'"
        )
    backend: Backend = import_module(info.module).load(checkpoint, device=device, dtype=dtype, threads=threads)
    return backend, reason


def _find(name: str) -> BackendInfo:
    if name in BACKENDS:
        return BACKENDS[name]
    close = get_close_matches(name, BACKENDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BackendError(f"There is no backend {name!r}.{hint} Choose auto or one of {', '.join(BACKENDS)}.")
