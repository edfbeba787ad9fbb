"""Answers as a person reads them on a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from spanqa.answers import Answer
    from spanqa.documents import Document
    from spanqa.retrieval import Choice


def show_answers(
    answers: "Sequence[Answer]",
    documents: "Sequence[Document]",
    choice: "Choice",
    calibrated: bool,
    title: str | None = None,
) -> None:
    """Print answers to one question, or that there is none and what comes closest; `passage_index` counts the documents.

    `title` is printed above, where several questions are asked.
    """
    console = options.output()
    kind = "" if calibrated else ", uncalibrated"
    if title is not None:
        console.print(f"[bold cyan]{plain(title)}[/]")
    best = answers[0]
    if not best:
        way = "" if choice.complete else "; use --read-all"
        closest = best.closest
        near = f" Closest: {plain(closest.text)} ({percent(closest.probability)}):" if closest else ""
        probability = f"({percent(best.no_answer_probability)}{kind})"
        console.print(f"[bold]{_none(best, documents, choice)}[/bold] {probability}{way}.{near}")
        if closest:
            _show_sentence(console, closest, documents, indent="   ")
        return
    for number, answer in enumerate(answers, 1):
        label = f"{number}. " if len(answers) > 1 else ""
        console.print(f"{label}[bold green]{plain(answer.text)}[/]  ({percent(answer.probability)}{kind})")
        _show_sentence(console, answer, documents, indent="   " if label else "")
    if len(answers) > 1:
        console.print("[dim]In order of score; the percentages can have another order.[/dim]")


def _none(best: "Answer", documents: "Sequence[Document]", choice: "Choice") -> str:
    certain = "Not" if best.no_answer_probability >= 0.5 else "Probably not"
    if not choice.complete:
        return f"{certain} found in {which_windows(choice)}"
    return f"{certain} in {'this text' if len(documents) == 1 else 'these texts'}"


def which_windows(choice: "Choice") -> str:
    """Say which windows are read: all of them, or how many of how many."""
    number = "" if choice.windows_read == 1 else f" {choice.windows_read:,}"
    if choice.complete:
        return f"all{number} windows"
    kind = f"{number} most likely" if choice.matched else f" first{number}"
    return f"the{kind} of {choice.windows_total:,} windows"


def say_choice(choice: "Choice", *, ways: bool = True) -> None:
    """Say on standard error which windows are read, where it is not all of them or they could not be chosen.

    With `ways` it names the options that change that.
    """
    if not choice.matched:
        way = f" ({'--max-windows' if choice.complete else '--read-all'})" if ways else ""
        typer.echo(
            f"spanqa: no word of the question occurs in the text; reading {which_windows(choice)}{way}", err=True
        )
    elif not choice.complete:
        way = " (--max-windows, --read-all)" if ways else ""
        typer.echo(f"spanqa: reading {which_windows(choice)}, by their words{way}", err=True)


def percent(probability: float) -> str:
    """Return a probability in whole percent; what is not certain is never 0% or 100%.

    >>> percent(0.824), percent(0.997), percent(0.0001)
    ('82%', '>99%', '<1%')
    """
    if 0 < probability < 0.01:
        return "<1%"
    return ">99%" if 0.99 < probability < 1 else f"{probability:.0%}"


def _show_sentence(console: "Console", answer: "Answer", documents: "Sequence[Document]", indent: str) -> None:
    """Print the sentence with the answer marked: in reverse video on a terminal, in brackets elsewhere."""
    assert answer.start is not None and answer.end is not None
    assert answer.sentence_start is not None and answer.passage_index is not None
    before = answer.sentence[: answer.start - answer.sentence_start]
    after = answer.sentence[answer.end - answer.sentence_start :]
    mark, close = ("[reverse]", "[/reverse]") if console.is_terminal else ("\\[", "]")
    console.print(f"{indent}{plain(before)}{mark}{plain(answer.text)}{close}{plain(after)}")
    document = documents[answer.passage_index]
    line = document.text.count("\n", 0, answer.start) + 1
    source = f"{document.source}{' as text' if document.is_page else ''}"
    where = f"{source}, line {line}, characters {answer.start}-{answer.end}, score {answer.score:.1f}"
    console.print(f"{indent}[dim]{plain(where)}[/dim]")


def plain(text: str) -> str:
    """Return text for one line of a terminal, with white space collapsed and without markup or control sequences."""
    from rich.markup import escape

    visible = "".join(character if character.isprintable() else " " for character in text)
    lead, tail = visible[:1] == " ", visible[-1:] == " "
    return escape((" " if lead else "") + " ".join(visible.split()) + (" " if tail and visible.strip() else ""))
