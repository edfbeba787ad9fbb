"""Options with the same meaning in every command, and the reader that they define."""

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from spanqa.progress import Progress
    from spanqa.reader import Reader

Model = Annotated[
    str, typer.Option(help="Name of a bundled model, a folder, or a Hugging Face hub id.", show_default=True)
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
VerifyKey = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Load the model only if it was signed with this: a public key or trusted certificates (PEM file), or "
        "sigstore:IDENTITY,ISSUER. Of several, one has to hold.",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="auto, openvino, torch, onnx, jax, tensorflow or numpy; `spanqa info` shows which are installed."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...; cuda:0,cuda:1 uses both.")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")]
Threads = Annotated[int | None, typer.Option(help="Number of CPU threads. Default: all cores.", show_default=False)]
MaxSeqLength = Annotated[int | None, typer.Option(help="Length of a window in tokens. Default: the model's setting.")]
Overlap = Annotated[
    int | None,
    typer.Option(
        help="Passage tokens that consecutive windows share (doc_stride in transformers). Default: the model's setting."
    ),
]
MaxAnswerTokens = Annotated[
    int | None, typer.Option(help="Length of the longest answer in tokens. Default: the model's setting.")
]
Threshold = Annotated[
    float | None, typer.Option(help="Answer only if the score is at least this. Default: the model's setting.")
]
Encoding = Annotated[
    str | None,
    typer.Option(
        help="The encoding of the files, such as cp1252 or shift_jis. Default: by their marks, or UTF-8.",
        show_default=False,
    ),
]
NoAnswer = Annotated[
    str, typer.Option(help="auto: use the model's threshold; on: the same, or 0 if it has none; off: always answer.")
]


def _probability(value: float) -> float:
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{value} is not a number from 0 to 1")
    return value


MinProbability = Annotated[
    float, typer.Option(callback=_probability, help="Do not give answers that are less probable than this.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def load_reader(
    *,
    model: str,
    revision: str | None,
    backend: str,
    device: str,
    dtype: str,
    threads: int | None,
    max_seq_length: int | None = None,
    overlap: int | None = None,
    max_answer_tokens: int | None = None,
    verify_key: list[str] | None = None,
) -> "Reader":
    """Load the model with the settings of the command line; settings not given are the model's own."""
    from dataclasses import replace

    from spanqa.reader import Reader

    reader = Reader.load(
        model, backend=backend, device=device, dtype=dtype, revision=revision, threads=threads, verify_key=verify_key
    )
    windows, answers = reader.windows, reader.answers
    if max_seq_length is not None:
        windows = replace(windows, max_seq_length=max_seq_length)
    if overlap is not None:
        windows = replace(windows, overlap=overlap)
    if max_answer_tokens is not None:
        answers = replace(answers, max_answer_tokens=max_answer_tokens)
    return reader.with_settings(windows=windows, answers=answers)


def json_line(value: object) -> str:
    """Return a value as one line of JSON that standard output can write: with escapes where its encoding is not Unicode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return json.dumps(value, ensure_ascii=not encoding.lower().startswith("utf"))


def output() -> "Console":
    """Return the console for results on standard output. In a pipe or a file, lines are as long as they are."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=10_000)


@contextmanager
def progress_bar(what: str, *, lines: bool = False) -> "Iterator[Progress]":
    """Show the progress of long work on standard error, if that is a terminal.

    Otherwise nothing is shown, or, with `lines`, one line for each new note.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from spanqa.progress import silent

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:

        def line(done: int, total: int, note: str = "") -> None:
            if note:
                console.print(f"{what} {done:,} of {total:,}: {note}", markup=False)

        yield line if lines else silent
        return
    columns = (*Bar.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=None, rate="")

        def update(done: int, total: int, note: str = "") -> None:
            speed = bar.tasks[task].speed
            rate = "" if speed is None else f"{speed:,.1f}/s"
            bar.update(task, completed=done, total=total, rate=rate, description=f"{what} {note}" if note else None)

        yield update


def lines_or_bar(what: str, *, shown: bool) -> "AbstractContextManager[Progress]":
    """Show progress as `progress_bar` does, and its notes as lines where there is no terminal; nothing unless `shown`."""
    from spanqa.progress import silent

    return progress_bar(what, lines=True) if shown else nullcontext(silent)


def print_note(line: str) -> None:
    """Show a line on standard error."""
    typer.echo(line, err=True)
