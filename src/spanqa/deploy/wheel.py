"""The spanqa that a folder carries, and the versions of what it needs.

A wheel is made of the files of the spanqa that runs now, in the form of the binary distribution format:
https://packaging.python.org/specifications/binary-distribution-format. The model inside the package is left out: the folder has its own.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from spanqa.deploy.render import render
from spanqa.deploy.target import DeploySettings
from spanqa.errors import InputError
from spanqa.extras import require

_LEFT_OUT = ("models/", "__pycache__/")
_LIKE = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
"""The machine that the versions are for."""


def write_wheel(folder: Path) -> tuple[str, str]:
    """Write a wheel of this spanqa into a folder, the same bytes each time, and return its name and its SHA-256.

    Raises:
        InputError: spanqa was not installed, but is run from its source.
    """
    found = _installed()
    root = Path(__file__).parents[1]
    files = {
        f"spanqa/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part in f"{path.relative_to(root).as_posix()}" for part in _LEFT_OUT)
    }
    about = f"spanqa-{found.version}.dist-info"
    files[f"{about}/METADATA"] = (found.read_text("METADATA") or "").encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: spanqa\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/entry_points.txt"] = (found.read_text("entry_points.txt") or "").encode()
    for each in found.files or ():
        if "licenses" in each.parts:
            files[f"{about}/licenses/{each.name}"] = each.read_binary()
    record = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{about}/RECORD"] = "".join([*record, f"{about}/RECORD,,\n"]).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980: nothing depends on when it was made
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            wheel.writestr(entry, data)
    name = f"spanqa-{found.version}-py3-none-any.whl"
    (folder / name).write_bytes(made.getvalue())
    return name, hashlib.sha256(made.getvalue()).hexdigest()


def carry(folder: Path, settings: DeploySettings) -> None:
    """Write `carried.py`, with which a script of the folder finds spanqa, and a wheel of this spanqa, unless pip installs it."""
    wheel, sha256 = ("", "") if settings.from_pypi else write_wheel(folder)
    (folder / "carried.py").write_text(render("python/carried.py", wheel=wheel, sha256=sha256), "utf-8")


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _installed() -> Distribution:
    try:
        return distribution("spanqa")
    except PackageNotFoundError:
        raise InputError(
            "spanqa is not installed, so no wheel of it can be made. Install it (pip install .), or name a published version with --from-pypi."
        ) from None


def pinned(extras: Iterable[str] = (), *, without: Iterable[str] = ()) -> list[str]:
    """Return what spanqa[extras] needs, with what that needs, in the versions that are installed here: name==version, sorted.

    A package that is not installed here, or is needed only on other machines than Linux on x86_64, is as the requirement has it.
    `without`: packages that are there already at the target, and what only they need.
    """
    require("deploy")
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    done: dict[str, str] = {}
    todo = [Requirement(f"spanqa[{','.join(extras)}]")]
    seen = set()
    while todo:
        each = todo.pop()
        name = canonicalize_name(each.name)
        if name in without or (name, frozenset(each.extras)) in seen:
            continue
        seen.add((name, frozenset(each.extras)))
        try:
            found = distribution(each.name)
        except PackageNotFoundError:
            done.setdefault(name, f"{each.name}{each.specifier}")
            continue
        if name != "spanqa":
            done[name] = f"{name}=={found.version.partition('+')[0]}"  # without what names a build of this machine
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({**_LIKE, "extra": extra}) for extra in (*each.extras, "")
            ):
                todo.append(needed)
    return sorted(done.values())
