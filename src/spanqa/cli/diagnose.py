"""`spanqa diagnose`: why wrong answers are wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanqa.cli import options
from spanqa.cli.show import percent, plain

if TYPE_CHECKING:
    from rich.console import Console

    from spanqa.evaluate import Outcome
    from spanqa.evaluate.diagnosis import Mistake
    from spanqa.explain.diagnosis import Flag
    from spanqa.reader import Reader
    from spanqa.squad import Example

    Flags = Mapping[str, Sequence[Flag]]

AROUND = 90
"""Code points of a sentence that are shown on each side of an answer."""


def diagnose(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Labelled questions: SQuAD .json, rows as .json, .jsonl or .csv, .parquet, ..."
        ),
    ],
    outcomes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the outcomes.jsonl of `spanqa evaluate --report` on DATA; the model is run for --deep only.",
        ),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Read wrongly answered questions again, with the question or a sentence hidden, to see what misled the model.",
        ),
    ] = False,
    top: Annotated[
        int, typer.Option(min=0, help="Number of mistakes to show of each cause, most confident first.")
    ] = 3,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Read only the first N questions.", show_default=False)
    ] = None,
    threshold: options.Threshold = None,
    as_json: options.Json = False,
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    max_seq_length: options.MaxSeqLength = None,
    overlap: options.Overlap = None,
    max_answer_tokens: options.MaxAnswerTokens = None,
) -> None:
    """Find out why wrong answers are wrong, and count the causes.

    JSON holds all mistakes, whatever --top says.
    """
    from spanqa.answers import least_score
    from spanqa.evaluate.diagnosis import diagnose as find_causes
    from spanqa.evaluate.outcomes import read_outcomes
    from spanqa.tables import read_examples

    if outcomes is not None and max_questions is not None:
        raise typer.BadParameter("the outcomes say which questions are read", param_hint="--max-questions")
    if outcomes is not None and threshold is not None and not deep:
        raise typer.BadParameter("the outcomes were made with one already", param_hint="--threshold")
    examples, source = read_examples(data)
    examples = examples[:max_questions]
    found = None if outcomes is None else read_outcomes(outcomes)
    reader = None
    if found is None or deep:
        reader = options.load_reader(
            model=model,
            revision=revision,
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            max_seq_length=max_seq_length,
            overlap=overlap,
            max_answer_tokens=max_answer_tokens,
        )
    least = None
    if found is None and reader is not None:
        least = least_score(reader.answers, threshold=threshold)
        found = _outcomes(reader, examples, least)
    assert found is not None
    mistakes = find_causes(examples, found)
    flags = None
    if deep and reader is not None:
        flags = _flags(reader, mistakes, threshold, from_file=outcomes is not None)
    if as_json:
        typer.echo(options.json_line(_as_json(source, len(found), least, mistakes, flags)))
    else:
        _show(len(found), least, mistakes, flags, top)


def _outcomes(reader: "Reader", examples: "Sequence[Example]", threshold: float) -> "list[Outcome]":
    from spanqa.evaluate.outcomes import collect

    with options.progress_bar("questions") as progress:
        return [outcome for _, _, outcome in collect(reader, examples, threshold=threshold, progress=progress)]


def _flags(reader: "Reader", mistakes: "Sequence[Mistake]", threshold: float | None, *, from_file: bool) -> "Flags":
    """Probe the mistakes. Those of a file are looked at only where the model makes them, too; how many it does not is said."""
    from spanqa.explain.diagnosis import probe, repeated

    if from_file:
        answered = sum(mistake.outcome.start is not None for mistake in mistakes)
        with options.progress_bar("answers again") as progress:
            mistakes = repeated(reader, mistakes, threshold=threshold, progress=progress)
        if len(mistakes) < answered:
            typer.echo(
                f"spanqa: {answered - len(mistakes):,} of {answered:,} wrong answers are not looked at again: this model, with these "
                "settings, gives other ones",
                err=True,
            )
    with options.progress_bar("wrong answers") as progress:
        return probe(reader, mistakes, threshold=threshold, progress=progress)


def _as_json(
    source: Mapping[str, str], questions: int, least: float | None, mistakes: "Sequence[Mistake]", flags: "Flags | None"
) -> dict[str, Any]:
    from spanqa.evaluate.diagnosis import CAUSES, by_cause
    from spanqa.evaluate.record import finite

    return {
        "data": {**source, "questions": questions},
        "no_answer_threshold": None if least is None else finite(least),
        "wrong": len(mistakes),
        "causes": [
            {"cause": cause, "number": len(of_cause), "share": len(of_cause) / len(mistakes), "means": CAUSES[cause]}
            for cause, of_cause in by_cause(mistakes).items()
        ],
        "mistakes": [
            mistake.as_json() | ({} if flags is None else {"flags": list(flags.get(mistake.outcome.id, ()))})
            for mistake in mistakes
        ],
    }


def _show(questions: int, least: float | None, mistakes: "Sequence[Mistake]", flags: "Flags | None", top: int) -> None:
    from rich.table import Table

    from spanqa.evaluate.diagnosis import CAUSES, by_cause, right_but_for_null

    console = options.output()
    threshold = "" if least is None else f", threshold {least:.2f}"
    share = f" ({len(mistakes) / questions:.1%})" if questions else ""
    console.print(f"{len(mistakes):,} of {questions:,} questions answered wrongly{share}{threshold}")
    if not mistakes:
        return
    causes = by_cause(mistakes)
    table = Table("cause", box=None, padding=(0, 1))
    names = [] if flags is None else list(_flag_meanings())
    for head in ("number", "share", *names):
        table.add_column(head, justify="right")
    table.add_column("for example")
    for cause, of_cause in causes.items():
        probed = any(mistake.outcome.start is not None for mistake in of_cause)
        counts = [sum(name in (flags or {}).get(each.outcome.id, ()) for each in of_cause) for name in names]
        shown = [f"{count:,}" if probed else "" for count in counts]
        numbers = (f"{len(of_cause):,}", f"{len(of_cause) / len(mistakes):.1%}", *shown)
        table.add_row(cause, *numbers, plain(of_cause[0].outcome.question))
    console.print()
    console.print(table)
    near = right_but_for_null(mistakes)
    if near:
        console.print(
            f"\nOf the {len(causes['null beats span']):,} that null beats, {near:,} would be right with a lower threshold; "
            "spanqa tune finds the best one."
        )
    for cause, of_cause in causes.items():
        if top:
            console.print(f"\n[bold]{cause}[/bold]  [dim]{CAUSES[cause]}[/dim]")
        for mistake in of_cause[:top]:
            _show_mistake(console, mistake, () if flags is None else flags.get(mistake.outcome.id, ()))


def _flag_meanings() -> "Mapping[Flag, str]":
    from spanqa.explain.diagnosis import FLAGS

    return FLAGS


def _show_mistake(console: "Console", mistake: "Mistake", flags: "Sequence[Flag]") -> None:
    from spanqa.evaluate.outcomes import located

    outcome, example = mistake.outcome, mistake.example
    probability = "" if outcome.probability is None else f"  ({percent(outcome.probability)})"
    given = f"[bold]{plain(outcome.text)}[/bold]" if outcome.text else "not in this text"
    console.print(f"  [cyan]{plain(outcome.question)}[/cyan]  [dim]{plain(outcome.id)}[/dim]")
    console.print(f"    given      {given}{probability}")
    if outcome.start is not None:
        _show_excerpt(console, example.passage, outcome.start, outcome.start + len(outcome.text))
    references = list(dict.fromkeys(answer.text for answer in example.answers)) or ["not in this text"]
    console.print(f"    reference  {plain(' · '.join(references))}")
    for first, stop in located(example)[:1]:
        _show_excerpt(console, example.passage, first, stop)
    if mistake.note:
        console.print(f"    [dim]{plain(mistake.note)}[/dim]")
    for flag in flags:
        console.print(f"    [yellow]{flag}[/yellow]  [dim]{_flag_meanings()[flag]}[/dim]")


def _show_excerpt(console: "Console", passage: str, start: int, end: int) -> None:
    """Print the sentence around a span, or as much of it as fits a line or two, with the span marked."""
    from spanqa.sentences import sentence_around

    low, high = left, right = sentence_around(passage, start, end)
    if start - left > AROUND:
        low = next((i for i in range(start - AROUND, start) if passage[i].isspace()), start)
    if right - end > AROUND:
        high = next((i for i in range(end + AROUND, end, -1) if passage[i].isspace()), end)
    mark, close = ("[reverse]", "[/reverse]") if console.is_terminal else ("\\[", "]")
    before, after = ("…" if low > left else ""), ("…" if high < right else "")
    console.print(
        f"               {before}{plain(passage[low:start])}{mark}{plain(passage[start:end])}{close}{plain(passage[end:high])}{after}"
    )
