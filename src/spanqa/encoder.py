"""The encoder with its question-answering head, written once over a few array operations.

The post-norm family (BERT, RoBERTa and XLM-R, ELECTRA, DistilBERT) is one function, `span_logits`. Its members differ only in
data: a few numbers in `EncoderConfig`. The caller provides the operations: NumPy, JAX and TensorFlow compute with them; OpenVINO
and ONNX Runtime build a graph from them.

This module reads no files (`spanqa.weights`), uses no names of other libraries (`spanqa.families`) and no framework.

Source: Devlin et al. 2018 (https://arxiv.org/abs/1810.04805).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

Array = TypeVar("Array")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The numbers that define an encoder.

    `position_offset` is added to position ids (RoBERTa counts from padding index + 1). `max_seq_length` is the longest window,
    special tokens counted. `embedding_size` differs from `hidden_size` only in ELECTRA. `token_types` is 0 if the model has
    no token type embedding.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    activation: str
    layer_norm_eps: float
    max_seq_length: int
    position_offset: int
    token_types: int
    embedding_size: int


class Ops(Protocol[Array]):
    """The array operations that an encoder uses. Axes: batch, token (query, key), head, hidden."""

    def embed(self, table: Array, ids: Array) -> Array:
        """Return the rows of `table` `[vocabulary, hidden]` at `ids` `[batch, token]`: `[batch, token, hidden]`."""

    def shift(self, ids: Array, offset: int) -> Array:
        """Return `ids` + offset."""

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        """Return `x` times the transpose of `weight` `[out, in]`, plus `bias` `[out]`."""

    def add(self, a: Array, b: Array) -> Array:
        """Return the sum of two arrays of the same shape."""

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """Apply layer normalization over the last axis."""

    def activate(self, x: Array, name: str) -> Array:
        """Apply one of `ACTIVATIONS`."""

    def split_heads(self, x: Array, heads: int) -> Array:
        """Turn `[batch, token, hidden]` into `[batch, head, token, hidden / heads]`."""

    def merge_heads(self, x: Array) -> Array:
        """Undo `split_heads`."""

    def take(self, x: Array, index: Array) -> Array:
        """Return `x` `[batch, token]` or `[batch, token, hidden]` at tokens `index` `[batch, query]`: query replaces token."""

    def same_window(self, query_window: Array, key_window: Array) -> Array:
        """Return which queries may attend to which keys, by their windows: `[batch, 1, query, key]`, in the form `attend` expects."""

    def attend(self, query: Array, key: Array, value: Array, mask: Array) -> Array:
        """Return scaled dot-product attention: `[batch, head, query, hidden / heads]`."""

    def attention(self, query: Array, key: Array, mask: Array) -> Array:
        """Return the attention probabilities only: `[batch, head, query, key]`."""

    def column(self, x: Array, index: int) -> Array:
        """Turn `[batch, token, hidden]` into `[batch, token]`: one index of the last axis."""


ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",  # exact, with the error function
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
"""Names of activations in checkpoints -> our names."""


def span_logits(
    ops: Ops[Array],
    weights: Mapping[str, Array],
    config: EncoderConfig,
    input_ids: Array,
    token_type_ids: Array,
    position_ids: Array,
    window_index: Array,
    queries: Array | Mapping[int, Array] | None = None,
    *,
    layers: Collection[int] = (),
) -> tuple[Array, Array, dict[int, Array]]:
    """Return start and end logits `[batch, token]`, and the attention `[batch, head, query, key]` of the requested `layers`.

    The first four inputs are those of `spanqa.batches.Batch`. `queries` `[batch, query]` are the tokens whose attention is
    requested, the same in all `layers`, or layer -> its own; they are needed only with `layers`. Logits are computed in the same way with and without attention. `weights` has the
    names of `weight_shapes`.
    """

    def linear(x: Array, name: str) -> Array:
        return ops.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Array, name: str) -> Array:
        return ops.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)

    mask = ops.same_window(window_index, window_index)
    attentions: dict[int, Array] = {}

    x = ops.embed(weights["embeddings.word"], input_ids)
    if config.token_types:
        x = ops.add(x, ops.embed(weights["embeddings.token_type"], token_type_ids))
    x = ops.add(x, ops.embed(weights["embeddings.position"], ops.shift(position_ids, config.position_offset)))
    x = norm(x, "embeddings.norm")
    if config.embedding_size != config.hidden_size:
        x = linear(x, "embeddings.projection")

    for i in range(config.layers):
        layer = f"layer.{i}"
        query, key, value = (linear(x, f"{layer}.{part}") for part in ("query", "key", "value"))
        keys = ops.split_heads(key, config.heads)
        if i in layers and queries is not None:
            looking = queries[i] if isinstance(queries, Mapping) else queries
            wanted = ops.split_heads(ops.take(query, looking), config.heads)
            query_mask = ops.same_window(ops.take(window_index, looking), window_index)
            attentions[i] = ops.attention(wanted, keys, query_mask)
        mixed = ops.attend(ops.split_heads(query, config.heads), keys, ops.split_heads(value, config.heads), mask)
        x = norm(ops.add(x, linear(ops.merge_heads(mixed), f"{layer}.attention_output")), f"{layer}.attention_norm")
        inner = ops.activate(linear(x, f"{layer}.intermediate"), config.activation)
        x = norm(ops.add(x, linear(inner, f"{layer}.output")), f"{layer}.output_norm")

    logits = linear(x, "qa")
    return ops.column(logits, 0), ops.column(logits, 1), attentions


def weight_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of the encoder, by our names."""
    hidden, embedding, inner = config.hidden_size, config.embedding_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word": (config.vocab_size, embedding),
        "embeddings.position": (config.max_seq_length + config.position_offset, embedding),
    }
    if config.token_types:
        shapes["embeddings.token_type"] = (config.token_types, embedding)
    linears = {"qa": (2, hidden)}
    norms = {"embeddings.norm": embedding}
    if embedding != hidden:
        linears["embeddings.projection"] = (hidden, embedding)
    for i in range(config.layers):
        layer = f"layer.{i}"
        linears |= {f"{layer}.{part}": (hidden, hidden) for part in ("query", "key", "value", "attention_output")}
        linears |= {f"{layer}.intermediate": (inner, hidden), f"{layer}.output": (hidden, inner)}
        norms |= {f"{layer}.attention_norm": hidden, f"{layer}.output_norm": hidden}
    for name, (out, into) in linears.items():
        shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    for name, size in norms.items():
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return shapes
