"""What was fitted, into a model folder: Tuned -> spanqa.json. Only a folder of the user's own is changed, and no signed one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from spanqa.calibration import Calibration
from spanqa.checkpoint import Checkpoint, copy_checkpoint, is_in_hub_cache, write_settings
from spanqa.errors import InputError
from spanqa.evaluate.tune import Tuned
from spanqa.files import new_folder
from spanqa.signing import SIGNATURE

_PACKAGE = Path(__file__).resolve().parents[1]


def store(checkpoint: Checkpoint, tuned: Tuned) -> None:
    """Write the threshold and the calibration into the checkpoint's spanqa.json. The file is replaced as a whole.

    Raises:
        InputError: the folder cannot be written.
    """
    write_settings(checkpoint.path, _settings(checkpoint, tuned))


def store_copy(checkpoint: Checkpoint, tuned: Tuned, out: Path) -> None:
    """Write a copy of the checkpoint with the threshold and the calibration to a new folder. A signature is not copied.

    Raises:
        InputError: `out` exists, or cannot be written.
    """
    with new_folder(out) as folder:
        copy_checkpoint(checkpoint.path, folder, leave_out=(SIGNATURE,))
        write_settings(folder, _settings(checkpoint, tuned))


def check_is_own(checkpoint: Checkpoint) -> None:
    """Check that a model's folder is the user's own, and not signed: not one inside the package or in the cache of the hub.

    Raises:
        InputError: it is not.
    """
    path = checkpoint.path.resolve()
    owner = "comes with spanqa" if path.is_relative_to(_PACKAGE) else "is in the cache of the hub"
    if (path / SIGNATURE).exists():
        raise InputError(
            f"The model in {str(checkpoint.path)!r} is signed, and a change would break its signature. Write an unsigned copy with the "
            "new settings: --out DIR. Then sign that one."
        )
    if path.is_relative_to(_PACKAGE) or is_in_hub_cache(path):
        raise InputError(
            f"The model in {str(checkpoint.path)!r} {owner} and must stay as it is. Write a copy with the new settings: --out DIR. "
            "To see them alone: --dry-run."
        )


def _settings(checkpoint: Checkpoint, tuned: Tuned) -> dict[str, Any]:
    settings = dict(checkpoint.settings)
    settings["answers"] = (settings.get("answers") or {}) | {"no_answer_threshold": tuned.no_answer_threshold}
    if tuned.calibration != Calibration():
        settings["calibration"] = asdict(tuned.calibration)
    return settings
