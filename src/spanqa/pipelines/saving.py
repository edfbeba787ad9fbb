"""The pipeline's model as a folder, for `save_pretrained`."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spanqa.checkpoint import copy_checkpoint, find, write_settings
from spanqa.errors import InputError
from spanqa.pipelines.loading import is_name
from spanqa.reader import Reader, stored_settings
from spanqa.signing import SIGNATURE
from spanqa.tokenizer_files import TOKENIZER_FILES


def save(reader: Reader, module: Any, tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Write the model to a folder: a copy of its own folder, or what transformers saves of a `module` in memory.

    `tokenizer` is the one that was given instead of the model's own, by name or as an object; None is the model's own. The settings
    are those of the reader.

    Raises:
        InputError: the folder is a file, is the model's own folder, or cannot be written; the model has no files.
    """
    out, own = Path(folder).expanduser(), reader.checkpoint.path
    if module is None and reader.checkpoint.files is None:
        raise InputError("This Reader was made around a model in memory. Save that model and its tokenizer themselves.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file. Give a folder.")
    if out.is_dir() and own.is_dir() and out.samefile(own):
        raise InputError(f"{str(out)!r} is the folder that the model was loaded from. Give another one.")
    now = {name: asdict(getattr(reader, name)) for name in ("windows", "answers", "calibration")}
    stored = stored_settings(reader.checkpoint)
    changed = module is not None or any(asdict(getattr(stored, name)) != value for name, value in now.items())
    try:
        out.mkdir(parents=True, exist_ok=True)
        if module is None:
            left_out = SIGNATURE if changed or tokenizer is not None else ""
            copy_checkpoint(own, out, leave_out=(left_out,) if tokenizer is None else (left_out, *TOKENIZER_FILES))
        else:
            module.save_pretrained(out)
        if is_name(tokenizer):
            for name in TOKENIZER_FILES:
                if (find(tokenizer) / name).exists():
                    shutil.copyfile(find(tokenizer) / name, out / name)
        elif tokenizer is not None:
            tokenizer.save_pretrained(out)
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written: {error.strerror or error}.") from None
    if changed:
        write_settings(out, {**reader.checkpoint.settings, **now})
