"""Logits of windows to scored spans.

A window's logits become a band: row i contains the scores of the spans that start at token i, by length. Spans longer than the
longest allowed answer are never computed. The bands of overlapping windows are merged into one band of the whole passage by the
larger score, so a span that two windows contain counts once.

This module knows no text and no threshold: that is `spanqa.answers`.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile

import numpy as np
from numpy.typing import NDArray

from spanqa.batches import WindowLogits

IMPOSSIBLE = np.float32(-np.inf)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start_token` to `end_token` of a passage, both inclusive, and their score: the margin over "no answer"."""

    start_token: int
    end_token: int
    score: float


Taken = tuple[Span, slice, NDArray[np.bool_]]
"""A span, and which spans of a band it takes with it: a slice of the band's rows, and a mask of these."""


def span_band(start: NDArray[np.float32], end: NDArray[np.float32], max_answer_tokens: int) -> NDArray[np.float32]:
    """Return start logit + end logit of every span, by first token and length: float32 `[token, length]`.

    `band[i, n]` is the span of n + 1 tokens that starts at token i. Spans that would leave the window are -inf. The band has no
    length that exceeds the window, however large `max_answer_tokens` is.

        >>> span_band(np.float32([1, 2, 3]), np.float32([10, 20, 30]), max_answer_tokens=2).tolist()
        [[11.0, 21.0], [22.0, 32.0], [33.0, -inf]]
    """
    longest = min(max_answer_tokens, len(end))
    ends = np.empty(len(end) + longest, np.float32)
    ends[: len(end)], ends[len(end) :] = end, IMPOSSIBLE
    sliding: NDArray[np.float32] = np.ndarray((len(end), longest), np.float32, ends, strides=2 * ends.strides)
    return start[:, None] + sliding


def passage_band(windows: Sequence[WindowLogits], tokens: int, max_answer_tokens: int) -> NDArray[np.float32]:
    """Return the margin of every span of a passage over "no answer": float32 `[token, length]`.

    The margin of a span is the largest value, over the windows that contain all of it, of its span score minus that window's
    own null score. Spans that no window contains completely are -inf. The band has no lengths that exceed every window.
    """
    margins_of = [
        span_band(window.start - np.float32(window.null_score), window.end, max_answer_tokens) for window in windows
    ]
    if len(windows) == 1 and len(windows[0].start) == tokens:
        return margins_of[0]
    longest = max((margins.shape[1] for margins in margins_of), default=0)
    band = np.full((tokens, longest), IMPOSSIBLE, np.float32)
    for window, margins in zip(windows, margins_of, strict=True):
        rows = band[window.first : window.first + len(window.start), : margins.shape[1]]
        np.maximum(rows, margins, out=rows)
    return band


def span_margin(window: WindowLogits, first: int, last: int) -> float:
    """Return the margin of passage tokens `first` to `last` in a window; -inf where the window does not hold them all."""
    if first < window.first or last >= window.first + len(window.start):
        return -math.inf
    return float(window.start[first - window.first] - np.float32(window.null_score) + window.end[last - window.first])


def windows_of(windows: Sequence[WindowLogits], first: int, stop: int) -> list[WindowLogits]:
    """Return what windows, in order of their places, say of the tokens `first` to `stop` (exclusive), as of a passage of its own."""
    found = []
    start = bisect_right(windows, first, key=lambda window: window.first + len(window.start))
    for window in takewhile(lambda window: window.first < stop, islice(windows, start, None)):
        low, high = max(0, first - window.first), max(0, stop - window.first)
        null = window.null_start, window.null_end
        found.append(WindowLogits(window.first + low - first, window.start[low:high], window.end[low:high], *null))
    return found


def distinct_spans(band: NDArray[np.float32], offsets: NDArray[np.int32], count: int) -> Iterator[Taken]:
    """Yield the best `count` spans that share no character with each other, best first.

    Each span takes, itself included, all spans that overlap it in characters (two tokens can be parts of one character) and that no
    better span has taken. If the iterator is used to the end, every span of the band is taken once. Equal scores are ordered by
    the earlier start, then by the shorter span. `offsets` are those of `Tokens`.
    """
    for left in range(count, 0, -1):
        if not band.size:
            return
        first, extent = divmod(int(band.argmax()), band.shape[1])
        score = band.item(first, extent)
        if score == -np.inf:
            return
        rows, taken = overlapping(band.shape, offsets, first, first + extent)
        if left < count:
            taken &= band[rows] > IMPOSSIBLE
        yield Span(first, first + extent, score), rows, taken
        if left == count > 1:
            band = band.copy()
        if left > 1:
            band[rows][taken] = IMPOSSIBLE


def overlapping(
    shape: tuple[int, ...], offsets: NDArray[np.int32], first: int, last: int
) -> tuple[slice, NDArray[np.bool_]]:
    """Return which spans of a band share a character with tokens `first` to `last`: a slice of its rows, and a mask of these."""
    low, high = first, last + 1  # the first token that reaches into them, and the first that starts behind them
    if first > 0 and offsets[first - 1, 1] > offsets[first, 0]:
        low = int(np.searchsorted(offsets[:, 1], offsets[first, 0], side="right"))
    if high < len(offsets) and offsets[high, 0] < offsets[last, 1]:
        high = int(np.searchsorted(offsets[:, 0], offsets[last, 1], side="left"))
    start = max(0, low - shape[1] + 1)
    rows = 1 << max(6, (high - start).bit_length())  # few sizes to remember
    return slice(start, high), _last_tokens(rows, shape[1])[: high - start] >= low - start


@lru_cache(maxsize=16)
def _last_tokens(rows: int, length: int) -> NDArray[np.int32]:
    """Return the last token of the span in each row and column of a band, counted from its first row: `[row, length]`."""
    return (np.arange(rows)[:, None] + np.arange(length)).astype(np.int32)


def forbid_blank(band: NDArray[np.float32], offsets: NDArray[np.int32]) -> None:
    """Set to -inf, in place, the spans that start or end with a token without visible characters."""
    blank = offsets[:, 0] >= offsets[:, 1]
    if blank.any():
        band[blank] = IMPOSSIBLE
        for extent in range(band.shape[1]):
            rows = np.flatnonzero(blank) - extent
            band[rows[rows >= 0], extent] = IMPOSSIBLE
