"""The pipeline itself: calls in, dictionaries out."""

import os
import pickle
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from spanqa.checkpoint import find
from spanqa.errors import InputError
from spanqa.extras import installed
from spanqa.pipelines.arguments import read_arguments, tokenizer_of
from spanqa.pipelines.calls import CallSettings, Item, inputs_of, pair_of, parameters
from spanqa.pipelines.loading import is_name, load_reader
from spanqa.pipelines.saving import save
from spanqa.pipelines.steps import decode, encode, window_settings
from spanqa.reader import Reader

TASK = "question-answering"

_TORCH_ONLY = "It has one on one device of backend torch, as with backend='torch'. "

_INSTEAD = {
    "model": _TORCH_ONLY + "Elsewhere use .reader.backend, and .reader.checkpoint.config for config.json.",
    "dtype": _TORCH_ONLY + "Elsewhere use .reader.backend.dtype, which is a name.",
    "tokenizer": "It has one where transformers is installed and the model is a folder. Elsewhere use .reader.checkpoint.tokenizer.",
    "preprocess": "Use .reader.prepare, which encodes a passage.",
    "forward": "Use .reader.forward.",
    "postprocess": "Use .reader.decode.",
    "push_to_hub": "Use .save_pretrained, then: hf upload NAME FOLDER.",
}
"""Attributes of 4.57's pipeline that are not here, or not always, and what replaces them."""


def pipeline(
    task: str | None = TASK,
    model: Any = None,
    config: Any = None,
    tokenizer: Any = None,
    *,
    device: Any = None,
    dtype: Any = None,
    backend: str = "auto",
    pipeline_class: Any = None,
    **arguments: Any,
) -> "QuestionAnsweringPipeline":
    """Return a function that answers questions the way transformers 4.x's pipeline did.

        qa = spanqa.pipeline("question-answering", model="deepset/bert-large-uncased-whole-word-masking-squad2")
        qa(question="Who built it?", context="The pier was built by Anna Kestrel.")
        # {'score': 0.93, 'start': 22, 'end': 34, 'answer': 'Anna Kestrel', 'probability': 0.95}

    `model` is a bundled name (None is spanqa-mini), a folder, a hub id, a `Reader`, or a transformers model, which stays as it
    is. `tokenizer` is a folder, a hub id or a fast tokenizer of transformers; only a transformers model needs it. `arguments` are
    the other arguments of transformers' factory (`revision`, `device_map`, `model_kwargs`, ...), and call parameters (`top_k`,
    `max_answer_len`, ...) for calls that do not set them. `docs/migrating.md` lists what each means here.

    Raises:
        InputError: the task is another one, or an argument has no meaning here; the message names the replacement.
        CheckpointError, BackendError: the model cannot be loaded or run.
    """
    if task not in (TASK, None):
        raise InputError(f"spanqa has no pipeline {task!r}. The only task is {TASK!r}.")
    kind = QuestionAnsweringPipeline if pipeline_class is None else pipeline_class
    if not (isinstance(kind, type) and issubclass(kind, QuestionAnsweringPipeline)):
        raise InputError(
            f"pipeline_class is {kind!r:.60}. Expected a subclass of spanqa.pipelines.QuestionAnsweringPipeline; leave it out for that "
            "class itself."
        )
    return kind(model, tokenizer, config=config, device=device, dtype=dtype, backend=backend, **arguments)


class QuestionAnsweringPipeline:
    """What `pipeline` returns: a reader and default call parameters.

    `reader` is the `Reader` behind it. A pickled pipeline loads its model again where it is unpickled; a transformers model in
    memory is pickled whole.
    """

    task = TASK
    # transformers 5 reads these flags of a registered pipeline: which parts to load before it creates one.
    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(
        self, model: Any = None, tokenizer: Any = None, *, task: str = TASK, config: Any = None, **arguments: Any
    ) -> None:
        loading, defaults = read_arguments(arguments)
        self._defaults = parameters(defaults)
        self._tokenizer = tokenizer_of(tokenizer)
        self.reader = load_reader(model, config, self._tokenizer, loading)
        in_memory = model is not None and not is_name(model) and not isinstance(model, Reader)
        self._module = model if in_memory else None
        # For the process that unpickles the pipeline, which may run in another folder.
        self._arguments = {"model": _absolute(model), "tokenizer": _absolute(self._tokenizer), **arguments}

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            return _build, (type(self), pickle.dumps(self._arguments))
        except Exception as error:  # a model in memory may hold anything
            raise TypeError(
                f"This pipeline cannot be pickled: {error}. Save its model with save_pretrained, and make the pipeline from that folder."
            ) from error

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"The pipeline has no attribute {name!r}. {_INSTEAD.get(name, 'Its model is behind .reader.')}"
        )

    @property
    def model(self) -> Any:
        """The transformers model: the one that was given, or the one that backend torch loaded."""
        backend: Any = self.reader.backend
        return backend.network if self._module is None else self._module

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers: the one that was given, or that of the model's folder, which is loaded now."""
        given, folder = self._tokenizer, self.reader.checkpoint.path
        if given is not None and not is_name(given):
            return given
        if not installed("transformers") or (given is None and not folder.is_dir()):
            raise AttributeError
        import transformers

        return transformers.AutoTokenizer.from_pretrained(str(folder if given is None else find(given)))

    @property
    def device(self) -> Any:
        """Where the model computes: a `torch.device` on backend torch, else its name, such as "cpu"."""
        backend = self.reader.backend
        if backend.name != "torch" or "," in backend.device:
            return backend.device
        import torch

        return torch.device(backend.device)

    @property
    def dtype(self) -> Any:
        """The `torch.dtype` of the model on backend torch."""
        return self.model.dtype

    torch_dtype = dtype

    @property
    def framework(self) -> str:
        """What computes: "pt" on backend torch, else the backend's name."""
        return "pt" if self.reader.backend.name == "torch" else self.reader.backend.name

    def save_pretrained(self, save_directory: str | os.PathLike[str], safe_serialization: bool = True) -> None:
        """Write the model, its tokenizer and its settings to a folder.

        Raises:
            InputError: the folder is a file, is the model's own, or cannot be written; pickled weights are asked for.
        """
        if not safe_serialization:
            raise InputError(
                f"safe_serialization is {safe_serialization!r}. spanqa writes safetensors only. Leave it out."
            )
        save(self.reader, self._module, self._tokenizer, save_directory)

    @staticmethod
    def create_sample(question: str | list[str], context: str | list[str]) -> Any:
        """Return one example in a form that the pipeline accepts; for lists, a list of examples."""
        if isinstance(question, list):
            return [{"question": q, "context": c} for q, c in zip(question, context, strict=True)]
        return {"question": question, "context": context}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer questions: `question=` and `context=` as strings or lists, a dict, a list of dicts, or a generator.

        One question with one answer gives a dictionary; one question with several answers (`top_k`) gives a list of
        dictionaries. Several questions give a list with one such item per question. A generator or data set gives an iterator.

        Raises:
            InputError: the arguments are not one of these forms, or a question or context is empty.
        """
        texts = {name: kwargs.pop(name, None) for name in ("X", "data", "question", "context")}
        settings = CallSettings(**(self._defaults | parameters(kwargs)))
        inputs = inputs_of(args, texts)
        if isinstance(inputs, Iterator):
            return self._answers(map(pair_of, inputs), settings)
        answers = list(self._answers(map(pair_of, inputs), settings))
        single = len(answers) == 1 and not (
            args and isinstance(args[0], dict) and isinstance(args[0].get("question"), list)
        )
        return answers[0] if single else answers

    predict = transform = __call__

    def _answers(self, items: Iterable[Item], settings: CallSettings) -> Iterator[Any]:
        """Yield the result of each item; consecutive items with equal window settings share batches."""
        encoded = (encode(self.reader, question, context, settings) for question, context in items)
        for windows, group in groupby(
            encoded, key=lambda item: window_settings(self.reader, item[0], item[1], settings)
        ):
            reader = self.reader.with_settings(windows=windows)
            for reading in reader.forward((question, [passage]) for question, passage in group):
                answers = decode(reader, reading, settings)
                yield answers[0] if len(answers) == 1 else answers


def _absolute(given: Any) -> Any:
    return str(Path(given).expanduser().resolve()) if is_name(given) and Path(given).expanduser().is_dir() else given


def _build(kind: type[QuestionAnsweringPipeline], arguments: bytes) -> QuestionAnsweringPipeline:
    return kind(**pickle.loads(arguments))
