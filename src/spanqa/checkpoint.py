"""Name, folder or hub id to config, settings, tokenizer and open weight files.

A checkpoint is the ecosystem's own folder: `config.json`, `model.safetensors` (or its shards), tokenizer files, and, where
spanqa made it, `spanqa.json` with the settings of windows, answers and calibration. This module owns the list of files that
make a checkpoint, and the format of `spanqa.json`.

It builds no models: backends do, from `encoder_weights`.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from spanqa import bounds, weights
from spanqa.encoder import EncoderConfig
from spanqa.errors import CheckpointError, InputError, UnsupportedModelError
from spanqa.families import FAMILIES, Family, encoder_config, longest_window
from spanqa.files import read_object, write_json
from spanqa.signing import SIGNATURE, signed_files, verified_copy
from spanqa.tokenizer_files import TOKENIZER_FILES, read_tokenizer
from spanqa.tokens import Tokenizer
from spanqa.weights import CONVERSION, PICKLED, WEIGHT_FILES, WeightFiles, weight_files

_LOG = logging.getLogger(__name__)

BUNDLED = ("spanqa-mini",)

CONFIG = "config.json"
SETTINGS = "spanqa.json"
CARD = "README.md"
INT8_GRAPH, INT8_WEIGHTS = "openvino_int8.xml", "openvino_int8.bin"
CHECKPOINT_FILES = (
    CONFIG, SETTINGS, CARD, SIGNATURE, *TOKENIZER_FILES, *WEIGHT_FILES, INT8_GRAPH, INT8_WEIGHTS,
)  # fmt: skip
"""The names, and patterns of names, of all files that make a checkpoint: what is fetched from a hub."""

FORMAT = "spanqa/1"
SECTIONS = ("windows", "answers", "calibration", "training", "quantization")
"""The sections of spanqa.json, beside its "format"."""

_PULL_REQUESTS = 30  # of a hub model, the newest: so many are searched for safetensors
_EXPECTED = (
    f"Expected a folder, a hub id such as 'deepset/bert-large-uncased-whole-word-masking-squad2', or {BUNDLED[0]!r}."
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model folder that has been read and understood, except for the weights themselves.

    `config` is config.json as it is; `settings` are the sections of spanqa.json, {} where there is none. `files` are the open
    weight files; None for a model that is in memory already. `verified` is the copy of the folder that was verified, as long as the
    model is being loaded; None where no signature was asked for.
    """

    path: Path
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    tokenizer: Tokenizer
    files: WeightFiles | None = None
    verified: Path | None = None

    @property
    def folder(self) -> Path:
        """Where further files are read from while the model is being loaded."""
        return self.verified or self.path

    @property
    def model_type(self) -> str:
        """The architecture's name in config.json, such as "bert"."""
        return str(self.config["model_type"])

    @property
    def max_seq_length(self) -> int:
        """The longest window that the model can read, special tokens counted."""
        with self._understood():
            return longest_window(self.config)

    @property
    def family(self) -> Family:
        """The record of the encoder's family; `encoder` says first whether there is one."""
        return FAMILIES[self.model_type]

    @cached_property
    def encoder(self) -> EncoderConfig:
        """The numbers of our own encoder.

        Raises:
            UnsupportedModelError: the architecture, or a setting of it, is not one that `spanqa.encoder` has.
        """
        if self.model_type not in FAMILIES:
            raise UnsupportedModelError(
                f"{_show(self.path)} is a {self.model_type!r} model; this backend runs {', '.join(FAMILIES)}. "
                "Use backend='torch' (pip install 'spanqa[torch]'), which runs every question-answering model of transformers."
            )
        with self._understood():
            return encoder_config(self.config)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            raise CheckpointError(f"{_show(self.path / CONFIG)} lacks {error.args[0]!r}.") from None
        except (TypeError, ValueError) as error:
            raise UnsupportedModelError(f"{_show(self.path / CONFIG)}: {error}, which spanqa does not run.") from None

    @property
    def weights(self) -> WeightFiles:
        """The open weight files.

        Raises:
            CheckpointError: the model came as a module in memory, and has no files.
        """
        if self.files is None:
            raise CheckpointError(
                "This model is a module in memory and has no weight files. Save it, and load its folder."
            )
        return self.files

    def encoder_weights(self) -> dict[str, NDArray[Any]]:
        """Return the encoder's parameters by our names, in the float type they are stored in (bfloat16 comes as float32).

        Raises:
            CheckpointError: parameters are missing, unexpected, of another shape, not floats, NaN or infinity.
        """
        return weights.encoder_weights(self.weights, self.encoder, repr(str(self.path)))


def find(model: str | os.PathLike[str], revision: str | None = None, *, signed: bool = False) -> Path:
    """Return the folder of a model: a bundled name, a folder, or a Hugging Face hub id (fetched, or from its cache).

    `signed`: of a hub model, all files that its signature speaks of are fetched.

    Raises:
        CheckpointError: there is no such model, or it is not in the cache and the hub is out of reach.
    """
    name = os.fspath(model)
    if not name.strip():
        raise CheckpointError(f"The model's name is empty. {_EXPECTED}")
    if "://" in name:
        raise CheckpointError(f"{name!r} is a URL. {_EXPECTED}")
    try:
        path = Path(__file__).parent / "models" / name if name in BUNDLED else Path(name).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except RuntimeError:
        raise CheckpointError(f"{name!r} names the home folder of a user that does not exist. {_EXPECTED}") from None
    except OSError as error:
        raise CheckpointError(f"{_show(path)} cannot be read: {error.strerror}.") from None
    if is_folder:
        if revision is not None:
            raise CheckpointError(
                f"revision={revision!r} was given, but {_show(path)} is a folder; only hub models have revisions."
            )
        return path
    if is_there:
        raise CheckpointError(
            f"{_show(path)} is a file; expected the folder that holds config.json and model.safetensors."
        )
    if name.count("/") > 1 or "\\" in name or name.startswith((".", "~", "/")):
        raise CheckpointError(f"There is no folder {_show(path)}. Check the name, or give the full path.")
    return _fetch(name, revision, signed)


def _fetch(name: str, revision: str | None, signed: bool) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        path = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))
        if signed and (path / SIGNATURE).is_file():  # the snapshot is named by its commit
            names = list(signed_files((path / SIGNATURE).read_bytes()))
            path = Path(huggingface_hub.snapshot_download(name, revision=path.name, allow_patterns=names))
    except errors.HFValidationError:
        raise CheckpointError(f"{name!r} is neither a folder nor a valid hub id. {_EXPECTED}") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"The hub model {name!r} has no revision {revision!r}.") from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"The hub model {name!r} is gated: accept its terms on its page, then run `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"There is no folder and no hub model {name!r} (or it is private). {_EXPECTED}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{name!r} is no folder, is not in the hub cache, and the hub cannot be reached ({type(error).__name__}). {_EXPECTED} "
            f"To work offline, fetch it once with a network: hf download {name}"
        ) from error
    if not any(path.glob("*.safetensors")):
        _refuse_pickles(name, revision)
    return path


def _refuse_pickles(name: str, revision: str | None) -> None:
    """Say where a hub model has safetensors, if this revision of it has pickled weights only.

    Raises:
        CheckpointError: so it is.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        pickled = next((file for file in hub.list_repo_files(name, revision=revision) if file in PICKLED), None)
        requests = hub.list_repo_refs(name, include_pull_requests=True).pull_requests or []
        refs = sorted((ref.ref for ref in requests), key=lambda ref: (len(ref), ref))[-_PULL_REQUESTS:]
        converted = [ref for ref in refs if WEIGHT_FILES[0] in hub.list_repo_files(name, revision=ref)]
    except Exception:  # the hub is out of reach, or has closed the repository since: the folder says what it lacks
        return
    if pickled is None:
        return
    if converted:
        way_out = (
            f"The pull request {converted[-1]} holds them as {WEIGHT_FILES[0]}: use revision={converted[-1]!r} (--revision "
            f"{converted[-1]}). Anybody can open a pull request; see first who made this one, on the model's page."
        )
    else:
        way_out = f"{CONVERSION} Then give the new folder."
    raise CheckpointError(
        f"The hub model {name!r} holds its weights only as {pickled} in its revision {revision or 'main'!r}. spanqa reads safetensors, "
        f"because pickled weights can run code. {way_out}"
    )


def open_checkpoint(model: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Open a model folder: config, settings, tokenizer, and the weight files, whose values are not read yet.

    Raises:
        CheckpointError: something is missing, damaged or contradictory; the message says what and where.
    """
    return _open(find(model, revision))


@contextmanager
def opened_checkpoint(
    model: str | os.PathLike[str], revision: str | None = None, verify_keys: Sequence[str] = ()
) -> Iterator[Checkpoint]:
    """Open a model folder for loading, during the `with` block. With keys (`spanqa.signing`), its signature is verified first.

    Then all that is read are bytes that were verified, even if the folder is changed meanwhile.

    Raises:
        CheckpointError: as for `open_checkpoint`.
        SignatureError: none of the keys has signed these files.
    """
    if not verify_keys:
        yield open_checkpoint(model, revision)
        return
    path = find(model, revision, signed=True)
    _check_regular(path)
    with verified_copy(path, verify_keys, only=CHECKPOINT_FILES if is_in_hub_cache(path) else None) as copy:
        yield replace(_open(copy), path=path, verified=copy)


def name_for_records(model: str | os.PathLike[str]) -> str:
    """Return a model's name for records that others read: of a folder its own name, without where it lies on this machine."""
    return Path(model).name if Path(model).exists() else os.fspath(model)


def is_in_hub_cache(path: Path) -> bool:
    """Whether a folder is a snapshot in the cache of the hub, which holds the files of a model that were asked for."""
    return path.resolve().parent.name == "snapshots"


def _open(path: Path) -> Checkpoint:
    _check_regular(path)
    config = _read_config(path / CONFIG)
    files = WeightFiles(weight_files(path))
    _LOG.info("opened %s: %s, %d bytes of weights", path, config["model_type"], files.bytes)
    settings = read_settings(path)
    return Checkpoint(path, config, settings, read_tokenizer(path, config), files)


def _check_regular(path: Path) -> None:
    """Refuse what would wait for ever, or give bytes for ever, when it is read: a FIFO, a socket or a device."""
    for pattern in CHECKPOINT_FILES:
        for file in path.glob(pattern):
            if file.exists() and not file.is_file() and not file.is_dir():
                raise CheckpointError(f"{_show(file)} is a FIFO, a socket or a device; expected a regular file.")


def _read_config(file: Path) -> dict[str, Any]:
    config = read_object(file, "It names the architecture. Is this a model folder?")
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f'{_show(file)} lacks "model_type", which names the architecture (such as "bert").')
    try:
        bounds.check([name for name in bounds.CONFIG if config.get(name) is not None], config, bounds.CONFIG)
    except InputError as error:
        raise CheckpointError(f"{_show(file)}: {error}") from None
    return config


def read_settings(path: Path) -> dict[str, Any]:
    """Return the sections of a folder's spanqa.json, {} where there is none.

    Raises:
        CheckpointError: it is of another format, or has an unknown section or one that is no object.
    """
    if not (path / SETTINGS).exists():
        return {}
    settings = read_object(path / SETTINGS)
    found = settings.pop("format", None)
    if found != FORMAT:
        raise CheckpointError(
            f"{_show(path / SETTINGS)} has the format {bounds.show(found)}; this version reads {FORMAT!r}. Upgrade spanqa."
        )
    unknown = sorted(set(settings) - set(SECTIONS))
    if unknown:
        raise CheckpointError(
            f"{_show(path / SETTINGS)} has the unknown section {unknown[0]!r}; expected {', '.join(('format', *SECTIONS))}."
        )
    for name, section in settings.items():
        if not isinstance(section, dict | None):
            raise CheckpointError(
                f"{_show(path / SETTINGS)}, {name!r}: expected an object or null, found {bounds.show(section)}."
            )
    return settings


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the sections of a folder's spanqa.json; the file is replaced as a whole.

    Raises:
        InputError: the folder cannot be written.
    """
    assert set(settings) <= set(SECTIONS), settings
    try:
        write_json(path / SETTINGS, {"format": FORMAT, **settings})
    except OSError as error:
        raise InputError(
            f"{_show(path / SETTINGS)} cannot be written: {error.strerror}. Copy the model to a folder that you can write to."
        ) from None


def copy_checkpoint(path: Path, out: Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """Copy the files of a checkpoint into a folder, but those whose names, or patterns of names, are left out.

    The weights are always copied.
    """
    files = [file for pattern in CHECKPOINT_FILES if pattern not in leave_out for file in path.glob(pattern)]
    for file in dict.fromkeys([*files, *weight_files(path)]):  # shards may have other names
        shutil.copyfile(file, out / file.name)


def _show(path: Path) -> str:
    return repr(str(path))
