"""`spanqa ask`: answer a question from texts."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from spanqa.answers import Answer
    from spanqa.retrieval import Choice


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Text files to read. Without FILE, or with -, reads standard input."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of answers to show, best first.")] = 1,
    threshold: Annotated[
        float | None, typer.Option(help="Answer only if the score is at least this. Default: the model's setting.")
    ] = None,
    max_windows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Read at most this many windows: those that share most words with the question. Default: all, or 300 if there are more than 2,000.",
            show_default=False,
        ),
    ] = None,
    read_all: Annotated[bool, typer.Option("--read-all", help="Read all windows, however many there are.")] = False,
    no_answer: options.NoAnswer = "auto",
    min_probability: options.MinProbability = 0.0,
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
    """Answer a question from one or more texts, which are read together.

    Prints the answer with its probability and the sentence around it, or says that the text has no answer.
    """
    from spanqa.answers import least_score
    from spanqa.retrieval import TextIndex

    if read_all and max_windows is not None:
        raise typer.BadParameter("give this or --max-windows, not both", param_hint="--read-all")
    texts = _read(files or [])
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
    least = least_score(reader.answers, no_answer, threshold)  # type: ignore[arg-type]
    with options.progress_bar("windows") as progress:
        index = TextIndex(reader, [text for _, text in texts], [source for source, _ in texts])
        choice = index.choose(question, max_windows, read_all=read_all)
        _explain(choice)
        ranking = reader.ranking(question, choice.passages, top_k, progress=progress)
    answers = ranking.above(least, min_probability) or [ranking.best(least, min_probability)]
    if as_json:
        for answer in answers:
            counts = {"windows_read": choice.windows_read, "windows_total": choice.windows_total}
            typer.echo(options.json_line(answer.as_json(question) | counts))
    else:
        _show(answers, choice, calibrated=reader.calibrated)


def _read(files: list[str]) -> list[tuple[str, str]]:
    """Return (name, text) of every file that is not empty.

    Raises:
        InputError: a file cannot be read, or all are empty.
    """
    from spanqa.errors import InputError
    from spanqa.files import decode_text, read_standard_input, read_text

    if not files and sys.stdin is not None and sys.stdin.isatty():
        raise typer.BadParameter("give a file to read, or pipe text to standard input", param_hint="FILE")
    texts = []
    for name in files or ["-"]:
        text = decode_text(read_standard_input(), "standard input") if name == "-" else read_text(name)
        texts.append(("standard input" if name == "-" else name, text))
    empty = [name for name, text in texts if not text.strip()]
    if len(empty) == len(texts):
        raise InputError(
            f"There is no text to read: {', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty. Give a text."
        )
    if empty:
        typer.echo(f"spanqa: skipped empty files: {', '.join(empty)}", err=True)
    return [(name, text) for name, text in texts if text.strip()]


def _explain(choice: "Choice") -> None:
    """Say on standard error which windows are read, where it is not all of them or they could not be chosen."""
    if not choice.matched:
        way = "--max-windows" if choice.complete else "--read-all"
        typer.echo(f"spanqa: no word of the question occurs in the text; reading {_which(choice)} ({way})", err=True)
    elif not choice.complete:
        typer.echo(f"spanqa: reading {_which(choice)}, by their words (--max-windows, --read-all)", err=True)


def _which(choice: "Choice") -> str:
    number = "" if choice.windows_read == 1 else f" {choice.windows_read:,}"
    if choice.complete:
        return f"all{number} windows"
    kind = f"{number} most likely" if choice.matched else f" first{number}"
    return f"the{kind} of {choice.windows_total:,} windows"


def _show(answers: "list[Answer]", choice: "Choice", *, calibrated: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    kind = "" if calibrated else ", uncalibrated"
    if not answers[0]:
        probability = f"{answers[0].no_answer_probability:.1%}{kind}"
        if choice.complete:
            where = f"Not in {'this text' if len(choice.passages) == 1 else 'these texts'}."
        else:
            where = f"Not found in {_which(choice)}; use --read-all."
        console.print(f"[bold]{where}[/bold]  ({probability})")
        return
    for number, answer in enumerate(answers, 1):
        label = f"{number}. " if len(answers) > 1 else ""
        console.print(f"{label}[bold green]{_plain(answer.text)}[/]  ({answer.probability:.1%}{kind})")
        _show_sentence(console, answer, indent="   " if label else "")


def _show_sentence(console: "Console", answer: "Answer", indent: str) -> None:
    """Print the sentence with the answer marked: in reverse video on a terminal, in brackets elsewhere."""
    assert answer.start is not None and answer.end is not None and answer.sentence_start is not None
    before = answer.sentence[: answer.start - answer.sentence_start]
    after = answer.sentence[answer.end - answer.sentence_start :]
    mark, close = ("[reverse]", "[/reverse]") if console.is_terminal else ("\\[", "]")
    console.print(f"{indent}{_plain(before)}{mark}{_plain(answer.text)}{close}{_plain(after)}")
    where = f"{answer.source}, characters {answer.start}-{answer.end}, score {answer.score:.2f}"
    console.print(f"{indent}[dim]{_plain(where)}[/dim]")


def _plain(text: str) -> str:
    """Return text for one line of a terminal, with white space collapsed and without markup or control sequences."""
    from rich.markup import escape

    visible = "".join(character if character.isprintable() else " " for character in text)
    lead, tail = visible[:1] == " ", visible[-1:] == " "
    return escape((" " if lead else "") + " ".join(visible.split()) + (" " if tail and visible.strip() else ""))
