"""What a number is worth nothing without: which model, data, versions and settings made it.

It measures nothing; `spanqa.evaluate.run` puts its record beside the metrics.
"""

import hashlib
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spanqa import __version__
from spanqa.errors import DatasetError
from spanqa.extras import NEEDS, package_version
from spanqa.reader import Reader
from spanqa.squad import Example


def describe_run(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return date (UTC), command line, and the versions of Python, spanqa and the packages named."""
    program, *arguments = sys.argv or [""]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["spanqa" if program.endswith("__main__.py") else Path(program).name, *arguments]),
        "versions": {"python": platform.python_version(), "spanqa": __version__}
        | {name: package_version(name) for name in packages},
    }


def describe_reader(reader: Reader) -> dict[str, Any]:
    """Return what a reader computes with: model, backend, device, dtype, windows, calibration."""
    checkpoint, backend = reader.checkpoint, reader.backend
    return {
        "model": {"name": _model_name(checkpoint.path), "sha256": checkpoint.weights.sha256},
        "backend": backend.name,
        "device": backend.device,
        "dtype": backend.dtype,
        "windows": asdict(reader.windows),
        "calibration": asdict(reader.calibration),
    }


def describe_file(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return name and sha256 of a file, as it lies there (gzip'd or not).

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return {"file": Path(path).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}. Check the name.") from error


def questions_sha256(examples: Iterable[Example]) -> str:
    """Return what names a part of a data set that is no file of its own: the hash of its questions' ids, in their order."""
    return hashlib.sha256("\n".join(example.id for example in examples).encode()).hexdigest()


def reader_packages(reader: Reader) -> tuple[str, ...]:
    """Return the packages that compute: NumPy, tokenizers, and those of the backend."""
    need = NEEDS.get(reader.backend.name)
    return ("numpy", "tokenizers", *(need.packages if need else ()))


def finite(number: float) -> float | str:
    """Return a number as JSON can write it: infinity as text."""
    return number if math.isfinite(number) else str(number)


def _model_name(path: Path) -> str:
    """The folder's name; in the hub's cache, models--ORG--NAME/snapshots/REVISION, ORG/NAME@REVISION."""
    if path.parent.name == "snapshots":
        return f"{path.parent.parent.name.removeprefix('models--').replace('--', '/')}@{path.name}"
    return path.resolve().name
