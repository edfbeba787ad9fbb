"""The type and the range of every number that spanqa reads from a model folder or takes as a setting: one table.

It knows no files and no models. A range is wide enough for every model that exists, and narrow enough that no number in it alone can
stop a machine.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spanqa.errors import InputError


@dataclass(frozen=True, slots=True)
class Bound:
    """From `least` to `most`, both included. `whole`: whole numbers only. `optional`: None is allowed, too."""

    least: float
    most: float
    whole: bool = True
    optional: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a value has the type and lies in the range. True and False are not numbers."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not self.whole and isinstance(value, int) and abs(value) > sys.float_info.max:
            return False  # no float is so large
        return self.least <= value <= self.most

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.least:,} to {self.most:,}{' or null' if self.optional else ''}"


_POSITIONS = Bound(1, 10_000_000)
_SIZE = Bound(1, 65_536)
_WIDE = Bound(1, 1_048_576)
_LAYERS = Bound(1, 1_000)
_HEADS = Bound(1, 1_024)
_EPSILON = Bound(1e-30, 0.1, whole=False)
_TOKENS = Bound(1, 1_000_000_000)
_THRESHOLD = Bound(-math.inf, math.inf, whole=False)

CONFIG: Mapping[str, Bound] = {
    "vocab_size": Bound(1, 10_000_000),
    "type_vocab_size": Bound(0, 1_000),
    "pad_token_id": Bound(-1, 10_000_000),
    **dict.fromkeys(("hidden_size", "dim", "d_model", "n_embd", "embedding_size"), _SIZE),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), _WIDE),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), _HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_encoder_position_embeddings", "max_seq_len"), _POSITIONS),
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps"), _EPSILON),
}  # fmt: skip
"""Fields of config.json, where they are there and not null. Several names mean the same in different architectures."""

SETTINGS: Mapping[str, Bound] = {
    "max_seq_length": _TOKENS,
    "overlap": Bound(0, 1_000_000_000, optional=True),
    "max_question_tokens": Bound(1, 1_000_000_000, optional=True),
    "max_answer_tokens": _TOKENS,
    "no_answer_threshold": _THRESHOLD,
    "threshold": _THRESHOLD,
    "min_probability": Bound(0, 1, whole=False),
    "most_f1_lost": Bound(0, 100, whole=False),
    "a": Bound(-1_000_000, 1_000_000, whole=False),
    "b": Bound(1e-6, 1_000_000, whole=False),
    "temperature": Bound(1e-3, 1_000, whole=False),
}
"""Fields of spanqa.json and arguments of the same meaning. A threshold of -inf is "always answer", of inf "never"."""


def check(names: Iterable[str], values: Mapping[str, Any], table: Mapping[str, Bound] = SETTINGS) -> None:
    """Check the values under these names.

    Raises:
        InputError: a value has the wrong type, or is out of its range.
    """
    for name in names:
        if not table[name].holds(values[name]):
            raise InputError(f"{name} is {show(values[name])}; expected {table[name]}.")


def show(value: Any) -> str:
    """Return a value as Python writes it, control characters escaped, cut to one readable line."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}..."
