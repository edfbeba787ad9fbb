"""Text to token ids with character offsets and words, and the template that a model wants around them.

`Tokenizer.encode` reads a text once; windows are later cut from its arrays, so a passage is encoded once however many
questions are asked of it. The template (where `[CLS]` and `[SEP]` stand, and which token types they have) is read from
the tokenizer's own template, never assumed (`spanqa.template`).

It does not cut windows (`spanqa.windows`) and holds no vocabulary logic of its own: that is Hugging Face `tokenizers`.
"""

import hashlib
import json
import os
import re
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice, pairwise
from threading import Lock
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from spanqa.errors import InputError
from spanqa.graphemes import widen
from spanqa.template import Template, read_text_template
from spanqa.tokenizer_setup import refusing_damage, set_up, unwritable

CACHED_BYTES = 64 << 20
"""How much memory the texts and arrays of remembered passages may take."""

PIECE = 1 << 16
"""Longer passages are encoded in pieces of about so many code points: an encoding is ten times larger than its arrays."""

_CONTEXT = 256  # code points on each side of a cut in which the pieces must give the tokens of the whole

_CANNOT_ENCODE = "The tokenizer cannot encode a text"
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])  # no white space lies above U+3000


class Tokens:
    """A text as token ids, and where each token lies in the text.

    `ids` int32 `[token]`; `offsets` int32 `[token, 2]`: start (inclusive) and end (exclusive) in code points, without
    the white space that some tokenizers count in, and never inside a grapheme cluster (a letter and its accents, say): a token
    of a part of one has the offsets of all of it. A token that stands for no visible character has start == end.
    `words` int32 `[token]`: the number of the word that a token belongs to, -1 where the tokenizer knows none. Words are
    what the tokenizer splits before it looks into its vocabulary; marks and CJK characters are words of their own for BERT.

        text     Unbelievably, yes      ids      4895 8671 8231 1010 2748
        offsets  0-2 2-8 8-12 12-13 14-17         words    0 0 0 1 2

    Offsets and words are converted when they are first asked for.
    """

    __slots__ = ("_blank", "_offsets", "_source", "_words", "ids")

    def __init__(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int32], words: NDArray[np.int32] | None = None
    ) -> None:
        self.ids = ids
        self._offsets: NDArray[np.int32] | None = offsets
        self._words: NDArray[np.int32] | None = np.full(len(ids), -1, np.int32) if words is None else words
        self._source: Any = None  # the text, and its encoding or the tokenizer
        self._blank: bool | None = None

    @classmethod
    def from_encoding(cls, text: str, encoding: Any) -> "Tokens":
        """Return the tokens of a text that `tokenizers` has encoded without special tokens."""
        tokens = cls.__new__(cls)
        tokens.ids = np.array(encoding.ids, np.int32)
        tokens._offsets = tokens._words = tokens._blank = None
        tokens._source = text, encoding
        return tokens

    @classmethod
    def from_ids(cls, text: str, ids: Sequence[int], tokenizer: "Tokenizer") -> "Tokens":
        """Return the tokens of a text of which only the ids are known; for offsets and words it is encoded again."""
        tokens = cls.__new__(cls)
        tokens.ids = np.array(ids, np.int32)
        tokens._offsets = tokens._words = tokens._blank = None
        tokens._source = text, tokenizer
        return tokens

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def offsets(self) -> NDArray[np.int32]:
        """Start and end of each token in the text."""
        if self._offsets is None:
            self._convert()
        assert self._offsets is not None
        return self._offsets

    @property
    def words(self) -> NDArray[np.int32]:
        """The number of each token's word."""
        if self._words is None:
            self._convert()
        assert self._words is not None
        return self._words

    @property
    def has_blank(self) -> bool:
        """Whether some token stands for no visible character."""
        if self._blank is None:
            self._blank = bool((self.offsets[:, 0] >= self.offsets[:, 1]).any())
        return self._blank

    def first(self, count: int) -> "Tokens":
        """Return the first `count` tokens; all where there are no more."""
        return self if len(self) <= count else self.part(0, count)

    def part(self, first: int, stop: int) -> "Tokens":
        """Return the tokens from `first` (inclusive) to `stop` (exclusive); their offsets stay those in the whole text."""
        return Tokens(self.ids[first:stop], self.offsets[first:stop], self.words[first:stop])

    def covering(self, start: int, end: int) -> tuple[int, int]:
        """Return the first and the last token that share a character with `[start:end]`; where none does, last < first."""
        first = int(np.searchsorted(self.offsets[:, 1], start, side="right"))
        return first, int(np.searchsorted(self.offsets[:, 0], end, side="left")) - 1

    def word_bounds(self) -> NDArray[np.int32]:
        """Return, for each token, where its word starts and ends in the text: int32 `[token, 2]`.

        A tokenizer without words gives the bounds of the tokens.
        """
        bounds, words = self.offsets, self.words
        if not len(words) or (words < 0).any():
            return bounds
        first = np.flatnonzero(np.diff(words, prepend=-1))
        word = np.cumsum(np.diff(words, prepend=-1) != 0) - 1
        starts, ends = np.minimum.reduceat(bounds[:, 0], first), np.maximum.reduceat(bounds[:, 1], first)
        return np.stack([starts[word], ends[word]], axis=1)

    def _convert(self) -> None:
        source = self._source
        if source is None:  # another thread was faster
            return
        text, encoding = source
        if isinstance(encoding, Tokenizer):
            encoding = encoding.encode(text)._source[1]
        words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int32)
        offsets = _visible(text, np.array(encoding.offsets, np.int32).reshape(-1, 2))
        self._words, self._offsets = words, offsets
        self._source = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokens, (self.ids, self.offsets, self.words)


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """A text that has been encoded: every call takes one where it takes a text.

    `source` says where it comes from (a file name, say) and is handed on to the answers. `tokenizer` is the one that encoded it,
    or its fingerprint; a reader refuses passages of another one. None is not checked. `parts` are the token ranges that lie
    together in the text, first (inclusive) to stop (exclusive), where only parts of the text are to be read; None is all of it.
    """

    text: str
    tokens: Tokens
    source: str | None = None
    tokenizer: "Tokenizer | str | None" = None
    parts: tuple[tuple[int, int], ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # a pickled passage carries no vocabulary
        tokenizer = self.tokenizer.fingerprint if isinstance(self.tokenizer, Tokenizer) else self.tokenizer
        return Passage, (self.text, self.tokens, self.source, tokenizer, self.parts)


class Tokenizer:
    """A tokenizer read from a checkpoint, without its stored truncation and padding, that remembers passages.

    The memory is bounded (`CACHED_BYTES`); the least recently used passage goes first.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, template: Template | None = None) -> None:
        self._tokenizer, found = set_up(tokenizer)
        self._passages: OrderedDict[str, Passage] = OrderedDict()
        self._cached_bytes = 0
        self._lock = Lock()
        self.template = template or found
        _TOKENIZERS.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._tokenizer, self.template)

    @property
    def highest_id(self) -> int:
        """The highest id, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, None where it has none of that name."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def token_of(self, number: int) -> str:
        """The token of an id, as the vocabulary of the model's makers has it; "" where there is none."""
        found: str | None = self._tokenizer.id_to_token(number)
        return (found or "").removeprefix(unwritable(""))

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of the token that stands for what the vocabulary has no token for; None where there is none."""
        model = json.loads(self._tokenizer.to_str())["model"]
        name, number = model.get("unk_token"), model.get("unk_id")
        return number if name is None else self.id_of(name)

    @cached_property
    def ordinary_ids(self) -> NDArray[np.int32]:
        """The ids of the tokens that texts are made of, int32, in order: all but special, added and unknown ones."""
        added: set[int | None] = set(self._tokenizer.get_added_tokens_decoder())
        added |= {self.unknown_id, *chain.from_iterable(map(np.ndarray.tolist, self.template.special_ids))}
        words = self._tokenizer.get_vocab(with_added_tokens=False).items()
        found = [number for word, number in words if number not in added and not word.startswith(unwritable(""))]
        return np.array(sorted(found), np.int32)

    @cached_property
    def text_template(self) -> Template:
        """The template of a text without a question: the text is the passage, and the question has no tokens."""
        return read_text_template(self._tokenizer)

    def fits(self, ids: int) -> bool:
        """Whether all ids are below a number, which is usually the size of the vocabulary."""
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        without_holes = size <= ids and None not in map(self._tokenizer.id_to_token, range(size))
        return without_holes or self.highest_id < ids  # the first is faster

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the whole tokenizer: equal fingerprints give equal tokens."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()

    def as_json(self) -> str:
        """Return the whole tokenizer as a tokenizer.json has it."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text, without special tokens.

        Raises:
            InputError: the text is not a string, or holds half a surrogate pair, which no encoding can write.
            CheckpointError: the tokenizer is damaged and fails at this text.
        """
        if not isinstance(text, str):
            raise InputError(f"Expected a text, got {type(text).__name__}: {text!r:.60}.")
        _check_unicode(text)
        with refusing_damage(_CANNOT_ENCODE):
            return Tokens.from_encoding(text, self._tokenizer.encode(text, add_special_tokens=False))

    def encode_many(self, texts: Sequence[str], *, offsets: bool = False) -> list[Tokens]:
        """Return the tokens of several texts, as `encode` does, in one call of the library.

        It finds the ids alone, and with `offsets`, which takes longer, offsets and words too.

        Raises:
            InputError, CheckpointError: as `encode`, for the first text that cannot be encoded.
        """
        if len(texts) == 1:
            return [self.encode(texts[0])]
        for text in texts:
            _check_unicode(text)
        with refusing_damage(_CANNOT_ENCODE):
            if offsets:
                encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
                return [Tokens.from_encoding(text, each) for text, each in zip(texts, encodings, strict=True)]
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [Tokens.from_ids(text, encoding.ids, self) for text, encoding in zip(texts, encodings, strict=True)]

    def prepare(self, text: str | Passage, source: str | None = None) -> Passage:
        """Return a text as a passage, from memory if it was encoded recently; a `Passage` is returned as it is.

        Raises:
            InputError: it is not a string, not valid Unicode, or was prepared by another tokenizer.
        """
        if isinstance(text, Passage):
            return self._check(text)
        if not isinstance(text, str):
            raise InputError(f"The passage should be a text (str), got {type(text).__name__}: {text!r:.60}")
        with self._lock:
            found = self._passages.get(text)
            if found is not None:
                self._passages.move_to_end(text)
        if found is None:
            tokens = self.encode(text) if len(text) < 2 * PIECE else self._encode_in_pieces(text)
            _ = tokens.offsets  # converted now, so that the encoding, which is ten times larger, can go
            found = Passage(text, tokens, None, self)
            self._remember(found)
        return found if source is None else replace(found, source=source)

    def prepare_parts(self, text: str, parts: Iterable[tuple[int, int]], source: str | None = None) -> Passage:
        """Return a text of which only parts are to be read: code points from a start (inclusive) to an end (exclusive), in order.

        Raises:
            InputError: as `encode`.
        """
        tokens, ranges = self._encode_parts(text, parts)
        return Passage(text, tokens, source, self, ranges)

    def _encode_parts(self, text: str, parts: Iterable[tuple[int, int]]) -> tuple[Tokens, tuple[tuple[int, int], ...]]:
        """Encode parts of a text one by one; return their tokens, and the range of tokens of each part."""
        ids, offsets, words = [np.empty(0, np.int32)], [np.empty((0, 2), np.int32)], [np.empty(0, np.int32)]
        bounds, word = [0], 0
        for start, end in parts:
            tokens = self.encode(text[start:end])
            ids.append(tokens.ids)
            offsets.append(tokens.offsets + np.int32(start))
            words.append(np.where(tokens.words < 0, np.int32(-1), tokens.words + np.int32(word)))
            word = max(word, int(words[-1].max(initial=-1)) + 1)
            bounds.append(bounds[-1] + len(tokens))
        return Tokens(np.concatenate(ids), np.concatenate(offsets), np.concatenate(words)), tuple(pairwise(bounds))

    def _encode_in_pieces(self, text: str) -> Tokens:
        _check_unicode(text)
        return self._encode_parts(text, pairwise(self._cuts(text)))[0]

    def _cuts(self, text: str) -> list[int]:
        """Return where a text can be cut so that its pieces, encoded alone, give the tokens of the whole; its ends included."""
        cuts, place = [0], PIECE
        while place + PIECE <= len(text):
            spaces = (found.start() for found in _INNER_SPACE.finditer(text, place, place + PIECE))
            cut = next(
                filter(lambda cut: self._divides(text, cut), chain(islice(spaces, 8), range(place, place + 8))), None
            )
            if cut is not None:
                cuts.append(cut)
            place = PIECE + (place if cut is None else cut)
        return [*cuts, len(text)]

    def _divides(self, text: str, cut: int) -> bool:
        """Whether a cut falls between two words and, as far as its context shows, changes no token.

        Words are encoded independently of each other, and what is done to a text before is done to a few characters at a time.
        """
        start, end = max(0, cut - _CONTEXT), min(len(text), cut + _CONTEXT)
        whole, _ = self._encode_parts(text, [(start, end)])
        pieces, [(_, left), _] = self._encode_parts(text, [(start, cut), (cut, end)])
        return (
            0 < left < len(whole) == len(pieces)
            and whole.words[left - 1] != whole.words[left]
            and np.array_equal(whole.ids, pieces.ids)
            and np.array_equal(whole.offsets, pieces.offsets)
            and np.array_equal(whole.words, pieces.words)
        )

    def _check(self, passage: Passage) -> Passage:
        theirs = passage.tokenizer
        if theirs is None or theirs is self:
            return passage
        if (theirs.fingerprint if isinstance(theirs, Tokenizer) else theirs) != self.fingerprint:
            raise InputError(
                f"The passage {passage.text!r:.60} was prepared by a reader with another tokenizer. Prepare it with this reader."
            )
        return passage

    def _remember(self, passage: Passage) -> None:
        with self._lock:
            if passage.text not in self._passages:  # another thread may have been faster
                self._passages[passage.text] = passage
                self._cached_bytes += _bytes(passage)
            while self._cached_bytes > CACHED_BYTES and len(self._passages) > 1:
                self._cached_bytes -= _bytes(self._passages.popitem(last=False)[1])


_INNER_SPACE = re.compile(r"(?<=\S)\s(?=\S)")

_TOKENIZERS: "weakref.WeakSet[Tokenizer]" = weakref.WeakSet()


def _forget_passages() -> None:
    """In a forked child: another thread may have held a lock, and left what it guards half changed."""
    for tokenizer in list(_TOKENIZERS):
        tokenizer._lock = Lock()
        tokenizer._passages = OrderedDict()
        tokenizer._cached_bytes = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_passages)


def _check_unicode(text: str) -> None:
    """Refuse half a surrogate pair; libraries differ in what they make of one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text holds half a surrogate pair ({text[error.start]!r}) at position {error.start}; "
            "it is not valid Unicode. Remove it, or decode the text with errors='replace'."
        ) from None


def _bytes(passage: Passage) -> int:
    tokens = passage.tokens
    return sys.getsizeof(passage.text) + tokens.ids.nbytes + tokens.offsets.nbytes + tokens.words.nbytes


def _visible(text: str, offsets: NDArray[np.int32]) -> NDArray[np.int32]:
    """Change offsets, in place, to those of what a reader sees: no white space around it, no part of a character."""
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    _trim(text, characters, offsets)
    widen(text, characters, offsets)
    return offsets


def _trim(text: str, characters: NDArray[np.uint32], offsets: NDArray[np.int32]) -> None:
    """Shrink, in place, offsets that begin or end with white space (some SentencePiece and byte-level tokenizers)."""
    start, end = offsets[:, 0], offsets[:, 1]
    filled = np.flatnonzero(start < end)
    is_space = _IS_SPACE[np.minimum(characters, 0x3001)]
    edges = is_space[start[filled]] | is_space[end[filled] - 1]
    for token in filled[edges]:
        piece = text[start[token] : end[token]]
        start[token] += len(piece) - len(piece.lstrip())
        end[token] = max(start[token], end[token] - (len(piece) - len(piece.rstrip())))
