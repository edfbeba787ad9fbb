"""The official SQuAD metrics: predictions to numbers in percent.

Written from the published algorithm of the SQuAD 2.0 evaluation script, whose names it keeps: exact, f1, total, the same
with HasAns_ and NoAns_ in front, and, given no-answer scores, best_exact, best_exact_thresh, best_f1, best_f1_thresh.
It runs no model, reads no file and keeps five values a question.

    normalise   lower case; ASCII punctuation out; a, an, the out; white space squeezed
    exact       1 when prediction and a reference are then the same
    f1          of the words that prediction and reference share, counted as often as both have them
    a question  takes its best reference; references of which nothing is left do not count; a question without any is
                right when the prediction is empty

Questions of a SQuAD 1.1 file are scored by the same rules, as the 2.0 script does; `exact` is then also given under its
1.1 name, exact_match. (The 1.1 script differs only for references that consist of articles and punctuation alone.)

Source: evaluate-v2.0.py, Rajpurkar, Jia and Liang 2018 (https://arxiv.org/abs/1806.03822).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import DatasetError
from spanqa.squad import Example

Metric = Literal["exact", "f1"]
Missing = Literal["error", "no_answer"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """What is kept of a scored question.

    `has_answer`: whether the file has references for it. `answered`: whether the prediction is not "", as it stands.
    `no_answer_score`: the larger, the surer that there is no answer; a probability, log-odds, or None where unknown.
    """

    exact: float
    f1: float
    has_answer: bool
    answered: bool
    no_answer_score: float | None = None


@lru_cache(maxsize=8192)
def answer_words(text: str) -> tuple[str, ...]:
    """Return the words of an answer that count.

    >>> answer_words("The U.S.A., in an hour!")
    ('usa', 'in', 'hour')
    """
    return tuple(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def normalize_answer(text: str) -> str:
    """Return an answer as the official script compares it."""
    return " ".join(answer_words(text))


def word_f1(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """Return the F1 of two bags of words; where one is empty, 1 if both are.

    >>> word_f1(["pier", "of", "oak"], ["oak", "pier"])
    0.8
    """
    if not reference or not prediction:
        return float(len(reference) == len(prediction))
    shared = sum((Counter(reference) & Counter(prediction)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def question_scores(example: Example, prediction: str) -> tuple[float, float]:
    """Return exact and f1 of a prediction, 0 to 1, for the reference that suits it best.

    >>> from spanqa.squad import GoldAnswer
    >>> question_scores(Example("1", "Who?", "…", (GoldAnswer("Ada Lovelace", 0), GoldAnswer("Ada", 0))), "the Ada.")
    (1.0, 1.0)
    """
    guess = answer_words(prediction)
    references = {words for answer in example.answers if (words := answer_words(answer.text))} or {()}
    if guess in references:
        return 1.0, 1.0
    return 0.0, max(word_f1(words, guess) for words in references)


def score_question(example: Example, prediction: str, no_answer_score: float | None = None) -> QuestionScore:
    """Return what `summarize` needs of a question."""
    exact, f1 = question_scores(example, prediction)
    return QuestionScore(exact, f1, bool(example.answers), bool(prediction), no_answer_score)


def averages(scores: Sequence[QuestionScore], no_answer_above: float = math.inf) -> dict[str, Any]:
    """Return exact, f1 and total over all questions, those with an answer (HasAns_) and those without (NoAns_).

    A question whose no-answer score is above `no_answer_above` counts as answered "". A group without questions is left
    out.
    """
    has_answer = np.array([score.has_answer for score in scores])
    abstained = _no_answer_scores(scores) > no_answer_above
    values = {
        name: np.where(abstained, ~has_answer, np.array([getattr(score, name) for score in scores]))
        for name in ("exact", "f1")
    }
    metrics: dict[str, Any] = {}
    for prefix, chosen in (("", np.full(len(scores), True)), ("HasAns_", has_answer), ("NoAns_", ~has_answer)):
        if total := int(chosen.sum()):
            metrics |= {prefix + name: 100.0 * math.fsum(array[chosen]) / total for name, array in values.items()}
            metrics[f"{prefix}total"] = total
    return metrics


def summarize(scores: Sequence[QuestionScore], na_prob_thresh: float = 1.0) -> dict[str, Any]:
    """Return the official metrics; best_* where there are no-answer scores, exact_match where every question has an answer.

    Raises:
        DatasetError: there is no question.
    """
    if not scores:
        raise DatasetError("There is no question to score. Give at least one.")
    metrics = averages(scores, na_prob_thresh)
    if "NoAns_total" not in metrics:
        metrics = {"exact_match": metrics["exact"], **metrics}
    if scores[0].no_answer_score is not None:
        for name in ("exact", "f1"):
            best, threshold = best_threshold(scores, name, official=True)
            metrics |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return metrics


def best_threshold(scores: Sequence[QuestionScore], metric: Metric, *, official: bool = False) -> tuple[float, float]:
    """Return the best average, in percent, that a threshold on the no-answer score gives, and the least such threshold.

    A question is answered when its score is at most the threshold. So each score is a threshold to try, and one more, at
    which every question is answered "": 0.0 where all scores are above it, else the next number below the smallest.
    As in the official script, an unanswerable question counts as wrong once its prediction is not "", even where nothing
    of it is left normalised.

    With `official` the numbers are the script's own. They differ in two cases: where scores are equal, it cuts between
    them, in the order given, which no threshold can do; and where the smallest is 0, it gives 0.0 for answering all "",
    which answers that question. Where scores are negative (log-odds), it gives 0.0 too; that is wrong altogether, and
    we do not follow.
    """
    no_answer = _no_answer_scores(scores)
    order = np.argsort(no_answer, kind="stable")
    thresholds = no_answer[order]
    has_answer = np.array([score.has_answer for score in scores])
    answered = np.array([score.answered for score in scores])
    gains = np.where(has_answer, np.array([getattr(score, metric) for score in scores]), -1.0 * answered)
    totals = np.cumsum(np.concatenate([[np.count_nonzero(~has_answer)], gains[order]]))
    if not official:
        totals[1:-1][thresholds[:-1] == thresholds[1:]] = -np.inf  # cuts inside a group of equal scores
    best = int(totals.argmax())
    if best:
        threshold = float(thresholds[best - 1])
    elif thresholds[0] > 0 or (official and thresholds[0] == 0):
        threshold = 0.0
    else:
        threshold = math.nextafter(float(thresholds[0]), -math.inf)
    return 100.0 * float(totals[best]) / len(scores), threshold


def _no_answer_scores(scores: Sequence[QuestionScore]) -> NDArray[np.float64]:
    return np.array([-math.inf if score.no_answer_score is None else score.no_answer_score for score in scores])


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
        place = {key: position for position, key in enumerate(na_probs)}
        examples = sorted(examples, key=lambda example: place[example.id])  # their order settles ties
    scores = []
    for example in examples:
        no_answer_score = None if na_probs is None else _number(example.id, na_probs[example.id])
        scores.append(score_question(example, _text(example.id, predictions.get(example.id, "")), no_answer_score))
    return summarize(scores, na_prob_thresh)


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
