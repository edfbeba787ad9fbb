"""The official SQuAD metrics: outcomes to numbers in percent.

Written from the published algorithm of the SQuAD 2.0 evaluation script, whose names it keeps: exact, f1, total, the same
with HasAns_ and NoAns_ in front, and, given scores, best_exact, best_exact_thresh, best_f1, best_f1_thresh. It runs no
model and reads no file.

Questions of a SQuAD 1.1 file are scored by the same rules, as the 2.0 script does; `exact` then also appears under its
1.1 name, exact_match. (The 1.1 script differs only for references made of articles and punctuation alone.)

Source: evaluate-v2.0.py, Rajpurkar, Jia and Liang 2018 (https://arxiv.org/abs/1806.03822).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import DatasetError
from spanqa.evaluate.outcomes import Outcome, score_question
from spanqa.squad import Example

Metric = Literal["exact", "f1"]
Missing = Literal["error", "no_answer"]


def averages(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return exact, f1 and total of what was returned: over all questions, those with an answer and those without.

    A group without questions is left out.
    """
    answerable = column(outcomes, "answerable")
    metrics: dict[str, Any] = {}
    for prefix, chosen in (("", np.full(len(outcomes), True)), ("HasAns_", answerable), ("NoAns_", ~answerable)):
        if total := int(chosen.sum()):
            for name in ("exact", "f1"):
                metrics[prefix + name] = 100.0 * math.fsum(column(outcomes, name)[chosen]) / total
            metrics[f"{prefix}total"] = total
    return metrics


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the official metrics; best_* where there are scores, exact_match where every question has an answer.

    Raises:
        DatasetError: there is no question.
    """
    if not outcomes:
        raise DatasetError("There is no question to score. Give at least one.")
    metrics = averages(outcomes)
    if "NoAns_total" not in metrics:
        metrics = {"exact_match": metrics["exact"], **metrics}
    if outcomes[0].score is not None:
        for name in ("exact", "f1"):
            best, threshold = best_threshold(outcomes, name, official=True)
            metrics |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return metrics


def best_threshold(outcomes: Sequence[Outcome], metric: Metric, *, official: bool = False) -> tuple[float, float]:
    """Return the best average, in percent, that a threshold on the no-answer score gives, and the least such threshold.

    The no-answer score is minus the `score` of an outcome. A question is answered, by its prediction, when its no-answer
    score is at most the threshold. So each no-answer score is a threshold to try, and one more, at which every question is
    answered "": 0.0 where all no-answer scores are above it, else the next number below the smallest. As in the official
    script, an unanswerable question counts as wrong once its prediction is not "", even where normalisation leaves nothing
    of it.

    With `official` the numbers are the script's own. They differ in two cases. Where no-answer scores are equal, it cuts
    between them, in the order given, which no threshold can do. Where the smallest is 0, it gives 0.0 for answering all
    questions "", although 0.0 answers that question. Where no-answer scores are negative (log-odds), the script gives 0.0
    too; that is plainly wrong, and we do not follow it.
    """
    no_answer = np.array([-math.inf if outcome.score is None else -outcome.score for outcome in outcomes])
    answerable = column(outcomes, "answerable")
    answered = np.array([bool(outcome.best_text) for outcome in outcomes])
    gains = np.where(answerable, column(outcomes, f"best_{metric}"), -1.0 * answered)
    return best_cut(no_answer, answerable, gains, official=official)


def best_cut(
    no_answer: NDArray[np.float64], answerable: NDArray[np.bool_], gains: NDArray[np.float64], *, official: bool = False
) -> tuple[float, float]:
    """Return what `best_threshold` does, from no-answer scores and what answering each question adds to the total."""
    order = np.argsort(no_answer, kind="stable")
    thresholds = no_answer[order]
    totals = np.cumsum(np.concatenate([[np.count_nonzero(~answerable)], gains[order]]))
    if not official:
        totals[1:-1][thresholds[:-1] == thresholds[1:]] = -np.inf  # cuts inside a group of equal scores
    best = int(totals.argmax())
    if best:
        threshold = float(thresholds[best - 1])
    elif thresholds[0] > 0 or (official and thresholds[0] == 0):
        threshold = 0.0
    else:
        threshold = math.nextafter(float(thresholds[0]), -math.inf)
    return 100.0 * float(totals[best]) / len(no_answer), threshold


def column(outcomes: Sequence[Outcome], name: str) -> NDArray[Any]:
    """Return one field of all outcomes as an array."""
    return np.array([getattr(outcome, name) for outcome in outcomes])


def score_squad(
    examples: Sequence[Example],
    predictions: Mapping[str, str],
    na_probs: Mapping[str, float] | None = None,
    *,
    na_prob_thresh: float = 1.0,
    missing: Missing = "error",
) -> dict[str, Any]:
    """Return the official metrics of predictions, `{id: text}`, "" meaning that there is no answer.

    `na_probs`, `{id: number}`, adds best_*; a question whose number is above `na_prob_thresh` counts as answered "". Both
    may hold further ids. A question without a prediction is an error, since an average over the others would not be that
    of the data; `missing="no_answer"` takes it as answered "". (The official script names such questions, then fails.)

    Raises:
        DatasetError: predictions or no-answer scores are missing, or not texts and finite numbers; the message says which.
    """
    if missing == "error":
        _require(examples, predictions, "prediction", 'or score them as unanswered with missing="no_answer"')
    if na_probs is not None:
        _require(examples, na_probs, "no-answer score", "or leave no-answer scores out")
        position = {key: number for number, key in enumerate(na_probs)}
        examples = sorted(examples, key=lambda example: position[example.id])  # their order settles ties
    outcomes = []
    for example in examples:
        no_answer_score = None if na_probs is None else _number(example.id, na_probs[example.id])
        text = _text(example.id, predictions.get(example.id, ""))
        outcomes.append(score_question(example, text, no_answer_score, no_answer_above=na_prob_thresh))
    return summarize(outcomes)


def _require(examples: Sequence[Example], given: Mapping[str, Any], what: str, way_out: str) -> None:
    lacking = [example.id for example in examples if example.id not in given]
    if lacking:
        some = ", ".join(map(repr, lacking[:3])) + (", …" if len(lacking) > 3 else "")
        raise DatasetError(
            f"{len(lacking)} of {len(examples)} questions have no {what}: {some}. "
            f"Is it the file for this data? Add them, {way_out}."
        )


def _text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    hint = " Is this an n-best file? Give predictions.json instead." if isinstance(value, list) else ""
    raise DatasetError(f'The prediction of question {key!r} is {value!r:.60}; expected a text, "" for no answer.{hint}')


def _number(key: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise DatasetError(f"The no-answer score of question {key!r} is {value!r:.60}; expected a finite number.")
