"""Where the heads of a model look: attention weights of one window, kept with the tokens they belong to.

    attentions         question and passage -> Attention: the wanted layers, heads and queries of one window
    attention_of       Decision -> the same, without asking again
    stream_layers      the same, one layer at a time, for what is too large to hold
    attention_bytes    how large it is
    read_layers        window -> layers of its attention, in bounded memory

A query is a token that looks, a key a token that is looked at; the weights of a query sum to 1 over the keys. They say where a head
looks, not why the model answered as it did: see Jain & Wallace 2019 (https://arxiv.org/abs/1902.10186).
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.batches import Capture, WindowLogits, pack
from spanqa.errors import InputError
from spanqa.explain.decision import Against, Decision, decide, made_with
from spanqa.explain.words import words_of
from spanqa.families import FAMILIES
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.tokens import Passage
from spanqa.windows import Window

Weights = NDArray[np.float32]
Queries = Literal["answer", "all"] | Sequence[int]
"""Tokens that look: those of the answer, all of the window, or positions in the window.

Those of an abstention are [CLS] and the tokens of the span it is set against.
"""

BYTES_AT_ONCE = 64 * 2**20
"""Attention that one forward pass keeps, in bytes: all layers if they fit, else as many as do, and at least one."""


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Attention weights of one window, and what its tokens are.

    `arrays` layer -> float32 `[head, query, key]`; heads in the order of `heads` (one array, their mean, if `reduce` is "mean"),
    queries in that of `queries`, keys are all tokens of the window. Layers, heads and tokens are counted from zero.

    The tokens of the window: `input_ids` int32 `[token]`; `tokens`, as the vocabulary writes them; `offsets` int32 `[token, 2]`,
    start and end in question or passage, in code points; `sequence_ids` int8 `[token]`, 0 question, 1 passage, -1 neither;
    `word_ids` int32 `[token]`, the number of the word within its text, -1 for special tokens; `start_logits` and `end_logits`
    float32 `[token]`, NaN where no answer can start or end.

    `window` is the number of the window, of `windows` in all. `span` are the positions of the first and last token of the answer,
    or where the reader did not answer (`answered`) of the span that this is set against; None where the window does not hold it.
    """

    question: str
    passage: str = field(repr=False)
    window: int
    windows: int
    answered: bool
    span: tuple[int, int] | None
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    reduce: Literal["mean"] | None
    queries: tuple[int, ...]
    arrays: Mapping[int, Weights] = field(repr=False)
    input_ids: NDArray[np.int32] = field(repr=False)
    tokens: tuple[str, ...] = field(repr=False)
    offsets: NDArray[np.int32] = field(repr=False)
    sequence_ids: NDArray[np.int8] = field(repr=False)
    word_ids: NDArray[np.int32] = field(repr=False)
    start_logits: NDArray[np.float32] = field(repr=False)
    end_logits: NDArray[np.float32] = field(repr=False)
    made_with: Mapping[str, Any] = field(repr=False)

    def layer(self, layer: int) -> Weights:
        """Return the weights of a layer: float32 `[head, query, key]`.

        Raises:
            InputError: it was not captured.
        """
        if layer not in self.arrays:
            raise InputError(f"Layer {layer!r} was not captured. There are: {', '.join(map(str, self.arrays))}.")
        return self.arrays[layer]

    def by_words(self) -> "Attention":
        """Return the attention of words: the weights of a word's pieces are added as keys, and averaged as queries.

        So each row sums to 1 as before (Clark et al. 2019, https://arxiv.org/abs/1906.04341). Special tokens stay. In all fields a
        word takes the place of a token, with the id of its first piece and the largest logits of its pieces.
        """
        first = np.flatnonzero(
            (self.sequence_ids < 0)
            | (np.diff(self.sequence_ids, prepend=np.int8(-2)) != 0)
            | (np.diff(self.word_ids, prepend=-2) != 0)
        )
        word = np.searchsorted(first, np.arange(len(self.input_ids)), side="right") - 1
        queries = tuple(dict.fromkeys(int(word[query]) for query in self.queries))
        of_query = [[i for i, query in enumerate(self.queries) if word[query] == each] for each in queries]
        offsets = np.stack(
            [np.minimum.reduceat(self.offsets[:, 0], first), np.maximum.reduceat(self.offsets[:, 1], first)], axis=1
        )
        sequence_ids, texts = self.sequence_ids[first], (self.question, self.passage)
        names = [
            self.tokens[token] if part < 0 else texts[part][start:end]
            for token, part, (start, end) in zip(first, sequence_ids, offsets.tolist(), strict=True)
        ]
        arrays = {}
        for layer, weights in self.arrays.items():
            keys = np.add.reduceat(weights, first, axis=2)
            arrays[layer] = np.stack([keys[:, pieces].mean(1) for pieces in of_query], axis=1)
        return replace(
            self,
            span=None if self.span is None else (int(word[self.span[0]]), int(word[self.span[1]])),
            queries=queries,
            arrays=arrays,
            input_ids=self.input_ids[first],
            tokens=tuple(names),
            offsets=offsets,
            sequence_ids=sequence_ids,
            word_ids=self.word_ids[first],
            start_logits=np.maximum.reduceat(self.start_logits, first),
            end_logits=np.maximum.reduceat(self.end_logits, first),
        )


def attentions(
    reader: Reader,
    question: str,
    passage: str | Passage,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Queries = "answer",
    reduce: Literal["mean"] | None = None,
    window: int | None = None,
    against: Against = "no answer",
    threshold: float | None = None,
    progress: Progress = silent,
) -> Attention:
    """Ask the question, and return the attention of the window that decided the answer.

    `layers` and `heads` are all when None. `reduce="mean"` gives the mean of the heads. `window` is that of the answer when None
    (for an abstention, that of the span it is set against). `against` and `threshold` are those of `decide`. Asking costs one
    reading of the passage, the attention one of the window for each `BYTES_AT_ONCE`.

    Raises:
        InputError: there is no such layer, head, token or window, the window does not hold the answer whose tokens are wanted, or
            there is nothing to explain.
        UnsupportedModelError: the model is one that does not show its attention.
    """
    decision = decide(reader, question, passage, against=against, threshold=threshold)
    return attention_of(
        reader,
        decision,
        layers=layers,
        heads=heads,
        queries=queries,
        reduce=reduce,
        window=window,
        progress=progress,
    )


def attention_of(
    reader: Reader,
    decision: Decision,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Queries = "answer",
    reduce: Literal["mean"] | None = None,
    window: int | None = None,
    progress: Progress = silent,
) -> Attention:
    """Return the attention of the window that decided the answer, of a decision of this reader; the rest is as in `attentions`.

    Raises:
        InputError, UnsupportedModelError: as `attentions`.
    """
    wanted = _select(reader, decision, layers, heads, queries, reduce, window)
    arrays = dict(_stream(reader, wanted, progress))
    return _attention(reader, decision, wanted, arrays)


def stream_layers(
    reader: Reader,
    question: str,
    passage: str | Passage,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    queries: Queries = "answer",
    reduce: Literal["mean"] | None = None,
    window: int | None = None,
    against: Against = "no answer",
    threshold: float | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[int, Weights]]:
    """Yield each layer and its weights `[head, query, key]`, in the order of `layers`; the rest is as in `attentions`.

    Only `BYTES_AT_ONCE` are held at a time, if the caller drops what it was given.

    Raises:
        InputError, UnsupportedModelError: as `attentions`.
    """
    decision = decide(reader, question, passage, against=against, threshold=threshold)
    yield from _stream(reader, _select(reader, decision, layers, heads, queries, reduce, window), progress)


def attention_bytes(layers: int, heads: int, queries: int, tokens: int) -> int:
    """Return how large attention weights are in float32, in bytes.

    All of BERT-large's on a window of 512 tokens, in MiB, and those of ten queries:

        >>> attention_bytes(24, 16, 512, 512) / 2**20, attention_bytes(24, 16, 10, 512) / 2**20
        (384.0, 7.5)
    """
    return 4 * layers * heads * queries * tokens


def attention_shape(reader: Reader) -> tuple[int, int]:
    """Return the numbers of layers and of heads in each of the reader's model.

    Raises:
        CheckpointError: config.json does not say it.
    """
    shape: tuple[int, int] | None = getattr(reader.backend, "attention_shape", None)
    if reader.checkpoint.model_type in FAMILIES or shape is None:
        return reader.checkpoint.encoder.layers, reader.checkpoint.encoder.heads
    return shape


def read_layers(
    reader: Reader,
    window: Window,
    layers: Sequence[int],
    queries: Sequence[int],
    *,
    progress: Progress = silent,
) -> Iterator[tuple[int, Weights]]:
    """Yield layers of a window's attention `[head, query, key]`, in the order given, a forward pass for each `layers_at_once`."""
    step = layers_at_once(reader, window, len(queries))
    size = attention_bytes(len(layers), attention_shape(reader)[1], len(queries), len(window))
    note = f"attention: {size / 2**20:,.1f} MiB"
    passes = -(-len(layers) // step)
    for number in range(passes):
        progress(number, passes, note)
        group = tuple(layers[number * step : (number + 1) * step])
        [logits] = reader.engine.submit([window], capture=Capture(group, (tuple(queries),))).result()
        found = dict(logits.attention or {})
        del logits
        for layer in group:
            yield layer, found.pop(layer)
    progress(passes, passes, note)


def layers_at_once(reader: Reader, window: Window, queries: int) -> int:
    """Return how many layers one forward pass gives: as many as fit into `BYTES_AT_ONCE`, at least one."""
    return max(1, BYTES_AT_ONCE // attention_bytes(1, max(1, attention_shape(reader)[1]), queries, len(window)))


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """What was asked for, all of it checked. `heads` None: all that there are."""

    number: int
    window: Window
    span: tuple[int, int] | None
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    queries: tuple[int, ...]
    reduce: Literal["mean"] | None


def _select(
    reader: Reader,
    decision: Decision,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    queries: Queries,
    reduce: Literal["mean"] | None,
    window: int | None,
) -> _Wanted:
    all_layers, all_heads = attention_shape(reader)
    if reduce not in (None, "mean"):
        raise InputError(f"reduce is {reduce!r}; expected 'mean', the mean of the heads, or None.")
    number = decision.deciding[0]
    if window is not None:
        [number] = _numbers([window], len(decision.windows), "The passage has no window {}.")
    shown = decision.windows[number]
    span = _place(shown, *decision.spans[0])
    named = queries if isinstance(queries, str) else None
    if named not in ("answer", "all", None):
        raise InputError(f"queries is {queries!r}; expected 'answer', 'all', or positions of tokens in the window.")
    if named == "answer" and span is None:
        raise InputError(
            f"Window {number} does not hold the answer, so it has no rows of it. Window {decision.deciding[0]} does; or choose "
            "queries='all', or positions of tokens."
        )
    if named == "all":
        rows = tuple(range(len(shown)))
    elif named == "answer":
        assert span is not None
        rows = (*((0,) if decision.chosen is None else ()), *range(span[0], span[1] + 1))
    else:
        rows = _numbers(queries, len(shown), f"Window {number} has no token {{}}.")
    return _Wanted(
        number,
        shown,
        span,
        tuple(range(all_layers)) if layers is None else _numbers(layers, all_layers, "The model has no layer {}."),
        None if heads is None else _numbers(heads, all_heads, "The model has no head {}."),
        rows,
        reduce,
    )


def _numbers(given: Any, count: int, problem: str) -> tuple[int, ...]:
    """Return numbers below `count`, each of them once; `problem` is what is wrong with one that is not there."""
    numbers = []
    try:
        for each in given:
            number = operator.index(each)
            if isinstance(each, bool) or number not in range(count):
                raise InputError(f"{problem.format(f'{each!r:.60}')} Expected a number from 0 to {count - 1}.")
            numbers.append(number)
    except TypeError:
        raise InputError(f"Expected a list of numbers from 0 to {count - 1}, got {given!r:.60}.") from None
    if not numbers or len(set(numbers)) != len(numbers):
        raise InputError(
            f"Expected a list of different numbers from 0 to {count - 1}, at least one; got {given!r:.60}."
        )
    return tuple(numbers)


def _place(window: Window, first: int, last: int) -> tuple[int, int] | None:
    """Return where tokens `first` to `last` of the passage are in the window; None where it does not hold them all."""
    at = window.passage_start - window.first
    return (at + first, at + last) if window.first <= first and last < window.stop else None


def _stream(reader: Reader, wanted: _Wanted, progress: Progress) -> Iterator[tuple[int, Weights]]:
    for layer, weights in read_layers(reader, wanted.window, wanted.layers, wanted.queries, progress=progress):
        picked = weights
        if wanted.heads is not None:  # ConvBERT has fewer than its config says
            picked = weights[list(_numbers(wanted.heads, len(weights), "The model has no head {}."))]
        yield layer, picked if wanted.reduce is None else picked.mean(0, keepdims=True)


def _attention(reader: Reader, decision: Decision, wanted: _Wanted, arrays: Mapping[int, Weights]) -> Attention:
    window, tokenizer = wanted.window, reader.checkpoint.tokenizer
    question = slice(len(window.template.before), len(window.template.before) + len(window.question))
    passage = slice(window.passage_start, window.passage_start + window.stop - window.first)
    input_ids = pack([[window]]).input_ids[0]
    offsets, words = np.zeros((len(window), 2), np.int32), np.full(len(window), -1, np.int32)
    sequence_ids = np.full(len(window), -1, np.int8)
    sequence_ids[question], sequence_ids[passage] = 0, 1
    offsets[question], offsets[passage] = window.question.offsets, window.passage.offsets[window.first : window.stop]
    for at, found in (
        (question.start, words_of("question", decision.question, window.question)),
        (
            passage.start - window.first,
            words_of("passage", decision.passage.text, window.passage, window.first, window.stop),
        ),
    ):
        for number, word in enumerate(found):
            words[at + word.first : at + word.stop] = number
    start_logits, end_logits = _logits(window, decision.logits[wanted.number])
    heads = wanted.heads
    if heads is None:
        heads = tuple(range(len(next(iter(arrays.values()))) if wanted.reduce is None else attention_shape(reader)[1]))
    return Attention(
        question=decision.question,
        passage=decision.passage.text,
        window=wanted.number,
        windows=len(decision.windows),
        answered=decision.chosen is not None,
        span=wanted.span,
        layers=wanted.layers,
        heads=heads,
        reduce=wanted.reduce,
        queries=wanted.queries,
        arrays=arrays,
        input_ids=input_ids,
        tokens=tuple(map(tokenizer.token_of, input_ids.tolist())),
        offsets=offsets,
        sequence_ids=sequence_ids,
        word_ids=words,
        start_logits=start_logits,
        end_logits=end_logits,
        made_with=made_with(reader),
    )


def _logits(window: Window, logits: WindowLogits) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the start and end logits of the window's tokens: those of [CLS] and of the passage, NaN for the rest."""
    found = []
    for null, passage in ((logits.null_start, logits.start), (logits.null_end, logits.end)):
        whole = np.full(len(window), np.nan, np.float32)
        whole[0], whole[window.passage_start : window.passage_start + len(passage)] = null, passage
        found.append(whole)
    return found[0], found[1]
