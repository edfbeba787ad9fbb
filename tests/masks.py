"""The properties of whole-word masking, as checks that any collator can be put to.

`broken(collate, windows, ...)` says what a collator does wrong. `test_masking.py` puts ours to it, `scripts/check_masking.py`
transformers' own.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

_CJK = (
    range(0x4E00, 0xA000), range(0x3400, 0x4DC0), range(0x20000, 0x2A6E0), range(0x2A700, 0x2B740), range(0x2B740, 0x2B820),
    range(0x2B820, 0x2CEB0), range(0xF900, 0xFB00), range(0x2F800, 0x2FA20),
)  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """A text in one window: ids and, for each, where it lies in the text, and whether it is a special token."""

    text: str
    ids: Any
    offsets: Any
    special: Any


@dataclass(frozen=True)
class Masked:
    """What the model reads of a window, and which tokens it is to predict."""

    read: Any
    chosen: Any


Collate = Callable[[Sequence[Encoded], int], list[Masked]]
"""Masks windows, by a seed."""


@cache
def is_alone(character: str) -> bool:
    """Return whether a character is a word of its own: a punctuation mark, or CJK."""
    ascii_mark = 33 <= ord(character) <= 126 and not character.isalnum()
    is_cjk = any(ord(character) in block for block in _CJK)
    return ascii_mark or is_cjk or unicodedata.category(character).startswith("P")


def word_of_characters(text: str) -> list[int]:
    """Return the number of the word of each character, by Google's rules, one character after the other; -1 is white space."""
    numbers: list[int] = []
    word, before = -1, "space"
    for character in text:
        category = unicodedata.category(character)
        if character in " \t\n\r" or category in ("Zs", "Zl", "Zp"):
            before = "space"
            numbers.append(-1)
            continue
        if category in ("Mn", "Me", "Cc", "Cf") and before != "space":
            numbers.append(word)  # an accent, or a character that nobody sees: it is on the one before
            continue
        alone = is_alone(character)
        if alone or before != "letter":
            word += 1
        before = "alone" if alone else "letter"
        numbers.append(word)
    return numbers


def word_of_tokens(text: str, offsets: Any) -> list[int]:
    """Return the number of the word of each token: -1 for none. Tokens that share a character share the word."""
    of_character = word_of_characters(text)
    numbers: list[int] = []
    word, last, end_before = -1, -1, -1
    for start, end in np.asarray(offsets).tolist():
        if start >= end:
            numbers.append(-1)
            continue
        inside = of_character[start:end]
        if start >= end_before and (inside[0] != last or -1 in of_character[max(end_before, 0) : start]):
            word += 1
        last, end_before = inside[-1], max(end_before, end)
        numbers.append(word)
    return numbers


def broken(
    collate: Collate, windows: Sequence[Encoded], *, mask_id: int, vocabulary: int, seeds: int = 40
) -> dict[str, str]:
    """Return the properties that a collator does not have, and how that shows. The windows hold 100,000 tokens or more."""
    found = {}
    draws = [collate(windows, seed) for seed in range(2)]
    few = windows[:20]
    many = [draw[:20] for draw in draws] + [collate(few, seed) for seed in range(2, seeds)]
    if torn := torn_words(windows, draws[0]):
        found["a word is masked whole or not at all"] = shown(torn)
    if glued := glued_words(few, many):
        found["a word is chosen without its neighbours"] = shown(glued)
    if touched := touched_tokens(windows, draws[0]):
        found["special tokens, and others that were not chosen, are left alone"] = f"{touched:,} tokens changed"
    if abs(share(windows, draws[0]) - 15) > 0.5:
        found["15 % of the tokens are chosen"] = f"{share(windows, draws[0]):.2f} %"
    if wrong := wrong_fates(windows, draws[0], mask_id, vocabulary):
        found["80 % masked, 10 % random, 10 % kept"] = wrong
    if not same(draws[0], collate(windows, 0)):
        found["a seed gives the same masks again"] = "other masks"
    if same(draws[0], draws[1]):
        found["another seed gives other masks"] = "the same masks"
    return found


def torn_words(windows: Sequence[Encoded], masked: Sequence[Masked]) -> list[str]:
    """Return the words of which some tokens are chosen and others are not."""
    found = []
    for window, mask in zip(windows, masked, strict=True):
        words, offsets = _words(window), np.asarray(window.offsets)
        counts, chosen = Counter(words.tolist()), Counter(words[mask.chosen].tolist())
        for word in (word for word in chosen if word >= 0 and chosen[word] < counts[word]):
            starts, ends = offsets[words == word].T
            found.append(window.text[starts.min() : ends.max()])
    return found


def glued_words(windows: Sequence[Encoded], draws: Sequence[Sequence[Masked]]) -> list[str]:
    """Return pairs of neighbouring words that were always chosen together; that is chance once in 90,000 pairs."""
    found = []
    for w, window in enumerate(windows):
        words, offsets = _words(window), np.asarray(window.offsets)
        sets = [set(words[draw[w].chosen].tolist()) for draw in draws]
        for first, second in pairwise(sorted(set(words[words >= 0].tolist()))):
            together = [(first in each) + (second in each) for each in sets]
            if 1 not in together and together.count(2) >= 6:
                starts, ends = offsets[np.isin(words, (first, second))].T
                found.append(window.text[starts.min() : ends.max()])
    return found


def touched_tokens(windows: Sequence[Encoded], masked: Sequence[Masked]) -> int:
    """Return how many special tokens were chosen or changed, and other tokens changed that were not chosen."""
    count = 0
    for window, mask in zip(windows, masked, strict=True):
        changed = np.asarray(mask.read) != np.asarray(window.ids)
        count += int(
            ((mask.chosen | changed) & window.special).sum() + (changed & ~mask.chosen & ~window.special).sum()
        )
    return count


def share(windows: Sequence[Encoded], masked: Sequence[Masked]) -> float:
    """Return how many of the tokens that are not special are chosen, in percent."""
    return 100 * sum(int(mask.chosen.sum()) for mask in masked) / sum(int((~each.special).sum()) for each in windows)


def wrong_fates(windows: Sequence[Encoded], masked: Sequence[Masked], mask_id: int, vocabulary: int) -> str:
    """Return what became of the chosen tokens, if that is not 80/10/10: more than four standard deviations away; else ""."""
    counts: Counter[str] = Counter()
    for window, mask in zip(windows, masked, strict=True):
        read, ids = np.asarray(mask.read)[mask.chosen], np.asarray(window.ids)[mask.chosen]
        counts.update(masked=int((read == mask_id).sum()), kept=int((read == ids).sum()), all=len(ids))
    total, by_chance = counts["all"], 0.1 / vocabulary  # a random token can be the one that was there
    for name, wanted in (("masked", 0.8), ("kept", 0.1 + by_chance)):
        if abs(counts[name] / total - wanted) > 4 * math.sqrt(wanted * (1 - wanted) / total):
            other = total - counts["masked"] - counts["kept"]
            return ", ".join(f"{100 * n / total:.1f} %" for n in (counts["masked"], other, counts["kept"]))
    return ""


def same(one: Sequence[Masked], other: Sequence[Masked]) -> bool:
    """Return whether two draws read and predict the same."""
    return all(
        np.array_equal(a.read, b.read) and np.array_equal(a.chosen, b.chosen) for a, b in zip(one, other, strict=True)
    )


def shown(words: Sequence[str]) -> str:
    """Return how many words there are, and the most common ones."""
    return f"{len(words):,}, such as {', '.join(repr(word) for word, _ in Counter(words).most_common(4))}"


def _words(window: Encoded) -> Any:
    words = np.array(word_of_tokens(window.text, window.offsets))
    words[window.special] = -1
    return words
