"""The contract of a backend: a batch of NumPy arrays in, logits as NumPy arrays out.

Device, precision, compilation and shape buckets are the backend's own business. Which backends exist, and which one is
chosen, is the business of `spanqa.backends.registry`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from spanqa.batches import Batch, SpanLogits
from spanqa.errors import InputError


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
