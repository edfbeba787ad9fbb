"""The encoder as an ONNX file that any runtime takes: standard operators of opset 17, int64 inputs, the names that people expect.

    input_ids, attention_mask   int64 [batch, sequence]
    token_type_ids              the same, where the model has more than one token type
    start_logits, end_logits    float32 [batch, sequence]

Positions are counted by the attention mask, so padding may lie on either side. The logits of padding mean nothing.

Needs: pip install 'spanqa[onnx]'
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from spanqa.backends.onnx import OnnxOps
from spanqa.checkpoint import Checkpoint

OPSET, IR_VERSION = 17, 8  # 17 is the first with LayerNormalization; ONNX Runtime reads it since 1.12
WITHIN = 2_000_000_000
"""Bytes of weights that are kept in the file itself, which cannot be larger than 2 GiB."""

_ALIGNED = 4096  # where weights in a file of their own begin, so that they can be mapped into memory


class StandardOps(OnnxOps):
    """`spanqa.encoder.Ops` as nodes of the standard operators alone. `transposed` are the weights that it reads as [in, out]."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__(heads, head_size, np.float32)
        self.constants.pop()
        self._lowest = self._constant(-1e4, np.float32)  # half precision has it too
        self.transposed: set[str] = set()

    def shift(self, ids: str, offset: int) -> str:
        return self.node("Add", ids, self._constant(offset)) if offset else ids

    def linear(self, x: str, weight: str, bias: str) -> str:
        self.transposed.add(weight)
        return self.node("Add", self.node("MatMul", x, weight), bias)

    def activate(self, x: str, name: str) -> str:
        if name == "relu":
            return self.node("Relu", x)
        if name == "gelu_tanh":
            cube = self.node("Mul", self.node("Mul", self.node("Mul", x, x), x), self._float(0.044715))
            inner = self.node("Tanh", self.node("Mul", self.node("Add", x, cube), self._float(np.sqrt(2 / np.pi))))
        else:
            inner = self.node("Erf", self.node("Mul", x, self._float(np.sqrt(0.5))))
        return self.node("Mul", self.node("Mul", x, self._float(0.5)), self.node("Add", inner, self._float(1)))

    def same_window(self, query_window: str, key_window: str) -> str:
        """Return which keys are no padding: `[batch, 1, 1, key]`. Here a window is the attention mask of a row."""
        seen = self.node("Cast", key_window, to=TensorProto.BOOL)
        return self.node("Unsqueeze", seen, self._constant([1, 2]))

    def attend(self, query: str, key: str, value: str, mask: str) -> str:
        mixed = self.node("MatMul", self.attention(query, key, mask), self._split(value))
        mixed = self.node("Transpose", mixed, perm=[0, 2, 1, 3])  # (batch, token, head, size)
        return self.node("Reshape", mixed, self._constant([0, 0, -1]))

    def positions(self, attention_mask: str) -> str:
        """Return position ids: 0, 1, 2, ... over the tokens that are no padding, 0 on padding."""
        counted = self.node("CumSum", attention_mask, self._constant(1))
        return self.node("Mul", self.node("Sub", counted, self._constant(1)), attention_mask)

    def _float(self, value: Any) -> str:
        return self._constant(value, np.float32)


def write_graph(checkpoint: Checkpoint, file: Path, *, within: int = WITHIN) -> None:
    """Write the encoder; its weights, in float32, lie beside it, in `file` + ".data", where they have more than `within` bytes."""
    config = checkpoint.encoder
    ops = StandardOps(config.heads, config.hidden_size // config.heads)
    weights = checkpoint.encoder_weights()
    types = "token_type_ids" if config.token_types > 1 else ops._constant([[0]])
    given = ("input_ids", types, ops.positions("attention_mask"), "attention_mask")
    names = {name: name for name in weights}
    start, end, _ = checkpoint.family.logits(ops, names, config, *given)
    for logits, name in ((start, "start_logits"), (end, "end_logits")):
        ops.nodes.append(helper.make_node("Identity", [logits], [name], name))
    shape = ["batch", "sequence"]
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if config.token_types > 1 else [])]
    outputs = ["start_logits", "end_logits"]
    beside = 4 * sum(array.size for array in weights.values()) > within
    arrays = _float32(weights, ops.transposed)
    graph = helper.make_graph(
        ops.nodes,
        "spanqa",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        [*ops.constants, *(_beside(arrays, file.with_name(f"{file.name}.data")) if beside else _inside(arrays))],
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "spanqa"
    file.write_bytes(model.SerializeToString(deterministic=True))


def _float32(weights: Mapping[str, NDArray[Any]], transposed: set[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, array in weights.items():
        yield name, np.ascontiguousarray(array.T if name in transposed else array, np.float32)


def _inside(arrays: Iterator[tuple[str, NDArray[np.float32]]]) -> Iterator[TensorProto]:
    for name, array in arrays:
        yield numpy_helper.from_array(array, name)


def _beside(arrays: Iterator[tuple[str, NDArray[np.float32]]], file: Path) -> Iterator[TensorProto]:
    """Write the arrays to a file, one after the other, and yield tensors that say where they lie."""
    with file.open("wb") as data:
        for name, array in arrays:
            data.write(bytes(-data.tell() % _ALIGNED))
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", file.name), ("offset", data.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            data.write(array.astype("<f4", copy=False).tobytes())
            yield tensor
