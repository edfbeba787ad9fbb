"""A deployment folder: written as a whole or not at all, and checked.

README.md          the commands that take it to the platform
deployment.json    target, model, wheel, settings, and the hash of each file when it was made
model/             the model's files, unless the target has its own form or place
spanqa-*.whl       the spanqa that it was made with, unless it is installed from PyPI
keys/              public keys, where the model's signature is verified at each start
...                the target's files
"""

import hashlib
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from spanqa import __version__
from spanqa.checkpoint import Checkpoint, copy_checkpoint, name_for_records, opened_checkpoint
from spanqa.deploy.target import Deployment, DeploySettings, Target, label
from spanqa.errors import CheckpointError, DatasetError, DeploymentError, InputError
from spanqa.families import FAMILIES
from spanqa.files import new_folder, read_object, write_json
from spanqa.signing import SIGNATURE, SIGSTORE
from spanqa.weights import verify as verify_weights

RECORD = "deployment.json"
FORMAT = "spanqa-deployment/1"


def write_folder(
    target: Target,
    model: str,
    out: Path,
    settings: DeploySettings,
    *,
    revision: str | None = None,
    verify_keys: Sequence[str] = (),
    verify: bool = False,
) -> list[str]:
    """Write a deployment folder, and return what was checked of it. With `verify`, it appears only if it passes.

    Raises:
        InputError: there is something at `out`, it cannot be written, or the target cannot be what the settings ask for.
        CheckpointError: the model cannot be found, is damaged, or is none that the target can run.
        SignatureError: none of the keys has signed the model.
        DeploymentError: what was written does not pass.
    """
    if settings.min_replicas == 0 and not target.scales_to_zero:
        raise InputError(f"{target.name} does not scale to zero here; min_replicas is 0. Give at least 1.")
    with opened_checkpoint(model, revision, verify_keys) as checkpoint, new_folder(out) as folder:
        keys = _copy_keys(verify_keys, folder) if target.carries else ()
        name = settings.name or label(Path(model).name)
        deployment = Deployment(model=checkpoint, name=name, settings=settings, keys=keys)
        if checkpoint.model_type in FAMILIES:  # what others store, only transformers knows
            verify_weights(checkpoint.weights, checkpoint.encoder, repr(str(checkpoint.path)))
        if target.model is not None:
            (folder / target.model).mkdir(parents=True, exist_ok=True)
            copy_model(checkpoint, folder / target.model)
        fixed = list(_hashes(folder))
        try:
            target.emit(folder, deployment)
            _write_record(folder, target, model, deployment, fixed)
            return verify_folder(folder, target) if verify else []
        except (DatasetError, DeploymentError) as error:  # of a folder that has its name only when it is complete
            raise type(error)(str(error).replace(str(folder), str(out))) from None


def verify_folder(folder: Path, target: Target | None = None) -> list[str]:
    """Check a deployment folder as far as that is possible here, and return what was checked, one line each.

    Raises:
        DeploymentError: it is no deployment folder, is one of another target, lacks files, or holds what the platform would not take.
    """
    from spanqa.deploy.targets import TARGETS

    try:
        record = read_object(folder / RECORD, "Is this a folder that `spanqa deploy` made?")
    except ValueError as error:
        raise DeploymentError(str(error)) from None
    if record.get("format") != FORMAT or str(record.get("target")) not in TARGETS:
        raise DeploymentError(
            f"{str(folder / RECORD)!r} is of another version: format {record.get('format')!r}, target "
            f"{record.get('target')!r}. Make the folder again with this one."
        )
    if target is not None and record["target"] != target.name:
        raise DeploymentError(f"{str(folder)!r} is a folder for {record['target']}, not for {target.name}.")
    try:
        lines = _compare(folder, dict(record["files"]), set(record["fixed"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DeploymentError):
            raise
        raise DeploymentError(f"{str(folder / RECORD)!r} is not as it was written. Make the folder again.") from None
    except OSError as error:
        raise _unreadable(folder, error) from None
    try:
        return lines + TARGETS[record["target"]].verify(folder)
    except OSError as error:
        raise _unreadable(folder, error) from None
    except (DatasetError, CheckpointError) as error:
        raise DeploymentError(str(error)) from None


def _unreadable(folder: Path, error: OSError) -> DeploymentError:
    return DeploymentError(f"{str(error.filename or folder)!r} cannot be read: {error.strerror or error}.")


def _compare(folder: Path, recorded: dict[str, str], fixed: set[str]) -> list[str]:
    """Compare the files with the record. A person may edit what is theirs; the model and the wheel are not."""
    there = _hashes(folder)
    missing = sorted(set(recorded) - set(there))
    if missing:
        raise DeploymentError(f"{str(folder)!r} lacks {', '.join(missing)}. Make the folder again.")
    changed = sorted(name for name in recorded if there[name] != recorded[name])
    spoilt = [name for name in changed if name in fixed]
    if spoilt:
        raise DeploymentError(f"{str(folder)!r}: {', '.join(spoilt)} changed since it was made. Make the folder again.")
    added = sorted(set(there) - set(recorded))
    lines = [f"the files of the model and of spanqa are those of the record ({len(fixed)})"]
    for what, names in (("edited", changed), ("added", added)):
        if names:
            more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
            lines.append(f"{what} since it was made: {', '.join(names[:10])}{more}")
    return lines


def copy_model(checkpoint: Checkpoint, out: Path) -> None:
    """Copy the model; where its signature was verified, the files that were verified, and it with them."""
    if checkpoint.verified is None:
        copy_checkpoint(checkpoint.path, out, leave_out=(SIGNATURE,))
        return
    shutil.copytree(checkpoint.verified, out, dirs_exist_ok=True)
    shutil.copyfile(checkpoint.path / SIGNATURE, out / SIGNATURE)


def _copy_keys(keys: Sequence[str], folder: Path) -> tuple[str, ...]:
    names = []
    for number, key in enumerate(keys):
        if key.startswith(SIGSTORE):  # an identity, which a container without a network cannot ask for
            continue
        (folder / "keys").mkdir(exist_ok=True)
        name = f"{number}-{Path(key).name}"
        shutil.copyfile(key, folder / "keys" / name)
        names.append(name)
    return tuple(names)


def _write_record(folder: Path, target: Target, model: str, deployment: Deployment, fixed: Sequence[str]) -> None:
    settings = deployment.settings
    files = _hashes(folder)
    record = {
        "format": FORMAT,
        "target": target.name,
        "name": deployment.name,
        "spanqa": settings.from_pypi or __version__,
        "model": {"name": name_for_records(model), "weights_sha256": deployment.model.weights.sha256},
        "settings": {name: getattr(settings, name) for name in settings.__slots__},
        "fixed": [
            name for name in files if name in fixed or any(fnmatchcase(name, each) for each in ("*.whl", *target.fixed))
        ],
        "files": files,
    }
    write_json(folder / RECORD, record)


def _hashes(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder).parts
        hidden = any(part == "__pycache__" or part.startswith(".") for part in where[:-1])  # of tools, such as .git
        if path.is_file() and path.name != RECORD and not hidden:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
