import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanqa.checkpoint import open_checkpoint
from spanqa.errors import InputError, QuestionTooLongError
from spanqa.tokens import Template, Tokens
from spanqa.windows import WindowSettings, cut, make_windows
from strategies import templates, tokens

BERT = Template(((2, 0),), ((3, 0),), ((3, 1),), question_type=0, passage_type=1)


def tokens_of(length: int) -> Tokens:
    places = np.arange(length, dtype=np.int32)
    return Tokens(places + 10, np.stack([places, places + 1], axis=1))


def bounds(question: int, passage: int, settings: WindowSettings) -> list[tuple[int, int]]:
    windows = make_windows(tokens_of(question), tokens_of(passage), BERT, settings)
    return [(window.first, window.stop) for window in windows]


def test_the_worked_example_of_the_docstring() -> None:
    assert bounds(2, 6, WindowSettings(9, 2)) == [(0, 4), (2, 6)]


def test_a_passage_that_fits_is_one_window() -> None:
    assert bounds(2, 4, WindowSettings(9, 2)) == [(0, 4)]


def test_one_token_more_makes_a_second_window_that_shares_the_overlap() -> None:
    assert bounds(2, 5, WindowSettings(9, 2)) == [(0, 4), (2, 5)]


def test_a_passage_without_tokens_has_no_window() -> None:
    assert bounds(2, 0, WindowSettings(9, 2)) == []


def test_without_overlap_windows_stand_side_by_side() -> None:
    assert bounds(2, 9, WindowSettings(9, 0)) == [(0, 4), (4, 8), (8, 9)]


def test_the_overlap_is_half_the_room_by_default_and_at_most_128() -> None:
    assert bounds(2, 7, WindowSettings(9)) == [(0, 4), (2, 6), (4, 7)]
    assert bounds(10, 1000, WindowSettings(384)) == [(0, 371), (243, 614), (486, 857), (729, 1000)]


@given(tokens(1, 10), tokens(0, 200), templates(), st.integers(1, 30), st.integers(0, 29))
def test_windows_cover_every_token_and_the_last_ends_with_the_passage(
    question: Tokens, passage: Tokens, template: Template, room: int, overlap: int
) -> None:
    overlap = min(overlap, room - 1)
    longest = room + template.special_tokens + len(question)
    windows = make_windows(question, passage, template, WindowSettings(longest, overlap, len(question)))
    seen = np.zeros(len(passage), int)
    for number, window in enumerate(windows):
        assert window.first == number * (room - overlap)
        assert 1 <= len(window) <= longest
        assert len(window) == len(question) + template.special_tokens + window.stop - window.first
        assert window.passage_start == len(template.before) + len(question) + len(template.between)
        assert window.stop - window.first == room or window is windows[-1]
        seen[window.first : window.stop] += 1
    assert (seen > 0).all()
    assert not windows or windows[-1].stop == len(passage)
    assert all(window.stop < len(passage) for window in windows[:-1])


def test_a_question_as_long_as_allowed_is_read() -> None:
    assert bounds(3, 4, WindowSettings(9, 0)) == [(0, 3), (3, 4)]


def test_a_question_longer_than_half_the_window_is_refused_by_default() -> None:
    with pytest.raises(
        QuestionTooLongError, match="The question has 4 tokens; at most 3 fit beside the passage in windows of 9 tokens"
    ):
        bounds(4, 4, WindowSettings(9, 0))


def test_a_question_that_leaves_no_room_is_refused_whatever_is_allowed() -> None:
    assert bounds(5, 2, WindowSettings(9, 0, max_question_tokens=8)) == [(0, 1), (1, 2)]
    with pytest.raises(QuestionTooLongError, match="The question has 6 tokens; at most 5 fit beside the passage"):
        bounds(6, 2, WindowSettings(9, 0, max_question_tokens=8))


def test_a_question_longer_than_max_question_tokens_is_refused() -> None:
    with pytest.raises(QuestionTooLongError, match="has 3 tokens; at most 2 fit"):
        bounds(3, 2, WindowSettings(90, 0, max_question_tokens=2))


def test_windows_too_small_for_any_question_say_that_none_fits() -> None:
    with pytest.raises(QuestionTooLongError, match="has 1 tokens; at most 0 fit beside the passage in windows of 3"):
        bounds(1, 2, WindowSettings(3))


def test_an_overlap_that_leaves_no_step_is_refused() -> None:
    assert bounds(2, 6, WindowSettings(9, 3)) == [(0, 4), (1, 5), (2, 6)]
    with pytest.raises(
        InputError, match=r"overlap is 4 tokens, but the question leaves room for only 4 .* Choose an overlap below 4"
    ):
        bounds(2, 6, WindowSettings(9, 4))


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("max_seq_length", 0, 1),
        ("max_seq_length", None, 1),
        ("max_seq_length", "384", 1),
        ("max_seq_length", True, 1),
        ("overlap", -1, 0),
        ("overlap", 1.5, 0),
        ("max_question_tokens", 0, 1),
    ],
)
def test_settings_that_are_no_count_of_tokens_are_refused(field: str, value: object, least: int) -> None:
    with pytest.raises(InputError, match=rf"{field} is {value!r}; expected a whole number from {least} to"):
        WindowSettings(**{field: value})


def test_no_window_holds_tokens_of_two_parts_of_a_passage() -> None:
    tokenizer = open_checkpoint("spanqa-mini").tokenizer
    text = "word " * 40
    passage = tokenizer.prepare_parts(text, [(0, 50), (75, 80), (100, 200)])
    [windows] = cut("who", [passage], tokenizer, WindowSettings(12, 2))
    assert [(window.first, window.stop) for window in windows] == [
        (0, 8),
        (6, 10),
        (10, 11),
        (11, 19),
        (17, 25),
        (23, 31),
    ]
    assert cut("who", [tokenizer.prepare_parts(text, [])], tokenizer) == [[]]
