"""Examples to training windows: each window with the positions at which a right answer starts and ends.

    Example -> TrainingWindow

All right answers of a question count. A window without an answer has [CLS] as its target. In a window without labels every
position is a target, so that the loss of the labels is 0 there. No framework is loaded here; `spanqa.train.objective` turns
training windows into tensors and a loss.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import QuestionTooLongError
from spanqa.squad import Example
from spanqa.tokens import Tokenizer, Tokens
from spanqa.windows import Window, WindowSettings, cut

NO_ANSWER = (0,)
"""The target of a window without an answer: its first token, [CLS]."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingWindow:
    """A window and its targets: the positions at which right answers start and end (both inclusive).

    `example` is the question that it belongs to. `teacher`, where there is one, are its start and end logits for each token,
    float16 `[token, 2]`; see `spanqa.train.teacher`.
    """

    window: Window
    starts: Sequence[int]
    ends: Sequence[int]
    example: Example
    teacher: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.window)


@dataclass(slots=True)
class WindowReport:
    """How many windows were made, and what was left out.

    `with_answer` and `without_answer` count the windows to train on. `cut` counts windows that were left out because their
    edge cuts the answer. `lost_questions` counts questions without any window: they are too long, or no window holds the
    whole answer.
    """

    with_answer: int = 0
    without_answer: int = 0
    cut: int = 0
    lost_questions: int = 0


def token_range(passage: Tokens, start: int, end: int) -> tuple[int, int]:
    """Return the first and last token (inclusive) that cover the code points `start` to `end` (exclusive) of a passage.

    A token counts whole if the answer covers part of it: with the tokens `pier`, `'` and `s`, the answer "pier's" is
    tokens 0 to 2. The result is (0, -1) if no token covers the code points.
    """
    first, last = passage.covering(start, end)
    return (first, last) if first <= last else (0, -1)


def make_training_windows(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    settings: WindowSettings,
    *,
    empty_windows: int = 1,
    seed: int = 0,
) -> tuple[list[TrainingWindow], WindowReport]:
    """Return the windows to train on, and a report.

    On long passages most windows hold no answer, so only `empty_windows` of these are kept for each question, drawn by
    `seed`. A window that cuts an answer in two is left out, because neither target would be right. A question that is too
    long for the windows is left out.
    """
    draw = random.Random(seed)
    report = WindowReport()
    made: list[TrainingWindow] = []
    for example in examples:
        windows = _windows(example, tokenizer, settings)
        if windows is None:
            report.lost_questions += 1
            continue
        answers = [(answer.start, answer.start + len(answer.text)) for answer in example.answers]
        passage = tokenizer.prepare(example.passage).tokens
        spans = [token_range(passage, start, end) for start, end in answers]
        spans = [(first, last) for first, last in spans if first <= last]
        with_answer, empty, cut_windows = _label(example, windows, spans)
        report.cut += cut_windows
        if example.answers and not with_answer:
            report.lost_questions += 1
            continue
        kept = draw.sample(empty, min(len(empty), empty_windows))
        report.with_answer += len(with_answer)
        report.without_answer += len(kept)
        made += with_answer + kept
    return made, report


def make_unlabelled_windows(
    examples: Iterable[Example], tokenizer: Tokenizer, settings: WindowSettings
) -> tuple[list[TrainingWindow], int]:
    """Return the windows of questions without labels, and how many questions have none because they are too long.

    Which of its windows holds the answer of a question is not known, so all are kept.
    """
    made: list[TrainingWindow] = []
    lost = 0
    for example in examples:
        windows = _windows(example, tokenizer, settings)
        lost += windows is None
        for window in windows or ():
            everywhere = range(len(window))
            made.append(TrainingWindow(window, everywhere, everywhere, example))
    return made, lost


def _windows(example: Example, tokenizer: Tokenizer, settings: WindowSettings) -> list[Window] | None:
    """Return the windows of a question; None if it is too long for them, or holds nothing that can be read."""
    passage = tokenizer.prepare(example.passage)
    question = tokenizer.encode(example.question)
    try:
        (windows,) = cut(question, [passage], tokenizer, settings) if len(question) else ([],)
    except QuestionTooLongError:
        windows = []
    return windows if windows or (len(question) and not len(passage.tokens)) else None


def _label(
    example: Example, windows: Sequence[Window], spans: Sequence[tuple[int, int]]
) -> tuple[list[TrainingWindow], list[TrainingWindow], int]:
    """Return the windows that hold a span, the windows that touch none, and the number of those that cut one."""
    with_answer, empty, cut_windows = [], [], 0
    for window in windows:
        shift = window.passage_start - window.first
        inside = [span for span in spans if window.first <= span[0] and span[1] < window.stop]
        if inside:
            starts = tuple(sorted({first + shift for first, _ in inside}))
            ends = tuple(sorted({last + shift for _, last in inside}))
            with_answer.append(TrainingWindow(window, starts, ends, example))
        elif any(first < window.stop and last >= window.first for first, last in spans):
            cut_windows += 1
        else:
            empty.append(TrainingWindow(window, NO_ANSWER, NO_ANSWER, example))
    return with_answer, empty, cut_windows
