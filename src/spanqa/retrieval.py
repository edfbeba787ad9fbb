"""Chooses what is worth reading of long texts: the windows that share most words with the question, by BM25.

A model reads some tens of windows in a second; counting words takes microseconds. So of a long text only its most likely parts are
encoded and read. The text is cut into blocks, each a little shorter than a window; BM25 ranks the blocks of all texts; the best are
read, together with some text on both sides, and blocks that are neighbours are read in one piece. Blocks end with a paragraph where
they can: a model reads a paragraph better than parts of two.

Words are compared as they are written, without stemming, in lower case and in Unicode's compatibility form. Where a script puts no
spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), or joins particles to them (Korean), characters and pairs of
characters take their place. An answer in a part that shares no word with the question is lost. This module runs no model.

Source: Robertson & Zaragoza 2009; pairs of characters as in Lucene's CJKBigramFilter. benchmarks/long_text.py measures recall.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from spanqa.errors import InputError
from spanqa.extras import import_without
from spanqa.reader import Reader
from spanqa.tokens import Passage, Tokens
from spanqa.windows import check_question, cut, room_and_overlap

MANY_WINDOWS = 2000
"""Texts of more windows than this are not read as a whole unless asked for."""

LIKELY_WINDOWS = 300
"""The number of windows that are then read."""

_BLOCK, _MARGIN = 0.9, 0.05  # of a block, and of what is read on each side of it: shares of the room in a window
_SAMPLES, _SAMPLE = 64, 1024  # samples from which the number of tokens is estimated, and their length in code points

_WORD = regex.compile(r"\w+")
_BY_CHARACTERS = regex.compile(r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Hangul}]+)")


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What is read for a question: of each text, in the order given, all of it, its most likely parts, or nothing.

    `windows_read` is the number of windows in `passages`, `windows_total` that of the whole texts, estimated (to three digits) where
    not all is read. `matched` is false where the texts hold no word of the question, so that nothing could be chosen.
    """

    passages: tuple[Passage, ...]
    windows_read: int
    windows_total: int
    matched: bool = True

    @property
    def complete(self) -> bool:
        """Whether everything is read."""
        return self.windows_read == self.windows_total


class TextIndex:
    """Some texts, and how often their blocks hold each word: what to read of them for a question.

        index = TextIndex(reader, [text])
        choice = index.choose("Who built the pier?")
        reader.ranking("Who built the pier?", choice.passages)       # positions are those in the whole texts

    `sources` say where the texts come from. The words are counted when a choice is first needed.
    """

    def __init__(self, reader: Reader, texts: Sequence[str], sources: Sequence[str | None] | None = None) -> None:
        self.reader, self.texts = reader, texts
        self.sources = [None] * len(texts) if sources is None else sources

    def choose(self, question: str, max_windows: int | None = None, *, read_all: bool = False) -> Choice:
        """Return what to read for a question: at most `max_windows` windows.

        Without that number everything is read up to `MANY_WINDOWS`, and the `LIKELY_WINDOWS` most likely windows of longer texts,
        or everything if no word of the question occurs in them. `read_all` reads everything.

        Raises:
            InputError: `max_windows` is below 1, or given together with `read_all`; the question is empty or too long, or a text is
                not valid Unicode.
        """
        if max_windows is not None and (read_all or not isinstance(max_windows, int) or max_windows < 1):
            raise InputError(
                f"max_windows is {max_windows!r} and read_all is {read_all!r}. Give read_all alone, or a whole number of windows, at least 1."
            )
        tokens = self.reader.checkpoint.tokenizer.encode(check_question(question))
        total = self._estimate(tokens)
        if read_all or total <= (max_windows or MANY_WINDOWS):
            everything = self._everything(tokens)
            if max_windows is None or everything.windows_read <= max_windows:
                return everything
            total = everything.windows_total
        scores = self._scores(question)
        if max_windows is None and not scores.any():
            return self._everything(tokens, matched=False)
        likely = np.argsort(-scores, kind="stable")
        count = most = max_windows or LIKELY_WINDOWS
        while True:
            passages = self._passages(likely[:count])
            if count == 1:
                passages = self._shortened(tokens, passages, most)
            read = self._count(tokens, passages)
            if read <= most:
                return Choice(passages, read, max(read + 1, total), bool(scores.any()))
            count = max(1, min(count - 1, count * most // read))

    def _everything(self, question: Tokens, *, matched: bool = True) -> Choice:
        passages = tuple(map(self.reader.prepare, self.texts, self.sources))
        windows = self._count(question, passages)
        return Choice(passages, windows, windows, matched)

    def _count(self, question: Tokens, passages: Sequence[Passage]) -> int:
        return sum(map(len, cut(question, passages, self.reader.checkpoint.tokenizer, self.reader.windows)))

    def _estimate(self, question: Tokens) -> int:
        """Estimate the number of windows of all texts, to three digits, from the tokens per code point of evenly spaced samples."""
        room, overlap = room_and_overlap(question, self.reader.checkpoint.tokenizer.template, self.reader.windows)
        tokens = np.array([len(text) for text in dict.fromkeys(self.texts)]) * self._tokens_per_character
        windows = int(np.ceil(np.maximum(0, tokens - room) / (room - overlap) + (tokens > 0)).sum())
        return round(windows, 3 - len(str(windows)))

    @cached_property
    def _tokens_per_character(self) -> float:
        lengths = np.cumsum([0, *map(len, self.texts)])
        tokens = characters = 0
        for place in np.linspace(0, lengths[-1], _SAMPLES, endpoint=False).astype(int).tolist():
            number = int(np.searchsorted(lengths, place, side="right")) - 1
            start = place - int(lengths[number])
            sample = self.texts[number][start : start + _SAMPLE]
            tokens += len(self.reader.checkpoint.tokenizer.encode(sample))
            characters += len(sample)
        return max(tokens, 1) / max(characters, 1)

    @cached_property
    def _room(self) -> float:
        """Code points that fit into a window beside a question of some length."""
        settings, template = self.reader.windows, self.reader.checkpoint.tokenizer.template
        return max(1, settings.max_seq_length - template.special_tokens - 16) / self._tokens_per_character

    @cached_property
    def _blocks(self) -> list[tuple[int, int, int]]:
        """The number of each block's text, and the block's start and end in it; a text given twice has blocks once."""
        first = {text: number for number, text in reversed(list(enumerate(self.texts)))}
        size = max(1, int(_BLOCK * self._room))
        return [
            (number, start, end)
            for text, number in sorted(first.items(), key=lambda item: item[1])
            for start, end in pairwise(_cuts(text, size))
        ]

    @cached_property
    def _index(self) -> tuple[Any, dict[str, int]]:
        """The index of the blocks' words, and the number of each word."""
        bm25s = import_without("bm25s", "jax")  # it would load JAX to sort a few numbers
        words: dict[str, int] = {}
        counted = [
            [words.setdefault(word, len(words)) for word in split_words(self.texts[number][start:end])]
            for number, start, end in self._blocks
        ]
        index = bm25s.BM25()
        if words:
            index.index(bm25s.tokenization.Tokenized(counted, words), show_progress=False)
        return index, words

    def _scores(self, question: str) -> NDArray[np.float32]:
        """Return how well each block matches the question; 0 is not at all."""
        index, words = self._index
        known = [words[word] for word in split_words(question) if word in words]
        if not known:
            return np.zeros(len(self._blocks), np.float32)
        scores: NDArray[np.float32] = index.get_scores_from_ids(known)
        return scores

    def _shortened(self, question: Tokens, passages: Sequence[Passage], most: int) -> tuple[Passage, ...]:
        """Return the passages with parts of at most so many windows."""
        room, overlap = room_and_overlap(question, self.reader.checkpoint.tokenizer.template, self.reader.windows)
        longest = room + (most - 1) * (room - overlap)
        return tuple(
            replace(passage, parts=tuple((first, min(stop, first + longest)) for first, stop in passage.parts or ()))
            for passage in passages
        )

    def _passages(self, chosen: NDArray[np.int_]) -> tuple[Passage, ...]:
        """Return every text, of which the blocks chosen are to be read, with some text on both sides."""
        margin = int(_MARGIN * self._room)
        parts: list[list[tuple[int, int]]] = [[] for _ in self.texts]
        for number, start, end in (self._blocks[block] for block in np.sort(chosen).tolist()):
            text, of_text = self.texts[number], parts[number]
            start, end = _boundary(text, start - margin, margin), _boundary(text, end + margin, margin)
            if of_text and start <= of_text[-1][1]:
                start = of_text.pop()[0]
            of_text.append((start, end))
        prepare = self.reader.checkpoint.tokenizer.prepare_parts
        return tuple(map(prepare, self.texts, parts, self.sources))


def split_words(text: str) -> Iterator[str]:
    """Yield the words of a text as they are compared; of a script without spaces, its characters and pairs of neighbours.

    >>> list(split_words("The pier's Café, 灯台は"))
    ['the', 'pier', 's', 'café', '灯', '台', 'は', '灯台', '台は']
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    for word in _WORD.findall(text.lower()):
        if word.isascii():
            yield word
            continue
        for place, run in enumerate(_BY_CHARACTERS.split(word)):
            if place % 2:
                yield from run
                yield from map("".join, pairwise(run))
            elif run:
                yield run


def _cuts(text: str, size: int) -> list[int]:
    """Return where a text is cut into blocks of at most `size` code points; its ends included."""
    cuts = [0]
    while cuts[-1] < len(text):
        cuts.append(max(cuts[-1] + 1, _boundary(text, cuts[-1] + size, size // 4)))
    return cuts


def _boundary(text: str, place: int, reach: int) -> int:
    """Return the last end of a paragraph, else of a line, else of a word, at most `reach` code points before a place.

    Where there is none, it is a place that is not within a character.
    """
    if not 0 < place < len(text):
        return min(max(place, 0), len(text))
    low = max(0, place - reach)
    for mark in ("\n\n", "\n"):
        found = text.rfind(mark, low, place)
        if found > low:
            return found
    for found in range(place, low, -1):
        if text[found].isspace():
            return found
    while place > 0 and unicodedata.category(text[place])[0] in "MC":
        place -= 1
    return place
