"""Scored spans of all windows and passages of a question to answers, or to no answer.

    M(p)  margin of span p: the largest, over the windows that hold it, of span score - null score of that window
    M*    the largest M

Each answer takes with it the spans that overlap it and that no better answer has taken ("Anna", "by Anna Kestrel"): its
probability is that the answer lies there (`spanqa.calibration`). The sums run over every legal span, never an n-best list, so
nothing depends on how many answers are asked for, and the probabilities of all answers and of "no answer" sum to 1.

It does not run the model; it is given the logits.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from spanqa import bounds
from spanqa.batches import WindowLogits
from spanqa.calibration import Calibration, Probabilities, exponentials, log_sum_exp
from spanqa.errors import InputError
from spanqa.sentences import context_around, sentence_around
from spanqa.spans import Span, Taken, distinct_spans, forbid_blank, passage_band, windows_of
from spanqa.tokens import Passage


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """`max_answer_tokens`: spans longer than this are not answers. `no_answer_threshold`: below this score the answer is empty."""

    max_answer_tokens: int = 30
    no_answer_threshold: float = 0.0

    def __post_init__(self) -> None:
        bounds.check(self.__slots__, asdict(self))


NoAnswer = Literal["auto", "on", "off"]
"""Whether an answer may be empty: by the stored threshold; the same, or 0 where none was fitted; never."""


def least_score(settings: AnswerSettings, no_answer: NoAnswer = "auto", threshold: float | None = None) -> float:
    """Return the least score of an answer: `threshold` where given, else what `no_answer` says.

    Raises:
        InputError: there is no such `no_answer`, the threshold is not a number, or one is given though it is off.
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
        bounds.check(("threshold",), {"threshold": threshold})
        return threshold
    stored = settings.no_answer_threshold
    return 0.0 if no_answer == "on" and stored == -math.inf else stored


@dataclass(frozen=True, slots=True)
class Answer:
    """The words of a passage that answer a question, where they are, and how confident the model is.

    `text` is `passage[start:end]`: code points of the caller's own string, end exclusive; "" when the text has no answer, and
    then `start`, `end`, `sentence_start` and `passage_index` are None. `score` is the margin over "no answer" in logits (-inf
    where there was nothing to read); `probability`, in [0, 1], is that the answer lies at this span or one that overlaps it;
    `no_answer_probability` that there is none. `sentence` is the sentence around the answer, at `sentence_start`.
    `passage_index` counts the passages given. `closest` is, where there is no answer, the best span that was not given as one,
    if there is any; otherwise it is None.
    """

    text: str
    start: int | None
    end: int | None
    score: float
    probability: float
    no_answer_probability: float
    passage_index: int | None = None
    source: str | None = None
    closest: "Answer | None" = None
    _context: str = field(default="", repr=False)
    _context_start: int = field(default=0, repr=False)

    def __bool__(self) -> bool:
        """Whether there is an answer."""
        return self.start is not None

    @property
    def sentence(self) -> str:
        """The sentence around the answer, "" where there is none."""
        left, right = self._sentence_bounds()
        return self._context[left:right]

    @property
    def sentence_start(self) -> int | None:
        """Where the sentence starts in the passage."""
        return None if self.start is None else self._context_start + self._sentence_bounds()[0]

    def _sentence_bounds(self) -> tuple[int, int]:
        if self.start is None or self.end is None:
            return 0, 0
        return sentence_around(self._context, self.start - self._context_start, self.end - self._context_start)

    def as_json(self, question: str) -> dict[str, Any]:
        """Return the fields, with the question first, as JSON can write them (no infinity); `closest` has no question."""
        return {"question": question, **self._fields()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], passages: Sequence[str]) -> "Answer":
        """Return the answer whose fields, as `as_json` gives them, these are; `passages` are the texts that were read."""
        start, end, score, closest = fields["start"], fields["end"], fields["score"], fields.get("closest")
        index = fields.get("passage_index")
        context, first = ("", 0) if index is None else context_around(passages[index], start, end)
        return cls(
            text=fields["text"],
            start=start,
            end=end,
            score=-math.inf if score is None else score,
            probability=fields["probability"],
            no_answer_probability=fields["no_answer_probability"],
            passage_index=index,
            source=fields.get("source"),
            closest=None if closest is None else cls.from_json(closest, passages),
            _context=context,
            _context_start=first,
        )

    def _fields(self) -> dict[str, Any]:
        left, right = self._sentence_bounds()
        return {
            "text": self.text,
            "start": self.start,
            "end": self.end,
            "score": self.score if math.isfinite(self.score) else None,
            "probability": self.probability,
            "no_answer_probability": self.no_answer_probability,
            "sentence": self._context[left:right],
            "sentence_start": None if self.start is None else self._context_start + left,
            "passage_index": self.passage_index,
            "source": self.source,
            "closest": None if self.closest is None else self.closest._fields(),
        }


@dataclass(frozen=True, slots=True)
class Ranking:
    """All that is known of a question: the best spans, whatever their score, and the probability that there is none.

    `best_score` is M*, -inf where there is no span at all.
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
        """Return the best answer, or no answer when it scores below the threshold or is less probable: then it is `closest`."""
        best = self.answers[0] if self.answers else None
        if best is not None and best.score >= threshold and best.probability >= min_probability:
            return best
        none = self.no_answer_probability
        return Answer("", None, None, self.best_score, none, none, closest=best)


def rank_spans(
    passages: Sequence[Passage],
    logits: Sequence[Sequence[WindowLogits]],
    *,
    top_k: int = 1,
    settings: AnswerSettings = AnswerSettings(),
    calibration: Calibration = Calibration(),
) -> Ranking:
    """Return the best `top_k` spans over all passages, distinct and non-overlapping, on one scale.

    `logits` holds the windows of each passage. Equal scores are settled by the order of the passages, then by place.
    """
    temperature = calibration.temperature
    masses: list[float] = []
    kept: list[_Ranked] = []  # the top_k spans lie in the top_k of these
    for index, (passage, windows) in enumerate(zip(passages, logits, strict=True)):
        whole = len(passage.tokens) <= LONGEST_WHOLE
        pieces: Sequence[tuple[Passage, Sequence[WindowLogits]]] = [(passage, windows)]
        if not whole:
            pieces, mass = _likely_pieces(passage, windows, settings.max_answer_tokens, temperature, top_k)
            masses.append(mass)
        for place, (piece, of_piece) in enumerate(pieces):
            scores = margins(piece, of_piece, settings.max_answer_tokens)
            spans = distinct_spans(scores, piece.tokens.offsets, top_k)
            first = next(spans, None)
            if first is None:
                continue
            best = first[0].score
            weights = exponentials(scores, temperature, best)
            if whole:
                masses.append(best / temperature + math.log(float(weights.sum())))
            heapq.heappush(kept, (best, -index, -place, piece, chain((first,), spans), scores, weights))
            if len(kept) > top_k:
                heapq.heappop(kept)
    found: list[tuple[float, int, int, Passage, Span, float]] = []
    least = kept[0][0] if len(kept) == top_k else -math.inf
    for best, minus_index, minus_place, piece, spans, scores, weights in kept:
        for span, rows, taken in spans:
            if span.score < least:
                break
            mass = float(weights[rows][taken].sum())
            if mass > 0:
                log_mass = best / temperature + math.log(mass)
            else:  # so far below the best that float32 cannot hold it
                log_mass = log_sum_exp(scores[rows][taken], temperature)
            found.append((-span.score, -minus_index, -minus_place, piece, span, log_mass))
    found.sort(key=lambda item: item[:3])
    best = -found[0][0] if found else -math.inf
    total = masses[0] if len(masses) == 1 else log_sum_exp(np.array(masses))
    probabilities = Probabilities(best, total, calibration)
    answers = tuple(
        _answer(piece, index, span, probabilities, mass) for _, index, _, piece, span, mass in found[:top_k]
    )
    return Ranking(answers, best, probabilities.of_no_answer)


_Ranked = tuple[float, int, int, Passage, "Iterator[Taken]", NDArray[np.float32], NDArray[np.float32]]
"""M* of a piece, minus its passage's index, minus its place there, the piece, its spans, and of every span M(q) and
exp((M(q) - M*) / T): float32 `[token, length]`."""

LONGEST_WHOLE = 1 << 15
"""The scores of all spans of a longer passage, in tokens, are not held at once."""


def _likely_pieces(
    passage: Passage, windows: Sequence[WindowLogits], max_answer_tokens: int, temperature: float, top_k: int
) -> tuple[list[tuple[Passage, list[WindowLogits]]], float]:
    """Return pieces of a long passage that hold its best `top_k` spans, and the log of the sum of exp(M(q)/T) over all spans.

    The passage is scored block by block, and the blocks with the best spans are kept. An answer takes spans of at most two blocks
    with it, so 2 top_k blocks are enough. A piece reaches beyond its blocks by what an answer at their ends may take with it.
    """
    longest = min(max_answer_tokens, max((len(window.start) for window in windows), default=0))
    reach = 4 * (longest + 1)
    block = max(LONGEST_WHOLE // 8, 2 * reach)
    bests: list[tuple[float, int]] = []
    masses: list[float] = []
    for first in range(0, len(passage.tokens), block):
        stop = min(first + block, len(passage.tokens))
        piece, of_piece = _piece(passage, windows, first, min(stop + longest, len(passage.tokens)))
        scores = margins(piece, of_piece, max_answer_tokens)[: stop - first]
        masses.append(log_sum_exp(scores, temperature))
        bests.append((float(scores.max(initial=-np.inf)), -first))
    bounds: list[list[int]] = []
    for first in sorted(-minus_first for _, minus_first in heapq.nlargest(2 * top_k, bests)):
        start, stop = max(0, first - reach), min(first + block + reach, len(passage.tokens))
        if bounds and start <= bounds[-1][1]:
            bounds[-1][1] = stop
        else:
            bounds.append([start, stop])
    return [_piece(passage, windows, start, stop) for start, stop in bounds], log_sum_exp(np.array(masses))


def _piece(
    passage: Passage, windows: Sequence[WindowLogits], first: int, stop: int
) -> tuple[Passage, list[WindowLogits]]:
    """Return the tokens `first` to `stop` (exclusive) as a passage of its own, with its windows."""
    return replace(passage, tokens=passage.tokens.part(first, stop), parts=None), windows_of(windows, first, stop)


def margins(passage: Passage, windows: Sequence[WindowLogits], max_answer_tokens: int) -> NDArray[np.float32]:
    """Return M(p) of every span of a passage, by first token and length; -inf where no answer can be."""
    band = passage_band(windows, len(passage.tokens), max_answer_tokens)
    if passage.tokens.has_blank:
        forbid_blank(band, passage.tokens.offsets)
    return band


def _answer(passage: Passage, index: int, span: Span, probabilities: Probabilities, log_mass: float) -> Answer:
    offsets = passage.tokens.offsets
    start, end = int(offsets[span.start_token, 0]), int(offsets[span.end_token, 1])
    context, context_start = context_around(passage.text, start, end)
    return Answer(
        text=passage.text[start:end],
        start=start,
        end=end,
        score=span.score,
        probability=probabilities.of_answer(log_mass),
        no_answer_probability=probabilities.of_no_answer,
        passage_index=index,
        source=passage.source,
        _context=context,
        _context_start=context_start,
    )
