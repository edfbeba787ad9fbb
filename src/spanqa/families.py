"""The encoder families: Hugging Face's parameter names and config keys of each, and the function that computes it.

A family is one record. Families differ only in data, so a checkpoint of any family becomes an `EncoderConfig` and parameters with
our own names. Two of our names can have the same stored name: a tensor that several layers share is stored once.

Source: the configuration and modeling files of transformers, one folder per model type.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spanqa.bounds import show
from spanqa.encoder import ACTIVATIONS, EncoderConfig, span_logits, weight_shapes


@dataclass(frozen=True, slots=True)
class Family:
    """How to read and compute checkpoints of a model type.

    `prefix` and `names` give the names of the stored parameters. `config` turns the contents of config.json into an
    `EncoderConfig`. `shapes` returns the shape of every parameter for such a config, by our names. `logits` is the function that
    computes the encoder, with the signature of `spanqa.encoder.span_logits`.
    """

    prefix: str
    names: Mapping[str, str]
    config: Callable[[Mapping[str, Any]], EncoderConfig]
    shapes: Callable[[EncoderConfig], dict[str, tuple[int, ...]]] = weight_shapes
    logits: Callable[..., Any] = span_logits

    def stored_name(self, name: str) -> str:
        """Return the stored name of one of our parameters in checkpoints of this family.

        >>> FAMILIES["bert"].stored_name("layer.3.query.weight")
        'bert.encoder.layer.3.attention.self.query.weight'
        """
        if name in self.names:
            return self.prefix + self.names[name]
        part, _, kind = name.rpartition(".")
        if part == "qa":
            return f"qa_outputs.{kind}"
        if part in self.names:
            return f"{self.prefix}{self.names[part]}.{kind}"
        _, index, piece = part.split(".")
        return f"{self.prefix}{self.names['layer']}.{index}.{self.names[piece]}.{kind}"


# Parameter names in transformers' checkpoints: our part -> their part, after the family's prefix. The head is always "qa_outputs".
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


def _number(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return a number of the config. It may be missing, or null, if there is a default."""
    value = config.get(name)
    if value is None and default is None:
        raise KeyError(name)
    return default if value is None else value


def _config(config: Mapping[str, Any], **known: Any) -> EncoderConfig:
    """Read a config with BERT's keys. `known` contains the fields that the family has read itself."""
    refused = {
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
        "pruned_heads": ({}, None),
    }
    for name, accepted in refused.items():
        if config.get(name) not in accepted:
            raise ValueError(f"{name} is {show(config[name])}; expected {accepted[0]!r}")
    keys = {
        "hidden_size": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
    }
    numbers = {field: known.pop(field) if field in known else _number(config, key) for field, key in keys.items()}
    activation = known.pop("activation", config.get("hidden_act", "gelu"))
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"the activation is {show(activation)}; expected one of {', '.join(sorted(ACTIVATIONS))}")
    hidden, heads = numbers["hidden_size"], numbers["heads"]
    if hidden % heads:
        raise ValueError(f"the hidden size {hidden} is not a multiple of the {heads} attention heads")
    offset = known.pop("position_offset", 0)
    eps = float(known.pop("layer_norm_eps", _number(config, "layer_norm_eps", 1e-12)))
    token_types = known.pop("token_types", _number(config, "type_vocab_size", 2))
    embedding_size = known.pop("embedding_size", hidden)
    assert not known, known
    return EncoderConfig(
        model_type=config["model_type"],
        vocab_size=_number(config, "vocab_size"),
        activation=ACTIVATIONS[activation],
        layer_norm_eps=eps,
        max_seq_length=_positions_left(_number(config, "max_position_embeddings"), offset),
        position_offset=offset,
        token_types=token_types,
        embedding_size=embedding_size,
        **numbers,
    )


def _positions_left(positions: int, offset: int) -> int:
    if positions <= offset:
        raise ValueError(
            f"max_position_embeddings is {positions} and positions start at {offset}, which leaves no position for a token"
        )
    return positions - offset


def _after_padding(config: Mapping[str, Any]) -> int:
    """Return the position of the first token in models that number tokens from the padding id + 1 on."""
    return int(_number(config, "pad_token_id", 1)) + 1


def _roberta(config: Mapping[str, Any]) -> EncoderConfig:
    return _config(config, position_offset=_after_padding(config))


def _electra(config: Mapping[str, Any]) -> EncoderConfig:
    return _config(config, embedding_size=_number(config, "embedding_size", _number(config, "hidden_size")))


def _distilbert(config: Mapping[str, Any]) -> EncoderConfig:
    return _config(
        config,
        hidden_size=_number(config, "dim"),
        layers=_number(config, "n_layers"),
        heads=_number(config, "n_heads"),
        intermediate_size=_number(config, "hidden_dim"),
        activation=config.get("activation", "gelu"),
        layer_norm_eps=1e-12,
        token_types=0,
    )


FAMILIES: Mapping[str, Family] = {
    "bert": Family("bert.", _BERT_NAMES, _config),
    "roberta": Family("roberta.", _BERT_NAMES, _roberta),
    "xlm-roberta": Family("roberta.", _BERT_NAMES, _roberta),
    "camembert": Family("roberta.", _BERT_NAMES, _roberta),
    "electra": Family("electra.", _BERT_NAMES, _electra),
    "distilbert": Family("distilbert.", _DISTILBERT_NAMES, _distilbert),
}
"""`model_type` of config.json -> its family."""


_POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings", "n_positions", "max_seq_len")
_POSITIONS_AFTER_PADDING = {
    "data2vec-text", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta-prelayernorm",
    "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Beside RoBERTa and its like. `test_every_architecture_of_transformers_reads_its_longest_window` runs all that transformers has."""


def longest_window(config: Mapping[str, Any]) -> int:
    """Return the longest window that a model of any architecture can read, by its config.json; special tokens counted.

    512 where the config has no limit: such models know the distances between tokens only.

    Raises:
        KeyError, ValueError: as `encoder_config`; the limit leaves no position for a token.
    """
    if config["model_type"] in FAMILIES:
        return encoder_config(config).max_seq_length
    positions = next((config[name] for name in _POSITIONS if config.get(name)), 512)
    return _positions_left(positions, _after_padding(config) if config["model_type"] in _POSITIONS_AFTER_PADDING else 0)


def encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Read the encoder's numbers from the contents of a `config.json` of one of the `FAMILIES`.

    Raises:
        KeyError: a number is missing. Its name is the argument.
        ValueError: the encoder does not support a setting. The message names it.
    """
    return FAMILIES[config["model_type"]].config(config)
