import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanqa.batches import WindowLogits
from spanqa.spans import Span, distinct_spans, forbid_blank, passage_band, span_band
from strategies import logits, offsets

NEVER = -np.inf


def all_spans(tokens: int, longest: int) -> list[tuple[int, int]]:
    """Return (first, last) token of every span, by the definition."""
    return [(i, j) for i in range(tokens) for j in range(i, min(tokens, i + longest))]


@st.composite
def windows_of(draw: st.DrawFn, tokens: int) -> list[WindowLogits]:
    """Make windows that cover some of a passage, in any order, overlapping or not, possibly with duplicates."""
    windows = []
    for _ in range(draw(st.integers(0, 4))):
        first = draw(st.integers(0, tokens - 1))
        length = draw(st.integers(1, tokens - first))
        null = draw(st.integers(-8, 8)) / 2
        windows.append(WindowLogits(first, draw(logits(length)), draw(logits(length)), null, -0.5))
    return windows


def test_a_band_has_every_span_of_a_window_by_start_and_length() -> None:
    band = span_band(np.float32([1, 2, 3]), np.float32([10, 20, 30]), max_answer_tokens=2)
    np.testing.assert_array_equal(band, [[11, 21], [22, 32], [33, NEVER]])
    assert band.dtype == np.float32


def test_a_band_of_no_tokens_is_empty() -> None:
    assert span_band(np.zeros(0, np.float32), np.zeros(0, np.float32), 5).shape[0] == 0


@given(st.data())
def test_the_margin_of_a_span_is_the_largest_over_the_windows_that_contain_it(data: st.DataObject) -> None:
    tokens, longest = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 15))
    windows = data.draw(windows_of(tokens))
    band = passage_band(windows, tokens, longest)
    for first, last in all_spans(tokens, longest):
        margins = [
            window.start[first - window.first] + window.end[last - window.first] - window.null_start - window.null_end
            for window in windows
            if window.first <= first and last < window.first + len(window.start)
        ]
        found = band[first, last - first] if last - first < band.shape[1] else NEVER
        assert found == max(margins, default=NEVER)  # exact: the logits are halves
    assert band.shape[0] == tokens
    assert (band[:, longest:] == NEVER).all()
    inside = np.add.outer(np.arange(tokens), np.arange(band.shape[1])) < tokens
    assert (band[~inside] == NEVER).all()


def test_a_window_merged_twice_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    windows = [
        WindowLogits(first, *generator.standard_normal((2, 9)).astype(np.float32), 0.25, -0.5) for first in (0, 5)
    ]
    np.testing.assert_array_equal(passage_band(windows, 14, 6), passage_band([*windows, *windows[::-1]], 14, 6))


def test_an_answer_length_beyond_the_window_costs_nothing() -> None:
    """A thousand windows: 10**9 tokens give the band of the window's own length, and no memory is taken for more."""
    generator = np.random.default_rng(0)
    for _ in range(1000):
        length = int(generator.integers(0, 40))
        start, end = generator.standard_normal((2, length)).astype(np.float32)
        expected = span_band(start, end, max(length, 1))
        np.testing.assert_array_equal(span_band(start, end, 10**9), expected)
        shorter = WindowLogits(0, start[: length // 2], end[: length // 2], 0.0, 0.0)
        windows = [WindowLogits(0, start, end, 0.0, 0.0), shorter]
        np.testing.assert_array_equal(
            passage_band(windows, length, 10**9), passage_band(windows, length, max(length, 1))
        )


def test_a_band_is_not_wider_than_the_longest_span_in_a_window() -> None:
    window = WindowLogits(0, np.zeros(4, np.float32), np.zeros(4, np.float32), 0.0, 0.0)
    assert passage_band([window], 4, max_answer_tokens=1_000_000_000).shape == (4, 4)


def best_spans(band: np.ndarray, where: np.ndarray, count: int) -> list[Span]:
    return [span for span, _, _ in distinct_spans(band, where, count)]


def brute_force(band: np.ndarray, where: np.ndarray, count: int) -> list[tuple[Span, list[float]]]:
    """Take the best span with all spans that share a character with it, and repeat, by comparing every pair."""
    left = [(-band[i, n], i, n) for i, n in np.ndindex(*band.shape) if band[i, n] > NEVER]
    spans: list[tuple[Span, list[float]]] = []
    while left and len(spans) < count:
        score, i, n = min(left)
        begin, end = where[i, 0], where[i + n, 1]
        apart = [other for other in left if where[other[1], 0] >= end or where[other[1] + other[2], 1] <= begin]
        spans.append((Span(i, i + n, float(-score)), sorted(float(-other[0]) for other in set(left) - set(apart))))
        left = apart
    return spans


@settings(max_examples=300)
@given(st.data())
def test_the_best_spans_are_those_of_a_brute_force_search(data: st.DataObject) -> None:
    tokens, longest = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    where = data.draw(offsets(tokens))
    band = span_band(data.draw(logits(tokens)), data.draw(logits(tokens)), longest)
    forbid_blank(band, where)
    before = band.copy()
    count = data.draw(st.integers(1, 9))
    found = [
        (span, sorted(score for score in band[rows][taken].tolist() if score > NEVER))
        for span, rows, taken in distinct_spans(band, where, count)
    ]
    assert found == brute_force(band, where, count)
    np.testing.assert_array_equal(band, before)  # the band is unchanged


@given(st.data())
def test_a_longer_list_of_spans_starts_with_the_shorter_list(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 12))
    where = data.draw(offsets(tokens))
    band = span_band(data.draw(logits(tokens)), data.draw(logits(tokens)), 5)
    assert best_spans(band, where, 9)[:2] == best_spans(band, where, 2)


def test_equal_scores_are_ordered_by_the_earlier_start_then_the_shorter_span() -> None:
    where = np.array([[0, 1], [2, 3], [4, 5]], np.int32)
    band = np.zeros((3, 2), np.float32)
    band[2, 1] = NEVER
    assert best_spans(band, where, 9) == [Span(0, 0, 0.0), Span(1, 1, 0.0), Span(2, 2, 0.0)]


def test_two_tokens_of_one_character_are_not_two_spans() -> None:
    where = np.array([[0, 1], [0, 1], [1, 2]], np.int32)  # an emoji of two tokens, then a letter
    band = np.array([[3.0], [2.0], [1.0]], np.float32)
    assert best_spans(band, where, 9) == [Span(0, 0, 3.0), Span(2, 2, 1.0)]


@pytest.mark.parametrize("shape", [(0, 30), (4, 30)])
def test_where_nothing_is_possible_there_is_no_span(shape: tuple[int, int]) -> None:
    band = np.full(shape, NEVER, np.float32)
    assert best_spans(band, np.zeros((shape[0], 2), np.int32), 3) == []


@given(st.data())
def test_no_span_starts_or_ends_with_an_invisible_token(data: st.DataObject) -> None:
    tokens, longest = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 5))
    where = data.draw(offsets(tokens))
    band = span_band(data.draw(logits(tokens)), data.draw(logits(tokens)), longest)
    before = band.copy()
    forbid_blank(band, where)
    for i, j in all_spans(tokens, longest):
        seen = where[i, 0] < where[i, 1] and where[j, 0] < where[j, 1]
        assert band[i, j - i] == (before[i, j - i] if seen else NEVER)
