"""Texts to windows on disk: a corpus of any size is read once, in bounded memory, and drawn from in any order.

    files, folders -> texts -> tokens and words -> windows -> FOLDER/windows.arrow, FOLDER/corpus.json

A window is a stretch of a text, cut between words, with its tokens and the number of each token's word. The file is mapped
into memory, so epochs, shuffling, several processes and resumed runs read the same windows. It is complete or not there:
the folder gets its name when all is written.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from spanqa.documents import files_below, read_document
from spanqa.errors import DatasetError, InputError
from spanqa.extras import require
from spanqa.files import new_folder, write_json
from spanqa.tokens import Tokenizer
from spanqa.train.masking import NO_WORD, cut_words, wanted, words_of

PART = 1 << 16
"""Code points: longer texts are cut at the end of a paragraph, a line or a word, and count as several."""

LARGE = 64 << 20
"""Bytes: a larger text is never in memory as a whole. It has to be plain UTF-8."""

FEW_TEXTS = 10
"""Of fewer texts, the last windows are held out, not whole texts."""

_AT_ONCE = 32  # texts that are encoded in one call
_TABLES = (".csv", ".tsv", ".json")
_ROWS = (".jsonl", ".ndjson", ".parquet")
_WINDOWS, _ABOUT = "windows.arrow", "corpus.json"


@dataclass(slots=True)
class CorpusReport:
    """What was read: texts (parts of long ones count), their windows, and all tokens that were read.

    `empty` texts hold nothing to learn from. `unknown_tokens` are those that the tokenizer has no token for. `long_word_tokens`
    belong to words that are too long to be chosen, as runs of Thai letters are. `skipped` are files in folders that hold no text.
    """

    texts: int = 0
    empty: int = 0
    windows: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    long_word_tokens: int = 0
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        empty = f"; {self.empty:,} texts hold nothing to learn from" if self.empty else ""
        skipped = f"; no text in {', '.join(self.skipped[:5])}" if self.skipped else ""
        more = f" and {len(self.skipped) - 5:,} other files" if len(self.skipped) > 5 else ""
        return f"{self.texts:,} texts, {self.windows:,} windows, {self.tokens:,} tokens{empty}{skipped}{more}"


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file of texts. One that was `named` has to be readable; one that was found in a folder can be skipped."""

    path: str
    named: bool

    @property
    def ending(self) -> str:
        """The ending of its name, in lower case, without ".gz"."""
        return Path(self.path.lower().removesuffix(".gz")).suffix


def text_files(names: Iterable[str]) -> list[TextFile]:
    """Return the files that the names stand for: files, and folders with all that is below them, but hidden files.

    Raises:
        DatasetError: a folder cannot be read.
    """
    found: list[TextFile] = []
    for name in names:
        inside = Path(name).is_dir()
        found += [TextFile(str(path), False) for path in files_below(Path(name))] if inside else [TextFile(name, True)]
    return found


# --- files to texts


def read_texts(files: Iterable[TextFile], column: str, report: CorpusReport) -> Iterator[str]:
    """Yield the texts of files, long ones in parts: of plain text, Markdown and web pages, and of a column of JSON Lines or Parquet.

    Files in folders that hold no text are noted in the report.

    Raises:
        DatasetError: a file that was named cannot be read, or rows lack the column, or hold something else in it.
        NotInstalledError: Parquet needs pyarrow.
    """
    for file in files:
        if file.ending in _ROWS:
            rows = _parquet if file.ending == ".parquet" else _json_lines
            for text in rows(file.path, column):
                yield from _parts(text)
            continue
        try:
            if file.ending in _TABLES:
                raise DatasetError(
                    f"{file.path!r} holds a table. Expected text, Markdown, or JSON Lines or Parquet with a column of texts; write "
                    f'one object a line, for example: {{"{column}": "..."}}'
                )
            yield from _plain(file.path)
        except DatasetError:
            if file.named:
                raise
            report.skipped.append(file.path)


def _plain(path: str) -> Iterator[str]:
    with _opened(path) as stream:
        head = stream.read(LARGE)
        if len(head) < LARGE:
            yield from _parts(read_document(path, head).text)
            return
        stream.seek(0)
        text, left = TextIOWrapper(stream, "utf-8-sig", newline=""), ""
        try:
            while piece := text.read(PART):
                *whole, left = _parts(left + piece)
                yield from whole
        except UnicodeDecodeError:
            raise DatasetError(
                f"{path!r} is not UTF-8. Convert it first, for example: iconv -f cp1252 -t utf-8 OLD > NEW"
            ) from None
        yield left


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file, and unpack it as it is read if it is gzip'd.

    Raises:
        DatasetError: it cannot be read, or is damaged.
    """
    try:
        with Path(path).open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            yield gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[misc]
    except FileNotFoundError:
        raise DatasetError(f"File {path!r} does not exist. Check the name, or give the full path.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{path!r} is a damaged gzip file ({error}). Download or create it again.") from None
    except OSError as error:
        raise DatasetError(f"{path!r} cannot be read: {error.strerror}.") from None


def _json_lines(path: str, column: str) -> Iterator[str]:
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            place = f"{path!r}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{place} is not JSON in UTF-8: {error}.") from None
            if not isinstance(row, dict) or column not in row:
                names = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)[:60]
                raise DatasetError(
                    f"{place} lacks {column!r}; it has {names or 'nothing'}. Name it with --text-column."
                )
            yield _checked(row[column], place, column)


def _parquet(path: str, column: str) -> Iterator[str]:
    require("parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise DatasetError(
                    f"{path!r} lacks the column {column!r}; it has {', '.join(names)}. Name it with --text-column."
                )
            number = 0
            for batch in table.iter_batches(64, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _checked(value, f"{path!r}, row {number}", column)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path!r} cannot be read as Parquet: {error}") from None


def _checked(value: Any, place: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DatasetError(f"{place}: {column!r} is {value!r:.60}; expected a text.")
    return value


_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"\s"))


def _parts(text: str) -> Iterator[str]:
    """Yield a text in parts of at most `PART` code points; they end with a paragraph, else with a line, else with a word."""
    first = 0
    while len(text) - first > PART:
        place = (first + PART // 2, first + PART)
        ends = (list(end.finditer(text, *place)) for end in _ENDS)
        last = next((found[-1].end() for found in ends if found), None)
        stop = first + PART if last is None else last
        yield text[first:stop]
        first = stop
    yield text[first:]


# --- texts to windows


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """What decides the windows: `room` is the tokens of text that fit into one, `column` that of the texts in tables."""

    room: int
    column: str


def write_corpus(files: Sequence[TextFile], tokenizer: Tokenizer, settings: CorpusSettings, folder: Path) -> None:
    """Read texts and write their windows to a new folder.

    Raises:
        DatasetError: as `read_texts`; or a text is not valid Unicode.
        InputError: the folder cannot be written.
    """
    import pyarrow

    schema = pyarrow.schema(
        [("text", pyarrow.int64()), *((name, pyarrow.list_(pyarrow.int32())) for name in ("ids", "words"))]
    )
    report = CorpusReport()
    digest = hashlib.sha256()
    with new_folder(folder) as work:
        with pyarrow.OSFile(str(work / _WINDOWS), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
            found = read_texts(files, settings.column, report)
            while texts := list(islice(found, _AT_ONCE)):
                rows = list(_windows(texts, tokenizer, settings.room, report, digest))
                if rows:
                    columns = (
                        pyarrow.array(column, each.type)
                        for column, each in zip(zip(*rows, strict=True), schema, strict=True)
                    )
                    writer.write_batch(pyarrow.record_batch(list(columns), schema=schema))
        about = {
            "identity": identity(files, tokenizer, settings),
            "sha256": digest.hexdigest(),
            "report": asdict(report),
        }
        write_json(work / _ABOUT, about)


def identity(files: Sequence[TextFile], tokenizer: Tokenizer, settings: CorpusSettings) -> str:
    """Return a hash of what was asked for: the names and sizes of the files, the tokenizer and the settings."""
    sizes = [(file.path, Path(file.path).stat().st_size if Path(file.path).exists() else None) for file in files]
    asked = [sizes, tokenizer.fingerprint, asdict(settings)]
    return hashlib.sha256(json.dumps(asked).encode("utf-8", "surrogatepass")).hexdigest()


def _windows(
    texts: Sequence[str], tokenizer: Tokenizer, room: int, report: CorpusReport, digest: Any
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.int32]]]:
    """Yield the text's number, the token ids and the words of each window."""
    unknown, longest = tokenizer.unknown_id, wanted(room)
    filled = [text for text in texts if text.strip()]
    report.empty += len(texts) - len(filled)
    for text, tokens in zip(filled, tokenizer.encode_many(filled, offsets=True) if filled else [], strict=True):
        words = words_of(text, tokens, unknown)
        cuts = cut_words(words, room)
        report.tokens += len(tokens)
        report.unknown_tokens += int((tokens.ids == unknown).sum())
        if not cuts:
            report.empty += 1
            continue
        mark = hashlib.blake2b(text.encode(), digest_size=8).digest()
        digest.update(mark)
        report.texts += 1
        report.windows += len(cuts)
        lengths = np.bincount(words[words != NO_WORD])
        report.long_word_tokens += int(lengths[lengths > longest].sum())
        for first, stop in cuts:
            yield int.from_bytes(mark, "big", signed=True), tokens.ids[first:stop], words[first:stop]


# --- windows, again


@dataclass(frozen=True, slots=True, eq=False)
class TextWindow:
    """A stretch of a text: its number in the corpus, its token ids and the words that they belong to, int32 `[token]`."""

    number: int
    ids: NDArray[np.int32]
    words: NDArray[np.int32]


class Corpus:
    """The windows of a folder that `write_corpus` wrote, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        import datasets

        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        self.identity: str = about["identity"]
        self.sha256: str = about["sha256"]
        self.report = CorpusReport(**about["report"])
        table = datasets.Dataset.from_file(str(folder / _WINDOWS)).data
        self._texts, self._ids, self._words = (table.column(name) for name in ("text", "ids", "words"))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, number: int) -> TextWindow:
        ids, words = (column[number].values.to_numpy() for column in (self._ids, self._words))
        return TextWindow(number, ids, words)

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the windows to train on, and of those that are held out.

        Whole texts are held out, until `held_out` windows are: chosen by a hash of the text, so that they are the same whatever the
        order of files, and copies of a text are on one side. Of a few texts, the last windows are held out instead.

        Raises:
            InputError: there are not two windows.
        """
        if len(self) < 2:
            unknown, tokens = self.report.unknown_tokens, self.report.tokens
            raise InputError(
                f"The texts make {len(self)} window{'' if len(self) == 1 else 's'}; expected at least two, to train on one and measure "
                "on the other. Give more text, or a smaller --max-seq-length."
                + (f" Of {tokens:,} tokens, {unknown:,} are unknown to the model's tokenizer." if unknown else "")
            )
        count = held_out(len(self))
        of_text = self._texts.to_numpy()
        texts, windows = np.unique(of_text, return_counts=True)
        if len(texts) < FEW_TEXTS:
            return np.arange(len(self) - count), np.arange(len(self) - count, len(self))
        chosen = texts[: min(int(np.searchsorted(np.cumsum(windows), count)) + 1, len(texts) - 1)]
        is_held_out = np.isin(of_text, chosen)
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)[:count]


def held_out(windows: int) -> int:
    """Return how many windows of a corpus are held out: a hundredth; at least 100, but no more than a tenth; at most 2,000.

    >>> [held_out(windows) for windows in (2, 50, 5_000, 50_000, 5_000_000)]
    [1, 5, 100, 500, 2000]
    """
    return max(1, min(2000, max(windows // 100, min(100, windows // 10))))
