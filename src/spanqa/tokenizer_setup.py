"""Makes a tokenizer of the library `tokenizers` ready for extractive question answering.

    truncation, padding     what the file stores never applies
    special tokens          typed in a text ("[SEP]", "</s>") they are text like any other, never boundaries
    offsets                 a probe text must be covered by the offsets of its own tokens

It reads no files (`spanqa.tokenizer_files`) and keeps no texts (`spanqa.tokens`).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import tokenizers

from spanqa.errors import CheckpointError
from spanqa.template import Template, read_template

_PROBE = "The first pier, built in 1891 (by Anna): 41 metres. Été, Маяк 灯台!"
_RARE = (
    "\U00013000",
    "e\u0301\u0323 \ufb01 \uac01 \u0e01\u0e33 \U0001f469\u200d\U0001f33e \x00\ufeff\u3000",
    "x" * 300,
)
"""Texts for which a damaged tokenizer may have no token, or a damaged table no entry."""

_UNWRITABLE = "\ufffe "  # a character that no text has, and a space, which no word has


@contextmanager
def refusing_damage(doing: str) -> Iterator[None]:
    """Turn whatever the library raises into a CheckpointError.

    It raises bare `Exception`. Where its Rust code panics, the error is not even that.
    """
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise CheckpointError(f"{doing}: {str(error).rstrip('.')}. Is the tokenizer's file damaged?") from error


def set_up(tokenizer: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, Template]:
    """Return the tokenizer, or another one with the same ids, ready to use, and its template.

    Raises:
        CheckpointError: it cannot encode, has no template with [CLS], or gives wrong offsets that cannot be repaired.
    """
    with refusing_damage("The tokenizer loads but cannot encode"):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # it is no part of the file
        template = read_template(tokenizer)
        for text in (_PROBE, *_RARE):
            tokenizer.encode(text)
        tokenizer = _without_special_words(tokenizer)
        _cover_probe(tokenizer)
    return tokenizer, template


def unwritable(token: str) -> str:
    """Return the name that a special token has in the vocabulary, so that no text can have it as a word."""
    return _UNWRITABLE + token


def _without_special_words(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Give special tokens that the model itself finds in a text names that no text has.

    A Unigram model, for one, takes each special token for a word of its vocabulary.
    """
    special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    found = {content for content, i in special.items() if i in tokenizer.encode(content, add_special_tokens=False).ids}
    found -= {getattr(tokenizer.model, "unk_token", None)}  # it stands for the characters of its own name
    if not found:
        return tokenizer
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    words = model["vocab"]
    if isinstance(words, dict):
        model["vocab"] = {unwritable(word) if word in found else word: i for word, i in words.items()}
    else:
        model["vocab"] = [[unwritable(word) if word in found else word, score] for word, score in words]
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in found]
    renamed = tokenizers.Tokenizer.from_str(json.dumps(state))
    renamed.encode_special_tokens = True
    return renamed


def _cover_probe(tokenizer: tokenizers.Tokenizer) -> None:
    """Check that the offsets of the tokens cover the probe, and repair them if trimming is what is wrong.

    A byte-level tokenizer trims the space from the offsets of a token such as "Ġpier". If a step before it has split the text
    into words, the space is not in the text, and the first letter of every word is trimmed instead.
    """
    missing = _uncovered(tokenizer)
    if missing and tokenizer.post_processor is not None:
        processor = tokenizer.post_processor
        state = processor.__getstate__().replace(b'"trim_offsets":true', b'"trim_offsets":false')
        processor.__setstate__(state)
        tokenizer.post_processor = processor
        missing = _uncovered(tokenizer)
    if missing:
        raise CheckpointError(
            f"The tokenizer gives no position for the characters {''.join(missing)!r} of the text {_PROBE!r}, so answers would lose "
            "letters. Expected that the offsets of the tokens cover the text. Does its normalizer or pre_tokenizer belong to "
            "this model? Save the tokenizer again with transformers, from the original model."
        )


def _uncovered(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Return the characters of the probe that no token covers, though the tokenizer has a token for them."""
    offsets = tokenizer.encode(_PROBE, add_special_tokens=False).offsets
    covered = {place for start, end in offsets for place in range(start, end)}
    missing = [letter for place, letter in enumerate(_PROBE) if place not in covered and not letter.isspace()]
    return [letter for letter in missing if tokenizer.encode(letter, add_special_tokens=False).ids]
