"""Files of rows: what their names stand for, and their bytes, decompressed."""

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast, get_args

from spanqa.errors import DatasetError
from spanqa.extras import require
from spanqa.files import read_standard_input

Form = Literal["jsonl", "csv", "tsv", "parquet"]
Compression = Literal["", "gz", "zst"]

_OTHER_NAMES: Mapping[str, Form] = {"ndjson": "jsonl"}
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_UTF_16_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A file of rows, or standard input or output where `path` is None, and the format that its name stands for."""

    path: Path | None
    form: Form
    compression: Compression = ""

    @property
    def name(self) -> str:
        return "standard input" if self.path is None else str(self.path)


def place_of(name: str) -> Place:
    """Return what a file's name stands for; "-" is standard input or output, in JSON Lines.

    Raises:
        DatasetError: the ending is of no format of rows.
    """
    if name == "-":
        return Place(None, "jsonl")
    parts = Path(name).name.lower().split(".")
    compression: Compression = "gz" if parts[-1] == "gz" else "zst" if parts[-1] == "zst" else ""
    ending = parts[-2 if compression else -1] if len(parts) > (2 if compression else 1) else ""
    form = _OTHER_NAMES.get(ending, ending)
    if form not in get_args(Form):
        hint = " Make an array one object a line with: jq -c '.[]' FILE" if ending == "json" else ""
        raise DatasetError(
            f"{name!r} has the ending of no format of rows. Expected .jsonl, .ndjson, .csv, .tsv or .parquet, also with .gz or .zst.{hint}"
        )
    if form == "parquet" and compression:
        raise DatasetError(f"{name!r}: Parquet is compressed inside. Leave out .{compression}.")
    if form == "parquet":
        require("parquet")
    if compression == "zst":
        require("zstd")
    return Place(Path(name), cast(Form, form), compression)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a plain file.

    Raises:
        DatasetError: it cannot be opened, or is no plain file.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DatasetError(f"File {str(path)!r} does not exist. Check the name, or give the full path.") from None
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DatasetError(
                f"{str(path)!r} is no plain file, so that it cannot be read twice. Use - to read a pipe."
            )
        yield file


@contextmanager
def decompressed(place: Place) -> Iterator[IO[bytes]]:
    """Open a file of text; its first bytes say how it is compressed, whatever it is called."""
    if place.path is None:
        if sys.stdin is None:
            read_standard_input()  # raises what is to be said
        yield sys.stdin.buffer
        return
    with opened(place.path) as file:
        head = file.peek(4)[:4]
        if head == _PARQUET:
            raise DatasetError(f"{str(place.path)!r} is a Parquet file. Give it the ending .parquet.")
        stream: IO[bytes] = file
        if head.startswith(_GZIP):
            stream = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
        elif head == _ZSTD:
            require("zstd")
            import pyarrow

            compressed = pyarrow.CompressedInputStream(file, "zstd")
            stream = io.BufferedReader(compressed, _BUFFER)
        elif head.startswith(_UTF_16_32):
            raise DatasetError(
                f"{str(place.path)!r} is not UTF-8: it has a mark of UTF-16. Convert it first, for example: iconv -f utf-16 -t utf-8 OLD > NEW"
            )
        try:
            yield stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DatasetError(
                f"{str(place.path)!r} is a damaged gzip file ({error}). Download or create it again."
            ) from None
        except OSError as error:
            if error.errno is not None and stream is file:
                raise DatasetError(f"{str(place.path)!r} cannot be read: {error.strerror}.") from None
            if stream is file or head != _ZSTD:
                raise
            raise DatasetError(
                f"{str(place.path)!r} is a damaged Zstandard file ({error}). Download or create it again."
            ) from None
