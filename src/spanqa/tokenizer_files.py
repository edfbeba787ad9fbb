"""The tokenizer of a model folder: from its files, as the model of this config wants it.

Vocabulary, rules and special tokens come from the files. What is checked is that the model has embeddings for every id and token
type that the tokenizer can give.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from spanqa.errors import CheckpointError
from spanqa.files import read_object
from spanqa.tokens import Template, Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
"""The files that a tokenizer may have in a model folder."""


def read_tokenizer(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Read tokenizer.json, or vocab.txt where there is none, and see that it fits the model's config.

    Raises:
        CheckpointError: there is neither, the file is damaged, or it has more tokens than the model.
    """
    if (path / "tokenizer.json").exists():
        try:
            raw = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception for whatever is wrong with the file
            raise CheckpointError(f"{str(path / 'tokenizer.json')!r} cannot be read: {error}.") from error
    elif (path / "vocab.txt").exists():
        raw = _word_piece(path)
    else:
        raise CheckpointError(f"{str(path)!r} holds no tokenizer: expected tokenizer.json or vocab.txt.")
    return fit_tokenizer(raw, config, repr(str(path)))


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


def _word_piece(path: Path) -> tokenizers.Tokenizer:
    """BERT's tokenizer from a bare vocab.txt; case and accents as tokenizer_config.json says, uncased where it is silent."""
    options = read_object(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
    try:
        vocabulary = (path / "vocab.txt").read_text("utf-8").removesuffix("\n").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{str(path / 'vocab.txt')!r} cannot be read: {error}.") from None
    ids = {word: i for i, word in enumerate(vocabulary)}
    missing = [word for word in ("[UNK]", "[CLS]", "[SEP]") if word not in ids]
    if missing:
        raise CheckpointError(f"{str(path / 'vocab.txt')!r} lacks {', '.join(missing)}: it is not a BERT vocabulary.")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=bool(options.get("do_lower_case", True)),
        strip_accents=None if options.get("strip_accents") is None else bool(options["strip_accents"]),
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in ids])
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer
