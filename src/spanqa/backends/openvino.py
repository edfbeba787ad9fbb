"""The default backend: an OpenVINO graph built directly from the weights, without export and without a second weight file.

`OpenVinoOps` provides the encoder's array operations as graph nodes, so that `spanqa.encoder.span_logits` builds the graph.

Needs: openvino, which is installed with spanqa. Costs: 0.2 s to compile a MiniLM. It computes in bfloat16 on processors that have
it, unless fp32 is requested. Columns are padded to a multiple of 16, so a window's logits do not depend on what else is in its
batch.
"""

import ctypes
import hashlib
import os
import weakref
from collections.abc import Collection
from functools import cache
from importlib import import_module
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanqa.backends.base import BATCH_TOKENS, Graphs, capture_positions, split_attention
from spanqa.batches import PADDING, Batch, BatchLayout, Capture, SpanLogits
from spanqa.checkpoint import INT8_GRAPH, INT8_WEIGHTS, Checkpoint
from spanqa.errors import BackendError, CheckpointError
from spanqa.extras import import_without

# Its model converter takes a third of the time of the import, and reports every import to OpenVINO's makers.
openvino = import_without("openvino", "openvino.tools.ovc")
ops = import_module("openvino.opset15")
if not hasattr(openvino, "convert_model"):  # loaded at its first call
    openvino.convert_model = lambda *args, **options: import_module("openvino.tools.ovc").convert_model(
        *args, **options
    )

_COLUMN_MULTIPLE = 16
_KERNELS_KEPT = 128
"""OpenVINO compiles kernels for each batch shape and keeps the newest: 5,000 of them by default. Making one again costs little."""
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
_WEIGHTS_HASH = ["spanqa", "weights_sha256"]  # where an int8 graph stores the hash of the weights it was made from
Requests = SimpleQueue[Any]


class OpenVinoOps:
    """`spanqa.encoder.Ops` as nodes of an OpenVINO graph."""

    def embed(self, table: Any, ids: Any) -> Any:
        return ops.gather(table, ids, _ints(0))

    def shift(self, ids: Any, offset: int) -> Any:
        return ops.add(ids, _ints(offset)) if offset else ids

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return ops.add(ops.matmul(x, weight, False, True), bias)

    def add(self, a: Any, b: Any) -> Any:
        return ops.add(a, b)

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        normal = ops.mvn(x, _ints([-1]), True, eps, "INSIDE_SQRT")
        return ops.add(ops.multiply(normal, weight), bias)

    def activate(self, x: Any, name: str) -> Any:
        if name == "relu":
            return ops.relu(x)
        return ops.gelu(x, "tanh" if name == "gelu_tanh" else "erf")

    def split_heads(self, x: Any, heads: int) -> Any:
        size = x.get_output_partial_shape(0)[2].get_length() // heads
        parts = ops.reshape(x, _ints([0, 0, heads, size]), True)
        return ops.transpose(parts, _ints([0, 2, 1, 3]))  # (batch, head, token, size)

    def merge_heads(self, x: Any) -> Any:
        return ops.reshape(ops.transpose(x, _ints([0, 2, 1, 3])), _ints([0, 0, -1]), True)  # (batch, token, hidden)

    def take(self, x: Any, index: Any) -> Any:
        return ops.gather(x, index, _ints(1), 1)

    def same_window(self, query_window: Any, key_window: Any) -> Any:
        query, key = ops.unsqueeze(query_window, _ints([1, 3])), ops.unsqueeze(key_window, _ints([1, 2]))
        # Added to the scores: OpenVINO before 2025.3 applies a boolean mask incorrectly.
        return ops.select(ops.equal(query, key), _floats(0), _floats(-1e30))  # (batch, 1, query, key)

    def attend(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        return ops.scaled_dot_product_attention(query, key, value, mask)

    def attention(self, query: Any, key: Any, mask: Any) -> Any:
        size = query.get_output_partial_shape(0)[3].get_length()
        scores = ops.multiply(ops.matmul(query, key, False, True), _floats(size**-0.5))
        return ops.softmax(ops.add(scores, mask), -1)  # (batch, head, query, key)

    def column(self, x: Any, index: int) -> Any:
        return ops.gather(x, _ints(index), _ints(2))


def _ints(value: Any) -> Any:
    return ops.constant(np.array(value, np.int32))


def _floats(value: float) -> Any:
    return ops.constant(np.array(value, np.float32))


def build_graph(checkpoint: Checkpoint, layers: Collection[int] = ()) -> Any:
    """Return the encoder as an OpenVINO model: inputs `[rows, cols]` int32; outputs start, end, and attention per layer.

    For each of `layers` there is one more input: the queries `[rows, query]` whose attention it returns, which may be none.
    """
    config = checkpoint.encoder
    weights = {name: _weight(name, array) for name, array in checkpoint.encoder_weights().items()}
    inputs = [ops.parameter([-1, -1], np.int32, name) for name in Batch.__slots__]
    queries = {layer: ops.parameter([-1, -1], np.int32, f"queries.{layer}") for layer in sorted(layers)}
    start, end, attentions = checkpoint.family.logits(OpenVinoOps(), weights, config, *inputs, queries, layers=layers)
    inputs += queries.values()
    return openvino.Model([start, end, *(attentions[layer] for layer in sorted(attentions))], inputs, config.model_type)


@cache
def _core() -> Any:
    """Return the one core of the process, which is kept until the process ends.

    On processors with AMX, OpenVINO's CPU plugin gives the thread an alternate signal stack. When the last core is deleted, the
    plugin unmaps the stack but does not unregister it: the next signal that Python handles (Ctrl-C, SIGTERM) is then a segmentation
    fault. Seen with OpenVINO 2026.4.
    """
    return openvino.Core()


_LIVE: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _keep_for_ever() -> None:
    """Keep OpenVINO's objects from being destroyed in a forked child, which would hang as it ends.

    Destroying them waits for OpenVINO's threads, which a child does not have. One reference more, never given back, prevents it.
    """
    for kept in [*_LIVE, *([_core()] if _core.cache_info().currsize else [])]:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    _LIVE.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)


def _weight(name: str, array: NDArray[Any]) -> Any:
    constant = ops.constant(array, shared_memory=True)
    constant.set_friendly_name(name)
    return constant if array.dtype == np.float32 else ops.convert(constant, np.float32)


class OpenVinoBackend:
    """A compiled graph on one OpenVINO device.

    It returns the attention of any queries, usually of none, which costs no time (measured on an AVX2 processor): a second graph for
    attention would hold all weights twice more. Beside an int8 graph there is one, because attention is computed in floats.
    """

    name = "openvino"
    layouts: tuple[BatchLayout, ...] = ("padded", "packed", "flat")
    batch_tokens = BATCH_TOKENS
    batches_at_once = 2  # one computes; the next waits in OpenVINO's queue and starts without Python

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str, threads: int | None) -> None:
        self.device = device
        self.dtype = dtype
        self._checkpoint = checkpoint
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[_float(device) if dtype == "int8" else dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "CACHE_DIR": "",
        }
        if device == "cpu":
            self._settings["CPU_RUNTIME_CACHE_CAPACITY"] = str(_KERNELS_KEPT)
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
            if device == "cpu":  # other processes have the other cores; each would pin its threads to the first ones
                self._settings["ENABLE_CPU_PINNING"] = False
        self._layers = tuple(range(checkpoint.encoder.layers))
        self._requests: Graphs[Requests] = Graphs()
        self._requests.of(None, self._compile)

    def _compile(self, layers: tuple[int, ...]) -> Requests:
        int8 = self.dtype == "int8" and not layers
        graph = _read_int8(self._checkpoint) if int8 else build_graph(self._checkpoint, self._layers)
        compiled = _core().compile_model(graph, self.device.upper(), self._settings)
        requests: Requests = SimpleQueue()
        for _ in range(self.batches_at_once):
            request = compiled.create_infer_request()
            _LIVE.add(request)
            requests.put(request)
        return requests

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        _, cols = batch.shape
        extra = -cols % _COLUMN_MULTIPLE
        arrays = [
            np.pad(getattr(batch, name), ((0, 0), (0, extra)), constant_values=PADDING if name == "window_index" else 0)
            for name in Batch.__slots__
        ]
        queries = np.zeros((len(batch.input_ids), 0), np.int32)
        wanted: Collection[int] = ()
        if capture is not None:
            queries, wanted = capture_positions(batch, capture, len(self._layers)), set(capture.layers)
        in_floats = self.dtype != "int8" or bool(wanted)
        if in_floats:
            arrays += [queries if layer in wanted else queries[:, :0] for layer in self._layers]
        free = self._requests.of(Capture(self._layers) if wanted and self.dtype == "int8" else None, self._compile)
        request = free.get()
        try:
            request.start_async(arrays, share_inputs=True)
            request.wait()
            start, end = (request.get_output_tensor(i).data for i in (0, 1))
            found = {layer: request.get_output_tensor(2 + layer).data for layer in sorted(wanted)}
            attention = split_attention(batch, capture, found) if capture is not None else None
            return SpanLogits(start[:, :cols].copy(), end[:, :cols].copy(), attention)
        finally:
            free.put(request)


def load(checkpoint: Checkpoint, *, device: str, dtype: str, threads: int | None) -> OpenVinoBackend:
    """Create the backend. "auto" is the CPU, in bfloat16 if the processor has it, else in float32."""
    core = _core()
    device = "cpu" if device == "auto" else device
    if device.upper() not in core.available_devices:
        found = ", ".join(name.lower() for name in core.available_devices)
        raise BackendError(
            f"Backend 'openvino' does not see device {device!r} on this machine. Choose one of: {found}."
        )
    capabilities = core.get_property(device.upper(), "OPTIMIZATION_CAPABILITIES")
    if dtype == "auto":
        dtype = _float(device)
    if _CAPABILITIES[dtype] not in capabilities:
        found = ", ".join(name for name, capability in _CAPABILITIES.items() if capability in capabilities)
        raise BackendError(
            f"Device {device!r} of backend 'openvino' does not support dtype {dtype!r}. Choose one of: {found}."
        )
    return OpenVinoBackend(checkpoint, device, dtype, threads)


def _float(device: str) -> str:
    """Return bf16 if the device has it, else fp32."""
    capabilities = _core().get_property(device.upper(), "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp32"


def sign_int8(graph: Any, checkpoint: Checkpoint) -> None:
    """Store in an int8 graph the hash of the weights it was made from."""
    graph.set_rt_info(checkpoint.weights.sha256, _WEIGHTS_HASH)


def graph_hash(content: bytes, weights: bytes) -> str:
    """Return the hash of an int8 graph: of its two files, one after the other."""
    return hashlib.sha256(content + weights).hexdigest()


def _check_int8_files(checkpoint: Checkpoint, content: bytes, weights: bytes) -> None:
    stored = (checkpoint.settings.get("quantization") or {}).get("graph_sha256")
    if stored != graph_hash(content, weights):
        raise CheckpointError(
            f"{INT8_GRAPH} and {INT8_WEIGHTS} in {str(checkpoint.path)!r} are not the files that were written together: "
            f"spanqa.json stores {'another' if stored else 'no'} hash of them. Quantize the model again."
        )


def _read_int8(checkpoint: Checkpoint) -> Any:
    """Return the int8 graph that is stored beside the weights.

    Raises:
        BackendError: there is no int8 graph.
        CheckpointError: it is damaged, or was made from other weights.
    """
    path = checkpoint.folder / INT8_GRAPH
    if not path.exists():
        raise BackendError(
            f"{str(checkpoint.path)!r} has no int8 graph ({path.name}). Make a copy with one: "
            "`spanqa quantize --model MODEL --data DATA --out DIR`, or choose another dtype."
        )
    try:
        # As bytes: OpenVINO would map the file of weights, and a change to it would change the loaded model.
        content, weights = path.read_bytes(), path.with_name(INT8_WEIGHTS).read_bytes()
        _check_int8_files(checkpoint, content, weights)
        graph = _core().read_model(model=content, weights=weights)
        made_from = graph.get_rt_info(_WEIGHTS_HASH).astype(str) if graph.has_rt_info(_WEIGHTS_HASH) else None
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}. Quantize the model again.") from error
    if made_from != checkpoint.weights.sha256:
        origin = f"weights with the hash {made_from[:12]}" if made_from else "weights whose hash it does not store"
        raise CheckpointError(
            f"{str(path)!r} was made from {origin}. The weights beside it have the hash {checkpoint.weights.sha256[:12]}. "
            "Quantize the model again."
        )
    return graph
