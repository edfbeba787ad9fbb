"""The encoder with its question-answering head, written once over a few array operations.

The post-norm family (BERT, RoBERTa and XLM-R, ELECTRA, DistilBERT) is one function, `span_logits`. What differs between
its members is data: the weight names below, and a handful of numbers in `EncoderConfig`. The operations are given by
whoever runs it: NumPy computes with them, OpenVINO builds a graph from them.

It does not read files (`spanqa.checkpoint`) and knows no framework.

Source: Devlin et al. 2018 (https://arxiv.org/abs/1810.04805); weight names as in transformers' modeling files.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Array = TypeVar("Array")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The numbers that make an encoder.

    `position_offset` is added to position ids (RoBERTa counts from padding index + 1); `max_seq_length` is the longest
    window, specials counted. `embedding_size` differs from `hidden_size` only in ELECTRA. `token_types` is 0 where the
    model has no token type embedding.
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
    """The array operations an encoder is made of. Axes: batch, token (query, key), head, hidden."""

    def embed(self, table: Array, ids: Array) -> Array:
        """Rows of `table` `[vocabulary, hidden]` at `ids` `[batch, token]` -> `[batch, token, hidden]`."""

    def shift(self, ids: Array, offset: int) -> Array:
        """`ids` + offset."""

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        """`x` times the transpose of `weight` `[out, in]`, plus `bias` `[out]`."""

    def add(self, a: Array, b: Array) -> Array:
        """Sum of two arrays of one shape."""

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """Layer normalisation over the last axis."""

    def activate(self, x: Array, name: str) -> Array:
        """One of `ACTIVATIONS`."""

    def split_heads(self, x: Array, heads: int) -> Array:
        """`[batch, token, hidden]` -> `[batch, head, token, hidden / heads]`."""

    def merge_heads(self, x: Array) -> Array:
        """The inverse of `split_heads`."""

    def same_window(self, window_index: Array) -> Array:
        """Which pairs of tokens may see each other, `[batch, 1, query, key]`, in the form `attend` wants."""

    def attend(self, query: Array, key: Array, value: Array, mask: Array) -> Array:
        """Scaled dot-product attention -> `[batch, head, query, hidden / heads]`."""

    def attention(self, query: Array, key: Array, mask: Array) -> Array:
        """Its probabilities alone -> `[batch, head, query, key]`."""

    def mix(self, attention: Array, value: Array) -> Array:
        """`attention` times `value` -> `[batch, head, query, hidden / heads]`."""

    def column(self, x: Array, index: int) -> Array:
        """`[batch, token, hidden]` -> `[batch, token]`, one place of the last axis."""


ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",  # exact, by the error function
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
"""What checkpoints call an activation -> what it is."""


def span_logits(
    ops: Ops[Array],
    weights: Mapping[str, Array],
    config: EncoderConfig,
    input_ids: Array,
    token_type_ids: Array,
    position_ids: Array,
    window_index: Array,
    *,
    attention_layers: Collection[int] = (),
) -> tuple[Array, Array, dict[int, Array]]:
    """Return start logits and end logits `[batch, token]`, and the attention of the layers asked for.

    The four inputs are those of `spanqa.batches.Batch`; `weights` has the names of `weight_shapes`.
    """

    def linear(x: Array, name: str) -> Array:
        return ops.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Array, name: str) -> Array:
        return ops.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)

    def heads(x: Array, name: str) -> Array:
        return ops.split_heads(linear(x, name), config.heads)

    mask = ops.same_window(window_index)
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
        query, key, value = (heads(x, f"{layer}.{part}") for part in ("query", "key", "value"))
        if i in attention_layers:
            attentions[i] = ops.attention(query, key, mask)
            mixed = ops.mix(attentions[i], value)
        else:
            mixed = ops.attend(query, key, value, mask)
        x = norm(ops.add(x, linear(ops.merge_heads(mixed), f"{layer}.attention_output")), f"{layer}.attention_norm")
        inner = ops.activate(linear(x, f"{layer}.intermediate"), config.activation)
        x = norm(ops.add(x, linear(inner, f"{layer}.output")), f"{layer}.output_norm")

    logits = linear(x, "qa")
    return ops.column(logits, 0), ops.column(logits, 1), attentions


def weight_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Return every parameter of the encoder, by our names, with its shape."""
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


# Weight names as transformers writes them: our part -> theirs, below the family's prefix. The head is "qa_outputs" in all.
_BERT_NAMES: Mapping[str, str] = {
    "embeddings.word": "embeddings.word_embeddings.weight",
    "embeddings.position": "embeddings.position_embeddings.weight",
    "embeddings.token_type": "embeddings.token_type_embeddings.weight",
    "embeddings.norm": "embeddings.LayerNorm",
    "embeddings.projection": "embeddings_project",
    "layer": "encoder.layer",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
_DISTILBERT_NAMES: Mapping[str, str] = {
    "embeddings.word": "embeddings.word_embeddings.weight",
    "embeddings.position": "embeddings.position_embeddings.weight",
    "embeddings.norm": "embeddings.LayerNorm",
    "layer": "transformer.layer",
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "intermediate": "ffn.lin1",
    "output": "ffn.lin2",
    "output_norm": "output_layer_norm",
}
FAMILIES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "bert": ("bert.", _BERT_NAMES),
    "roberta": ("roberta.", _BERT_NAMES),
    "xlm-roberta": ("roberta.", _BERT_NAMES),
    "camembert": ("roberta.", _BERT_NAMES),
    "electra": ("electra.", _BERT_NAMES),
    "distilbert": ("distilbert.", _DISTILBERT_NAMES),
}
"""model_type of config.json -> the prefix of its weight names, and the names below it."""


def stored_name(model_type: str, name: str) -> str:
    """Return what a checkpoint of the family calls our parameter.

    >>> stored_name("bert", "layer.3.query.weight")
    'bert.encoder.layer.3.attention.self.query.weight'
    """
    prefix, names = FAMILIES[model_type]
    if name in names:
        return prefix + names[name]
    part, _, kind = name.rpartition(".")
    if part == "qa":
        return f"qa_outputs.{kind}"
    if part in names:
        return f"{prefix}{names[part]}.{kind}"
    _, index, piece = part.split(".")
    return f"{prefix}{names['layer']}.{index}.{names[piece]}.{kind}"


def encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Read what the encoder needs from the contents of a `config.json` of one of the `FAMILIES`.

    Raises:
        KeyError: a number is missing; its name is the argument.
        ValueError: a setting that this encoder does not have; the message names it.
    """
    kind = config["model_type"]
    refused = {
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
        "pruned_heads": ({}, None),
    }
    for name, accepted in refused.items():
        if config.get(name) not in accepted:
            raise ValueError(f"{name} is {config[name]!r}; expected {accepted[0]!r}")
    distil = kind == "distilbert"
    activation = config.get("activation", "gelu") if distil else config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"the activation is {activation!r}; expected one of {', '.join(sorted(ACTIVATIONS))}")
    hidden = int(config["dim" if distil else "hidden_size"])
    heads = int(config["n_heads" if distil else "num_attention_heads"])
    if heads < 1 or hidden % heads:
        raise ValueError(f"the hidden size {hidden} is no multiple of the {heads} attention heads")
    offset = int(config.get("pad_token_id", 1)) + 1 if kind in ("roberta", "xlm-roberta", "camembert") else 0
    return EncoderConfig(
        model_type=kind,
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden,
        layers=int(config["n_layers" if distil else "num_hidden_layers"]),
        heads=heads,
        intermediate_size=int(config["hidden_dim" if distil else "intermediate_size"]),
        activation=ACTIVATIONS[activation],
        layer_norm_eps=1e-12 if distil else float(config.get("layer_norm_eps", 1e-12)),
        max_seq_length=int(config["max_position_embeddings"]) - offset,
        position_offset=offset,
        token_types=0 if distil else int(config.get("type_vocab_size", 2)),
        embedding_size=int(config.get("embedding_size", hidden)) if kind == "electra" else hidden,
    )
