"""Files: reads text and JSON, writes complete files.

A written file appears under its name only when it is complete. A run that fails leaves an existing file unchanged.
"""

import errno
import gzip
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from spanqa.decoding import decode_text
from spanqa.errors import CheckpointError, DatasetError, InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file as they are stored. The file is read once, so it can be a pipe.

    Raises:
        DatasetError: the file does not exist, is a folder, or cannot be read.
    """
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"File {str(path)!r} does not exist. Check the name, or give the full path.") from None
    except IsADirectoryError:
        raise DatasetError(f"{str(path)!r} is a folder. Expected a file; give the files in it.") from None
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # the name is not a valid file name
        raise DatasetError(f"{str(path)!r} cannot be read: {error}.") from None


def unzip(data: bytes, path: str | os.PathLike[str]) -> bytes:
    """Return the bytes, decompressed if they are gzip'd.

    Raises:
        DatasetError: they are damaged.
    """
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{str(path)!r} is a damaged gzip file ({error}). Download or create it again.") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a UTF-8 file, plain or gzipped. A leading byte order mark is dropped; line ends are kept.

    Raises:
        DatasetError: the file does not exist, is a folder, cannot be read, is binary, or is not UTF-8.
    """
    return decode_text(unzip(read_bytes(path), path), repr(str(path)))


def describe(path: str | os.PathLike[str], data: bytes) -> dict[str, str]:
    """Return the name of a file and the sha256 of its bytes: what the record of a run says about it."""
    return {"file": shown(Path(path).name), "sha256": hashlib.sha256(data).hexdigest()}


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


def shown(name: str) -> str:
    r"""Return a file name that UTF-8 can write: a byte that is not UTF-8 becomes \\udc.., which is how Python keeps it."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file, plain or gzipped.

    Raises:
        DatasetError: as for `read_text`, or the file is not JSON.
    """
    return load_json(path)[0]


def load_json(path: str | os.PathLike[str]) -> tuple[Any, dict[str, str]]:
    """Return the content of a JSON file, and its name and sha256; see `read_json`."""
    data = read_bytes(path)
    return parse_json(decode_text(unzip(data, path), repr(str(path))), path), describe(path, data)


def parse_json(text: str, path: str | os.PathLike[str]) -> Any:
    """Return the content of the JSON text that the file at `path` holds.

    Raises:
        DatasetError: it is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{str(path)!r} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond Python's limits
        raise DatasetError(f"{str(path)!r} contains JSON that Python cannot read: {error}.") from None


@contextmanager
def replacing(
    path: str | os.PathLike[str], mode: Literal["w", "wb"] = "w", *, private: bool = False
) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces the file at `path` at the end of the `with` block.

    Until then it has a temporary name, so two writers never share a file. On an exception, it is removed. A text is written
    as UTF-8; a lone surrogate, which UTF-8 does not have, becomes its escape: in JSON that is the same text. A `private` file can be
    read by its owner only.
    """
    path = Path(path)
    if path.is_dir():  # known before the work is done, not only when the file gets its name
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)
    try:
        text = {} if mode == "wb" else {"encoding": "utf-8", "errors": "backslashreplace"}
        with open(handle, mode, **text) as file:  # type: ignore[call-overload]  # noqa: PTH123 - an open handle, not a path
            yield file
        if not private:  # it is made so
            set_usual_mode(Path(name))
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def set_usual_mode(path: Path) -> None:
    """Give a file, or all files in a folder, the mode of a file that is written as usual; libraries may write 0600."""
    umask = os.umask(0)
    os.umask(umask)
    for file in path.rglob("*") if path.is_dir() else [path]:
        file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which gets the name `path` at the end of the `with` block; on an exception, it is removed.

    Raises:
        InputError: there is something at `path`, or it cannot be written.
    """
    check_is_new(path)
    folder = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
        check_is_new(path)
        folder.rename(path)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}. Choose another output folder.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_is_new(path: Path) -> None:
    """Check that there is nothing yet at the path of an output folder.

    Raises:
        InputError: there is.
    """
    if os.path.lexists(path):
        raise InputError(f"Output folder {str(path)!r} already exists. Choose a new path.")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make an output folder, and keep other runs out of it during the `with` block (on systems that have `flock`).

    Raises:
        InputError: another run writes to it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The results cannot be written to {str(folder)!r}: {error.strerror}. Name a folder that can be written to."
        ) from error
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"Another run writes to {str(folder)!r}. Wait until it is done, or choose another output folder."
                ) from None
        yield
    finally:
        os.close(handle)


def check_keeps(inputs: Iterable[Path | None], folder: Path, names: Iterable[str]) -> None:
    """Check that no file of this run's input is one of the files that it writes into a folder.

    Raises:
        InputError: one is.
    """
    for source in inputs:
        for output in (folder / name for name in names):
            if source is not None and source.exists() and output.exists() and output.samefile(source):
                raise InputError(
                    f"{str(output)!r} is an input of this command, which would replace it. Choose another output folder."
                )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, all or nothing."""
    with replacing(path) as file:
        file.write(text)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, all or nothing."""
    with replacing(path, "wb") as file:
        file.write(data)


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
