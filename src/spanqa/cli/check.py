"""`spanqa check`: do all backends give the same answers?"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.evaluate.parity import Comparison


def check(
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="Labelled questions; eight of our own by default.")
    ] = None,
    max_questions: Annotated[int, typer.Option(min=1, help="Read only the first N questions.")] = 100,
    as_json: options.Json = False,
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    threads: options.Threads = None,
) -> None:
    """Compare every installed backend and dtype with the reference: logits, answers, F1.

    The exit code is 1 when one is outside its tolerance.
    """
    from spanqa.evaluate.parity import REFERENCE, check_backends
    from spanqa.reader import Reader
    from spanqa.tables import read_examples

    examples = read_examples(data)[0][:max_questions] if data is not None else None

    def load(backend: str, dtype: str) -> Reader:
        limit = None if backend == REFERENCE else threads
        return Reader.load(model, backend=backend, dtype=dtype, revision=revision, threads=limit)

    with options.progress_bar("check") as progress:
        rows = list(check_backends(load, examples, progress=progress))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(asdict(row)))
    else:
        _show(rows)
    if any(row.ran and row.problem for row in rows):
        raise typer.Exit(1)


def _show(rows: "list[Comparison]") -> None:
    from rich.markup import escape
    from rich.table import Table

    columns = ("backend", "dtype", "logits ±", "probability ±", "same answers", "F1", "questions/s", "")
    table = Table(*columns, box=None, padding=(0, 1))
    for row in rows:
        numbers = ("", "", "", "", "")
        mark = "[red]failed[/red]" if row.ran else "[dim]not run[/dim]"
        if row.logits is not None:
            numbers = (
                f"{row.logits:.1e}", f"{row.probability:.1e}", f"{row.answers:.1%}", f"{row.f1:.2f}", f"{row.questions_per_s:.1f}",
            )  # fmt: skip
            mark = "[red]differs[/red]" if row.problem else "[green]ok[/green]"
        table.add_row(row.backend, row.dtype, *numbers, mark)
    console = options.output()
    console.print(table)
    for row in rows:
        if row.problem:
            console.print(f"\n[bold]{row.backend} {row.dtype}[/bold]  {escape(row.problem)}")
