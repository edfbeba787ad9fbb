"""The reference backend: it computes the encoder step by step in NumPy, in float32.

It is slow and simple, so that people can check it by reading. Every other backend must agree with it.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanqa.backends.base import BATCH_TOKENS, capture_positions, split_attention
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits
from spanqa.checkpoint import Checkpoint
from spanqa.errors import BackendError

Floats = NDArray[np.float32]


class NumpyOps:
    """`spanqa.encoder.Ops` on NumPy arrays."""

    def embed(self, table: Any, ids: Any) -> Any:
        return table[ids]

    def shift(self, ids: Any, offset: int) -> Any:
        return ids + offset

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return x @ weight.T + bias

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(eps)) * weight + bias

    def activate(self, x: Any, name: str) -> Any:
        if name == "relu":
            return np.maximum(x, 0)
        if name == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
        return 0.5 * x * (1 + _erf(x * np.float32(math.sqrt(0.5))))

    def split_heads(self, x: Any, heads: int) -> Any:
        batch, token, hidden = x.shape
        return x.reshape(batch, token, heads, hidden // heads).transpose(0, 2, 1, 3)  # (batch, head, token, size)

    def merge_heads(self, x: Any) -> Any:
        batch, heads, token, size = x.shape
        return x.transpose(0, 2, 1, 3).reshape(batch, token, heads * size)  # (batch, token, hidden)

    def take(self, x: Any, index: Any) -> Any:
        return x[np.arange(len(x))[:, None], index]  # (batch, query, ...)

    def same_window(self, query_window: Any, key_window: Any) -> Any:
        return (query_window[:, :, None] == key_window[:, None, :])[:, None]  # (batch, 1, query, key)

    def attention(self, query: Any, key: Any, mask: Any) -> Any:
        scores = query @ key.swapaxes(-1, -2) / np.float32(math.sqrt(query.shape[-1]))  # (batch, head, query, key)
        scores = np.where(mask, scores, np.float32(-np.inf))
        exponents = np.exp(scores - scores.max(-1, keepdims=True))
        return exponents / exponents.sum(-1, keepdims=True)

    def attend(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        return self.attention(query, key, mask) @ value

    def column(self, x: Any, index: int) -> Any:
        return x[..., index]


_ERF_STEPS = (
    4096  # per unit; linear interpolation between table entries is then within 8e-9 of erf, below float32's own step
)


@cache
def _erf_table() -> Floats:
    return np.array([math.erf(i / _ERF_STEPS) for i in range(6 * _ERF_STEPS + 2)], np.float32)


def _erf(x: Floats) -> Floats:
    """Return the error function, which NumPy does not have, from a table of `math.erf`."""
    table = _erf_table()
    position = np.minimum(np.abs(x), 6) * np.float32(_ERF_STEPS)
    below = position.astype(np.int32)
    low, high = table[below], table[below + 1]
    return np.copysign(low + (high - low) * (position - below.astype(np.float32)), x)


class NumpyBackend:
    """Computes in float32 on the CPU, with the BLAS that NumPy was built with."""

    name = "numpy"
    layouts: tuple[BatchLayout, ...] = ("padded", "packed", "flat")
    batch_tokens = BATCH_TOKENS
    batches_at_once = 1
    device = "cpu"
    dtype = "fp32"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config = checkpoint.encoder
        self._logits = checkpoint.family.logits
        self._weights = {
            name: array.astype(np.float32, copy=False) for name, array in checkpoint.encoder_weights().items()
        }

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        inputs = [getattr(batch, name) for name in Batch.__slots__]
        if capture is not None:
            inputs.append(capture_positions(batch, capture, self._config.layers))
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow gives infinity or NaN
            start, end, attentions = self._logits(
                NumpyOps(), self._weights, self._config, *inputs, layers=capture.layers if capture else ()
            )
        return SpanLogits(start, end, split_attention(batch, capture, attentions) if capture is not None else None)


def load(checkpoint: Checkpoint, *, device: str, dtype: str, threads: int | None) -> NumpyBackend:
    """Create the backend. NumPy has one device and one dtype, and its BLAS sets the number of threads."""
    if device not in ("auto", "cpu"):
        raise BackendError(f"Backend 'numpy' has no device {device!r}. It runs on cpu only.")
    if threads is not None:
        raise BackendError(
            f"threads is {threads}, but backend 'numpy' takes its threads from its BLAS. Set OMP_NUM_THREADS instead."
        )
    return NumpyBackend(checkpoint)
