"""Scored spans of all windows and passages of a question to answers, or to no answer.

    M(p)  margin of place p: the largest, over the windows that hold it, of span score - null score of that window
    M*    the largest M
    no_answer_probability = 1 / (1 + exp(b M* - a))
    probability(p)        = (1 - no_answer_probability) * sum of exp(M(q)/T) over p and the places it takes with it
                                                        / sum of exp(M(q)/T) over every place q

A place takes with it those that overlap it and that no better answer has taken ("Anna", "by Anna Kestrel"): the probability is
that the answer lies there. The sums run over every legal place, never an n-best list, so nothing depends on how many answers
are asked for, and the probabilities of all answers and of "no answer" sum to 1. With a = 0 and b = T = 1 they are uncalibrated.

It does not run the model; it is given its logits.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import InputError
from spanqa.spans import Span, WindowLogits, distinct_spans, forbid_blank, passage_band
from spanqa.tokens import Passage


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """`max_answer_tokens`: no longer span is an answer. `no_answer_threshold`: below this score the answer is empty."""

    max_answer_tokens: int = 30
    no_answer_threshold: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.max_answer_tokens, int) or self.max_answer_tokens < 1:
            raise InputError(f"max_answer_tokens is {self.max_answer_tokens!r}; expected a whole number, at least 1.")
        if not isinstance(self.no_answer_threshold, (int, float)) or math.isnan(self.no_answer_threshold):
            raise InputError(f"no_answer_threshold is {self.no_answer_threshold!r}; expected a number.")


NoAnswer = Literal["auto", "on", "off"]
"""Whether an answer may be empty: by the stored threshold; the same, or 0 where none was fitted; never."""


def least_score(settings: AnswerSettings, no_answer: NoAnswer = "auto", threshold: float | None = None) -> float:
    """Return the score from which on there is an answer: `threshold` where given, else what `no_answer` says.

    Raises:
        InputError: there is no such `no_answer`, or a threshold is given though it is off.
    """
    if no_answer not in get_args(NoAnswer):
        raise InputError(f"no_answer is {no_answer!r}; expected one of {', '.join(get_args(NoAnswer))}.")
    if no_answer == "off":
        if threshold is not None:
            raise InputError(
                f"no_answer is 'off', so that nothing is below a threshold, but threshold is {threshold!r}. Give one of them."
            )
        return -math.inf
    if threshold is not None:
        return replace(settings, no_answer_threshold=threshold).no_answer_threshold
    stored = settings.no_answer_threshold
    return 0.0 if no_answer == "on" and stored == -math.inf else stored


@dataclass(frozen=True, slots=True)
class Score:
    """F1 in percent at the best no-answer threshold, and that threshold (None where every question has an answer)."""

    f1: float
    no_answer_threshold: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns scores into probabilities that can be believed; the defaults turn them into uncalibrated ones.

    `data_sha256` names the data that a, b and the temperature were fitted on.
    """

    a: float = 0.0
    b: float = 1.0
    temperature: float = 1.0
    data_sha256: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.a) and 0 < self.b < math.inf and 0 < self.temperature < math.inf):
            raise InputError(f"The calibration {self} is not usable: a must be finite, b and temperature above 0.")


@dataclass(frozen=True, slots=True)
class Answer:
    """The words of a passage that answer a question, with their place and how sure the model is.

    `text` is `passage[start:end]`: code points of the caller's own string, end exclusive; "" when the passage does not
    hold the answer, and then `start`, `end`, `sentence_start` and `passage_index` are None. `score` is the margin over
    "no answer" in logits (-inf where there was nothing to read); `probability`, in [0, 1], is that the answer lies at
    this place or one that overlaps it; `no_answer_probability` that there is none. `sentence` is the sentence around the
    answer, at `sentence_start`. `passage_index` counts the passages given.
    """

    text: str
    start: int | None
    end: int | None
    score: float
    probability: float
    no_answer_probability: float
    sentence: str = ""
    sentence_start: int | None = None
    passage_index: int | None = None
    source: str | None = None

    def __bool__(self) -> bool:
        """Whether there is an answer."""
        return self.start is not None

    def as_json(self, question: str) -> dict[str, Any]:
        """Return the fields, with the question first, as JSON can write them (no infinity)."""
        fields = {"question": question, **asdict(self)}
        return fields | {"score": self.score if math.isfinite(self.score) else None}


@dataclass(frozen=True, slots=True)
class Ranking:
    """All that is known of a question: the best places, whatever their score, and the belief that there is none.

    `best_score` is M*, -inf where there is no place at all.
    """

    answers: tuple[Answer, ...]
    best_score: float
    no_answer_probability: float

    def above(self, threshold: float, min_probability: float = 0.0) -> list[Answer]:
        """Return the answers that score at least the threshold and are at least so probable."""
        return [
            answer for answer in self.answers if answer.score >= threshold and answer.probability >= min_probability
        ]

    def best(self, threshold: float, min_probability: float = 0.0) -> Answer:
        """Return the best answer, or no answer when it scores below the threshold or is less probable."""
        chosen = self.above(threshold, min_probability)[:1]
        if chosen and chosen[0] is self.answers[0]:
            return chosen[0]
        return Answer("", None, None, self.best_score, self.no_answer_probability, self.no_answer_probability)


def rank_places(
    passages: Sequence[Passage],
    logits: Sequence[Sequence[WindowLogits]],
    *,
    top_k: int = 1,
    settings: AnswerSettings = AnswerSettings(),
    calibration: Calibration = Calibration(),
) -> Ranking:
    """Return the best `top_k` places over all passages, distinct and non-overlapping, on one scale.

    `logits` holds the windows of each passage. Equal scores are settled by the order of the passages, then by place.
    """
    found: list[tuple[float, int, Span, float]] = []
    masses: list[float] = []
    for index, (passage, windows) in enumerate(zip(passages, logits, strict=True)):
        band = margins(passage, windows, settings.max_answer_tokens)
        masses.append(log_sum_exp(band / calibration.temperature))
        for span, taken in distinct_spans(band, passage.tokens.offsets, top_k):
            found.append((-span.score, index, span, log_sum_exp(taken / calibration.temperature)))
    found.sort(key=lambda item: item[:2])
    best = -found[0][0] if found else -math.inf
    belief = Belief(best, log_sum_exp(np.array(masses)), calibration)
    answers = tuple(_answer(passages[index], index, span, belief, mass) for _, index, span, mass in found[:top_k])
    return Ranking(answers, best, belief.no_answer_probability)


@dataclass(frozen=True, slots=True)
class Belief:
    """What turns scores into probabilities.

    `best` is M*, `log_mass` the logarithm of the sum of exp(M(q)/T) over every place q.
    """

    best: float
    log_mass: float
    calibration: Calibration

    @property
    def no_answer_probability(self) -> float:
        """That no place is the answer."""
        x = self.calibration.a - self.calibration.b * self.best
        return 1 / (1 + math.exp(-x)) if x > -700 else 0.0

    def probability(self, log_mass: float) -> float:
        """That the answer lies at places whose sum of exp(M(q)/T) has this logarithm."""
        return (1 - self.no_answer_probability) * math.exp(min(0.0, log_mass - self.log_mass))


def margins(passage: Passage, windows: Sequence[WindowLogits], max_answer_tokens: int) -> NDArray[np.float32]:
    """Return M(p) of every place of a passage, by first token and length; -inf where no answer can be."""
    band = passage_band(windows, len(passage.tokens), max_answer_tokens)
    forbid_blank(band, passage.tokens.offsets)
    return band


def _answer(passage: Passage, index: int, span: Span, belief: Belief, log_mass: float) -> Answer:
    start = int(passage.tokens.offsets[span.start_token, 0])
    end = int(passage.tokens.offsets[span.end_token, 1])
    left, right = sentence_around(passage.text, start, end)
    return Answer(
        text=passage.text[start:end],
        start=start,
        end=end,
        score=span.score,
        probability=belief.probability(log_mass),
        no_answer_probability=belief.no_answer_probability,
        sentence=passage.text[left:right],
        sentence_start=left,
        passage_index=index,
        source=passage.source,
    )


def log_sum_exp(values: NDArray[Any]) -> float:
    """Return log(sum(exp(values))) without overflow; -inf for no values at all."""
    top = float(values.max(initial=-np.inf))
    return top + math.log(float(np.exp(values - top).sum(dtype=np.float64))) if top > -math.inf else top


_REACH = 500  # code points: how far a sentence may go on either side of the answer
_BREAK = re.compile(
    r"""(?P<stop>[.!?…]+["'”’»)\]]*) (?=\s+ ["'“‘«(\[]* [^\W_a-z])   # a full stop, then a capital or a digit
      | (?P<wide>[。！？]+[」』”]*)
      | (?P<blank>\n[^\S\n]*\n)
      | (?P<line>\n) (?=[^\S\n]*(?:[-*•–]\s|\d+[.)]\s|\[|\d{4}-))     # a list item, a log line
    """,
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|sr|jr|no|nos|vs|etc|e\.g|i\.e|fig|figs|eq|sec|art|ch|vol|al|inc|ltd|co|corp|dept|est|approx"
    r"|cf|gen|col|capt|lt|sgt|rev|hon|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)|\b[^\W\d_])\.$",
    re.IGNORECASE,
)


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the bounds of the sentence that holds `text[start:end]`, at most 500 code points to each side.

    A rule of thumb for showing answers: it ends at full stops before a capital (not after initials and common
    abbreviations), at blank lines, and before list items and dated log lines.

        >>> text = "Mr. J. Bell came in May. He built the pier. It stands."
        >>> left, right = sentence_around(text, 28, 33)
        >>> text[left:right]
        'He built the pier.'
    """
    low, high = max(0, start - _REACH), min(len(text), end + _REACH)
    left, right = low, high
    for found in _BREAK.finditer(text, low, high):
        if found.lastgroup == "stop" and _ABBREVIATION.search(text, max(low, found.start() - 8), found.end()):
            continue
        if found.end() <= start:
            left = found.end()
        elif found.start() >= end or found.end() >= end:
            right = found.end() if found.lastgroup in ("stop", "wide") else found.start()
            break
    if left == low > 0:  # no break in reach: begin at a whole word
        left = next((i for i in range(low, start) if text[i].isspace()), low)
    if right == high < len(text):
        right = next((i for i in range(high, end, -1) if text[i].isspace()), high)
    while left < start and text[left].isspace():
        left += 1
    while right > end and text[right - 1].isspace():
        right -= 1
    return left, right
