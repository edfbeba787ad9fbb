"""Scores and probabilities a second way: by the definition, place by place, from the raw logits."""

import math
from collections.abc import Mapping, Sequence

from spanqa.answers import Answer
from spanqa.batches import WindowLogits
from spanqa.calibration import Calibration
from spanqa.tokens import Passage

Place = tuple[int, int, int]
"""Passage, first token, last token."""


def margins(passages: Sequence[Passage], windows: Sequence[Sequence[WindowLogits]], longest: int) -> dict[Place, float]:
    """M of every legal place."""
    found: dict[Place, float] = {}
    for index, (passage, of_passage) in enumerate(zip(passages, windows, strict=True)):
        seen = (passage.tokens.offsets[:, 0] < passage.tokens.offsets[:, 1]).tolist()
        for window in of_passage:
            starts, ends = window.start.tolist(), window.end.tolist()
            for i, start in enumerate(starts):
                for j in range(i, min(i + longest, len(ends))):
                    place = (index, window.first + i, window.first + j)
                    if seen[place[1]] and seen[place[2]]:
                        margin = start + ends[j] - (window.null_start + window.null_end)
                        found[place] = max(margin, found.get(place, -math.inf))
    return found


def probabilities(
    margins: Mapping[Place, float], calibration: Calibration = Calibration()
) -> tuple[dict[Place, float], float]:
    """That of every place, and that of no answer."""
    best = max(margins.values(), default=-math.inf)
    no_answer = 1 / (1 + math.exp(calibration.b * best - calibration.a)) if margins else 1.0
    weights = {place: math.exp((margin - best) / calibration.temperature) for place, margin in margins.items()}
    total = sum(weights.values())
    return {place: (1 - no_answer) * weight / total for place, weight in weights.items()}, no_answer


def places_taken(
    answers: Sequence[Answer], passages: Sequence[Passage], margins: Mapping[Place, float]
) -> list[set[Place]]:
    """Of each answer, best first: the places that share a character with it, and with no better answer."""
    left, taken = set(margins), []
    for answer in answers:
        assert answer.passage_index is not None and answer.start is not None and answer.end is not None
        offsets = passages[answer.passage_index].tokens.offsets
        taken.append(
            {
                (index, first, last)
                for index, first, last in left
                if index == answer.passage_index and offsets[first, 0] < answer.end and offsets[last, 1] > answer.start
            }
        )
        left -= taken[-1]
    return taken
