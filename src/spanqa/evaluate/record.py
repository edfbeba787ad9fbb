"""Which model, data, versions and settings made a number. `spanqa.evaluate.run` puts this record beside the metrics."""

import hashlib
import math
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spanqa import __version__
from spanqa.extras import NEEDS, package_version
from spanqa.files import shown
from spanqa.reader import Reader
from spanqa.squad import Example


def describe_run(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return the date (UTC), the command line, and the versions of Python, spanqa and the named packages."""
    program, *arguments = sys.argv or [""]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shown(shlex.join(["spanqa" if program.endswith("__main__.py") else Path(program).name, *arguments])),
        "versions": {"python": platform.python_version(), "spanqa": __version__}
        | {name: package_version(name) for name in packages},
    }


def describe_reader(reader: Reader) -> dict[str, Any]:
    """Return the model, backend, device, dtype, windows and calibration of a reader. A model in memory has no hash."""
    checkpoint, backend = reader.checkpoint, reader.backend
    files = checkpoint.files
    return {
        "model": {"name": _model_name(checkpoint.path), "sha256": None if files is None else files.sha256},
        "backend": backend.name,
        "device": backend.device,
        "dtype": backend.dtype,
        "windows": asdict(reader.windows),
        "calibration": asdict(reader.calibration),
    }


def questions_sha256(examples: Iterable[Example]) -> str:
    """Return a hash that identifies part of a data set: that of its questions' ids, in order."""
    return hashlib.sha256("\n".join(example.id for example in examples).encode("utf-8", "surrogatepass")).hexdigest()


def reader_packages(reader: Reader) -> tuple[str, ...]:
    """Return the packages whose versions matter: NumPy, tokenizers, and those of the backend."""
    need = NEEDS.get(reader.backend.name)
    return ("numpy", "tokenizers", *(need.packages if need else ()))


def finite(number: float) -> float | str:
    """Return a number in a form that JSON can write: infinity as text."""
    return number if math.isfinite(number) else str(number)


def _model_name(path: Path) -> str:
    """The folder's name; ORG/NAME@REVISION for models--ORG--NAME/snapshots/REVISION in the hub's cache."""
    if path.parent.name == "snapshots":
        return f"{path.parent.parent.name.removeprefix('models--').replace('--', '/')}@{path.name}"
    return path.resolve().name
