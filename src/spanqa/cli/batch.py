"""`spanqa batch`: a file of questions and texts to a file of answers."""

import glob
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.documents import Document
    from spanqa.reader import Reader
    from spanqa.scale import AnswerRule, Fleet, Input, Place, Summary

ROWS = "Rows"
TEXTS = "Texts"
RAY = "Ray"

_DRIVER = {"backend": "auto", "device": "cpu", "dtype": "auto", "threads": None}
"""With Ray, the reader of this process reads settings and encodes texts; the actors compute."""


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Rows: .jsonl, .csv, .tsv or .parquet, also .gz or .zst; - is JSON Lines from standard input. Or texts: a folder, a "
            "text file, or a pattern in quotes, such as 'reports/*.txt'.",
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="The file to write, in the format of its ending; - is JSON Lines to standard output."
        ),
    ],
    ask: Annotated[
        list[str] | None,
        typer.Option(metavar="QUESTION", help="Ask this of every row, or of the texts; can be given several times."),
    ] = None,
    questions: Annotated[
        str | None, typer.Option(metavar="FILE", help="With texts: ask each line of this file.", rich_help_panel=TEXTS)
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="The column of the question. Default: by its usual names.", rich_help_panel=ROWS
        ),
    ] = None,
    context: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of the text to read.", rich_help_panel=ROWS)
    ] = None,
    id: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="The column that names a row, for the list of bad rows.", rich_help_panel=ROWS
        ),
    ] = None,
    into: Annotated[str, typer.Option(metavar="COLUMN", help="The column of the answers.")] = "prediction",
    drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Do not copy this column; can be given several times.", rich_help_panel=ROWS
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Write a list of at most this many answers, too, best first.")] = 1,
    threshold: options.Threshold = None,
    no_answer: options.NoAnswer = "auto",
    min_probability: options.MinProbability = 0.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT, and forget an unfinished job with other settings.")
    ] = False,
    no_text: Annotated[bool, typer.Option("--no-text", help="List bad rows without what they hold.")] = False,
    max_windows: Annotated[
        int | None,
        typer.Option(min=1, help="As in `spanqa ask`.", show_default=False, rich_help_panel=TEXTS),
    ] = None,
    read_all: Annotated[bool, typer.Option("--read-all", help="As in `spanqa ask`.", rich_help_panel=TEXTS)] = False,
    encoding: Annotated[
        str | None, typer.Option(help="The encoding of the texts.", show_default=False, rich_help_panel=TEXTS)
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Answer on actors of Ray, on one machine or many.", rich_help_panel=RAY)
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="Join this Ray; auto: the one of this machine. Default: start one for this job.", rich_help_panel=RAY
        ),
    ] = None,
    actors: Annotated[
        str | None,
        typer.Option(
            metavar="N or MIN-MAX", help="How many, each with its model. Default: as many as fit.", rich_help_panel=RAY
        ),
    ] = None,
    gpus_per_actor: Annotated[
        float, typer.Option(metavar="F", help="0.5 puts two actors on a GPU.", rich_help_panel=RAY)
    ] = 0.0,
    cpus_per_actor: Annotated[
        float | None,
        typer.Option(metavar="N", help="Default: 1 beside a GPU, else 4.", show_default=False, rich_help_panel=RAY),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
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
    """Answer a file of questions and texts, however large it is.

    A job that was interrupted goes on where it was when the same command is run again. Rows that cannot be read are listed in
    OUT.bad.jsonl; the job goes on without them.
    """
    from spanqa.answers import least_score
    from spanqa.progress import silent
    from spanqa.retrieval import TextIndex
    from spanqa.scale import AnswerRule, place_of, run_batch, texts_input
    from spanqa.scale.job import check_output
    from spanqa.windows import check_question

    place = place_of(out)
    _check_is_another_file(source, place)
    if place.path is not None:
        check_output(place.path, overwrite=overwrite)
    for each in ask or []:
        check_question(each)
    rule = AnswerRule(top_k, threshold, no_answer, min_probability)
    fleet = _fleet(ray, address, actors, gpus_per_actor, cpus_per_actor, place)
    names = {
        "model": model,
        "revision": revision,
        "verify_key": verify_key,
        "backend": backend,
        "device": device,
        "dtype": dtype,
        "threads": threads,
    }
    here = names if fleet is None else {"model": model, "revision": revision, "verify_key": verify_key, **_DRIVER}
    texts = _texts_of(source)
    of_rows = {"--question": question, "--context": context, "--id": id, "--drop": drop}
    of_texts = {"--questions": questions, "--max-windows": max_windows, "--read-all": read_all, "--encoding": encoding}
    _check_unused(of_texts if texts is None else of_rows, "texts" if texts is None else "rows")
    if texts is None:
        given, delimiter = _rows(source, place, question, context, id, ask or [])
    else:
        _check_is_no_text(place, texts)
        documents, asked = _documents(texts, encoding), _questions(ask or [], questions, encoding)
    reader = options.load_reader(
        **here,
        max_seq_length=max_seq_length,
        overlap=overlap,
        max_answer_tokens=max_answer_tokens,
    )
    least_score(reader.answers, no_answer, threshold)  # type: ignore[arg-type]
    if texts is not None:
        index = TextIndex(reader, [each.text for each in documents], [each.source for each in documents])
        choose = partial(index.choose, max_windows=max_windows, read_all=read_all)
        named = [(each.source, each.text) for each in documents]
        given, delimiter = texts_input(named, asked, choose, **choose.keywords), ","
    delimiter = "\t" if place.form == "tsv" else delimiter
    console = place.path is None
    try:
        with (
            nullcontext(silent) if console else options.progress_bar("rows") as progress,
            _answering(fleet, reader, rule, given.id_column, names) as answering,
        ):
            done = run_batch(
                reader,
                given,
                place,
                rule=rule,
                prediction=into,
                drop=drop or [],
                delimiter=delimiter,
                overwrite=overwrite,
                text=not no_text,
                progress=progress,
                note=partial(typer.echo, err=True),
                **answering,
            )
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a signal that ends the run
        if given.resumable and not console:
            typer.echo("\nspanqa: interrupted. Run the same command again to go on.", err=True)
        raise
    _say(done, out, as_json, err=console)


def _fleet(
    ray: bool, address: str | None, actors: str | None, gpus: float, cpus: float | None, out: "Place"
) -> "Fleet | None":
    """Return what is wanted of Ray; None: nothing."""
    given = {"--address": address, "--actors": actors, "--gpus-per-actor": gpus or None, "--cpus-per-actor": cpus}
    if not ray:
        for name, value in given.items():
            if value is not None:
                raise typer.BadParameter("is for --ray", param_hint=name)
        return None
    from spanqa.extras import require
    from spanqa.scale import Fleet

    require("ray")
    if out.path is None:
        raise typer.BadParameter("with --ray chunks end in any order; give the name of a file", param_hint="OUT")
    least, most = _least_and_most(actors)
    return Fleet(least, most, cpus, gpus, address)


def _least_and_most(actors: str | None) -> tuple[int, int | None]:
    if actors is None:
        return 1, None
    numbers = actors.split("-")
    if len(numbers) > 2 or not all(number.strip().isdecimal() for number in numbers):
        raise typer.BadParameter(
            f"{actors!r} is neither a number, such as 4, nor two, such as 1-8", param_hint="--actors"
        )
    return int(numbers[0]), int(numbers[-1])


@contextmanager
def _answering(
    fleet: "Fleet | None", reader: "Reader", rule: "AnswerRule", id: str | None, names: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield what `run_batch` needs to answer on Ray; nothing where the reader answers."""
    if fleet is None:
        yield {}
        return
    from spanqa.scale import ray_actors

    with (
        redirect_stdout(sys.stderr),  # Ray prints what it says of its machines; standard output is for the summary
        ray_actors(reader, fleet, rule=rule, id_column=id, **names) as actors,
    ):
        yield {"answering": actors, "setup": actors.setup}


def _check_is_another_file(source: str, out: "Place") -> None:
    """Refuse an output that would replace its input, as would the list of its bad rows."""
    from spanqa.errors import InputError

    if source == "-" or out.path is None or not Path(source).exists():
        return
    for path in (out.path, out.path.with_name(f"{out.path.name}.bad.jsonl")):
        if path.exists() and path.samefile(source):
            raise InputError(f"{source!r} is the input, and this job would replace it. Give the output another name.")


def _check_is_no_text(out: "Place", texts: list[str]) -> None:
    """Refuse an output among the texts: the next run would read it, or what there is of it, as one of them."""
    from spanqa.errors import InputError

    if out.path is None:
        return
    path = out.path.resolve()
    for each in map(Path, texts):
        if path == each.resolve() or (each.is_dir() and path.is_relative_to(each.resolve())):
            raise InputError(
                f"{str(out.path)!r} would be one of the texts of {str(each)!r}. Write it to another folder."
            )


def _check_unused(options: Mapping[str, object], what: str) -> None:
    """Refuse options that would change nothing."""
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"is for {what}, which IN does not hold", param_hint=name)


def _texts_of(source: str) -> list[str] | None:
    """Return the files and folders of texts that the input is; None where it is a file of rows."""
    if source == "-":
        return None
    if Path(source).is_dir():
        return [source]
    if Path(source).suffix.lower() in (".txt", ".md", ".html", ".htm", ".xhtml") and Path(source).exists():
        return [source]
    if not Path(source).exists() and glob.has_magic(source):
        from spanqa.errors import InputError

        found = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - the pattern may begin with a folder
        if not found:
            raise InputError(f"There is no file {source!r}. Check the pattern.")
        return found
    return None


def _rows(
    source: str,
    out: "Place",
    question: str | None,
    context: str | None,
    id: str | None,
    asks: list[str],
) -> "tuple[Input, str]":
    """Return the input that a file of rows is, and the character between cells of a table like it."""
    from spanqa.scale import delimiter_among, place_of, rows_input

    if asks and question is not None:
        raise typer.BadParameter("give this or --question, not both", param_hint="--ask")
    place = place_of(source)
    flat = out.form in ("csv", "tsv")
    given = rows_input(place, question=question, context=context, id=id, asks=asks, flat=flat)
    return given, delimiter_among(place) if place.form == "csv" and flat else ","


def _questions(asks: list[str], questions: str | None, encoding: str | None) -> list[tuple[int, str]]:
    """Return the questions to ask of texts, each with its line in its file."""
    from spanqa.documents import read_document
    from spanqa.files import read_standard_input

    asked = list(enumerate(asks, 1))
    if questions is not None:
        data = read_standard_input() if questions == "-" else None
        text = read_document("standard input" if questions == "-" else questions, data, encoding).text
        asked += [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not asked:
        raise typer.BadParameter("ask something of the texts: give this or --questions", param_hint="--ask")
    return asked


def _documents(names: list[str], encoding: str | None) -> "list[Document]":
    """Return the texts of all files that hold any."""
    from spanqa.documents import read_documents
    from spanqa.errors import InputError

    documents, skipped = read_documents(names, encoding)
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise InputError(f"There is no text to read in {', '.join(names)}: no file there holds text.")
    if skipped:
        typer.echo(f"spanqa: skipped {len(skipped):,} files that are not text, such as {skipped[0]}", err=True)
    return documents


def _say(done: "Summary", out: str, as_json: bool, *, err: bool) -> None:
    """Print what was done."""
    counts = done.counts
    if as_json:
        fields = asdict(counts) | {
            "out": out,
            "bad_rows": None if done.bad_rows is None else str(done.bad_rows),
            "resumed_rows": done.resumed_rows,
            "seconds": round(done.seconds, 3),
        }
        typer.echo(json.dumps(fields), err=err)
        return
    rate = (counts.rows - done.resumed_rows) / max(done.seconds, 1e-9)
    typer.echo(
        f"{out}: {_number(counts.rows, 'row')}: {counts.answered:,} answered, {counts.unanswered:,} without an answer; "
        f"{done.seconds:,.1f} s, {rate:,.1f} rows/s",
        err=err,
    )
    if done.resumed_rows:
        typer.echo(f"{_number(done.resumed_rows, 'row')} of them had been done before.", err=err)
    if counts.bad:
        where = "" if done.bad_rows is None else f": {done.bad_rows} says why"
        typer.echo(f"{_number(counts.bad, 'row')} could not be read{where}", err=True)


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
