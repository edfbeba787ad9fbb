"""What a reader decided on a question, and the number that an explanation takes apart.

    M(p)       margin of span p over "no answer" (`spanqa.answers`); that of "no answer" itself is 0
    g          M(chosen) - M(other)

Both are fixed when the decision is made: the explanation follows these two, not whichever span is best at the moment. For an answer
`other` is "no answer" unless another span is asked for; for an abstention `chosen` is "no answer" and `other` the best span.
g is the log-odds of the two before calibration: the normalizers of the softmax drop out of the difference, and between two spans of
one window its null score does, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.answers import Answer, least_score
from spanqa.batches import WindowLogits
from spanqa.errors import InputError
from spanqa.evaluate.record import describe_reader, describe_run, reader_packages
from spanqa.explain.words import Word, words_of
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.spans import span_margin
from spanqa.stream import read_one
from spanqa.tokens import Passage, Tokens
from spanqa.windows import Window, cut

TokenSpan = tuple[int, int]
"""First and last token of a span of the passage, both inclusive."""

Against = Literal["no answer", "runner-up"] | tuple[int, int]
"""What an answer is set against: "not in this text", the next best span, or characters start (inclusive) to end (exclusive)."""


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """`windows` and `logits` are those of the whole passage, as the reader read it.

    `answer` is what the reader returned at `threshold`. `chosen` and `other` are spans of the passage, or None for "no answer".
    """

    question: str
    question_tokens: Tokens
    passage: Passage
    windows: tuple[Window, ...]
    logits: tuple[WindowLogits, ...]
    answer: Answer
    threshold: float
    chosen: TokenSpan | None
    other: TokenSpan | None

    @property
    def spans(self) -> tuple[TokenSpan, ...]:
        """The spans among chosen and other."""
        return tuple(span for span in (self.chosen, self.other) if span is not None)

    @property
    def in_play(self) -> tuple[int, ...]:
        """The windows that hold one of the spans: g depends on no other."""
        return tuple(
            number
            for number, window in enumerate(self.windows)
            if any(window.first <= first and last < window.stop for first, last in self.spans)
        )

    @property
    def deciding(self) -> tuple[int, ...]:
        """The windows that decide: of each span, the one that gives it its margin; each once."""
        return tuple(dict.fromkeys(self._best_window(span, self.logits) for span in self.spans))

    def value(self, logits: Sequence[WindowLogits]) -> float:
        """Return g, from the logits of all windows or of those in play."""
        return self.margin(self.chosen, logits) - self.margin(self.other, logits)

    def margin(self, span: TokenSpan | None, logits: Sequence[WindowLogits]) -> float:
        """Return the margin of a span over "no answer", 0 for None: the largest of the windows that hold it."""
        return 0.0 if span is None else max(span_margin(window, *span) for window in logits)

    def characters(self, span: TokenSpan) -> tuple[int, int]:
        """Return where a span starts and ends in the passage."""
        offsets = self.passage.tokens.offsets
        return int(offsets[span[0], 0]), int(offsets[span[1], 1])

    def objective(self) -> "Objective":
        """Return g as a sum over the logits of the deciding windows, each span in the window that gave it its margin."""
        weights = {number: np.zeros((2, len(self.windows[number])), np.float32) for number in self.deciding}
        for span, sign in ((self.chosen, 1), (self.other, -1)):
            if span is not None:
                number = self._best_window(span, self.logits)
                window = self.windows[number]
                at = window.passage_start - window.first
                weights[number][0, at + span[0]] += sign
                weights[number][1, at + span[1]] += sign
                weights[number][:, 0] -= sign
        return Objective(tuple(self.windows[number] for number in weights), tuple(weights.values()))

    def _best_window(self, span: TokenSpan, logits: Sequence[WindowLogits]) -> int:
        return int(np.argmax([span_margin(window, *span) for window in logits]))


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """A number that is linear in logits: the sum of `weights` times the start (row 0) and end (row 1) logits of some windows.

    `weights` float32 `[2, window_length]`, one array for each window. The margin of tokens 5 to 6 of a window of 8 tokens:

        start   -1  0  0  0  0  1  0  0
        end     -1  0  0  0  0  0  1  0
    """

    windows: tuple[Window, ...]
    weights: tuple[NDArray[np.float32], ...]


def decide(
    reader: Reader,
    question: str,
    passage: str | Passage,
    *,
    against: Against = "no answer",
    threshold: float | None = None,
    progress: Progress = silent,
) -> Decision:
    """Ask the question, and return what the reader decided.

    `threshold` is the reader's own when None. An abstention is always set against a span: the best one, or the one given.

    Raises:
        InputError: there is nothing to explain: no span in the passage, no runner-up, or the span given is none that the reader
            could choose.
    """
    _check_against(against)
    prepared = reader.prepare(passage)
    reading = read_one(question, [prepared], reader.engine, reader.checkpoint.tokenizer, reader.windows, progress)
    least = least_score(reader.answers, threshold=threshold)
    ranking = reader.decode(reading, top_k=2)
    if not ranking.answers:
        raise InputError("The passage holds no words that could be an answer, so there is no decision to explain.")
    answer = ranking.best(least)
    most = reader.answers.max_answer_tokens
    spans = [(each.start, each.end) for each in ranking.answers if each.start is not None and each.end is not None]
    best, *others = (_span_of(prepared, reading.logits[0], most, *span) for span in spans)
    if isinstance(against, tuple):
        other: TokenSpan | None = _given_span(reader, prepared, reading.logits[0], against)
    elif against == "runner-up":
        if answer and not others:
            raise InputError(
                "There is no runner-up: the passage holds only one span that could be an answer. Explain it against no answer."
            )
        other = others[0] if answer else best
    else:
        other = None if answer else best
    chosen = best if answer else None
    if chosen == other:
        raise InputError(f"The answer {answer.text!r:.60} cannot be explained against itself. Choose another span.")
    encoded = reader.checkpoint.tokenizer.encode(question)
    [windows] = cut(encoded, [prepared], reader.checkpoint.tokenizer, reader.windows)
    return Decision(question, encoded, prepared, tuple(windows), reading.logits[0], answer, least, chosen, other)


def words_in_play(decision: Decision) -> list[Word]:
    """Return the words that g depends on, in order: those of the question and of the windows in play."""
    words = words_of("question", decision.question, decision.question_tokens)
    ranges: list[list[int]] = []
    for number in decision.in_play:
        window = decision.windows[number]
        if ranges and window.first <= ranges[-1][1]:
            ranges[-1][1] = max(ranges[-1][1], window.stop)
        else:
            ranges.append([window.first, window.stop])
    for first, stop in ranges:
        words += words_of("passage", decision.passage.text, decision.passage.tokens, first, stop)
    return words


def made_with(reader: Reader) -> dict[str, Any]:
    """Return the model and the versions that a reader decides with."""
    return {**describe_reader(reader), "versions": describe_run(reader_packages(reader))["versions"]}


def _check_against(against: Any) -> None:
    span = isinstance(against, tuple) and len(against) == 2 and all(isinstance(at, int | np.integer) for at in against)
    if not span and not (isinstance(against, str) and against in ("no answer", "runner-up")):
        raise InputError(
            f"against is {against!r:.60}; expected 'no answer', 'runner-up', or the start and end of a span of the passage."
        )


def _span_of(passage: Passage, logits: Sequence[WindowLogits], most: int, start: int, end: int) -> TokenSpan | None:
    """Return the span of at most `most` tokens that covers these characters, None where no window holds one.

    Several tokens can be parts of one character, as the bytes of a Chinese one are. Of the spans that cover the same characters the
    best is meant, as in an answer.
    """
    offsets = passage.tokens.offsets
    first, last = passage.tokens.covering(start, end)
    inside = [i for i in range(first, last + 1) if offsets[i, 0] < offsets[i, 1]]
    if not inside:
        return None
    firsts = [i for i in inside if offsets[i, 0] == start] or inside[:1]
    lasts = [i for i in inside if offsets[i, 1] == end] or inside[-1:]
    spans = [(left, right) for left in firsts for right in lasts if 0 <= right - left < most]
    margins = [max((span_margin(window, *span) for window in logits), default=-np.inf) for span in spans]
    best = int(np.argmax(margins)) if spans else 0
    return spans[best] if spans and margins[best] > -np.inf else None


def _given_span(reader: Reader, passage: Passage, logits: Sequence[WindowLogits], given: tuple[int, int]) -> TokenSpan:
    start, end = given
    if not 0 <= start < end <= len(passage.text) or not passage.text[start:end].strip():
        raise InputError(
            f"The span {start}-{end} holds no text of the passage, which has {len(passage.text):,} characters. Give where the span "
            "starts and ends, the end excluded."
        )
    most = reader.answers.max_answer_tokens
    found = _span_of(passage, logits, most, start, end)
    if found is None:
        first, last = passage.tokens.covering(start, end)
        raise InputError(
            f"The span {start}-{end} ({passage.text[start:end]!r:.60}) is none that the reader could choose: it has "
            f"{max(0, last - first + 1)} tokens, and must have 1 to {most} and lie in one window."
        )
    return found
