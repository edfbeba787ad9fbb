"""The reader behind a pipeline: from a name, a folder, a `Reader`, or a transformers model in memory."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spanqa.checkpoint import BUNDLED, Checkpoint, find
from spanqa.errors import BackendError, CheckpointError, InputError
from spanqa.reader import Reader
from spanqa.tokenizer_files import fit_tokenizer, read_tokenizer

_DTYPES = {"auto": "auto", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def load_reader(model: Any, tokenizer: Any, *, device: Any, dtype: Any, backend: str, revision: str | None) -> Reader:
    """Return the reader that the arguments of `pipeline` name.

    Raises:
        InputError: the dtype does not exist, or a model in memory comes without its tokenizer.
        CheckpointError, BackendError: the model cannot be loaded or run.
    """
    device = f"cuda:{device}" if isinstance(device, int) and device >= 0 else "cpu" if device == -1 else device
    device = "auto" if device is None else str(device)
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in _DTYPES and name not in _DTYPES.values():
        raise InputError(f"dtype is {dtype!r}. Expected one of {', '.join(_DTYPES)}.")
    dtype = _DTYPES.get(name, name)
    if isinstance(model, Reader):
        return model
    if model is None or isinstance(model, (str, os.PathLike)):
        reader = Reader.load(model or BUNDLED[0], backend=backend, device=device, dtype=dtype, revision=revision)
        if tokenizer is None or str(tokenizer) == str(model):
            return reader
        checkpoint = replace(reader.checkpoint, tokenizer=_tokenizer(tokenizer, reader.checkpoint.config))
        return Reader(checkpoint, reader.backend, reader.reason, rebuild=reader.engine.rebuild)
    return _reader_of_module(model, tokenizer, device=device, dtype=dtype, backend=backend)


def _reader_of_module(module: Any, tokenizer: Any, *, device: str, dtype: str, backend: str) -> Reader:
    """Return a reader around a transformers model in memory, as in `pipeline(model=model, tokenizer=tokenizer)`."""
    if backend not in ("auto", "torch"):
        raise BackendError(
            f"backend is {backend!r}, but a transformers model in memory runs on 'torch' only. Give the model's folder instead."
        )
    if tokenizer is None or not hasattr(module, "config"):
        raise InputError(
            "A transformers model in memory needs its tokenizer. Call pipeline(model=model, tokenizer=tokenizer)."
        )
    from spanqa.backends import torch as torch_backend

    config = module.config.to_dict()
    checkpoint = Checkpoint(Path(str(module.name_or_path or ".")), config, {}, _tokenizer(tokenizer, config))
    return Reader(checkpoint, torch_backend.wrap(module, checkpoint, device=device, dtype=dtype))


def _tokenizer(tokenizer: Any, config: Mapping[str, Any]) -> Any:
    if isinstance(tokenizer, (str, os.PathLike)):
        return read_tokenizer(find(tokenizer), config)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CheckpointError(
            f"{type(tokenizer).__name__} is not a fast tokenizer. Load it with AutoTokenizer.from_pretrained."
        )
    import tokenizers

    copy = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return fit_tokenizer(copy, config, type(tokenizer).__name__)
