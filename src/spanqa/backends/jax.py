"""JAX: the encoder, traced for each batch shape and compiled by XLA.

Needs: pip install 'spanqa[jax]'; for GPUs and TPUs, see which jaxlib JAX's own instructions name. Costs: each new shape is
compiled before its first batch. That takes 0.9 s for a MiniLM and 2 s for a BERT-large on two cores, and 12 MB for a MiniLM.
Batches are therefore padded to the shapes of `bucket_shape`: 2,000 questions of mixed length need 18 shapes, and an eighth of what
is computed is this padding. Packed batches of one width need one or two shapes. JAX keeps compiled programs between runs if its own
`jax_compilation_cache_dir` is set.

Matrix products are computed in the requested dtype, everything else in float32. "auto" is bfloat16 on accelerators and on
processors that have it. XLA sets the threads: one for each core that the process may use. On GPUs JAX reserves most of the memory
unless XLA_PYTHON_CLIENT_PREALLOCATE=false is set. TPUs should work but were not tested.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spanqa.backends.base import BATCH_TOKENS, bucket_shape, capture_positions, cpu_has_bf16, split_attention
from spanqa.backends.numpy import NumpyOps
from spanqa.batches import PADDING, Batch, BatchLayout, Capture, SpanLogits
from spanqa.checkpoint import Checkpoint
from spanqa.errors import BackendError

_DTYPES: dict[str, Any] = {"fp32": jnp.float32, "bf16": jnp.bfloat16}


class JaxOps(NumpyOps):
    """`spanqa.encoder.Ops` on JAX arrays. Methods and operators that JAX shares with NumPy are inherited."""

    def __init__(self, dtype: Any, row_by_row: bool) -> None:
        self._dtype = dtype
        self._row_by_row = row_by_row

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return _product("bti,oi->bto", x.astype(weight.dtype), weight) + bias

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps) * weight + bias

    def activate(self, x: Any, name: str) -> Any:
        return jax.nn.relu(x) if name == "relu" else jax.nn.gelu(x, approximate=name == "gelu_tanh")

    def same_window(self, query_window: Any, key_window: Any) -> Any:
        return jnp.where(super().same_window(query_window, key_window), 0.0, -1e30)  # added to the scores

    def attend(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        def attend(arrays: tuple[Any, Any, Any, Any]) -> Any:
            query, key, value, mask = arrays
            exponents = self._exponents(query, key, mask)  # normalized after the product, where there are fewer numbers
            mixed = _product("...qk,...kd->...qd", exponents.astype(self._dtype), value.astype(self._dtype))
            return mixed / exponents.sum(-1, keepdims=True)

        arrays = (query, key, value, mask)
        return jax.lax.map(attend, arrays) if self._row_by_row else attend(arrays)

    def attention(self, query: Any, key: Any, mask: Any) -> Any:
        exponents = self._exponents(query, key, mask)
        return exponents / exponents.sum(-1, keepdims=True)

    def _exponents(self, query: Any, key: Any, mask: Any) -> Any:
        scores = _product("...qd,...kd->...qk", query.astype(self._dtype), key.astype(self._dtype))
        scores = scores * query.shape[-1] ** -0.5 + mask  # (batch, head, query, key)
        return jnp.exp(scores - scores.max(-1, keepdims=True))


def _product(axes: str, a: Any, b: Any) -> Any:
    """Return a product accumulated in full float32: without HIGHEST, GPUs keep 10 bits and TPUs 7."""
    return jnp.einsum(axes, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


class JaxBackend:
    """Weights on one JAX device, and the programs compiled so far: one per shape and set of attention layers."""

    name = "jax"
    layouts: tuple[BatchLayout, ...] = ("padded", "packed", "flat")
    batch_tokens = BATCH_TOKENS
    batches_at_once = 1

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        self.device = device
        self.dtype = dtype
        self._config = checkpoint.encoder
        self._place = _devices()[device]
        self._weights = {
            name: jax.device_put(
                array.astype(_DTYPES[dtype] if name.startswith("layer.") and array.ndim == 2 else np.float32),
                self._place,
            )
            for name, array in checkpoint.encoder_weights().items()
        }
        # A CPU's cache has room for the scores of a row, not of a batch: row by row, attention takes 1/4 to 1/2 of the time.
        ops = JaxOps(_DTYPES[dtype], row_by_row=self._place.platform == "cpu")
        self._run = jax.jit(partial(checkpoint.family.logits, ops), static_argnums=1, static_argnames="layers")

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        rows, cols = batch.shape
        bucket_rows, bucket_cols = bucket_shape(rows, cols)
        more_rows = bucket_rows - rows
        arrays = [
            np.pad(
                getattr(batch, name),
                ((0, more_rows), (0, bucket_cols - cols)),
                constant_values=PADDING if name == "window_index" else 0,
            )
            for name in Batch.__slots__
        ]
        if capture is not None:
            positions = capture_positions(batch, capture, self._config.layers)
            arrays.append(np.pad(positions, ((0, more_rows), (0, -positions.shape[1] % 32))))
        start, end, attentions = self._run(
            self._weights,
            self._config,
            *jax.device_put(arrays, self._place),
            layers=tuple(sorted(set(capture.layers))) if capture is not None else (),
        )
        found = {layer: np.asarray(array) for layer, array in attentions.items()}
        return SpanLogits(
            np.asarray(start)[:rows, :cols].copy(),
            np.asarray(end)[:rows, :cols].copy(),
            split_attention(batch, capture, found) if capture is not None else None,
        )


def _devices() -> dict[str, jax.Device]:
    """Return every device that JAX sees, by our name for it. JAX uses "gpu" for both CUDA and ROCm."""
    found: dict[str, jax.Device] = {}
    for kind in ("cuda", "rocm", "tpu", jax.default_backend(), "cpu"):
        try:
            found |= {f"{kind}:{device.id}": device for device in jax.local_devices(backend=kind)}
        except RuntimeError:  # JAX does not have this platform
            continue
    return {name.removesuffix(":0") if name == "cpu:0" else name: device for name, device in found.items()}


def load(checkpoint: Checkpoint, *, device: str, dtype: str, threads: int | None) -> JaxBackend:
    """Create the backend. "auto" is JAX's default device."""
    if threads is not None:
        raise BackendError(
            f"threads is {threads}, but backend 'jax' takes its threads from XLA, one for each core that the process may use. "
            "Start the process on fewer cores instead (on Linux: taskset -c 0-3 ...)."
        )
    devices = _devices()
    if device == "auto":
        device = next(name for name, place in devices.items() if place == jax.devices()[0])
    place = devices.get(device) or devices.get(f"{device}:0")
    if place is None:
        raise BackendError(
            f"Backend 'jax' does not see device {device!r} on this machine. Choose one of: {', '.join(devices)}."
        )
    if dtype == "auto":
        dtype = "bf16" if place.platform != "cpu" or cpu_has_bf16() else "fp32"
    return JaxBackend(checkpoint, next(name for name, other in devices.items() if other == place), dtype)
