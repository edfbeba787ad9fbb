"""Words of a question and a passage, the units of every explanation, and windows in which some of them are hidden.

A person reads words, not pieces: the scores of a word's tokens are added, and a word is hidden with all its tokens. Hidden words
become the model's own mask token, so that the length of the window and every position stay as they were.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import InputError
from spanqa.tokenizer_setup import unwritable
from spanqa.tokens import Tokenizer, Tokens
from spanqa.windows import Window

Part = Literal["question", "passage"]
"""Which of the two texts a word belongs to."""


@dataclass(frozen=True, slots=True)
class Word:
    """`text` is `[start:end]` of its part, in code points; its tokens are `first` (inclusive) to `stop` (exclusive) of that part."""

    part: Part
    text: str
    start: int
    end: int
    first: int
    stop: int


def words_of(part: Part, text: str, tokens: Tokens, first: int = 0, stop: int | None = None) -> list[Word]:
    """Return the words of a text, in order, or those of the tokens from `first` (inclusive) to `stop` (exclusive).

    A word begins where the tokenizer begins one, and behind white space. Tokens that share a character, or stand for none, belong
    to one word.

        text     Unbelievably, yes        tokens   un believa bly , yes
        words    Unbelievably | , | yes            0-3           3-4 4-5
    """
    stop = len(tokens) if stop is None else stop
    offsets, numbers = tokens.offsets[first:stop].tolist(), tokens.words[first:stop].tolist()
    bounds: list[list[int]] = []  # first token, start, end
    number_before = -1
    for token, ((start, end), number) in enumerate(zip(offsets, numbers, strict=True), first):
        begins = number != number_before or number < 0 or (bool(bounds) and start > bounds[-1][2])
        if not bounds or (begins and start < end and start >= bounds[-1][2] > bounds[-1][1]):
            bounds.append([token, start, end])
        elif start < end:
            blank = bounds[-1][1] >= bounds[-1][2]
            bounds[-1][1] = start if blank else min(bounds[-1][1], start)
            bounds[-1][2] = max(bounds[-1][2], end)
        number_before = number
    stops = [bound[0] for bound in bounds[1:]] + [stop] * bool(bounds)
    return [
        Word(part, text[start:end], start, end, token, following)
        for (token, start, end), following in zip(bounds, stops, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Mask:
    """The token that takes the place of hidden ones."""

    token: str
    id: int


_MASKS = ("[MASK]", "<mask>", "<|mask|>", "[UNK]", "<unk>", "[PAD]", "<pad>", "<|endoftext|>")
"""Mask tokens first; models that have none were never trained to read one, and get the nearest to nothing that they know."""


def mask_of(tokenizer: Tokenizer) -> Mask:
    """Return the token that hides words.

    Raises:
        InputError: the tokenizer has none.
    """
    for token in _MASKS:
        for name in (token, unwritable(token)):
            number = tokenizer.id_of(name)
            if number is not None:
                return Mask(token, number)
    raise InputError(
        f"This model's tokenizer has none of the tokens {', '.join(_MASKS)}, so no word can be hidden from it. Use another model."
    )


def hidden(window: Window, words: Collection[Word], mask: Mask) -> Window:
    """Return the window with the tokens of these words masked; those that lie outside the window change nothing.

    Its tokens are its own: `first` is 0, whatever it was.
    """
    question = _masked(window.question, 0, len(window.question), (w for w in words if w.part == "question"), mask)
    passage = _masked(window.passage, window.first, window.stop, (w for w in words if w.part == "passage"), mask)
    return replace(window, question=question, passage=passage, first=0, stop=window.stop - window.first)


def _masked(tokens: Tokens, first: int, stop: int, words: Iterator[Word], mask: Mask) -> Tokens:
    ids: NDArray[np.int32] = tokens.ids[first:stop].copy()
    for word in words:
        ids[max(0, word.first - first) : max(0, word.stop - first)] = mask.id
    return Tokens(ids, tokens.offsets[first:stop])


def lies_in(word: Word, spans: Sequence[tuple[int, int]]) -> bool:
    """Return whether a word of the passage shares a character with one of these spans, the ends excluded."""
    return word.part == "passage" and any(word.start < end and start < word.end for start, end in spans)


def touches(window: Window, words: Sequence[Word]) -> bool:
    """Return whether some of these words lie in the window, as all words of the question do."""
    return any(word.part == "question" or (word.first < window.stop and word.stop > window.first) for word in words)


def add_pieces(
    words: Sequence[Word], windows: Sequence[Window], scores: Sequence[NDArray[np.floating]]
) -> NDArray[np.float64]:
    """Return the scores of words from those of the tokens of some windows, each `[token]`: sums over pieces and windows."""
    total = np.zeros(len(words))
    for window, of_tokens in zip(windows, scores, strict=True):
        question = len(window.template.before)
        for number, word in enumerate(words):
            if word.part == "question":
                low, high = word.first, word.stop
                at = question
            else:
                low, high = max(word.first, window.first), min(word.stop, window.stop)
                at = window.passage_start - window.first
            if low < high:
                total[number] += float(of_tokens[at + low : at + high].sum())
    return total
