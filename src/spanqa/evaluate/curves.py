"""Curves over outcomes: how far probabilities can be trusted, and what each threshold would give."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spanqa.evaluate.metrics import column
from spanqa.evaluate.outcomes import RIGHT, Outcome


def risk_coverage(outcomes: Sequence[Outcome]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return coverage, risk, and the area under risk over coverage, with outcomes ordered by their probability."""
    return risk_coverage_of(column(outcomes, "probability"), column(outcomes, "right"))


def risk_coverage_of(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return coverage, risk, and the area under risk over coverage.

    Questions are taken in order of falling confidence, equal ones together. Risk is the share of wrong ones among those
    taken. Source: El-Yaniv & Wiener 2010; the area as in Geifman & El-Yaniv 2017.

    >>> coverage, risk, area = risk_coverage_of(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    >>> risk.round(2).tolist(), round(area, 4)
    ([0.0, 0.5, 0.33], 0.2778)
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order])
    taken = np.arange(1, len(order) + 1)
    last = np.append(np.diff(confidence[order]) != 0, True)
    ends = np.flatnonzero(last)
    risk = (wrong / taken)[ends]
    sizes = np.diff(np.concatenate([[0], taken[ends]]))
    return taken[ends] / len(order), risk, float((risk * sizes).sum() / len(order))


def threshold_curve(outcomes: Sequence[Outcome]) -> dict[str, NDArray[np.float64]]:
    """Return, by threshold on the score, precision and recall of answering, and F1 over all questions.

    Precision is the share of right ones among the answers given. Recall is their share among the questions that have an
    answer. In F1, a question without an answer counts as right when it is left unanswered.
    """
    scores = column(outcomes, "score")
    answerable = column(outcomes, "answerable")
    f1 = np.where(answerable, column(outcomes, "best_f1"), 0.0)
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(f1[order] >= RIGHT)
    given = np.arange(1, len(order) + 1)
    total = np.cumsum(f1[order]) + np.cumsum(~answerable[order][::-1])[::-1] - ~answerable[order]
    return {
        "threshold": scores[order],
        "precision": right / given,
        "recall": right / max(1, int(answerable.sum())),
        "f1": total / len(order),
    }


def expected_calibration_error(probabilities: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the mean distance between probability and share of right ones, over equal bins weighted by their size.

    Source: Naeini et al. 2015, as in Guo et al. 2017.

    >>> expected_calibration_error(np.array([0.95, 0.95, 0.05, 0.05]), np.array([True, True, False, True]))
    0.25
    """
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [abs(float(probabilities[index == each].sum()) - int(right[index == each].sum())) for each in range(bins)]
    return round(math.fsum(gaps) / len(probabilities), 12)
