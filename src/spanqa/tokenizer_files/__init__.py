"""The tokenizer of a model folder: from its files, as the model of this config wants it.

tokenizer.json is read as it is. Where there is none, the model type decides which vocabulary file is read, and how
(`spanqa.tokenizer_files.vocabularies`); never which file happens to be there. What is checked is that the model has embeddings for every id
and token type that the tokenizer can give.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from spanqa.errors import CheckpointError
from spanqa.template import Template
from spanqa.tokenizer_files.vocabularies import (
    ALBERT_FILE,
    DEBERTA_FILE,
    OPTION_FILES,
    XLM_ROBERTA_FILE,
    albert,
    byte_level,
    camembert,
    deberta_v2,
    mpnet,
    read_options,
    word_piece,
    xlm_roberta,
)
from spanqa.tokenizer_setup import refusing_damage
from spanqa.tokens import Tokenizer

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER, *OPTION_FILES, "vocab.txt", "vocab.json", "merges.txt", XLM_ROBERTA_FILE, DEBERTA_FILE, ALBERT_FILE,
)  # fmt: skip
"""The files that a tokenizer may have in a model folder."""

_Reader = Callable[[Path, Mapping[str, Any]], tokenizers.Tokenizer]
_READERS: Mapping[str, tuple[str, _Reader]] = {
    "BertTokenizer": ("vocab.txt", word_piece),
    "RobertaTokenizer": ("vocab.json", byte_level),
    "MPNetTokenizer": ("vocab.txt", mpnet),
    "XLMRobertaTokenizer": (XLM_ROBERTA_FILE, xlm_roberta),
    "CamembertTokenizer": (XLM_ROBERTA_FILE, camembert),
    "DebertaV2Tokenizer": (DEBERTA_FILE, deberta_v2),
    "AlbertTokenizer": (ALBERT_FILE, albert),
}
"""transformers' name of a tokenizer -> its vocabulary file, and the function that reads it."""

_BERT, _ROBERTA, _XLM_ROBERTA = "BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"
_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("bert", "convbert", "distilbert", "electra", "ernie", "layoutlm"), _BERT),
    **dict.fromkeys(("megatron-bert", "mobilebert", "nezha", "squeezebert", "visual_bert"), _BERT),
    **dict.fromkeys(("roberta", "roberta-prelayernorm", "data2vec-text", "ibert", "longformer"), _ROBERTA),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl", "xmod"), _XLM_ROBERTA),
    **dict.fromkeys(("albert", "nystromformer", "yoso"), "AlbertTokenizer"),
    "camembert": "CamembertTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "mpnet": "MPNetTokenizer",
}
"""`model_type` of config.json -> transformers' name of its tokenizer."""

_SAME = {
    **dict.fromkeys(("ConvBert", "DistilBert", "Electra", "LayoutLM", "MobileBert", "SqueezeBert"), _BERT),
    "Longformer": _ROBERTA,
}
"""Old names of the same tokenizers, without "Tokenizer"."""


def read_tokenizer(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Read tokenizer.json or, where there is none, the vocabulary of the model's type, and see that it fits the model's config.

    Raises:
        CheckpointError: there is neither, a file is damaged, or it has more tokens than the model.
    """
    file = path / TOKENIZER
    if file.exists():
        with refusing_damage(f"{str(file)!r} cannot be read"):
            raw = tokenizers.Tokenizer.from_file(str(file))
    else:
        raw = _from_vocabulary(path, config)
    return fit_tokenizer(raw, config, repr(str(path)))


def _from_vocabulary(path: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read the vocabulary as the tokenizer does that the files name or, where they name none, that of the model's type."""
    options = read_options(path)
    model_type = config.get("model_type")
    stated = options.get("tokenizer_class") or config.get("tokenizer_class") or _NAMES.get(str(model_type))
    name = str(stated).removesuffix("Fast")
    file, reader = _READERS.get(_SAME.get(name.removesuffix("Tokenizer"), name), (None, None))
    if file is None or reader is None:
        kind = f"a {name}, as {model_type!r} models may have," if stated else f"the tokenizer of {model_type!r} models"
        raise CheckpointError(
            f"{str(path)!r} has no {TOKENIZER}, and spanqa does not read {kind} from other files. {_conversion(path)}"
        )
    if not (path / file).exists():
        raise CheckpointError(
            f"{str(path)!r} holds no tokenizer: expected {TOKENIZER} or, for {model_type!r} models, {file}. Copy it from the original model."
        )
    return reader(path, options)


def _conversion(path: Path) -> str:
    """Return how to make a tokenizer.json: version 4 of transformers, since 5 leaves out the normalizers of some models."""
    program = (
        f"from transformers import AutoTokenizer as A; A.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
    )
    return (
        "Convert the tokenizer once, in an environment of its own: "
        f"""pip install 'transformers<5' sentencepiece protobuf && python -c "{program}\""""
    )


def fit_tokenizer(raw: tokenizers.Tokenizer, config: Mapping[str, Any], name: str) -> Tokenizer:
    """Return the tokenizer as the model of this config wants it; `name` is for the message.

    Raises:
        CheckpointError: it has ids or token types that the model has no embeddings for, or no template with [CLS].
    """
    tokenizer = Tokenizer(raw)
    words, types = config.get("vocab_size"), config.get("type_vocab_size", 2)
    if isinstance(words, int) and not tokenizer.fits(words):
        raise CheckpointError(
            f"The tokenizer of {name} has ids up to {tokenizer.highest_id}, but the model has embeddings for only "
            f"{words} ids, counted from 0. Tokenizer and model do not belong together."
        )
    if types in (0, 1, None):
        tokenizer.template = _without_types(tokenizer.template)
    if isinstance(types, int) and tokenizer.template.highest_type >= max(types, 1):
        raise CheckpointError(
            f"The template of the tokenizer of {name} has token types up to {tokenizer.template.highest_type}, but the model has "
            f"embeddings for only {types}, counted from 0. Tokenizer and model do not belong together."
        )
    return tokenizer


def _without_types(template: Template) -> Template:
    pieces = {
        name: tuple((token, 0) for token, _ in getattr(template, name)) for name in ("before", "between", "after")
    }
    return replace(template, **pieces, question_type=0, passage_type=0)
