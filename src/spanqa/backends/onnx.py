"""ONNX Runtime: an ONNX graph built directly from the weights, without export, a second weight file or torch.

`OnnxOps` provides the encoder's array operations as graph nodes, so that `spanqa.encoder.span_logits` builds the graph.

Needs: pip install 'spanqa[onnx]'; for CUDA, onnxruntime-gpu instead of onnxruntime. Costs: ONNX Runtime stores the weights in its
own format, so loading takes twice their size in memory, and the first call that requests attention loads them once more. Its CPU
kernels compute in float32 only: on processors with bfloat16, openvino and torch are faster.
"""

import os
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from spanqa.backends.base import BATCH_TOKENS, Graphs, capture_positions, split_attention
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits
from spanqa.checkpoint import Checkpoint
from spanqa.errors import BackendError

_FLOATS = {"fp32": np.float32, "fp16": np.float16}


class OnnxOps:
    """`spanqa.encoder.Ops` as nodes of an ONNX graph. An array is represented by the name of its value.

    ONNX's Attention reads and returns all heads side by side, `[batch, token, hidden]`, so they are not split.
    """

    def __init__(self, heads: int, head_size: int, dtype: Any) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._heads = heads
        self._scale = self._constant(head_size**-0.5, dtype)
        self._lowest = self._constant(np.finfo(dtype).min, dtype)

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, domain=domain, **attributes))
        return name

    def _constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def embed(self, table: str, ids: str) -> str:
        return self.node("Gather", table, ids)

    def shift(self, ids: str, offset: int) -> str:
        return self.node("Add", ids, self._constant(offset, np.int32)) if offset else ids

    def linear(self, x: str, weight: str, bias: str) -> str:
        # ONNX's own MatMul has no transB, and Gemm takes matrices only.
        return self.node("Add", self.node("FusedMatMul", x, weight, domain="com.microsoft", transB=1), bias)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)

    def layer_norm(self, x: str, weight: str, bias: str, eps: float) -> str:
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)

    def activate(self, x: str, name: str) -> str:
        if name == "relu":
            return self.node("Relu", x)
        return self.node("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")

    def split_heads(self, x: str, heads: int) -> str:
        return x

    def merge_heads(self, x: str) -> str:
        return x

    def take(self, x: str, index: str) -> str:
        return self.node("GatherND", x, index, batch_dims=1)

    def same_window(self, query_window: str, key_window: str) -> str:
        query = self.node("Unsqueeze", query_window, self._constant([1, 3]))
        return self.node("Equal", query, self.node("Unsqueeze", key_window, self._constant([1, 2])))

    def attend(self, query: str, key: str, value: str, mask: str) -> str:
        return self.node("Attention", query, key, value, mask, q_num_heads=self._heads, kv_num_heads=self._heads)

    def attention(self, query: str, key: str, mask: str) -> str:
        scores = self.node("MatMul", self._split(query), self.node("Transpose", self._split(key), perm=[0, 1, 3, 2]))
        scores = self.node("Where", mask, self.node("Mul", scores, self._scale), self._lowest)
        return self.node("Softmax", scores, axis=-1)  # (batch, head, query, key)

    def column(self, x: str, index: int) -> str:
        return self.node("Gather", x, self._constant(index), axis=2)

    def _split(self, x: str) -> str:
        parts = self.node("Reshape", x, self._constant([0, 0, self._heads, -1]))
        return self.node("Transpose", parts, perm=[0, 2, 1, 3])  # (batch, head, token, size)


def build_graph(checkpoint: Checkpoint, weights: Mapping[str, NDArray[Any]], layers: Collection[int] = ()) -> bytes:
    """Return the encoder as an ONNX file: inputs `[rows, cols]` int32; outputs start, end, and attention per layer.

    With `layers` there is a fifth input, "queries" `[rows, query, 1]` int64.

    The file names the weights but does not contain them, because an ONNX file can have at most 2 GB. The graph computes in the
    dtype of the weights.
    """
    config = checkpoint.encoder
    ops = OnnxOps(config.heads, config.hidden_size // config.heads, weights["qa.bias"].dtype)
    names = {name: name for name in weights}
    queries = ["queries"] if layers else []
    start, end, attentions = checkpoint.family.logits(ops, names, config, *Batch.__slots__, *queries, layers=layers)
    outputs = [ops.node("Cast", x, to=TensorProto.FLOAT) for x in (start, end, *attentions.values())]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["rows", "cols"]) for name in Batch.__slots__]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "queries", 1]) for name in queries]
    graph = helper.make_graph(
        ops.nodes,
        "spanqa",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [*ops.constants, *(_outside(name, array) for name, array in weights.items())],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]  # 23 is the first with Attention
    # The format version is set: onnx would write its newest version, which an older ONNX Runtime cannot read.
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def _outside(name: str, array: NDArray[Any]) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="memory")  # there is no such file: the session gets the arrays
    return tensor


class OnnxBackend:
    """An ONNX Runtime session on one device. A second session, with attention, is created on the first request for attention."""

    name = "onnx"
    layouts: tuple[BatchLayout, ...] = ("padded", "packed", "flat")
    batch_tokens = BATCH_TOKENS
    batches_at_once = 1

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str, threads: int | None) -> None:
        self.device = device
        self.dtype = dtype
        self._checkpoint = checkpoint
        self._threads = threads or _usable_processors()
        # Few rows at a time, so the output of one operation is still in the cache when the next one reads it: 12 % faster.
        self._tokens_at_once = self._threads * checkpoint.encoder.hidden_size // 2 if device == "cpu" else sys.maxsize
        self._sessions: Graphs[onnxruntime.InferenceSession] = Graphs()
        self._sessions.of(None, self._make_session)

    def _make_session(self, layers: tuple[int, ...]) -> onnxruntime.InferenceSession:
        dtype = _FLOATS[self.dtype]
        weights = {name: array.astype(dtype, copy=False) for name, array in self._checkpoint.encoder_weights().items()}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = self._threads
        # Idle threads sleep. If they spin, they take the processor from other work: twice the time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)  # copied before the session is ready
        provider: Any = "CPUExecutionProvider"
        if self.device == "cpu":
            # It would fuse addition and normalization into one operation, which is slower: 8 % more time in total.
            options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
        else:
            provider = ("CUDAExecutionProvider", {"device_id": self.device.partition(":")[2] or "0"})
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        graph = build_graph(self._checkpoint, weights, layers)
        try:
            session = onnxruntime.InferenceSession(graph, options, [provider], enable_fallback=False)
        except Exception as error:  # its errors have no common class
            raise BackendError(
                f"onnxruntime {onnxruntime.__version__} cannot run the model on {self.device}: {error} "
                "Check that it is the newest version and finds its libraries (for cuda: CUDA and cuDNN)."
            ) from error
        session.disable_fallback()
        return session

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        inputs = {name: getattr(batch, name) for name in Batch.__slots__}
        layers: list[int] = []
        if capture is not None:
            positions = capture_positions(batch, capture, self._checkpoint.encoder.layers)
            layers = sorted(set(capture.layers))
            inputs |= {"queries": positions.astype(np.int64)[..., None]} if layers else {}
        session = self._sessions.of(capture, self._make_session)
        rows, cols = batch.shape
        step = max(1, self._tokens_at_once // cols)
        parts = [
            session.run(None, {name: array[row : row + step] for name, array in inputs.items()})
            for row in range(0, rows, step)
        ]
        start, end, *attentions = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        found = dict(zip(layers, attentions, strict=True))
        return SpanLogits(start, end, split_attention(batch, capture, found) if capture is not None else None)


def _usable_processors() -> int:
    """Return the number of usable processors. Without it ONNX Runtime pins its threads, and complains where that is forbidden."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(checkpoint: Checkpoint, *, device: str, dtype: str, threads: int | None) -> OnnxBackend:
    """Create the backend. "auto" is the CPU, in float32."""
    device = "cpu" if device == "auto" else device
    found = ["cpu", *(["cuda"] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else [])]
    if re.sub(r"^cuda:\d+$", "cuda", device) not in found:
        raise BackendError(
            f"Backend 'onnx' does not see device {device!r} on this machine. Choose one of: {', '.join(found)}."
        )
    if dtype == "fp16" and device == "cpu":
        raise BackendError("Backend 'onnx' computes fp16 on cpu only by converting it to fp32. Use dtype 'fp32'.")
    onnxruntime.disable_telemetry_events()  # its Windows builds send telemetry
    return OnnxBackend(checkpoint, device, "fp32" if dtype == "auto" else dtype, threads)
