"""Word occlusion: hide words, read again, and see what becomes of the decision. It needs no gradients, so every backend can.

The windows go through the reader's own engine, in its batches. Source: Zeiler & Fergus 2014 (https://arxiv.org/abs/1311.2901), Li et
al. 2016 (https://arxiv.org/abs/1612.08220), here with the mask token in place of a word.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from spanqa.batches import WindowLogits
from spanqa.explain.decision import Decision
from spanqa.explain.words import Mask, Word, hidden, touches
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.sentences import sentence_around
from spanqa.windows import Window

REFINED = 0.1
"""A sentence is measured word by word if hiding it moves the decision by this share of what the strongest sentence does."""

_STEP = 0.5  # seconds: rounds grow until they take so long; so the time budget is kept, and the progress moves


class Occluder:
    """Reads windows of a decision again with words hidden. `passes` counts the windows that were read.

    `deadline` is a time of `time.monotonic()`, after which no further round begins; None is no deadline.
    """

    def __init__(self, reader: Reader, decision: Decision, mask: Mask, deadline: float | None = None) -> None:
        self.reader = reader
        self.decision = decision
        self.mask = mask
        self.deadline = deadline
        self.passes = 0
        self._round = max(1, reader.engine.backend.batch_tokens // max(map(len, decision.windows)))

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def read(
        self, sets: Sequence[Sequence[Word]], numbers: Sequence[int], progress: Progress = silent
    ) -> Iterator[tuple[WindowLogits, ...]]:
        """Yield, for each set of words to hide, the logits of these windows; the iterator ends early when the deadline passes.

        A window that holds none of the words keeps the logits that it had.
        """
        windows, before = self.decision.windows, self.decision.logits
        done = 0
        while done < len(sets) and not self.late:
            started = time.monotonic()
            few = sets[done : done + self._round]
            jobs = [(i, number) for i, words in enumerate(few) for number in numbers if touches(windows[number], words)]
            masked: list[Window] = [hidden(windows[number], few[i], self.mask) for i, number in jobs]
            found = dict(zip(jobs, self.reader.engine.submit(masked).result(), strict=True))
            self.passes += len(jobs)
            for i in range(len(few)):
                yield tuple(
                    replace(found[i, number], first=windows[number].first) if (i, number) in found else before[number]
                    for number in numbers
                )
            done += len(few)
            progress(done, len(sets))
            if len(few) == self._round and time.monotonic() - started < _STEP:
                self._round *= 2

    def values(self, sets: Sequence[Sequence[Word]], progress: Progress = silent) -> list[float]:
        """Return the value of the decision (`Decision.value`) with each set hidden; fewer when the deadline passes."""
        return [self.decision.value(logits) for logits in self.read(sets, self.decision.in_play, progress)]


def occlusion(occluder: Occluder, words: Sequence[Word], progress: Progress = silent) -> tuple[list[float], list[bool]]:
    """Return the score of each word, g - g without it, and whether it was measured before the deadline; 0 where it was not."""
    value = occluder.decision.value(occluder.decision.logits)
    found = [value - each for each in occluder.values([[word] for word in words], progress)]
    left = len(words) - len(found)
    return found + [0.0] * left, [True] * len(found) + [False] * left


def hierarchical_occlusion(
    occluder: Occluder, words: Sequence[Word], progress: Progress = silent
) -> tuple[list[float], list[bool]]:
    """Return scores as `occlusion` does, at fewer passes: sentences first, then the words of those that matter, strongest first.

    Words of the question are measured one by one. A word of a sentence that was not refined has an equal share of its score.
    """
    decision = occluder.decision
    value = decision.value(decision.logits)
    groups = list(_sentences(decision.passage.text, words))
    found = [value - each for each in occluder.values([[words[i] for i in group] for group in groups], progress)]
    found += [0.0] * (len(groups) - len(found))
    scores, refined = [0.0] * len(words), [False] * len(words)
    for group, score in zip(groups, found, strict=True):
        for i in group:
            scores[i], refined[i] = score / len(group), len(group) == 1
    long = [(abs(score), group) for group, score in zip(groups, found, strict=True) if len(group) > 1]
    least = REFINED * max((strength for strength, _ in long), default=0.0)
    wanted = [i for strength, group in sorted(long, key=lambda each: -each[0]) if strength >= least for i in group]
    for i, each in zip(wanted, occluder.values([[words[i]] for i in wanted], progress), strict=False):
        scores[i], refined[i] = value - each, True
    return scores, refined


def _sentences(text: str, words: Sequence[Word]) -> Iterable[list[int]]:
    """Yield the positions of the words of each sentence of the passage, and of each word of the question."""
    bounds: list[tuple[int, int]] = []
    left = right = -1
    for number, word in enumerate(words):
        if word.part == "question":
            bounds.append((-1, number))
            continue
        if word.start >= right:
            left, right = sentence_around(text, word.start, word.end)
            right = max(right, word.end)
        bounds.append((left, 0))
    for _, group in groupby(range(len(words)), key=lambda i: bounds[i]):
        yield list(group)
