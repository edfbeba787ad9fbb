"""The attention of every head of one window, and what the page shows of it.

    float32 [head, query, key] of one layer  ->  quantized bytes, thumbnails, and a few numbers for each head

One layer is held at a time. It captures nothing; it is given the layers one after the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spanqa.explain.attention import Attention
from spanqa.explain.explanation import Explanation

THUMBNAIL = 48
"""Most pixels a side of a thumbnail."""

KINDS = ("first special token", "other special tokens", "question", "passage", "answer")
"""The kinds of tokens that the page tells apart, by number."""

MEASURES = ("relevance", "spread", "first", "other", "diagonal")
"""The numbers for each head, in the order of `measure`."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowMaps:
    """The attention of one window.

    `maps` yields every layer once: its number, and float32 `[head, query, key]` of all `tokens` of the window. `offsets` int
    `[token, 2]` are code points in the token's own part, `parts` int `[token]` is 0 for the question, 1 for the passage and -1 for
    special tokens. `answer_rows` are the positions of the tokens whose attention belongs to the decision. `number` (from zero)
    is the window's among all `windows` of the passage.
    """

    layers: int
    heads: int
    tokens: Sequence[str]
    offsets: NDArray[np.int32]
    parts: NDArray[np.int8]
    answer_rows: Sequence[int]
    number: int
    windows: int
    maps: Iterable[tuple[int, NDArray[np.float32]]]


def window_maps(attention: Attention, layers: Iterable[tuple[int, NDArray[np.float32]]]) -> WindowMaps:
    """Return the maps of a window: `attention` says what its tokens are, `layers` gives the weights of all of them.

    The rows of the decision are those that `attentions` captures by default. `read_layers` reads layers.
    """
    span = () if attention.span is None else range(attention.span[0], attention.span[1] + 1)
    return WindowMaps(
        layers=len(attention.layers),
        heads=len(attention.heads),
        tokens=attention.tokens,
        offsets=attention.offsets,
        parts=attention.sequence_ids,
        answer_rows=(*(() if attention.answered and span else (0,)), *span),
        number=attention.window,
        windows=attention.windows,
        maps=layers,
    )


def quantize(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the square roots of weights in 0 to 1 as bytes: finest where attention is small, which is nearly everywhere.

    The weight is (byte / 255)², at most 0.004 off.
    """
    quantized: NDArray[np.uint8] = (np.sqrt(np.clip(weights, 0, 1)) * 255 + 0.5).astype(np.uint8)
    return quantized


def thumbnails(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return maps of at most 48 tokens a side: each pixel is the largest weight of the tokens it stands for.

    Maps are `[head, query, key]`, thumbnails too.
    """
    size = maps.shape[-1]
    starts = np.linspace(0, size, min(THUMBNAIL, size), endpoint=False).astype(int)
    pooled: NDArray[np.float32] = np.maximum.reduceat(np.maximum.reduceat(maps, starts, axis=1), starts, axis=2)
    return pooled


def kinds(explanation: Explanation, window: WindowMaps) -> NDArray[np.int8]:
    """Return the number of each token's kind, `[token]`. The answer is the chosen span, or for an abstention the other."""
    found = np.select([window.parts == 0, window.parts == 1], [2, 3], 1)
    special = np.flatnonzero(window.parts < 0)
    found[special[:1]] = 0
    span = explanation.chosen if explanation.chosen.start is not None else explanation.other
    starts, ends = window.offsets[:, 0], window.offsets[:, 1]
    if span.start is not None and span.end is not None:
        found[(window.parts == 1) & (starts < span.end) & (ends > span.start)] = 4
    return found.astype(np.int8)


def token_words(explanation: Explanation, window: WindowMaps) -> NDArray[np.int32]:
    """Return for each token the position of its word among the explanation's words, `[token]`; -1 where it has none."""
    found = np.full(len(window.tokens), -1, np.int32)
    for number, part in enumerate(("question", "passage")):
        places = [i for i, word in enumerate(explanation.words) if word.part == part]
        if not places:
            continue
        starts = np.array([explanation.words[i].start for i in places])
        ends = np.array([explanation.words[i].end for i in places])
        at = np.searchsorted(starts, window.offsets[:, 0], side="right") - 1
        inside = (window.parts == number) & (at >= 0) & (window.offsets[:, 0] < ends[at])
        found[inside] = np.array(places)[at[inside]]
    return found


def wanted(explanation: Explanation, words: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return how much a look at each token says about the decision, `[token]`: 1 for the words with the highest score.

    Words that speak against the decision count 0, and so do those of the spans themselves, at which their own rows look anyway.
    """
    scores = np.array(
        [
            0.0 if explanation.is_protected(word) else max(0.0, score)
            for word, score in zip(explanation.words, explanation.scores, strict=True)
        ]
        + [0.0]
    )
    shares: NDArray[np.float32] = (scores[words] / max(scores.max(), 1e-12)).astype(np.float32)
    return shares


def measure(
    maps: NDArray[np.float32], rows: Sequence[int], kind: NDArray[np.int8], wanted: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the numbers for each head of a layer, `[head, 5]`, and where the answer's rows look, `[5]`.

    relevance   what the answer's rows see of `wanted`
    spread      entropy of a row, 1 where it looks at all tokens alike
    first       share of all attention that goes to the first special token, where heads look that have nothing to do
    other       the same for the other special tokens
    diagonal    share that goes to the token itself and to its neighbours

    The second is the share of the attention of the answer's rows that goes to each kind of token, mean over heads.
    """
    size = maps.shape[-1]
    looks = maps[:, list(rows)].mean(axis=1)  # (head, key)
    logarithms = np.log2(np.maximum(maps, 1e-12))
    entropy = -np.einsum("hqk,hqk->h", maps, logarithms) / (size * max(1.0, np.log2(size)))
    to_keys = maps.mean(axis=1)  # (head, key)
    band = [np.trace(maps, offset, axis1=1, axis2=2) for offset in (-1, 0, 1)]
    numbers = [
        looks @ wanted,
        entropy,
        to_keys[:, kind == 0].sum(axis=1),
        to_keys[:, kind == 1].sum(axis=1),
        np.sum(band, axis=0) / size,
    ]
    shares = [looks[:, kind == number].sum(axis=1).mean() for number in range(len(KINDS))]
    return np.stack(numbers, axis=1).astype(np.float32), np.array(shares, np.float32)
