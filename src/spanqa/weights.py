"""Parameters from safetensors files, which are opened once, verified, and held open.

A folder that is replaced after loading changes nothing for a model that has it open; a file that is overwritten in place is an
error at the next read. Names and shapes of all parameters are compared with what the config asks for before anything is
computed. Pickled weights are never read. It builds no models: backends do.
"""

import hashlib
import mmap
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from spanqa.encoder import EncoderConfig
from spanqa.errors import CheckpointError
from spanqa.families import FAMILIES, Family
from spanqa.files import read_object

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = (WEIGHTS, WEIGHTS_INDEX, "model-*.safetensors")
"""The names, and patterns of names, of the files that hold the parameters."""

PICKLED = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.ckpt.index",
)
"""Files of other libraries that hold parameters, and may hold code."""

CONVERSION = (
    "Convert them once, where you trust the file, with transformers: "
    'AutoModelForQuestionAnswering.from_pretrained("FOLDER").save_pretrained("NEW_FOLDER")'
)

_FLOATS = ("F64", "F32", "F16", "BF16")
_HALF_EXPONENTS = {"F16": 0x7C00, "BF16": 0x7F80}  # all of these bits are set in NaN and infinity alone
# Heads and buffers that checkpoints carry beside the question-answering model; they are left out, and listed.
_IGNORED = ("cls.", "lm_head.", "vocab_", "discriminator_predictions.", "generator_predictions.", "generator_lm_head.")


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a model folder.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    single, index = path / WEIGHTS, path / WEIGHTS_INDEX
    if single.exists():
        return [single]
    if index.exists():
        places = read_object(index).get("weight_map")
        names: list[Any] = list(places.values()) if isinstance(places, dict) else [None]
        if not all(isinstance(name, str) and name == Path(name).name for name in names):
            raise CheckpointError(f'{str(index)!r} should hold a table "weight_map" of file names.')
        shards = sorted(set(names))
        missing = [shard for shard in shards if not (path / shard).exists()]
        if missing or not shards:
            raise CheckpointError(
                f"{str(index)!r} names shards that are not there: {', '.join(missing) or 'none at all'}."
            )
        return [path / shard for shard in shards]
    pickled = [name for name in PICKLED if (path / name).exists()]
    if pickled:
        raise CheckpointError(
            f"{str(path)!r} holds its weights only as {pickled[0]}. spanqa reads safetensors, because pickled weights can run "
            f"code. {CONVERSION}"
        )
    raise CheckpointError(f"{str(path)!r} holds no weights: expected {WEIGHTS} (or {WEIGHTS_INDEX}).")


class WeightFiles:
    """The safetensors files of a model, held open.

    `shapes` and `dtypes` (safetensors' names, such as "F16") are those of the stored parameters, by their stored names.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_OpenFile(path) for path in paths]
        self._places: dict[str, _OpenFile] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in self._files:
            for name in file.tensors.keys():
                piece = file.tensors.get_slice(name)
                self._places[name] = file
                self.shapes[name] = tuple(piece.get_shape())
                self.dtypes[name] = piece.get_dtype()

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.identity[2] for file in self._files)

    def read(self, name: str) -> NDArray[Any]:
        """Return a stored parameter, in the type it is stored in, as memory of its own.

        Raises:
            CheckpointError: the file was overwritten since it was opened, or floats are NaN or infinity.
        """
        file = self._places[name]
        file.check_unchanged()
        if self.dtypes[name] == "BF16":
            import ml_dtypes  # noqa: F401 - NumPy, and so safetensors, then knows bfloat16
        array: NDArray[Any] = file.tensors.get_tensor(name)
        if self.dtypes[name] in _FLOATS and not _all_finite(array, self.dtypes[name]):
            raise CheckpointError(
                f"{name} in {str(file.path)!r} holds NaN or infinity. The training diverged or the file is damaged."
            )
        return array

    @cached_property
    def sha256(self) -> str:
        """The hash of the files' bytes, shards in order."""
        digest = hashlib.sha256()
        for file in self._files:
            file.check_unchanged()
            with mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ) as content:
                digest.update(content)
        return digest.hexdigest()


def _all_finite(array: NDArray[Any], dtype: str) -> bool:
    """Whether floats are neither NaN nor infinity; of half-precision ones by their bits, which is faster."""
    if dtype not in _HALF_EXPONENTS:
        return bool(np.isfinite(array).all())
    exponents = array.view(np.uint16) & np.uint16(_HALF_EXPONENTS[dtype])
    return not bool((exponents == _HALF_EXPONENTS[dtype]).any())


class _OpenFile:
    """One safetensors file: `tensors` reads it, `descriptor` is its bytes, `identity` its device and number, size and time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
            weakref.finalize(self, os.close, self.descriptor)
            self.identity = _identity(os.fstat(self.descriptor))
            self.tensors: Any = safe_open(path, framework="numpy")
            replaced = _identity(path.stat()) != self.identity
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{str(path)!r} is not a whole safetensors file: {error}. Fetch or copy it again."
            ) from error
        if replaced:
            raise CheckpointError(f"{str(path)!r} was replaced while it was being opened. Load the model again.")

    def check_unchanged(self) -> None:
        if _identity(os.fstat(self.descriptor)) != self.identity:
            raise CheckpointError(
                f"{str(self.path)!r} was overwritten after the model was loaded. Load it again; to replace a model that is in "
                "use, write the new files elsewhere and rename them."
            )


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def verify(files: WeightFiles, config: EncoderConfig, where: str) -> tuple[dict[str, str], list[str]]:
    """Compare the stored parameters with what the config asks for, by name and shape, without reading their values.

    Returns our names -> stored names, and the stored names that are left out (pooler, position ids, other heads).

    Raises:
        CheckpointError: parameters are missing, unexpected, of another shape or not floats; all are listed.
    """
    family = FAMILIES[config.model_type]
    shapes = family.shapes(config)
    current = {_modern(name): name for name in files.shapes}
    wanted = {name: family.stored_name(name) for name in shapes}
    missing = [foreign for foreign in wanted.values() if foreign not in current]
    if "qa_outputs.weight" in missing:
        raise CheckpointError(
            f"{where} has no question-answering head: it lacks qa_outputs.weight"
            f"{_others(len(missing) - 1)}. Choose a checkpoint that was fine-tuned for extractive question answering, such as "
            "deepset/bert-large-uncased-whole-word-masking-squad2."
        )
    expected = set(wanted.values())
    extra = [name for name in current if name not in expected]
    ignored = [name for name in extra if _is_ignored(name, family)]
    unexpected = sorted(set(extra) - set(ignored))
    not_floats = [
        f"{name} ({dtype})"
        for name, dtype in files.dtypes.items()
        if dtype not in _FLOATS and not name.endswith("position_ids")
    ]
    problems = [
        f"{label} {len(names)} parameter{'s' * (len(names) > 1)}: {_some(names)}"
        for label, names in (
            ("lacks", missing),
            ("has unexpectedly", unexpected),
            ("has, not in a float format,", not_floats),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{where} {' and '.join(problems)}. Weights and config.json do not fit together; was the model saved whole?"
        )
    wrong = [
        f"{foreign} is {list(files.shapes[current[foreign]])}, expected {list(shapes[name])}"
        for name, foreign in wanted.items()
        if files.shapes[current[foreign]] != shapes[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{where} has parameters of another shape than config.json asks for: {_some(wrong, '; ')}."
        )
    return {name: current[foreign] for name, foreign in wanted.items()}, sorted(current[name] for name in ignored)


def encoder_weights(files: WeightFiles, config: EncoderConfig, where: str) -> dict[str, NDArray[Any]]:
    """Return the encoder's parameters by our names, in the float type they are stored in (bfloat16 comes as float32).

    A tensor that several of our names share is one array. `where` is the model's name, for messages.

    Raises:
        CheckpointError: as `verify`, or as `WeightFiles.read`.
    """
    names, _ = verify(files, config, where)
    arrays: dict[str, NDArray[Any]] = {}
    for stored in dict.fromkeys(names.values()):
        array = files.read(stored)
        arrays[stored] = array.astype(np.float32) if files.dtypes[stored] == "BF16" else array
    return {name: arrays[stored] for name, stored in names.items()}


def modern_names(files: WeightFiles) -> Mapping[str, str]:
    """Return the names of all stored parameters as they are written today -> the names they are stored under."""
    return {_modern(name): name for name in files.shapes}


def _modern(name: str) -> str:
    """TensorFlow-era checkpoints call a layer norm's weight and bias gamma and beta."""
    if name.endswith("LayerNorm.gamma"):
        return name.removesuffix("gamma") + "weight"
    if name.endswith("LayerNorm.beta"):
        return name.removesuffix("beta") + "bias"
    return name


def _is_ignored(name: str, family: Family) -> bool:
    return name.startswith((*_IGNORED, f"{family.prefix}pooler.")) or name.endswith("embeddings.position_ids")


def _some(names: Iterable[str], separator: str = ", ", most: int = 6) -> str:
    names = list(names)
    rest = len(names) - most
    return separator.join(names[:most]) + (f"{separator}and {rest} more" if rest > 0 else "")


def _others(count: int) -> str:
    return f" (and {count} other parameters)" if count > 0 else ""
