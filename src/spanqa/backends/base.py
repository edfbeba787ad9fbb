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
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Protocol

from spanqa.batches import Batch, BatchLayout, SpanLogits
from spanqa.checkpoint import Checkpoint
from spanqa.encoder import FAMILIES
from spanqa.errors import BackendError, BackendNotInstalledError, InputError

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")


class Backend(Protocol):
    """Something that turns a batch into logits.

    `device` and `dtype` say where and in what precision it computes, after "auto" has been settled; `batches_at_once` how many
    threads it is worth calling it from.
    """

    name: str
    device: str
    dtype: str
    batches_at_once: int

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


def bucket_shape(rows: int, cols: int) -> tuple[int, int]:
    """Return the shape that a batch is padded to, for backends that compile for each: few shapes, little padding.

    Columns go up to a multiple of 32, rows to three binary digits and zeros: 1 to 8, 10, 12, 14, 16, 20, ... Measured on
    2,000 SQuAD questions in batches of 4,096 tokens: 18 shapes, and 87 % of what is then computed was in the batches.

    >>> bucket_shape(27, 150)
    (28, 160)
    """
    step = 1 << max(0, rows.bit_length() - 3)
    return -(-rows // step) * step, -(-cols // 32) * 32


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively; told of x86 on Linux alone, and taken for "no" elsewhere."""
    described = Path("/proc/cpuinfo")
    return described.exists() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(described.read_text().split())


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known of a backend without loading it.

    `module` and `function` make it; `packages` are what it imports; `extra` is how pip names them together ("" is the
    base installation). `dtypes` and `devices` are those it can be asked for, where the machine has them.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    extra: str
    dtypes: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)

    @property
    def architectures(self) -> str:
        """The model types that it runs."""
        return "all of transformers" if self.name == "torch" else ", ".join(FAMILIES)

    @property
    def installed(self) -> bool:
        """Whether its packages are there; nothing is imported."""
        return all(importlib.util.find_spec(package) is not None for package in self.packages)


def package_version(package: str) -> str:
    """Return the version of an installed package, by the name it is imported by (tensorflow may be tensorflow-cpu)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return version(packages_distributions()[package][0])


BACKENDS: dict[str, BackendInfo] = {
    info.name: info
    for info in (
        BackendInfo(
            "openvino", "spanqa.backends.openvino", ("openvino",), "", ("fp32", "bf16", "fp16", "int8"), ("cpu", "gpu")
        ),
        BackendInfo(
            "torch",
            "spanqa.backends.torch",
            ("torch", "transformers"),
            "torch",
            ("fp32", "bf16", "fp16"),
            ("cpu", "cuda", "mps"),
        ),
        BackendInfo("onnx", "spanqa.backends.onnx", ("onnx", "onnxruntime"), "onnx", ("fp32", "fp16"), ("cpu", "cuda")),
        BackendInfo("jax", "spanqa.backends.jax", ("jax",), "jax", ("fp32", "bf16"), ("cpu", "gpu", "tpu")),
        BackendInfo(
            "tensorflow", "spanqa.backends.tensorflow", ("tensorflow",), "tensorflow", ("fp32", "bf16"), ("cpu", "gpu")
        ),
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
    load = import_module(info.module).load
    replicas: list[Backend] = [
        load(checkpoint, device=each.strip(), dtype=dtype, threads=threads) for each in device.split(",")
    ]
    if len(replicas) == 1:
        return replicas[0], reason
    from spanqa.backends.replicas import Replicas

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
