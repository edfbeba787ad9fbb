"""A job that can be killed at any moment: chunks in, parts out, and one file at the end.

    OUT.job/job.json       what the job is: model, settings, columns, input; a job is gone on with only if all of it is the same
    OUT.job/done.jsonl     a line for each chunk that is done, written when its part is whole
    OUT.job/00000001.part  the rows of the first chunk, as they will be in OUT
    OUT.job/00000001.bad   its bad rows, if it has any
    OUT.bad.jsonl          the bad rows of all chunks, readable by their owner only

Chunks are the same whenever the same input is read again, and each is batched alone: the result does not depend on interruptions.
They may be done in any order.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spanqa.errors import InputError
from spanqa.files import claimed, replacing
from spanqa.scale.outputs import Answered, Layout, json_text
from spanqa.scale.questions import Asked
from spanqa.scale.rows import BadRow

CHUNK_ROWS, CHUNK_BYTES = 20_000, 16 << 20
"""A chunk holds at most so many rows and bytes of them, or one row."""

_LEAST_FREE = 64 << 20
_OURS = re.compile(r"job\.json|done\.jsonl|\d{8,}\.(part|bad)|\..*\.partial")  # the files of a job
_UNWRITABLE = (ValueError, TypeError, NotImplementedError, RecursionError, OverflowError)  # Arrow's errors among them

Identity = dict[str, Any]
"""What a job is, by name; a value that can be compared and shown."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are read together; `number` counts from 1."""

    number: int
    rows: tuple[Asked | BadRow, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the rows of a chunk: one `Answered` for each question, and the bad rows."""

    number: int
    answered: tuple[Answered, ...]
    bad: tuple[BadRow, ...]


@dataclass(slots=True)
class Counts:
    """Rows that were read, the bad ones among them, and questions with and without an answer."""

    rows: int = 0
    bad: int = 0
    answered: int = 0
    unanswered: int = 0

    def add(self, other: "Counts") -> None:
        self.rows += other.rows
        self.bad += other.bad
        self.answered += other.answered
        self.unanswered += other.unanswered


def cut_chunks(rows: Iterable[Asked | BadRow], most_tokens: int) -> Iterator[Chunk]:
    """Yield the rows in chunks of at most about so many tokens to read; a row is never divided."""
    held: list[Asked | BadRow] = []
    read = size = number = 0
    for each in rows:
        to_read, taken = (each.tokens, each.row.size) if isinstance(each, Asked) else (0, each.size)
        full = read + to_read > most_tokens or size + taken > CHUNK_BYTES
        if held and (full or len(held) == CHUNK_ROWS):
            number += 1
            yield Chunk(number, tuple(held))
            held, read, size = [], 0, 0
        held.append(each)
        read, size = read + to_read, size + taken
    if held:
        yield Chunk(number + 1, tuple(held))


class Job:
    """A job in work; made by `begin`."""

    def __init__(self, out: Path, layout: Layout, *, text: bool) -> None:
        self.out, self.layout, self._text = out, layout, text
        self.folder = out.with_name(f"{out.name}.job")
        self.bad_rows = out.with_name(f"{out.name}.bad.jsonl")
        self.done: set[int] = set()
        self.counts = Counts()

    def commit(self, result: Result) -> None:
        """Keep the result of a chunk; from then on it is done."""
        data, rows, bads = encoded(result, self.layout)
        counts = counts_of(rows, bads)
        with stopping_at_full_disk(self.out):
            if bads:
                self.write(
                    f"{result.number:08}.bad", "".join(map(self._bad_line, bads)).encode("utf-8", "backslashreplace")
                )
            self.write(f"{result.number:08}.part", data)
            with (self.folder / "done.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"chunk": result.number, **asdict(counts)}) + "\n")
                log.flush()
                os.fsync(log.fileno())
        self.done.add(result.number)
        self.counts.add(counts)

    def finish(self) -> None:
        """Put the parts together under the name of the output, and end the job."""
        numbers = sorted(self.done)
        with stopping_at_full_disk(self.out):
            bads = [path for path in (self.folder / f"{number:08}.bad" for number in numbers) if path.exists()]
            if bads:
                with replacing(self.bad_rows, "wb", private=True) as file:
                    for path in bads:
                        file.write(path.read_bytes())
            else:
                self.bad_rows.unlink(missing_ok=True)
            with replacing(self.out, "wb") as file:
                self.layout.join([self.folder / f"{number:08}.part" for number in numbers], file)
                file.flush()
                os.fsync(file.fileno())
            (self.folder / "job.json").unlink()  # first, so that what is left by a kill is no job
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the job, which is whole or not there whatever happens to the machine."""
        with replacing(self.folder / name, "wb", private=True) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _bad_line(self, row: BadRow) -> str:
        return bad_line(row, text=self._text) + "\n"


def bad_line(row: BadRow, *, text: bool) -> str:
    """Return a bad row as a line of JSON; without `text` it says nothing of what it holds but its id."""
    fields = {"row": row.number, "line": row.line, "id": row.id, "reason": row.reason, "content": row.content}
    if not text:
        del fields["content"]
    return json_text({name: value for name, value in fields.items() if value is not None})


def encoded(result: Result, layout: Layout) -> tuple[bytes, Sequence[Answered], Sequence[BadRow]]:
    """Return the part of a chunk, and the rows that are in it; what the format cannot hold becomes a bad row."""
    try:
        return layout.encode(result.answered), result.answered, result.bad
    except _UNWRITABLE:
        bads = {row.number: row for row in result.bad}
        for each in result.answered:
            try:
                layout.encode([each])
            except _UNWRITABLE as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                bads[each.row.number] = BadRow(each.row.number, each.row.line, f"cannot be written: {reason}")
        kept = [each for each in result.answered if each.row.number not in bads]
        return layout.encode(kept), kept, sorted(bads.values(), key=lambda row: row.number)


def counts_of(answered: Sequence[Answered], bads: Sequence[BadRow]) -> Counts:
    """Return the counts of a chunk."""
    rows = len({each.row.number for each in answered} | {each.number for each in bads})
    found = sum(each.prediction["text"] != "" for each in answered)
    return Counts(rows, len(bads), found, len(answered) - found)


def check_output(out: Path, *, overwrite: bool) -> None:
    """Check what can be checked of an output before anything is read or started.

    Raises:
        InputError: it exists, or its folder does not.
    """
    if out.is_dir():
        raise InputError(f"{str(out)!r} is a folder. Give the name of a file.")
    if out.exists() and not overwrite:
        raise InputError(f"{str(out)!r} already exists. Choose another name, or give --overwrite.")
    if not out.parent.is_dir():
        raise InputError(f"The folder {str(out.parent)!r} does not exist. Create it first.")


@contextmanager
def begin(
    out: Path, layout: Layout, identity: Identity, *, overwrite: bool, text: bool, resumable: bool = True
) -> Iterator[Job]:
    """Begin a job, or go on with one that was interrupted; others are kept out of it during the `with` block.

    `text`: whether bad rows are kept with what they hold. With `overwrite`, a finished output is replaced at the end, and a job
    that was another one, or whose input cannot be read again (`resumable`), is forgotten.

    Raises:
        InputError: the output exists, is in work, cannot be written, or was begun as another job: the message names what differs.
    """
    check_output(out, overwrite=overwrite)
    job = Job(out, layout, text=text)
    try:
        with claimed(job.folder):
            with stopping_at_full_disk(out):
                _prepare(job, json.loads(json.dumps(identity)), overwrite, resumable)
            yield job
    finally:
        with suppress(OSError):
            job.folder.rmdir()  # where nothing was begun


def _prepare(job: Job, identity: Identity, overwrite: bool, resumable: bool) -> None:
    """Make the folder that of this job, and find what is done."""
    job.folder.chmod(0o700)
    free = shutil.disk_usage(job.folder).free
    if free < _LEAST_FREE:
        raise InputError(
            f"The disk of {str(job.out)!r} is full: {free >> 20} MB are free. Make at least {_LEAST_FREE >> 20} MB free."
        )
    if not _is_same(job, identity, overwrite, resumable):
        held = list(job.folder.iterdir())
        foreign = sorted(path.name for path in held if not _OURS.fullmatch(path.name))
        if foreign:
            raise InputError(
                f"{str(job.folder)!r} holds {foreign[0]!r}, which is of no job. Move it, or give the output another name."
            )
        for path in held:
            path.unlink()
        job.write("job.json", json.dumps(identity, indent=2).encode())
    for number, counts in _done(job.folder).items():
        job.done.add(number)
        job.counts.add(counts)


def _is_same(job: Job, identity: Identity, overwrite: bool, resumable: bool) -> bool:
    """Return whether the folder holds this job, begun earlier.

    Raises:
        InputError: it holds another one, which is not to be forgotten.
    """
    path = job.folder / "job.json"
    try:
        before = json.loads(path.read_text("utf-8"))
        if not before or not isinstance(before, dict):
            raise ValueError
    except FileNotFoundError:
        return False
    except ValueError:
        if overwrite:
            return False
        raise InputError(
            f"{str(path)!r} is damaged, so that its job cannot go on. Give --overwrite to begin anew."
        ) from None
    if not resumable and not overwrite:
        raise InputError(
            f"{str(job.folder)!r} holds an unfinished job, and standard input cannot be read again from where it was. Give --overwrite to begin anew."
        )
    names = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
    if names and not overwrite:
        listed = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(identity.get(name))}" for name in names)
        raise InputError(
            f"{str(job.folder)!r} holds an unfinished job with other settings: {listed}. Run it with those to go on, or give --overwrite to begin anew."
        )
    return resumable and not names


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _done(folder: Path) -> dict[int, Counts]:
    """Return the chunks that are done; a line that was not finished is none."""
    done: dict[int, Counts] = {}
    log = folder / "done.jsonl"
    if not log.exists():
        return done
    data = log.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(log, len(whole))
    for line in whole.splitlines():
        try:
            fields: dict[str, int] = json.loads(line)
            number, counts = fields.pop("chunk"), Counts(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):  # damaged: the chunk is done again
            continue
        kept = ("part", "bad") if counts.bad else ("part",)
        if all((folder / f"{number:08}.{each}").exists() for each in kept):
            done[number] = counts
    return done


@contextmanager
def stopping_at_full_disk(out: Path) -> Iterator[None]:
    """Say what is left when the disk is full.

    Raises:
        InputError: something cannot be written.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise InputError(
            f"{str(out)!r} cannot be written: {'the disk is full' if full else error.strerror or error}. The chunks that are done are "
            "kept: run the same command again to go on."
        ) from error
