"""The reader behind a pipeline: from a name, a folder, a `Reader`, or a transformers model in memory."""

import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spanqa import weights
from spanqa.checkpoint import BUNDLED, SETTINGS, Checkpoint, find, read_settings
from spanqa.errors import BackendError, CheckpointError, InputError, SpanQAWarning
from spanqa.files import read_object
from spanqa.pipelines.arguments import Loading, check_nothing_else
from spanqa.reader import Reader
from spanqa.tokenizer_files import fit_tokenizer, read_tokenizer
from spanqa.tokens import Tokenizer


def load_reader(model: Any, config: Any, tokenizer: Any, loading: Loading) -> Reader:
    """Return the reader that the arguments of `pipeline` name.

    Raises:
        InputError: arguments contradict each other, or a model in memory comes without its tokenizer.
        CheckpointError, BackendError: the model cannot be loaded or run.
    """
    if isinstance(model, Reader):
        check_nothing_else(loading, tokenizer=tokenizer, config=config)
        return model
    if not (
        config is None or config is getattr(model, "config", None) or (is_name(config) and str(config) == str(model))
    ):
        raise InputError(
            f"config is {config if is_name(config) else type(config).__name__!r}, but a model comes with its own. Leave config out; "
            "to change it, save the changed config.json in the model's folder."
        )
    if loading.token and (_is_on_hub(model) or _is_on_hub(tokenizer)):
        raise InputError(
            "token is given, but spanqa takes the token of this machine. Leave token out, and set the environment variable HF_TOKEN, "
            "or run `hf auth login`."
        )
    if model is None and tokenizer is not None:
        raise InputError("A tokenizer was given without a model, and may not be the default model's. Give both.")
    if model is None or isinstance(model, (str, os.PathLike)):
        return _reader_of_name(BUNDLED[0] if model is None else model, tokenizer, loading)
    return _reader_of_module(model, tokenizer, loading)


def is_name(given: Any) -> bool:
    """Return whether a model or tokenizer was given by its name or folder, not as an object."""
    return isinstance(given, (str, os.PathLike))


def _is_on_hub(given: Any) -> bool:
    return is_name(given) and str(given) not in BUNDLED and not Path(given).expanduser().is_dir()


def _reader_of_name(model: str | os.PathLike[str], tokenizer: Any, loading: Loading) -> Reader:
    reader = Reader.load(
        model, backend=loading.backend, device=loading.device, dtype=loading.dtype, revision=loading.revision
    )
    checkpoint = reader.checkpoint
    if loading.trust_remote_code and "AutoModelForQuestionAnswering" in (checkpoint.config.get("auto_map") or {}):
        raise InputError(
            f"trust_remote_code is True, and {str(model)!r} has code of its own, which spanqa does not run. Load it with "
            "AutoModelForQuestionAnswering.from_pretrained, and give model and tokenizer to pipeline."
        )
    if tokenizer is None or str(tokenizer) == str(model):
        return _no_longer(reader, _longest(checkpoint.path))
    found, longest = _tokenizer(tokenizer, checkpoint.config, loading.revision)
    other = replace(checkpoint, tokenizer=found)
    return _no_longer(Reader(other, reader.backend, reader.reason, rebuild=reader.engine.rebuild), longest)


def _reader_of_module(module: Any, tokenizer: Any, loading: Loading) -> Reader:
    """Return a reader around a transformers model in memory, as in `pipeline(model=model, tokenizer=tokenizer)`."""
    if loading.backend not in ("auto", "torch"):
        raise BackendError(
            f"backend is {loading.backend!r}, but a transformers model in memory runs on 'torch' only. Give the model's folder instead."
        )
    if not (hasattr(module, "config") and hasattr(module, "named_parameters")):
        raise InputError(
            f"model is of type {type(module).__name__}. Expected a folder, a hub id, a Reader, or a PyTorch model of transformers."
        )
    itself = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    if "start_positions" not in inspect.signature(itself.forward).parameters:
        raise InputError(
            f"{type(module).__name__} has no question-answering head. Load the model with AutoModelForQuestionAnswering."
        )
    if tokenizer is None:
        raise InputError(
            "A transformers model in memory needs its tokenizer. Call pipeline(model=model, tokenizer=tokenizer)."
        )
    from spanqa.backends import torch as torch_backend

    config = module.config.to_dict()
    path = Path(str(getattr(module, "name_or_path", None) or "a model in memory"))
    found, longest = _tokenizer(tokenizer, config, loading.revision)
    checkpoint = Checkpoint(path, config, _settings(path, itself), found)
    backend = torch_backend.wrap(module, checkpoint, device=loading.device, dtype=loading.dtype)
    return _no_longer(Reader(checkpoint, backend), longest)


def _settings(path: Path, module: Any) -> dict[str, Any]:
    """Return the sections of spanqa.json in the folder that a module was loaded from; {} where it was trained since."""
    if not (path / SETTINGS).is_file():
        return {}
    if not _same_head(path, module):
        warnings.warn(
            f"The model in memory has other weights than its folder {str(path)!r}. The settings there, such as the calibration of "
            "probabilities, do not apply. Save the model, and run `spanqa tune` on its folder.",
            SpanQAWarning,
            stacklevel=6,
        )
        return {}
    return read_settings(path)


def _same_head(path: Path, module: Any) -> bool:
    """Return whether the question-answering head, which every training changes, is the one stored in the folder."""
    import torch

    files = weights.WeightFiles(weights.weight_files(path))
    stored = weights.modern_names(files)
    encoder = f"{getattr(module, 'base_model_prefix', '')}."
    head = {name: value for name, value in module.named_parameters() if not name.startswith(encoder)}
    return bool(head) and all(
        name in stored
        and not value.is_meta
        and torch.equal(
            torch.from_numpy(files.read(stored[name]).astype("float32")).to(value.dtype), value.detach().cpu()
        )
        for name, value in head.items()
    )


def _tokenizer(tokenizer: Any, config: Mapping[str, Any], revision: str | None = None) -> tuple[Tokenizer, Any]:
    """Return the tokenizer for a model of this config, and its `model_max_length`."""
    if is_name(tokenizer):
        folder = find(tokenizer, revision if _is_on_hub(tokenizer) else None)
        return read_tokenizer(folder, config), _longest(folder)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CheckpointError(
            f"{type(tokenizer).__name__} is not a fast tokenizer. Load it with AutoTokenizer.from_pretrained."
        )
    import tokenizers

    copy = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return fit_tokenizer(copy, config, type(tokenizer).__name__), getattr(tokenizer, "model_max_length", None)


def _longest(folder: Path) -> Any:
    """Return the `model_max_length` of a folder's tokenizer: the windows of transformers' pipelines were no longer."""
    file = folder / "tokenizer_config.json"
    return read_object(file).get("model_max_length") if file.is_file() else None


def _no_longer(reader: Reader, longest: Any) -> Reader:
    """Return the reader with windows of at most this length, where it is one."""
    windows = reader.windows
    if isinstance(longest, int) and 0 < longest < windows.max_seq_length:
        return reader.with_settings(windows=replace(windows, max_seq_length=longest))
    return reader
