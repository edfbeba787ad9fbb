"""The outcome of each question: what was predicted, what was returned, and how good that is.

    reader and examples  -> collect        -> outcomes
    a file's predictions -> score_question -> outcomes

`collect` is the only pass of a model over a data set: metrics, reports, tuning and comparisons all read its outcomes.
An outcome keeps the best prediction and also what was returned at the threshold, so no threshold needs a second pass.
Nothing is averaged here: see `spanqa.evaluate.metrics` and `spanqa.evaluate.curves`.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.answers import AnswerSettings, least_score, margins
from spanqa.batches import WindowLogits
from spanqa.calibration import log_sum_exp
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate.scoring import question_scores
from spanqa.files import read_text, replacing
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.spans import distinct_spans, span_margin
from spanqa.squad import Example
from spanqa.stream import Reading
from spanqa.tokens import Passage

RIGHT = 0.5
"""An answer counts as right from this official F1 on, where it must be right or wrong."""


OutOfReach = Literal["not where labelled", "too long", "outside every window"]
"""Why no legal span covers a reference answer: its words are not in the passage where the data says, it has more tokens than an
answer may have, or no window holds all of it."""


@dataclass(frozen=True, slots=True)
class GoldSpan:
    """The first reference answer that a legal span covers, and how the model scored that span.

    `start` and `end` are its characters in the passage. `score` is M of the span: its margin over "no answer". `rank` is its
    place among all legal spans of the passage, 1 for the best; spans with equal scores share a rank. `window` is the index
    of the window that gave the score, and `window_margin` the largest margin of any span in that window: above `score`
    when the window itself prefers another span, below 0 when it prefers "no answer".
    """

    start: int
    end: int
    score: float
    rank: int
    window: int
    window_margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A question, what was predicted for it, what was returned, and how good both are.

    `best_text`, `best_exact` and `best_f1` are the prediction and its official scores, 0 to 1, whatever the threshold: the
    best span of a reader, or the entry of a predictions file. `text`, `exact` and `f1` are the same for what was returned:
    the prediction, or "" where the threshold rejects it. `score` grows with the confidence that there is an answer: M* for
    a reader (-inf where there was nothing to read), minus the no-answer score otherwise, None where there is none.

    `answerable` says whether the data has a reference answer, and `cause`, if labelled, why it has none. `answer_position`
    (0 to 1, where in the passage it starts, None where its words are not there) and `answer_words` describe the first reference.

    Only a reader knows the rest. `start` and `probability` belong to what was returned. `gold` is None where no legal
    span covers a reference; `out_of_reach` then says why, of the first reference that is in the passage. `log_share` is only there
    on request: see `collect`.
    """

    id: str
    question: str
    answerable: bool
    text: str
    exact: float
    f1: float
    best_text: str
    best_exact: float
    best_f1: float
    score: float | None = None
    cause: str | None = None
    answer_position: float | None = None
    answer_words: int | None = None
    start: int | None = None
    probability: float | None = None
    passage_tokens: int | None = None
    gold: GoldSpan | None = None
    out_of_reach: OutOfReach | None = None
    log_share: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    @property
    def right(self) -> bool:
        """Whether what was returned counts as right."""
        return self.f1 >= RIGHT


def score_question(
    example: Example, prediction: str, no_answer_score: float | None = None, *, no_answer_above: float = math.inf
) -> Outcome:
    """Return the outcome of a prediction. A no-answer score above `no_answer_above` turns it into "".

    As in the official script, "" forced by the threshold is right exactly when the question has no reference.
    """
    exact, f1 = question_scores(example, prediction)
    gold = example.answers[0] if example.answers else None
    outcome = Outcome(
        id=example.id,
        question=example.question,
        answerable=gold is not None,
        text=prediction,
        exact=exact,
        f1=f1,
        best_text=prediction,
        best_exact=exact,
        best_f1=f1,
        score=None if no_answer_score is None else -no_answer_score,
        cause=example.cause,
        answer_position=None if gold is None or gold.start < 0 else gold.start / max(1, len(example.passage)),
        answer_words=None if gold is None else len(gold.text.split()),
    )
    if no_answer_score is None or no_answer_score <= no_answer_above:
        return outcome
    return replace(outcome, text="", exact=float(gold is None), f1=float(gold is None))


def collect(
    reader: Reader,
    examples: Sequence[Example],
    *,
    threshold: float | None = None,
    temperatures: Sequence[float] | NDArray[np.float64] = (),
    progress: Progress = silent,
) -> Iterator[tuple[Example, Reading, Outcome]]:
    """Run the model once over the examples, and yield each with its reading and its outcome, in order.

    `threshold` decides what is returned; None is the reader's own. With `temperatures`, `log_share` of an outcome is the
    logarithm, at each of them, of the share of the best span and the spans that overlap it in the sum of exp(M/T) over all
    spans; it stays None where there is nothing to read.

    Raises:
        InputError: a question cannot be read; the message starts with its id.
    """
    least = least_score(reader.answers, threshold=threshold)
    for done, (example, reading) in enumerate(_read(reader, examples), 1):
        yield example, reading, _outcome(reader, example, reading, least, temperatures)
        progress(done, len(examples))


def _read(reader: Reader, examples: Sequence[Example]) -> Iterator[tuple[Example, Reading]]:
    """Yield each example with its reading; an error names the id of its question."""
    taken: deque[Example] = deque()  # the reader has asked for these and not yet answered

    def questions() -> Iterator[tuple[str, list[str]]]:
        for example in examples:
            taken.append(example)
            yield example.question, [example.passage]

    try:
        for reading in reader.forward(questions()):
            yield taken.popleft(), reading
    except InputError as error:  # it belongs to the first one without an answer
        raise type(error)(f"Question id {taken[0].id!r}: {error}") from None


def _outcome(
    reader: Reader,
    example: Example,
    reading: Reading,
    threshold: float,
    temperatures: Sequence[float] | NDArray[np.float64],
) -> Outcome:
    ranking = reader.decode(reading)
    returned = ranking.best(threshold)
    best = ranking.best(-math.inf)
    passage, windows = reading.passages[0], reading.logits[0]
    band = margins(passage, windows, reader.answers.max_answer_tokens)
    gold = _gold_span(example, passage, windows, reader.answers, band)
    return replace(
        score_question(example, best.text, -ranking.best_score, no_answer_above=-threshold),
        start=returned.start,
        probability=returned.probability,
        passage_tokens=len(passage.tokens),
        gold=gold if isinstance(gold, GoldSpan) else None,
        out_of_reach=None if isinstance(gold, GoldSpan) else gold,
        log_share=_log_share(band, passage, temperatures) if len(temperatures) else None,
    )


def located(example: Example) -> list[tuple[int, int]]:
    """Return where the references start and end in the passage, in code points, of those whose words are where the data says."""
    found = []
    for answer in example.answers:
        words = answer.text.strip()
        start = answer.start + len(answer.text) - len(answer.text.lstrip())
        if words and answer.start >= 0 and example.passage[start : start + len(words)] == words:
            found.append((start, start + len(words)))
    return found


def _gold_span(
    example: Example,
    passage: Passage,
    windows: Sequence[WindowLogits],
    settings: AnswerSettings,
    band: NDArray[np.float32],
) -> GoldSpan | OutOfReach | None:
    """Return the first reference that a legal span covers; where there is none, the reason, if it is one that has a name."""
    offsets = passage.tokens.offsets
    reasons: list[OutOfReach | None] = []
    for start, end in located(example):
        first, last = passage.tokens.covering(start, end)
        scores = [span_margin(window, first, last) for window in windows]
        if not 0 <= last - first < band.shape[1] or band[first, last - first] == -np.inf:
            too_long = last - first >= settings.max_answer_tokens
            cut = last - first >= 0 and max(scores, default=-math.inf) == -math.inf
            reasons.append("too long" if too_long else "outside every window" if cut else None)
            continue
        score = band[first, last - first]
        index = int(np.argmax(scores))
        alone = margins(passage, [windows[index]], band.shape[1])
        return GoldSpan(
            start=int(offsets[first, 0]),
            end=int(offsets[last, 1]),
            score=float(score),
            rank=1 + int(np.count_nonzero(band > score)),
            window=index,
            window_margin=float(alone.max()),
        )
    if not reasons:
        return "not where labelled" if example.answers else None
    return reasons[0]


def _log_share(
    band: NDArray[np.float32], passage: Passage, temperatures: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64] | None:
    best = next(distinct_spans(band, passage.tokens.offsets, 1), None)
    if best is None:
        return None
    _, rows, mask = best
    taken, legal = band[rows][mask], band[np.isfinite(band)]
    return np.array([log_sum_exp(taken, each) - log_sum_exp(legal, each) for each in temperatures])


def write_outcomes(path: str | os.PathLike[str], outcomes: Iterable[Outcome]) -> None:
    """Write the outcomes of a reader as JSON, one a line, without `log_share`; a score of -inf becomes null."""
    with replacing(path) as file:
        for outcome in outcomes:
            row = asdict(replace(outcome, log_share=None))
            del row["log_share"]
            if outcome.score == -math.inf:
                row["score"] = None
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_outcomes(path: str | os.PathLike[str]) -> list[Outcome]:
    """Read a file that `write_outcomes` wrote.

    Raises:
        DatasetError: the file cannot be read, or holds something else.
    """
    lines = read_text(path).split("\n")  # not splitlines: a text may hold other kinds of line ends
    try:
        return [_from_json(json.loads(line)) for line in lines if line]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            f"{str(path)!r} is not a file of outcomes ({error}). Expected outcomes.jsonl from a folder that "
            "`spanqa evaluate --report` wrote."
        ) from None


_TEXT, _NUMBER, _WHOLE, _NONE = (str,), (int, float), (int,), (type(None),)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "question", "text", "best_text"), _TEXT),
    **dict.fromkeys(("exact", "f1", "best_exact", "best_f1"), _NUMBER),
    **dict.fromkeys(("score", "answer_position", "probability"), _NUMBER + _NONE),
    **dict.fromkeys(("answer_words", "start", "passage_tokens"), _WHOLE + _NONE),
    **dict.fromkeys(("cause", "out_of_reach"), _TEXT + _NONE),
    "answerable": (bool,),
    "gold": (dict, *_NONE),
}


def _from_json(row: dict[str, Any]) -> Outcome:
    for name, kinds in _KINDS.items():
        if name in row and type(row[name]) not in kinds:
            raise TypeError(f"{name} is {row[name]!r:.60}")
    gold = None if row["gold"] is None else GoldSpan(**row["gold"])
    score = -math.inf if row["score"] is None else row["score"]
    return Outcome(**{**row, "gold": gold, "score": score})
