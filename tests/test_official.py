import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from spanqa.batches import WindowLogits
from spanqa.errors import InputError
from spanqa.evaluate.official import NOTHING_TO_READ, OfficialSettings, official_answer
from spanqa.tokens import Passage, Tokens


def words(text):
    """A passage whose tokens are its words."""
    offsets, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        offsets.append((at, at := at + len(word)))
    return Passage(text, Tokens(np.zeros(len(offsets), np.int32), np.array(offsets, np.int32).reshape(-1, 2)))


def window(start, end, null=(0.0, 0.0), first=0):
    return WindowLogits(first, np.array(start, np.float32), np.array(end, np.float32), *null)


PIER = words("Anna Kestrel built the pier")


def test_an_answer_length_beyond_the_window_costs_nothing() -> None:
    generator = np.random.default_rng(0)
    where = np.array([[place, place + 1] for place in range(20)], np.int32)
    passage = Passage("x" * 20, Tokens(np.zeros(20, np.int32), where))
    windows = [WindowLogits(0, *generator.standard_normal((2, 20)).astype(np.float32), 0.0, 0.0)]
    longest, all_of_it = (
        official_answer(passage, windows, OfficialSettings(max_answer_tokens=tokens), "squad_v2")
        for tokens in (10**9, 20)
    )
    assert longest == all_of_it


def test_the_best_span_answers_when_it_beats_no_answer():
    decision = official_answer(PIER, [window([4, 0, 0, 0, 0], [0, 3, 0, 0, 0], null=(1.0, 2.0))])
    assert decision.text == "Anna Kestrel"
    assert decision.null_odds == -4.0
    assert decision.no_answer_probability == pytest.approx(1 / (1 + math.exp(4)))


@pytest.mark.parametrize(("threshold", "text"), [(-1.5, ""), (-1.0, "Anna"), (0.0, "Anna")])
def test_no_answer_needs_odds_above_the_threshold(threshold, text):
    windows = [window([4, 0, 0, 0, 0], [4, 0, 0, 0, 0], null=(3.0, 4.0))]  # N - S = -1
    settings = OfficialSettings(null_score_diff_threshold=threshold)
    assert official_answer(PIER, windows, settings).text == text


def test_spans_are_compared_by_raw_logits_and_no_answer_is_the_smallest_of_all_windows():
    first = window([5, 0, 0], [5, 0, 0], null=(9.0, 9.0))
    second = window([0, 4], [0, 4], null=(1.0, 0.5), first=3)  # its margin is larger, its score is not
    decision = official_answer(PIER, [first, second])
    assert (decision.text, decision.null_odds) == ("Anna", 1.5 - 10)
    null = next(candidate for candidate in decision.candidates if not candidate.text)
    assert (null.start_logit, null.end_logit) == (1.0, 0.5)


def test_answers_have_at_most_so_many_tokens_and_end_where_they_start_or_later():
    windows = [window([0, 0, 9, 0, 0], [0, 8, 0, 0, 7])]
    assert official_answer(PIER, windows).text == "built the pier"
    assert official_answer(PIER, windows, OfficialSettings(max_answer_tokens=2)).text == "built"


def test_tokens_without_characters_bound_no_answer():
    passage = Passage("a b", Tokens(np.zeros(3, np.int32), np.array([[0, 1], [1, 1], [2, 3]], np.int32)))
    decision = official_answer(passage, [window([0, 9, 0], [0, 9, 1])])
    assert [candidate.text for candidate in decision.candidates] == ["a b", "b", "a", ""]


def test_a_span_that_two_windows_see_gives_two_candidates():
    windows = [window([1, 2], [1, 2], null=(-5.0, 0.0)), window([7], [1], first=1)]
    candidates = official_answer(words("a b"), windows).candidates
    assert [(candidate.text, candidate.score) for candidate in candidates] == [
        ("b", 8.0), ("b", 4.0), ("a b", 3.0), ("a", 2.0), ("", -5.0),
    ]  # fmt: skip


def test_no_answer_is_added_when_it_is_not_among_the_best():
    windows = [window([9, 8, 7, 6, 5], [9, 8, 7, 6, 5])]
    texts = [c.text for c in official_answer(PIER, windows, OfficialSettings(n_best=2)).candidates]
    assert texts == ["Anna", "Anna Kestrel", ""]
    last_in = [window([9, 8, 7, 6, 5], [9, 8, 7, 6, 5], null=(8.5, 9.0))]
    texts = [c.text for c in official_answer(PIER, last_in, OfficialSettings(n_best=2)).candidates]
    assert texts == ["Anna", ""]


def test_with_squad_v1_the_answer_is_the_best_span_whatever_no_answer_scores():
    windows = [window([1, 0, 0, 0, 0], [1, 0, 0, 0, 0], null=(50.0, 50.0))]
    decision = official_answer(PIER, windows, rule="squad_v1")
    assert decision.text == decision.candidates[0].text == "Anna"
    assert all(candidate.text for candidate in decision.candidates)


@pytest.mark.parametrize("rule", ["squad_v1", "squad_v2"])
@pytest.mark.parametrize("windows", [[], [window([3], [3], null=(1.0, 2.0))]])
def test_a_passage_without_a_span_is_answered_no_answer(rule, windows):
    blank = Passage(" " * len(windows), Tokens(np.zeros(len(windows), np.int32), np.zeros((len(windows), 2), np.int32)))
    decision = official_answer(blank, windows, OfficialSettings(null_score_diff_threshold=1e6), rule)
    assert (decision.text, decision.null_odds, decision.no_answer_probability) == ("", NOTHING_TO_READ, 1.0)
    (only,) = decision.candidates
    assert (only.text, only.probability, only.score) == ("", 1.0, 3.0 if windows else 0.0)


@pytest.mark.parametrize(("null", "probability"), [(-4000.0, 0.0), (4000.0, 1.0)])
def test_extreme_odds_are_probabilities_too(null, probability):
    decision = official_answer(PIER, [window([0] * 5, [0] * 5, null=(null, 0.0))])
    assert decision.no_answer_probability == probability


@st.composite
def readings(draw):
    """A passage, blank tokens among them, and one to three overlapping windows with many equal logits."""
    length = draw(st.integers(1, 14))
    offsets = draw(strategies.offsets(length))
    text = "".join(chr(97 + i % 26) for i in range(int(offsets[-1, 1])))
    starts = sorted(draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=3)))
    windows = []
    for first in starts:
        size = draw(st.integers(1, length - first))
        null = draw(strategies.logits(2))
        windows.append(
            window(
                draw(strategies.logits(size)), draw(strategies.logits(size)), (float(null[0]), float(null[1])), first
            )
        )
    settings = OfficialSettings(
        draw(st.integers(1, 25)), draw(st.integers(1, 6)), draw(st.sampled_from([-1.0, 0.0, 2.0]))
    )
    return Passage(text, Tokens(np.zeros(length, np.int32), offsets)), windows, settings


def by_loops(passage, windows, settings):
    """run_qa's way, over all pairs."""
    offsets, spans = passage.tokens.offsets, []
    for each in windows:
        for i in range(len(each.start)):
            for j in range(i, min(i + settings.max_answer_tokens, len(each.end))):
                (start, filled), (begun, end) = offsets[each.first + i], offsets[each.first + j]
                if filled > start and end > begun:
                    spans.append((float(each.start[i] + each.end[j]), passage.text[start:end]))
    spans.sort(key=lambda span: -span[0])
    return spans, min(each.null_score for each in windows)


@given(readings())
def test_decisions_are_those_of_loops_over_all_pairs(reading):
    passage, windows, settings = reading
    decision = official_answer(passage, windows, settings)
    spans, null = by_loops(passage, windows, settings)
    if not spans:
        assert decision.text == ""
        return
    assert decision.null_odds == null - spans[0][0]
    assert decision.text == ("" if null - spans[0][0] > settings.null_score_diff_threshold else spans[0][1])
    wanted = sorted([*spans, (null, "")], key=lambda span: -span[0])[: settings.n_best]
    wanted += [] if (null, "") in wanted else [(null, "")]
    assert [(candidate.score, candidate.text) for candidate in decision.candidates] == wanted
    best_only = official_answer(passage, windows, replace(settings, n_best=1))
    assert best_only.text == decision.text


@given(readings(), st.sampled_from(["squad_v1", "squad_v2"]))
def test_candidates_are_slices_of_the_passage_with_probabilities_by_softmax(reading, rule):
    passage, windows, settings = reading
    candidates = official_answer(passage, windows, settings, rule).candidates
    weights = [math.exp(candidate.score) for candidate in candidates]
    for candidate, weight in zip(candidates, weights, strict=True):
        assert candidate.probability == pytest.approx(weight / sum(weights), abs=1e-9)
        assert candidate.score == candidate.start_logit + candidate.end_logit
        if candidate.start is not None:
            assert candidate.text == passage.text[candidate.start : candidate.end] != ""
        else:
            assert (candidate.text, candidate.end) == ("", None)
    some_span, _ = by_loops(passage, windows, settings)
    nulls = sum(candidate.start is None for candidate in candidates)
    assert nulls == (rule == "squad_v2" or not some_span)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_best": 0}, "n_best is 0; expected a whole number, at least 1"),
        ({"max_answer_tokens": 2.5}, "max_answer_tokens is 2.5; expected"),
        ({"null_score_diff_threshold": math.inf}, "null_score_diff_threshold is inf; expected a finite number"),
    ],
)
def test_settings_that_cannot_be_used_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        OfficialSettings(**settings)
