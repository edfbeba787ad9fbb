"""Examples to training windows with their targets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny as tiny_checkpoints
from spanqa.checkpoint import Checkpoint, open_checkpoint
from spanqa.squad import Example, GoldAnswer
from spanqa.tokens import Tokens
from spanqa.train.targets import NO_ANSWER, TrainingWindow, make_training_windows, token_range
from spanqa.windows import WindowSettings

PASSAGE = " ".join(tiny_checkpoints._WORDS[:4])
SETTINGS = WindowSettings(max_seq_length=40, overlap=12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_checkpoints.make("bert", tmp_path_factory.mktemp("tiny") / "bert"))


def example(*texts: str, passage: str = PASSAGE, id: str = "1") -> Example:
    return Example(
        id, "Who built the lighthouse?", passage, tuple(GoldAnswer(text, passage.index(text)) for text in texts)
    )


def text_of(window: TrainingWindow, start: int, end: int, passage: str = PASSAGE) -> str:
    shift = window.window.first - window.window.passage_start
    offsets = window.window.passage.offsets
    return passage[offsets[start + shift, 0] : offsets[end + shift, 1]]


def test_the_token_range_of_an_answer() -> None:
    passage = Tokens(
        np.arange(4, dtype=np.int32), np.array([[0, 4], [4, 5], [5, 6], [7, 10]], np.int32)
    )  # pier ' s end
    assert token_range(passage, 0, 6) == (0, 2)
    assert token_range(passage, 7, 10) == (3, 3)
    assert token_range(passage, 8, 9) == (3, 3)  # within a token
    assert token_range(passage, 2, 5) == (0, 1)
    assert token_range(passage, 6, 7) == (0, -1)  # the space


@given(start=st.integers(0, len(PASSAGE) - 1), length=st.integers(1, 60))
def test_every_window_that_holds_the_answer_says_where(base: Checkpoint, start: int, length: int) -> None:
    text = PASSAGE[start : start + length]
    if not text.strip():
        return
    start += len(text) - len(text.lstrip())
    text = text.strip()
    asked = Example("1", "Who?", PASSAGE, (GoldAnswer(text, start),))
    windows, report = make_training_windows([asked], base.tokenizer, SETTINGS, empty_windows=99)
    assert report.with_answer + report.without_answer == len(windows)
    for window in windows:
        if window.starts == NO_ANSWER:
            shift = window.window.passage.offsets[window.window.first : window.window.stop]
            assert shift[-1, 1] <= start or shift[0, 0] >= start + len(text)
        else:
            found = text_of(window, window.starts[0], window.ends[0])
            assert text in found
            assert len(found) < len(text) + 24  # at most the rest of two tokens
    assert report.lost_questions == (0 if windows else 1)
    assert windows or report.cut


def test_all_answers_count_and_cut_windows_are_left_out(base: Checkpoint) -> None:
    windows, report = make_training_windows([example("Anna Kestrel", "1891")], base.tokenizer, SETTINGS)
    first = windows[0]
    assert [text_of(first, s, e) for s, e in zip(first.starts, first.ends, strict=True)] == ["Anna Kestrel", "1891"]
    long = example("Tomas Brandt, laid a cable from the village. The tower is 41 metres tall")
    windows, report = make_training_windows([long], base.tokenizer, SETTINGS, empty_windows=99)
    assert report.cut > 0
    assert all(window.starts == NO_ANSWER or len(window.starts) == 1 for window in windows)


def test_empty_windows_are_drawn_by_seed(base: Checkpoint) -> None:
    asked = [example("Anna Kestrel", id=str(i)) for i in range(20)]
    windows, report = make_training_windows(asked, base.tokenizer, SETTINGS, empty_windows=1, seed=3)
    assert report.without_answer == 20
    again, _ = make_training_windows(asked, base.tokenizer, SETTINGS, empty_windows=1, seed=3)
    other, _ = make_training_windows(asked, base.tokenizer, SETTINGS, empty_windows=1, seed=4)
    firsts = [[window.window.first for window in each] for each in (windows, again, other)]
    assert firsts[0] == firsts[1] != firsts[2]
    unanswerable = make_training_windows([Example("1", "Who?", PASSAGE)], base.tokenizer, SETTINGS)
    assert [window.starts for window in unanswerable[0]] == [NO_ANSWER]


def test_a_question_that_is_too_long_is_counted_but_not_trained_on(base: Checkpoint) -> None:
    asked = Example("1", "who " * 30, PASSAGE, ())
    windows, report = make_training_windows([asked], base.tokenizer, SETTINGS)
    assert (windows, report.lost_questions) == ([], 1)
