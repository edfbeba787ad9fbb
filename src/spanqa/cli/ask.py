"""`spanqa ask`: answer questions from texts."""

import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spanqa.cli import options
from spanqa.cli.show import say_choice, show_answers

if TYPE_CHECKING:
    from spanqa.answers import Answer, Ranking
    from spanqa.documents import Document
    from spanqa.retrieval import Choice, TextIndex

LONG = 200_000
"""Code points of all texts from which reading takes so long that its progress is shown."""


def ask(
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="The question, in quotes.")] = None,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Text files, web pages or folders to read. Without FILE, or with -, reads standard input.",
        ),
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Ask each line of this file (- is standard input); all arguments are then files to read.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of answers to show, best first.")] = 1,
    threshold: options.Threshold = None,
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
    encoding: options.Encoding = None,
    save_text: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the texts of web pages, in which the characters are counted, to this new folder.",
        ),
    ] = None,
    as_json: options.Json = False,
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    verify_key: options.VerifyKey = None,
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
    from spanqa.errors import SpanQAError
    from spanqa.retrieval import TextIndex

    if read_all and max_windows is not None:
        raise typer.BadParameter("give this or --max-windows, not both", param_hint="--read-all")
    asked, names = _questions_and_names(question, files or [], questions, encoding)
    documents = _read(names, encoding)
    if save_text is not None:
        _save(documents, save_text)
    reader = options.load_reader(
        model=model,
        revision=revision,
        verify_key=verify_key,
        backend=backend,
        device=device,
        dtype=dtype,
        threads=threads,
        max_seq_length=max_seq_length,
        overlap=overlap,
        max_answer_tokens=max_answer_tokens,
    )
    least = least_score(reader.answers, no_answer, threshold)  # type: ignore[arg-type]
    numbers = [number for number, document in enumerate(documents) if document.text.strip()]
    filled = [documents[number] for number in numbers]
    index = TextIndex(reader, [document.text for document in filled], [document.source for document in filled])
    failed, shown = False, 0
    for each in asked:
        try:
            choice, ranking = _read_for(each, index, top_k, max_windows, read_all)
        except SpanQAError as error:
            if questions is None:
                raise
            typer.echo(f"spanqa: {each!r:.60}: {error}", err=True)  # it costs that question alone
            failed = True
            continue
        found = ranking.above(least, min_probability) or [ranking.best(least, min_probability)]
        answers = [_counted(answer, numbers) for answer in found]
        if as_json:
            counts = {"windows_read": choice.windows_read, "windows_total": choice.windows_total}
            for answer in answers:
                typer.echo(options.json_line(answer.as_json(each) | counts))
            continue
        if shown:
            typer.echo()
        shown += 1
        show_answers(answers, documents, choice, reader.calibrated, each if len(asked) > 1 else None)
    if failed:
        raise typer.Exit(1)


def _read_for(
    question: str, index: "TextIndex", top_k: int, max_windows: int | None, read_all: bool
) -> "tuple[Choice, Ranking]":
    """Choose what to read for a question, say so, and read it; the progress is shown where that takes long."""
    from spanqa.progress import silent

    long = sum(map(len, index.texts)) > LONG
    with options.progress_bar("windows") if long else nullcontext(silent) as progress:
        choice = index.choose(question, max_windows, read_all=read_all)
        say_choice(choice)
        return choice, index.reader.ranking(question, choice.passages, top_k, progress=progress)


def _questions_and_names(
    question: str | None, files: list[str], questions: str | None, encoding: str | None
) -> tuple[list[str], list[str]]:
    """Return the questions to ask and the names of the files to read."""
    if questions is None:
        if question is None:
            raise typer.BadParameter("give a question, in quotes", param_hint="QUESTION")
        _check_quoted(question, files)
        return [question], files
    from spanqa.documents import read_document
    from spanqa.errors import InputError
    from spanqa.files import read_standard_input

    names = [question, *files] if question is not None else files
    if questions == "-" and (not names or "-" in names):
        raise typer.BadParameter("standard input holds the questions; give the files to read", param_hint="--questions")
    data = read_standard_input() if questions == "-" else None
    text = read_document("standard input" if questions == "-" else questions, data, encoding).text
    asked = [line.strip() for line in text.split("\n") if line.strip()]
    if not asked:
        raise InputError(f"{questions!r} holds no question. Expected one on each line.")
    return asked, names


def _check_quoted(question: str, files: Sequence[str]) -> None:
    """Refuse a question whose words came as files: Who built the pier? harbour.txt."""
    words = list(takewhile(lambda name: name != "-" and not Path(name).exists(), files))
    if words and " " not in question and all(re.fullmatch(r"[^\W_][\w'’,-]*[?!.]?", word) for word in words):
        rest = "".join(f" {name}" for name in files[len(words) :])
        raise typer.BadParameter(
            f'{words[0]!r} is not a file. Put the question in quotes: spanqa ask "{" ".join([question, *words])}"{rest}',
            param_hint="QUESTION",
        )


def _read(names: list[str], encoding: str | None) -> "list[Document]":
    """Return the documents of all files, empty ones too.

    Raises:
        InputError: a file cannot be read, or all are empty.
    """
    from spanqa.documents import read_document, read_documents
    from spanqa.errors import InputError
    from spanqa.files import read_standard_input

    if not names and sys.stdin is not None and sys.stdin.isatty():
        raise typer.BadParameter("give a file to read, or pipe text to standard input", param_hint="FILE")
    documents: list[Document] = []
    for name in names or ["-"]:
        if name == "-":
            documents.append(read_document("standard input", read_standard_input(), encoding))
            continue
        found, skipped = read_documents([name], encoding)
        documents += found
        if skipped:
            typer.echo(f"spanqa: skipped in {name}, not text: {_listed(skipped)}", err=True)
    empty = [document.source for document in documents if not document.text.strip()]
    if not documents:
        raise InputError(f"There is no text to read in {', '.join(names)}: no file there holds text.")
    if len(empty) == len(documents):
        raise InputError(
            f"There is no text to read: {_listed(empty)} {'is' if len(empty) == 1 else 'are'} empty. Give a text."
        )
    if empty:
        typer.echo(f"spanqa: skipped empty files: {_listed(empty)}", err=True)
    return documents


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _save(documents: "list[Document]", folder: Path) -> None:
    """Write the texts of web pages to a new folder.

    Raises:
        InputError: the folder exists, or cannot be written.
    """
    from spanqa.files import new_folder

    pages = [document for document in documents if document.is_page]
    with new_folder(folder) as made:
        for number, page in enumerate(pages, 1):
            (made / f"{number}-{Path(page.source).name}.txt").write_text(page.text, "utf-8", newline="")
    what = "1 text of a web page is" if len(pages) == 1 else f"{len(pages):,} texts of web pages are"
    typer.echo(f"spanqa: {what} in {folder}", err=True)


def _counted(answer: "Answer", numbers: Sequence[int]) -> "Answer":
    """Return an answer whose `passage_index` counts all documents, where it counted those that are not empty."""
    closest = None if answer.closest is None else _counted(answer.closest, numbers)
    index = None if answer.passage_index is None else numbers[answer.passage_index]
    return replace(answer, passage_index=index, closest=closest)
