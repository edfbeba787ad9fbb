"""Answers as people label them, to answers that stand in the passage: found, repaired, placed, or told.

A label is an answer's words, and perhaps where they start. Starts are off by white space or a few characters in many
files, and missing in others. `align` settles one question's labels, `align_all` a data set's, and counts what it did.
It reads no files (`spanqa.train.tables`) and cuts no windows (`spanqa.train.features`).
"""

import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from spanqa.errors import DatasetError, InputError
from spanqa.squad import Example, GoldAnswer
from spanqa.tokens import Tokenizer

NEAR = 20
"""A start that is wrong by at most so many characters is repaired."""

Outcome = Literal["unanswerable", "exact", "repaired", "placed", "ambiguous", "dropped"]
"""What became of a question: see `LabelReport`."""


@dataclass(frozen=True, slots=True)
class Label:
    """An answer as it was labelled: its words, and the code point at which they start, where that is known."""

    text: str
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question with its passage and labels, before these are held against the passage."""

    id: str
    question: str
    passage: str
    labels: tuple[Label, ...]
    title: str = ""


@dataclass(slots=True)
class LabelReport:
    """How the labels of a data set fared, as ids by outcome; each question counts once, by its worst label.

    unanswerable: it has no label. exact: the words stand where they should. repaired: the start, or white space or case of
    the words, was off. placed: there was no start, and the words stand in one place. ambiguous: there was no start and they
    stand in several, all of which count as right. dropped: no label's words stand in the passage.
    """

    ids: dict[Outcome, list[str]] = field(default_factory=lambda: {outcome: [] for outcome in get_args(Outcome)})

    @property
    def counts(self) -> dict[str, int]:
        """The number of questions of each outcome."""
        return {outcome: len(ids) for outcome, ids in self.ids.items()}

    def __str__(self) -> str:
        parts = [f"{count:,} {outcome}" for outcome, count in self.counts.items() if count]
        told = []
        for outcome in ("ambiguous", "dropped"):
            ids = self.ids[outcome]
            if ids:
                told.append(f"; {outcome}: {', '.join(ids[:5])}" + (", ..." if len(ids) > 5 else ""))
        return f"labels: {', '.join(parts)}{''.join(told)}"


def align(question: Labelled) -> tuple[Example | None, Outcome]:
    """Return the question with answers that stand in its passage, and what had to be done; None when none of them does.

    >>> found, outcome = align(Labelled("1", "Who?", "It was  Anna K.", (Label("Anna K", 6),)))
    >>> found.answers, outcome
    ((GoldAnswer(text='Anna K', start=8),), 'repaired')
    """
    labels = [label for label in question.labels if label.text.strip()]
    made = Example(question.id, question.question, question.passage, (), question.title)
    if not labels:
        return made, "unanswerable"
    outcomes: list[Outcome] = []
    answers: list[GoldAnswer] = []
    for label in labels:
        found, outcome = _place(label, question.passage)
        outcomes.append(outcome)
        answers += [answer for answer in found if answer not in answers]
    if not answers:
        return None, "dropped"
    order = get_args(Outcome)[:-1]  # a label that was not found is no loss beside others that were
    worst = max((outcome for outcome in outcomes if outcome != "dropped"), key=order.index)
    return Example(made.id, made.question, made.passage, tuple(answers), made.title), worst


def _place(label: Label, passage: str) -> tuple[list[GoldAnswer], Outcome]:
    there = label.start is not None and passage[label.start : label.start + len(label.text)] == label.text
    if there and label.text == label.text.strip():
        return [GoldAnswer(label.text, label.start or 0)], "exact"
    words = label.text.split()
    places = _find(re.escape(label.text.strip()), passage)
    as_labelled = bool(places)
    if not places:
        places = _find(r"\s+".join(map(re.escape, words)), passage) or _find(
            r"\s+".join(map(re.escape, words)), passage, re.IGNORECASE
        )
    if not places:
        return [], "dropped"
    answers = [GoldAnswer(passage[start:end], start) for start, end in places]
    if label.start is not None:
        nearest = min(answers, key=lambda answer: abs(answer.start - (label.start or 0)))
        if abs(nearest.start - label.start) <= NEAR + len(label.text) - len(label.text.lstrip()):
            return [nearest], "repaired"
    if len(answers) > 1:
        return answers, "ambiguous"
    return answers, "placed" if as_labelled and label.start is None else "repaired"


def _find(pattern: str, passage: str, flags: int = 0) -> list[tuple[int, int]]:
    """Where a pattern stands as whole words; where it does nowhere, anywhere."""
    whole = [match.span() for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", passage, flags)]
    return whole or [match.span() for match in re.finditer(pattern, passage, flags)]


def align_all(questions: Iterable[Labelled], *, strict: bool = False) -> tuple[list[Example], LabelReport]:
    """Return the questions whose labels stand in their passages, and the report on all of them.

    Raises:
        DatasetError: an id is there twice; or, when `strict`, a label is ambiguous or not in its passage.
    """
    report = LabelReport()
    seen: set[str] = set()
    examples = []
    for question in questions:
        if question.id in seen:
            raise DatasetError(f"The id {question.id!r} is there twice. Ids tell questions apart; give each its own.")
        seen.add(question.id)
        example, outcome = align(question)
        report.ids[outcome].append(question.id)
        if strict and outcome in ("ambiguous", "dropped"):
            why = "stands in several places" if outcome == "ambiguous" else "does not stand in the passage"
            texts = ", ".join(repr(label.text[:60]) for label in question.labels)
            raise DatasetError(
                f"Question {question.id!r}: its answer {texts} {why}. Correct it, or leave out --strict."
            )
        if example is not None:
            examples.append(example)
    return examples, report


def as_labelled(examples: Iterable[Example]) -> Iterator[Labelled]:
    """Yield the questions of a SQuAD file with their answers as labels."""
    for example in examples:
        labels = tuple(Label(answer.text, answer.start) for answer in example.answers)
        yield Labelled(example.id, example.question, example.passage, labels, example.title)


def hold_out(examples: Sequence[Example], share: float = 0.05, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Return the examples without, and of, a share of the articles, drawn by seed.

    An article is a title; where there are none, a passage. Questions on one article are never on both sides, so that what
    is measured is not what was read.

    Raises:
        InputError: all questions are of one article.
    """
    articles = sorted({example.title or example.passage for example in examples})
    if len(articles) < 2:
        raise InputError(
            f"All {len(examples)} questions are on one passage, so none can be held out to measure with. Give --dev."
        )
    chosen = set(random.Random(seed).sample(articles, max(1, round(share * len(articles)))))
    apart: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        apart[(example.title or example.passage) in chosen].append(example)
    return apart


def answer_tokens(examples: Iterable[Example], tokenizer: Tokenizer, share: float = 0.99) -> int:
    """Return the number of tokens within which this share of the answers fit, 0 where there are none.

    Of several reference answers of a question each counts.
    """
    texts = {answer.text for example in examples for answer in example.answers}
    lengths = {text: len(tokenizer.encode(text)) for text in texts}
    sizes = sorted(lengths[answer.text] for example in examples for answer in example.answers)
    return sizes[math.ceil(share * len(sizes)) - 1] if sizes else 0
