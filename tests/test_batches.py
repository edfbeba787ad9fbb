from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanqa.batches import PADDING, Batch, SpanLogits, pack, pad, plan, split_logits
from spanqa.tokens import Template, Tokens
from spanqa.windows import Window, WindowSettings, make_windows
from strategies import templates, tokens


def window_of(*ids: int, question: tuple[int, ...] = (7,), template: Template | None = None) -> Window:
    bert = Template(((101, 0),), ((102, 0),), ((102, 1),), question_type=0, passage_type=1)
    texts = [Tokens(np.array(part, np.int32), np.stack([np.arange(len(part))] * 2, axis=1)) for part in (question, ids)]
    return Window(*texts, 0, len(ids), template or bert)


def test_windows_are_laid_out_as_the_docstring_draws_them() -> None:
    batch = pad([window_of(8, 9), window_of(8)])
    np.testing.assert_array_equal(batch.input_ids, [[101, 7, 102, 8, 9, 102], [101, 7, 102, 8, 102, 0]])
    np.testing.assert_array_equal(batch.token_type_ids, [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(batch.position_ids, [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0]])
    np.testing.assert_array_equal(batch.window_index, [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, PADDING]])
    assert batch.shape == (2, 6)
    assert batch.tokens == 11
    assert all(getattr(batch, name).dtype == np.int32 for name in Batch.__slots__)


def test_packed_windows_stand_in_one_row_and_count_their_own_positions() -> None:
    batch = pack([[window_of(8, 9), window_of(8)]], cols=12)
    np.testing.assert_array_equal(batch.input_ids, [[101, 7, 102, 8, 9, 102, 101, 7, 102, 8, 102, 0]])
    np.testing.assert_array_equal(batch.position_ids, [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0]])
    np.testing.assert_array_equal(batch.window_index, [[0] * 6 + [1] * 5 + [PADDING]])


def test_a_window_holds_its_slice_of_the_passage_only() -> None:
    whole = window_of(*range(20, 30))
    batch = pad([Window(whole.question, whole.passage, 3, 5, whole.template)])
    assert batch.input_ids.tolist() == [[101, 7, 102, 23, 24, 102]]


@given(tokens(1, 5), st.lists(tokens(1, 60), min_size=1, max_size=5), templates(), st.data())
def test_packed_then_split_gives_every_window_its_own_logits(
    question: Tokens, passages: list[Tokens], template: Template, data: st.DataObject
) -> None:
    """Every token's logits are a number of its own; split, each window has the numbers of its tokens."""
    settings = WindowSettings(20 + template.special_tokens, 3, 6)
    windows = [window for passage in passages for window in make_windows(question, passage, template, settings)]
    rows: list[list[Window]] = [[]]
    for window in windows:
        if rows[-1] and data.draw(st.booleans()):
            rows.append([])
        rows[-1].append(window)
    batch = pack(rows, cols=max(sum(map(len, row)) for row in rows) + data.draw(st.integers(0, 5)))
    start = np.arange(batch.input_ids.size, dtype=np.float32).reshape(batch.shape)
    found = list(split_logits(windows, batch, SpanLogits(start, -start)))
    assert len(found) == len(windows)
    places = [(r, sum(map(len, row[:w]))) for r, row in enumerate(rows) for w in range(len(row))]
    for window, logits, (row, at) in zip(windows, found, places, strict=True):
        of_passage = slice(at + window.passage_start, at + window.passage_start + window.stop - window.first)
        ids = batch.input_ids[row, of_passage]
        np.testing.assert_array_equal(ids, window.passage.ids[window.first : window.stop])
        np.testing.assert_array_equal(logits.start, start[row, of_passage])
        np.testing.assert_array_equal(logits.end, -start[row, of_passage])
        assert (logits.first, logits.null_start, logits.null_end) == (window.first, start[row, at], -start[row, at])


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 200))
def test_a_plan_is_a_permutation_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= budget


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_a_plan_goes_from_long_to_short_and_wastes_no_batch(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget)
    assert [lengths[position] for batch in batches for position in batch] == sorted(lengths, reverse=True)
    for batch, following in pairwise(batches):
        longest, waiting = lengths[batch[0]], lengths[following[0]]
        assert (len(batch) + 1) * longest > budget or 2 * waiting < longest  # the next did not fit, or was much shorter
        assert all(2 * lengths[position] >= longest for position in batch)


def test_nothing_is_planned_for_nothing() -> None:
    assert plan([], 100) == []


def test_a_batch_of_arrays_of_different_shapes_is_our_own_mistake() -> None:
    wide, narrow = np.zeros((1, 3), np.int32), np.zeros((1, 2), np.int32)
    with pytest.raises(AssertionError, match="arrays of different shapes"):
        Batch(wide, wide, wide, narrow)
