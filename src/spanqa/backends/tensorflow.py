"""TensorFlow: the encoder as one graph for all batch shapes.

Needs: pip install 'spanqa[tensorflow]'. Costs: 4 s to import TensorFlow, and 1 s for a MiniLM or 2.5 s for a BERT-large to trace
the graph at the first batch. Rows and columns are dynamic: nothing is padded, and no shape is compiled separately. XLA
(`jit_compile`) was slower on CPUs and took 2 s more for each new shape.

Matrix products are computed in the requested dtype, everything else in float32. "auto" is bfloat16 on GPUs and processors that
have it. TensorFlow has some settings for the whole process: `threads` can be set only before it has computed anything; GPU memory
grows as needed; fp32 on a GPU turns TensorFloat-32 off. GPUs were not tested.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from spanqa.backends.base import BATCH_TOKENS, Graphs, capture_positions, cpu_has_bf16, split_attention
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits
from spanqa.checkpoint import Checkpoint
from spanqa.errors import BackendError

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_BANNERS = re.compile(
    rb"(?m)^(I\d{4} |\d{4}-\S+ \S+ I |WARNING: All log messages before absl|To enable the following).*\n"
)


@contextmanager
def _without_banners() -> Iterator[None]:
    """Keep TensorFlow's information messages off standard error during its import.

    TensorFlow reads an environment variable at import that stops most of them. Nothing stops the message about oneDNN, so
    standard error is captured and passed on without such lines. If the variable is set to 0, everything is shown.
    """
    before = os.environ.get(_LOG_LEVEL)
    if before == "0" or "tensorflow" in sys.modules or sys.stderr is None:
        yield
        return
    with tempfile.TemporaryFile() as held, os.fdopen(os.dup(2), "wb") as screen:
        os.environ.setdefault(_LOG_LEVEL, "1")
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen.fileno(), 2)
            if before is None:
                del os.environ[_LOG_LEVEL]
            held.seek(0)
            screen.write(_BANNERS.sub(b"", held.read()))


with _without_banners():
    import tensorflow as tf

_DTYPES = {"fp32": tf.float32, "bf16": tf.bfloat16}


class TensorFlowOps:
    """`spanqa.encoder.Ops` as nodes of a TensorFlow graph."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype

    def embed(self, table: Any, ids: Any) -> Any:
        return tf.gather(table, ids)

    def shift(self, ids: Any, offset: int) -> Any:
        return ids + offset

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        rows, cols, size = tf.shape(x)[0], tf.shape(x)[1], x.shape[2]
        flat = tf.cast(tf.reshape(x, [rows * cols, size]), weight.dtype)  # one product instead of one per row
        product = tf.nn.bias_add(tf.cast(tf.matmul(flat, weight, transpose_b=True), tf.float32), bias)
        return tf.reshape(product, [rows, cols, weight.shape[0]])  # (batch, token, hidden)

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + eps) * weight + bias

    def activate(self, x: Any, name: str) -> Any:
        return tf.nn.relu(x) if name == "relu" else tf.nn.gelu(x, approximate=name == "gelu_tanh")

    def split_heads(self, x: Any, heads: int) -> Any:
        parts = tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1], heads, x.shape[2] // heads])
        return tf.transpose(parts, [0, 2, 1, 3])  # (batch, head, token, size)

    def merge_heads(self, x: Any) -> Any:
        hidden = x.shape[1] * x.shape[3]
        return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [tf.shape(x)[0], tf.shape(x)[2], hidden])

    def take(self, x: Any, index: Any) -> Any:
        return tf.gather(x, index, axis=1, batch_dims=1)

    def same_window(self, query_window: Any, key_window: Any) -> Any:
        same = query_window[:, None, :, None] == key_window[:, None, None, :]
        return tf.where(same, 0.0, -1e30)  # (batch, 1, query, key), added to the scores

    def attend(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        attention = tf.cast(self.attention(query, key, mask), self._dtype)
        return tf.cast(tf.matmul(attention, tf.cast(value, self._dtype)), tf.float32)

    def attention(self, query: Any, key: Any, mask: Any) -> Any:
        scores = tf.matmul(tf.cast(query, self._dtype), tf.cast(key, self._dtype), transpose_b=True)
        return tf.nn.softmax(tf.cast(scores, tf.float32) * query.shape[-1] ** -0.5 + mask)  # (batch, head, query, key)

    def column(self, x: Any, index: int) -> Any:
        return x[..., index]


class TensorFlowBackend:
    """Weights on one TensorFlow device and a graph. Another graph is traced when a new set of attention layers is requested."""

    name = "tensorflow"
    layouts: tuple[BatchLayout, ...] = ("padded", "packed", "flat")
    batch_tokens = BATCH_TOKENS
    batches_at_once = 1

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        self.device = device
        self.dtype = dtype
        self._config = checkpoint.encoder
        self._place = "/CPU:0" if device == "cpu" else f"/{device.upper()}"
        with tf.device(self._place):
            self._weights = {}
            for name, array in checkpoint.encoder_weights().items():
                kind = _DTYPES[dtype] if name.startswith("layer.") and array.ndim == 2 else tf.float32
                self._weights[name] = tf.identity(
                    tf.constant(array, kind)
                )  # a constant alone would also keep the array
        self._logits = checkpoint.family.logits
        self._graphs: Graphs[Any] = Graphs()

    def _trace(self, layers: tuple[int, ...]) -> Any:
        ops = TensorFlowOps(_DTYPES[self.dtype])

        def run(*inputs: Any) -> Any:
            return self._logits(ops, self._weights, self._config, *inputs, layers=layers)

        signature = [tf.TensorSpec([None, None], tf.int32)] * (len(Batch.__slots__) + bool(layers))
        graph = tf.function(run, input_signature=signature, autograph=False)
        graph.get_concrete_function()
        return graph

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        arrays = [getattr(batch, name) for name in Batch.__slots__]
        if capture is not None:
            positions = capture_positions(batch, capture, self._config.layers)
            arrays += [positions] if capture.layers else []
        with tf.device(self._place):
            start, end, attentions = self._graphs.of(capture, self._trace)(*map(tf.constant, arrays))
        found = {layer: array.numpy() for layer, array in attentions.items()}
        attention = split_attention(batch, capture, found) if capture is not None else None
        return SpanLogits(start.numpy(), end.numpy(), attention)


def load(checkpoint: Checkpoint, *, device: str, dtype: str, threads: int | None) -> TensorFlowBackend:
    """Create the backend. "auto" is the first GPU that TensorFlow sees, else the CPU. "cuda:0" is TensorFlow's "gpu:0"."""
    gpus = tf.config.list_physical_devices("GPU")
    found = [*(f"gpu:{i}" for i in range(len(gpus))), "cpu"]
    name = found[0] if device == "auto" else device.replace("cuda", "gpu")
    name = f"{name}:0" if name == "gpu" else name
    if name not in found:
        raise BackendError(
            f"Backend 'tensorflow' does not see device {device!r} on this machine. Choose one of: {', '.join(found)}."
        )
    if dtype == "auto" and name != "cpu":
        details = tf.config.experimental.get_device_details(gpus[found.index(name)])
        dtype = "bf16" if details.get("compute_capability", (0, 0)) >= (8, 0) else "fp32"
    if dtype == "auto":
        dtype = "bf16" if cpu_has_bf16() else "fp32"
    if threads is not None and threads != tf.config.threading.get_intra_op_parallelism_threads():
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError as error:
            raise BackendError(
                f"threads is {threads}, but TensorFlow has already computed in this process and cannot change its threads. "
                "Load this backend before anything else uses TensorFlow, or do not set threads."
            ) from error
    for gpu in gpus:  # TensorFlow requires the same setting for all
        with suppress(RuntimeError, ValueError):  # TensorFlow is in use, or the user has partitioned the GPU: keep that
            tf.config.experimental.set_memory_growth(gpu, True)
    if name != "cpu" and dtype == "fp32":
        tf.config.experimental.enable_tensor_float_32_execution(False)  # it keeps 10 bits of 23
    return TensorFlowBackend(checkpoint, name, dtype)
