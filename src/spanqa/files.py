"""Files: reads text and JSON, writes complete files.

A written file appears under its name only when it is complete. A run that fails leaves an existing file unchanged.
"""

import errno
import gzip
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from spanqa.errors import CheckpointError, DatasetError


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a UTF-8 file, plain or gzipped. A leading byte order mark is dropped; line ends are kept.

    Raises:
        DatasetError: the file does not exist, is a folder, cannot be read, is binary, or is not UTF-8.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise DatasetError(f"File {str(path)!r} does not exist. Check the name, or give the full path.") from None
    except IsADirectoryError:
        raise DatasetError(f"{str(path)!r} is a folder. Expected a file; give the files in it.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{str(path)!r} is a damaged gzip file ({error}). Download or create it again.") from error
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # the name is not a valid file name
        raise DatasetError(f"{str(path)!r} cannot be read: {error}.") from None
    return decode_text(data, repr(str(path)))


def read_standard_input() -> bytes:
    """Return all bytes of standard input.

    Raises:
        DatasetError: it is closed, or cannot be read.
    """
    if sys.stdin is None:
        raise DatasetError("Standard input is closed. Give a file, or pipe text to standard input.")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:  # a folder, for example
        raise DatasetError(f"Standard input cannot be read: {error.strerror}. Give a file.") from error


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8 bytes. A leading byte order mark is dropped. `name` is used in error messages.

    Raises:
        DatasetError: the bytes are binary, or not UTF-8.
    """
    if b"\x00" in data:
        raise DatasetError(f"{name} is a binary file. Expected plain UTF-8 text; extract the text from it first.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{name} is not UTF-8: found byte 0x{data[error.start]:02x} at position {error.start}. "
            "Convert it first, for example: iconv -f latin1 -t utf-8 OLD > NEW"
        ) from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file, plain or gzipped.

    Raises:
        DatasetError: as for `read_text`, or the file is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{str(path)!r} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond Python's limits
        raise DatasetError(f"{str(path)!r} contains JSON that Python cannot read: {error}.") from None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Open a text file for writing that replaces the file at `path` at the end of the `with` block.

    Until then it has a temporary name, so two writers never share a file. On an exception, it is removed.
    """
    path = Path(path)
    if path.is_dir():  # known before the work is done, not only when the file gets its name
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    umask = os.umask(0)
    os.umask(umask)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 - an open handle, not a path
            yield file
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, all or nothing."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file, all or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_object(path: Path, hint: str = "") -> dict[str, Any]:
    """Return the object in a JSON file of a model folder. `hint` ends the message if the file does not exist.

    Raises:
        CheckpointError: the file does not exist, cannot be read, is not JSON, or contains no object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{str(path.parent)!r} has no {path.name}. {hint}".strip()) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or numbers or nesting beyond Python's limits
        raise CheckpointError(f"{str(path)!r} is not JSON: {error}.") from None
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} does not contain a JSON object. Expected one.")
    return value
