"""Text to token ids with character offsets, and the layout that a model wants around them.

`Tokenizer.encode` reads a text once; windows are later cut from its arrays, so a passage is encoded once however many
questions are asked of it. The layout (where `[CLS]` and `[SEP]` stand, and which token types they have) is read from
the tokenizer's own template, never assumed. Truncation and padding stored in `tokenizer.json` never apply.

It does not cut windows (`spanqa.windows`) and holds no vocabulary logic of its own: that is Hugging Face `tokenizers`.
"""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import numpy as np
import tokenizers
from numpy.typing import NDArray

from spanqa.errors import CheckpointError, InputError

_CACHED_TOKENS = 2_000_000  # about 24 MB of ids and offsets
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])  # no white space lies above U+3000


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A text as token ids, and the place of each token in the text.

    `ids` int32 `[token]`; `offsets` int32 `[token, 2]`: start (inclusive) and end (exclusive) in code points, without
    the white space that some tokenizers count in. A token that stands for no visible character has start == end.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """A text that has been encoded: what every call takes where it takes a text.

    `source` says where it comes from (a file name, say) and is handed on to the answers.
    """

    text: str
    tokens: Tokens
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The special tokens of a window, as (id, token type) pairs: `before` question `between` passage `after`.

    BERT:    before [CLS], between [SEP], after [SEP]
    RoBERTa: before <s>, between </s> </s>, after </s>

    The first token of `before` is the one whose logits mean "no answer".
    """

    before: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]
    question_type: int
    passage_type: int

    @property
    def special_tokens(self) -> int:
        """How many tokens of a window are neither question nor passage."""
        return len(self.before) + len(self.between) + len(self.after)


class Tokenizer:
    """A tokenizer read from a checkpoint, without its stored truncation and padding, that remembers passages.

    The memory is bounded (two million tokens); the least recently used passage goes first.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._passages: OrderedDict[str, Tokens] = OrderedDict()
        self._cached_tokens = 0
        self._lock = Lock()
        self.layout = _layout(tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text, without special tokens.

        Raises:
            InputError: the text is not a string, or holds half a surrogate pair, which no encoding can write.
        """
        if not isinstance(text, str):
            raise InputError(f"Expected a text, got {type(text).__name__}: {text!r:.60}.")
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            offsets = _without_space(text, np.array(encoding.offsets, np.int32).reshape(-1, 2))
        except (TypeError, UnicodeEncodeError):  # how tokenizers, or Python, says that a string cannot be written
            position = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
            raise InputError(
                f"The text holds half a surrogate pair ({text[position]!r}) at position {position}; "
                "it is not valid Unicode. Remove it, or decode the text with errors='replace'."
            ) from None
        return Tokens(np.array(encoding.ids, np.int32), offsets)

    def word_bounds(self, text: str) -> NDArray[np.int32]:
        """Return, for each token of the text, where the word it belongs to starts and ends: int32 `[token, 2]`.

        A word is what the tokenizer splits before it looks into its vocabulary; marks and CJK characters are words of
        their own for BERT. A tokenizer without words gives the bounds of the tokens.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        bounds = _without_space(text, np.array(encoding.offsets, np.int32).reshape(-1, 2))
        words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int32)
        if not len(words) or (words < 0).any():
            return bounds
        first = np.flatnonzero(np.diff(words, prepend=-1))
        word = np.cumsum(np.diff(words, prepend=-1) != 0) - 1
        starts, ends = np.minimum.reduceat(bounds[:, 0], first), np.maximum.reduceat(bounds[:, 1], first)
        return np.stack([starts[word], ends[word]], axis=1)

    def encode_passage(self, text: str) -> Tokens:
        """Return the tokens of a passage, from memory when it was encoded lately."""
        with self._lock:
            if text in self._passages:
                self._passages.move_to_end(text)
                return self._passages[text]
        tokens = self.encode(text)
        with self._lock:
            if text not in self._passages:  # another thread may have been faster
                self._passages[text] = tokens
                self._cached_tokens += len(tokens)
            while self._cached_tokens > _CACHED_TOKENS and len(self._passages) > 1:
                self._cached_tokens -= len(self._passages.popitem(last=False)[1])
        return tokens


def _without_space(text: str, offsets: NDArray[np.int32]) -> NDArray[np.int32]:
    """Shrink, in place, offsets that begin or end with white space (some SentencePiece and byte-level tokenizers)."""
    start, end = offsets[:, 0], offsets[:, 1]
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    filled = np.flatnonzero(start < end)
    is_space = _IS_SPACE[np.minimum(characters, 0x3001)]
    edges = is_space[start[filled]] | is_space[end[filled] - 1]
    for token in filled[edges]:
        piece = text[start[token] : end[token]]
        start[token] += len(piece) - len(piece.lstrip())
        end[token] = max(start[token], end[token] - (len(piece) - len(piece.rstrip())))
    return offsets


def _layout(tokenizer: tokenizers.Tokenizer) -> Layout:
    """Read the layout of a (question, passage) pair off an encoded pair of one-letter texts."""
    try:
        pair = tokenizer.encode("a", "b")
        tokenizer.encode("\U00013000")  # a hieroglyph: hardly any vocabulary has it
    except KeyboardInterrupt:
        raise
    except (
        BaseException
    ) as error:  # tokenizers raises bare Exception, and its Rust code may panic, which is not even that
        raise CheckpointError(f"The tokenizer loads but cannot encode: {error}. Is tokenizer.json damaged?") from error
    sequence, pairs = pair.sequence_ids, list(zip(pair.ids, pair.type_ids, strict=True))
    if 0 not in sequence or 1 not in sequence:
        raise CheckpointError(
            "The tokenizer gives no token for the letters 'a' and 'b'. Is its vocabulary the right one?"
        )
    question, passage = sequence.index(0), sequence.index(1)
    after_question = question + sequence.count(0)
    after_passage = passage + sequence.count(1)
    if question == 0 or after_question > passage:
        raise CheckpointError(
            "The tokenizer's template puts no special token ([CLS] or <s>) before the question, so the model has no place "
            "for 'no answer'. Expected '[CLS] question [SEP] passage [SEP]'; is its post_processor missing?"
        )
    return Layout(
        before=tuple(pairs[:question]),
        between=tuple(pairs[after_question:passage]),
        after=tuple(pairs[after_passage:]),
        question_type=pairs[question][1],
        passage_type=pairs[passage][1],
    )
