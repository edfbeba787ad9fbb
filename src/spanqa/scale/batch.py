"""One job from its files to its file: what `spanqa batch` runs."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from spanqa import __version__
from spanqa.errors import DatasetError, InputError
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.scale.answering import AnswerRule, Setup, answer_chunks, chunk_tokens, setup_of
from spanqa.scale.job import Chunk, Counts, Identity, Job, Result, bad_line, begin, counts_of, cut_chunks, encoded
from spanqa.scale.outputs import ANSWER_FIELDS, Layout
from spanqa.scale.places import Place
from spanqa.scale.questions import Asked, Columns, asked_of, columns_among
from spanqa.scale.rows import BadRow, Row, all_columns, columns_of, parquet_schema, read_rows, survey
from spanqa.scale.texts import Chosen, asked_of_texts

Answering = Callable[[Iterable[Chunk], Progress], Iterator[Result]]
"""What answers chunks: one reader by default, in order; or anything else, in any order. It may report what it reads of the next one."""


@dataclass(frozen=True, slots=True)
class Input:
    """Rows with their questions; `identity` says which, `total` how many there are about, if that is known.

    `columns` are those that every row has, None where each has its own; `resumable`: they can be read once more.
    """

    rows: Iterable[Asked | BadRow]
    identity: Identity
    total: Callable[[Asked | BadRow, int], int] | None = None
    columns: Sequence[str] | None = None
    resumable: bool = True
    schema: Any = None
    id_column: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a job did: counts of all its rows, those that an earlier run had done, and the seconds of this run."""

    counts: Counts
    resumed_rows: int
    seconds: float
    bad_rows: Path | None


def rows_input(
    place: Place,
    *,
    question: str | None = None,
    context: str | None = None,
    id: str | None = None,
    asks: Sequence[str] = (),
    flat: bool = False,
) -> Input:
    """Return the input that the rows of a file are. `asks` are asked of every row; `flat`: the output has the same columns for all rows.

    Raises:
        DatasetError: the file cannot be read, or lacks a column.
    """
    names = columns_of(place) if place.path is not None else None
    rows = read_rows(place)
    if names is not None:
        columns = columns_among(names, repr(place.name), question=question, context=context, id=id, asks=bool(asks))
    else:
        rows, columns = _columns_of_first(rows, place, question, context, id, bool(asks))
    if place.path is None:
        if flat:
            raise InputError(
                "The columns of standard input are not known before it has ended, so that it cannot become CSV. Write to .jsonl or .parquet."
            )
        return Input(asked_of(rows, columns, asks), {"name": place.name}, resumable=False, id_column=columns.id)
    if flat and names is None:
        names = all_columns(place)
    found = survey(place)
    identity = {"sha256": found.sha256, "bytes": found.bytes, "columns": asdict(columns), "ask": list(asks)}

    def total(last: Asked | BadRow, rows_read: int) -> int:
        row = last.row if isinstance(last, Asked) else last
        return max(rows_read, round(rows_read * found.lines / (row.line or row.number)))

    schema = parquet_schema(place) if place.form == "parquet" else None
    return Input(asked_of(rows, columns, asks), identity, total, names, schema=schema, id_column=columns.id)


def _columns_of_first(
    rows: Iterator[Row | BadRow], place: Place, question: str | None, context: str | None, id: str | None, asks: bool
) -> tuple[Iterator[Row | BadRow], Columns]:
    """Find the columns in the first row that is sound, and return all rows once more."""
    before: list[Row | BadRow] = []
    for row in rows:
        before.append(row)
        if isinstance(row, Row):
            where = f"The first row of {place.name!r}"
            names = list(row.values)
            found = columns_among(names, where, question=question, context=context, id=id, asks=asks)
            return chain(before, rows), found
        if len(before) == 1000:
            raise DatasetError(
                f"None of the first 1,000 rows of {place.name!r} can be read; the first: {before[0].reason}. Is it {place.form}?"  # type: ignore[union-attr]
            )
    return iter(before), Columns(question, context or "context", id)


def texts_input(
    texts: Sequence[tuple[str, str]],
    questions: Sequence[tuple[int, str]],
    choose: Callable[[str], Chosen],
    **choosing: Any,
) -> Input:
    """Return the input that questions of many texts are.

    A text comes with its source, a question with its line. `choose` says what of the texts is read for a question; `choosing` are
    its settings, which are part of what the job is.
    """
    digest = hashlib.sha256()
    for each in chain.from_iterable(texts):
        digest.update(hashlib.sha256(each.encode("utf-8", "surrogatepass")).digest())
    asked = "\n".join(question for _, question in questions)
    identity = {
        "sha256": digest.hexdigest(),
        "texts": len(texts),
        "questions_sha256": hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest(),
        **choosing,
    }
    rows = asked_of_texts(questions, choose)
    return Input(rows, identity, lambda *_: len(questions), ("question", "windows_read", "windows_total"))


def run_batch(
    reader: Reader,
    given: Input,
    out: Place,
    *,
    rule: AnswerRule = AnswerRule(),
    prediction: str = "prediction",
    drop: Sequence[str] = (),
    delimiter: str = ",",
    overwrite: bool = False,
    text: bool = True,
    progress: Progress = silent,
    answering: Answering | None = None,
    stream: IO[bytes] | None = None,
    note: Callable[[str], object] = str,
    setup: Setup | None = None,
) -> Summary:
    """Answer all rows and write them to a file; go on with a job that was interrupted.

    Where `out` is standard output, they are written to `stream`, chunk by chunk, and `note` is called with a line for each bad row.
    `answering` takes the place of the reader, whose model and settings it has; `setup` is then what it computes with.

    Raises:
        InputError: the output exists, cannot be written, is another job's, or would have a column twice.
    """
    started = time.monotonic()
    layout = Layout(
        out,
        prediction,
        rule.top_k > 1,
        given.columns,
        frozenset(drop),
        delimiter,
        given.schema if out.form == "parquet" else None,
    )
    _check_columns(layout, given.columns)
    setup = setup or setup_of(reader)
    most = chunk_tokens(reader.checkpoint, setup, reader.windows.max_seq_length)
    answering = answering or _by_one(reader, rule, given.id_column)
    if out.path is None:
        counts = _to_stream(
            answering(cut_chunks(given.rows, most), silent), layout, text, stream or _standard_output(), note
        )
        return Summary(counts, 0, time.monotonic() - started, None)
    identity = _identity(reader, setup, given, layout, rule, most) | {"no_text": not text}
    with begin(out.path, layout, identity, overwrite=overwrite, text=text, resumable=given.resumable) as job:
        before = job.counts.rows
        _run(job, given, most, answering, progress)
        counts = job.counts
        job.finish()
    return Summary(counts, before, time.monotonic() - started, job.bad_rows if counts.bad else None)


def _standard_output() -> IO[bytes]:
    if sys.stdout is None:
        raise InputError("Standard output is closed. Give a file to write to.")
    return sys.stdout.buffer


def _by_one(reader: Reader, rule: AnswerRule, id_column: str | None) -> Answering:
    return lambda chunks, progress: answer_chunks(chunks, reader, rule, id_column, progress)


def _run(job: Job, given: Input, most: int, answering: Answering, progress: Progress) -> None:
    waiting: dict[int, Chunk] = {}
    rows = expected = shown = 0

    def pending() -> Iterator[Chunk]:
        nonlocal rows, expected
        for chunk in cut_chunks(given.rows, most):
            rows += len(chunk.rows)
            expected = rows if given.total is None else given.total(chunk.rows[-1], rows)
            if chunk.number not in job.done:
                waiting[chunk.number] = chunk
                yield chunk

    def of_chunk(done: int, total: int, note: str = "") -> None:
        nonlocal shown
        numbers = list(waiting)  # another thread may add one
        # While the last one is decoded, the next is read: then this shows too little.
        reading = waiting.get(numbers[0]) if numbers else None
        share = 0 if reading is None else len(reading.rows) * done // max(total, 1)
        shown = max(shown, min(job.counts.rows + share, expected))
        progress(shown, expected)

    for result in answering(pending(), of_chunk):
        job.commit(result)
        del waiting[result.number]
        of_chunk(0, 1)


def _to_stream(
    results: Iterator[Result], layout: Layout, text: bool, stream: IO[bytes], note: Callable[[str], object]
) -> Counts:
    counts = Counts()
    for result in results:
        data, rows, bads = encoded(result, layout)
        stream.write(data)
        stream.flush()
        for each in bads:
            note(bad_line(each, text=text))
        counts.add(counts_of(rows, bads))
    return counts


def _check_columns(layout: Layout, columns: Sequence[str] | None) -> None:
    """Check that no column would be there twice, and that those which are left out are there.

    Raises:
        InputError: one is, or is not.
    """
    if not layout.prediction.strip() or not layout.prediction.isprintable():
        raise InputError(f"--into is {layout.prediction!r}; expected the name of a column.")
    if columns is None:
        return
    kept = [name for name in columns if name not in layout.dropped]
    added = [layout.prediction, f"{layout.prediction}s"]
    if layout.place.form in ("csv", "tsv"):
        added += [f"{layout.prediction}_{name}" for name in ("question", *ANSWER_FIELDS, "closest")]
    twice = sorted(set(kept) & set(added))
    if twice:
        raise InputError(
            f"The input has a column {twice[0]!r} already. Name that of the answers with --into, for example: --into spanqa"
        )
    missing = sorted(layout.dropped - set(columns))
    if missing:
        raise InputError(f"There is no column {missing[0]!r} to drop. There are: {', '.join(columns)}.")


def _identity(reader: Reader, setup: Setup, given: Input, layout: Layout, rule: AnswerRule, most: int) -> Identity:
    """Return all that the result depends on."""
    checkpoint = reader.checkpoint
    return {
        "spanqa": __version__,
        "model": checkpoint.weights.sha256,
        "tokenizer": checkpoint.tokenizer.fingerprint,
        "backend": f"{setup.backend} {setup.dtype} {setup.layout}",
        "windows": asdict(reader.windows),
        "answers": asdict(reader.answers),
        "calibration": asdict(reader.calibration),
        "input": given.identity,
        **asdict(rule),
        "output": f"{layout.place.form} {layout.place.compression}".strip(),
        "into": layout.prediction,
        "drop": sorted(layout.dropped),
        "chunk_tokens": most,
    }
