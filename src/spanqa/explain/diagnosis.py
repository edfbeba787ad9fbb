"""What misled the reader where it gave a wrong answer: it reads these questions again, with words hidden.

    question ignored       with every word of the question hidden, the best span is still the answer
    distractor sentence    with the sentence of the answer hidden, what is given is right

Only answers are looked at, not abstentions, which have no span and no sentence. "Still the answer" is said of a span that overlaps it
and has an F1 of at least one half with it. The threshold plays no part in that: without a question, a reader that knows "no answer"
gives that, and yet it can have chosen the words without looking at the question. A sentence that holds a part of a reference is
never hidden. The causes that need no model are in `spanqa.evaluate.diagnosis`.

What a reader answers without the question: Kaushik & Lipton 2018 (https://arxiv.org/abs/1808.04926). Distractor sentences: Jia & Liang
2017 (https://arxiv.org/abs/1707.07328) add them to passages; here, one that the passage has is taken away.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from spanqa.answers import Answer, least_score
from spanqa.batches import WindowLogits
from spanqa.errors import InputError
from spanqa.evaluate.diagnosis import Mistake
from spanqa.evaluate.outcomes import RIGHT, Outcome, collect, located, score_question
from spanqa.evaluate.scoring import answer_words, word_f1
from spanqa.explain.words import Mask, hidden, mask_of, words_of
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.sentences import sentence_around
from spanqa.stream import Reading
from spanqa.tokens import Passage
from spanqa.windows import Window, cut

Flag = Literal["question ignored", "distractor sentence"]

FLAGS: Mapping[Flag, str] = {
    "question ignored": "With every word of the question hidden, the best span is still the answer.",
    "distractor sentence": "With the sentence of the answer hidden, what is given is right.",
}
"""What each flag means."""

AT_ONCE = 64
"""Mistakes whose windows are read together."""


def probe(
    reader: Reader, mistakes: Sequence[Mistake], *, threshold: float | None = None, progress: Progress = silent
) -> dict[str, tuple[Flag, ...]]:
    """Return the flags of the mistakes that have one, by the id of the question. The reader must be the one that made them.

    `threshold` decides what is given; None is the reader's own. Each answer is read twice at most, with all its windows.

    Raises:
        InputError: the tokenizer has no token that hides words.
    """
    least = least_score(reader.answers, threshold=threshold)
    mask = mask_of(reader.checkpoint.tokenizer)
    given = [mistake for mistake in mistakes if mistake.outcome.start is not None]
    flags: dict[str, tuple[Flag, ...]] = {}
    for first in range(0, len(given), AT_ONCE):
        trials = [trial for mistake in given[first : first + AT_ONCE] for trial in _trials(reader, mistake, mask)]
        logits = iter(reader.engine.submit([window for trial in trials for window in trial.read]).result())
        for trial in trials:
            if _holds(reader, trial, list(islice(logits, len(trial.read))), least):
                flags[trial.mistake.outcome.id] = (*flags.get(trial.mistake.outcome.id, ()), trial.flag)
        progress(min(first + AT_ONCE, len(given)), len(given))
    return flags


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """A flag to try: the windows of the passage, and the same with words hidden, to be read."""

    flag: Flag
    mistake: Mistake
    passage: Passage
    windows: Sequence[Window]
    read: Sequence[Window]


def _trials(reader: Reader, mistake: Mistake, mask: Mask) -> Iterator[_Trial]:
    example, outcome = mistake.example, mistake.outcome
    assert outcome.start is not None
    tokenizer = reader.checkpoint.tokenizer
    passage, question = reader.prepare(example.passage), tokenizer.encode(example.question)
    [windows] = cut(question, [passage], tokenizer, reader.windows)
    asked = words_of("question", example.question, question)
    yield _Trial("question ignored", mistake, passage, windows, [hidden(window, asked, mask) for window in windows])
    start, end = sentence_around(example.passage, outcome.start, outcome.start + len(outcome.text))
    if not any(first < end and start < stop for first, stop in located(example)):
        low, high = passage.tokens.covering(start, end)
        sentence = words_of("passage", example.passage, passage.tokens, low, high + 1)
        read = [hidden(window, sentence, mask) for window in windows]
        yield _Trial("distractor sentence", mistake, passage, windows, read)


def _holds(reader: Reader, trial: _Trial, logits: Sequence[WindowLogits], least: float) -> bool:
    """Return whether what is given with the words hidden is what the flag says."""
    placed = [replace(each, first=window.first) for each, window in zip(logits, trial.windows, strict=True)]
    ranking = reader.decode(Reading(trial.mistake.example.question, (trial.passage,), (tuple(placed),)))
    if trial.flag == "question ignored":
        return _is_still(ranking.best(-math.inf), trial.mistake.outcome)
    answer = ranking.best(least)
    return score_question(trial.mistake.example, answer.text, -ranking.best_score, no_answer_above=-least).right


def _is_still(best: Answer, outcome: Outcome) -> bool:
    """Return whether a span overlaps the answer given, and has an F1 of at least one half with it."""
    if best.start is None or best.end is None or outcome.start is None:
        return False
    overlaps = best.start < outcome.start + len(outcome.text) and outcome.start < best.end
    return overlaps and word_f1(answer_words(outcome.text), answer_words(best.text)) >= RIGHT


def repeated(
    reader: Reader, mistakes: Sequence[Mistake], *, threshold: float | None = None, progress: Progress = silent
) -> list[Mistake]:
    """Return those mistakes with an answer that this reader makes, too: of outcomes from a file, only these can be probed.

    Raises:
        InputError: the reader makes none of them, or cannot read one of the questions.
    """
    given = [mistake for mistake in mistakes if mistake.outcome.start is not None]
    again = collect(reader, [mistake.example for mistake in given], threshold=threshold, progress=progress)
    found = [
        mistake
        for mistake, (_, _, outcome) in zip(given, again, strict=True)
        if (outcome.start, outcome.text) == (mistake.outcome.start, mistake.outcome.text)
    ]
    if given and not found:
        raise InputError(
            f"This model gives none of the {len(given):,} wrong answers that the outcomes hold. Name the model that they were made with."
        )
    return found
