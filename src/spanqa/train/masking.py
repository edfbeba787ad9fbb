"""Masked language modelling: which tokens make a word, which words are chosen, and what takes their place. NumPy alone.

    text       The keeper's lamp                    words of a token, by `words_of`
    tokens     the keep ##er ' s lamp               0 1 1 2 3 4
    chosen     keep ##er, s                         "keeper" is masked whole, or not at all
    read       the [MASK] ##er ' [MASK] lamp        of each chosen token: 80 % [MASK], 10 % another token, 10 % itself

Words are decided from the text, the same way for every tokenizer: a word ends at white space, and each punctuation mark and each
CJK character is a word of its own, by the definitions of Google's BERT. The word numbers of tokenizers mean other things: for
SentencePiece "lamp," is one word, for byte-level BPE "..." is one and "41m" are two.

Source: google-research/bert, create_pretraining_data.py (`create_masked_lm_predictions`) and tokenization.py.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import CheckpointError
from spanqa.tokenizer_setup import unwritable
from spanqa.tokens import Tokenizer, Tokens

Masking = Literal["word", "token"]
"""What is chosen: whole words, or tokens independently of each other."""

RATE = 0.15
"""The share of a window's tokens that are chosen."""

NO_WORD = -1
"""The word of a token that is never chosen."""

_REPLACED, _RANDOM = 0.8, 0.1  # of the chosen tokens, independently; the others stay as they are

_OTHER, _SPACE, _ALONE, _MARK = range(4)
_CJK = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""The first and the last code points of what Google's BERT calls CJK: ideographs, without kana and hangul."""


@cache
def _kinds() -> NDArray[np.uint8]:
    """Return the kind of every code point: white space, alone (punctuation and CJK), a mark on the one before, or other.

    Accents are marks, and so are control characters, which nobody sees: Google's BERT removes both.
    """
    categories = {"Zs": _SPACE, "Zl": _SPACE, "Zp": _SPACE, "Mn": _MARK, "Me": _MARK, "Cc": _MARK, "Cf": _MARK}
    categories |= {f"P{kind}": _ALONE for kind in "cdefios"}
    found = [categories.get(unicodedata.category(chr(code)), _OTHER) for code in range(0x110000)]
    kinds = np.array(found, np.uint8)
    for code in range(0x21, 0x7F):
        if not chr(code).isalnum():
            kinds[code] = _ALONE  # "$", "+" and the like too
    for character in "\t\n\r":
        kinds[ord(character)] = _SPACE
    for first, last in _CJK:
        kinds[first : last + 1] = _ALONE
    return kinds


def words_of(text: str, tokens: Tokens, unknown: int | None = None) -> NDArray[np.int32]:
    """Return the number of the word that each token of a text belongs to, int32 `[token]`; -1 for tokens that are never chosen.

    A token begins a word behind white space, and where it, or the character before it, is a punctuation mark or CJK. It never
    does so inside a character, of which byte-level tokenizers make several tokens. White space alone is no word, but the "▁"
    that a tokenizer puts before a word belongs to it. Nor is a word with an unknown token, whose id is `unknown`: the model
    could only learn to answer [UNK].
    """
    words = np.full(len(tokens), NO_WORD, np.int32)
    visible = np.flatnonzero(tokens.offsets[:, 0] < tokens.offsets[:, 1])
    if not len(visible):
        return words
    kinds = _kinds()[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
    spaces = np.concatenate([[0], np.cumsum(kinds == _SPACE)])
    is_mark = kinds == _MARK
    bearers = np.maximum.accumulate(np.where(is_mark, 0, np.arange(len(kinds))))  # what each mark is on
    start, before = tokens.offsets[visible[1:], 0], np.maximum.accumulate(tokens.offsets[visible[:-1], 1])
    behind_alone = (kinds[bearers[before - 1]] == _ALONE) & ~is_mark[start]
    apart = (spaces[start] > spaces[before]) | (kinds[start] == _ALONE) | behind_alone
    words[visible] = np.concatenate([[0], np.cumsum(apart & (start >= before))])
    for token in reversed(np.flatnonzero(words == NO_WORD).tolist()):
        if token + 1 < len(tokens) and tokens.words[token] == tokens.words[token + 1]:
            words[token] = words[token + 1]
    if unknown is not None:
        words[np.isin(words, words[tokens.ids == unknown])] = NO_WORD
    return words


@dataclass(frozen=True, slots=True, eq=False)
class MaskTokens:
    """The tokens that masking needs to know: the mask, the unknown token (None where there is none), and those of texts.

    `ordinary` are the ids from which random tokens are drawn: all but special and added tokens.
    """

    mask: int
    unknown: int | None
    ordinary: NDArray[np.int32]


_MASKS = ("[MASK]", "<mask>", "<|mask|>")


def mask_tokens(tokenizer: Tokenizer, where: str) -> MaskTokens:
    """Return the tokens that masking needs to know. `where` is the model's name, for messages.

    Raises:
        CheckpointError: the tokenizer has no mask token.
    """
    names = [name for mask in _MASKS for name in (mask, unwritable(mask))]
    mask = next((found for name in names if (found := tokenizer.id_of(name)) is not None), None)
    if mask is None:
        raise CheckpointError(
            f"{where} has no mask token: its tokenizer has none of {', '.join(_MASKS)}. Choose a model that was trained by masking, "
            "such as BERT or RoBERTa."
        )
    return MaskTokens(mask, tokenizer.unknown_id, tokenizer.ordinary_ids)


def wanted(tokens: int, limit: int | None = None) -> int:
    """Return how many of a window's tokens are to be chosen: 15 %, at least one, and at most `limit`.

    >>> wanted(200), wanted(3), wanted(200, limit=20)
    (30, 1, 20)
    """
    share = max(1, round(RATE * tokens))
    return share if limit is None else min(limit, share)


def choose(
    words: NDArray[np.int32], draw: np.random.Generator, kind: Masking = "word", limit: int | None = None
) -> NDArray[np.intp]:
    """Return the positions of the chosen tokens of a window, in order.

    Words are taken in random order until `wanted` tokens are chosen. A word that would exceed that number is skipped, as
    Google's recipe has it, and the next one is tried: of a long word less is seen than of a short one, and one with more
    tokens than that number is never chosen.
    """
    candidates = np.flatnonzero(words != NO_WORD)
    if not len(candidates):
        return candidates
    of_word = words[candidates] if kind == "word" else np.arange(len(candidates))
    firsts = np.flatnonzero(np.diff(of_word, prepend=NO_WORD))
    sizes = np.diff(firsts, append=len(candidates))
    left, taken, lengths = wanted(len(words), limit), np.zeros(len(sizes), np.bool_), sizes.tolist()
    for each in draw.permutation(len(sizes)).tolist():
        if lengths[each] <= left:
            taken[each] = True
            left -= lengths[each]
            if not left:
                break
    return candidates[np.repeat(taken, sizes)]


def replace(
    ids: NDArray[np.int32], chosen: NDArray[np.intp], tokens: MaskTokens, draw: np.random.Generator
) -> NDArray[np.int32]:
    """Return what the model reads: of the chosen tokens, independently, 80 % are masked, 10 % random and 10 % as they were."""
    read, fate = ids.copy(), draw.random(len(chosen))
    read[chosen[fate < _REPLACED]] = tokens.mask
    others = chosen[(fate >= _REPLACED) & (fate < _REPLACED + _RANDOM)]
    read[others] = tokens.ordinary[draw.integers(len(tokens.ordinary), size=len(others))]
    return read


def cut_words(words: NDArray[np.int32], room: int) -> list[tuple[int, int]]:
    """Return token ranges, first (inclusive) to stop (exclusive), of at most `room` tokens, that cut no word in two.

    Only a word that is itself longer than `room` is cut. Ranges in which no token may be chosen are left out.

    >>> cut_words(np.array([0, 0, 1, 1, 1, 2]), room=4)
    [(0, 2), (2, 6)]
    """
    begins = np.flatnonzero((np.diff(words, prepend=-2) != 0) | (words == NO_WORD))
    cuts, first = [], 0
    while first < len(words):
        stop = first + room
        if stop < len(words):
            border = int(begins[np.searchsorted(begins, stop, side="right") - 1])
            stop = border if border > first else stop
        cuts.append((first, min(stop, len(words))))
        first = stop
    return [(first, stop) for first, stop in cuts if (words[first:stop] != NO_WORD).any()]
