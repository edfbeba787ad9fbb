"""`pipeline("question-answering")`: the call forms of transformers 4.x on top of the Reader.

It accepts what transformers 4.57 accepted and returns dictionaries with `score`, `start`, `end`, `answer`, and our
`probability`. Where 4.57 was right, this module behaves the same. Where 4.57 was wrong (scores summed over windows, answers at
different positions merged by their text, `max_question_len` ignored, strides that panic), it behaves correctly.
`docs/migrating.md` lists every difference.

It does not use the stored threshold to decide whether there is an answer: `Reader.ask` does.
"""

import math
import os
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from spanqa.answers import AnswerSettings, margins
from spanqa.batches import WindowLogits
from spanqa.calibration import Probabilities, log_sum_exp
from spanqa.checkpoint import BUNDLED, Checkpoint, find
from spanqa.errors import BackendError, CheckpointError, InputError, SpanQAWarning
from spanqa.extras import require
from spanqa.reader import Reader, Reading
from spanqa.spans import overlapping, span_band
from spanqa.tokens import Passage, Tokens, fit_tokenizer, read_tokenizer
from spanqa.windows import WindowSettings

TASK = "question-answering"
_DTYPES = {"auto": "auto", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_CALL_ONLY = (
    "batch_size",
    "num_workers",
    "padding",
)  # accepted because 4.57 accepted them; here batches are planned by tokens


@dataclass(frozen=True, slots=True)
class CallSettings:
    """The parameters of a call, with the names and defaults of transformers 4.57. Lengths are in tokens.

    `doc_stride` is an overlap; None means min(max_seq_len // 2, 128). `max_seq_len` None means min(384, the model's maximum).
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len"):
            value, least = getattr(self, name), 0 if name == "doc_stride" else 1
            if value is None and name in ("doc_stride", "max_seq_len"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} is {value!r}. Expected a whole number, at least {least}.")


Item = tuple[str, str]


def pipeline(
    task: str = TASK,
    model: Any = None,
    tokenizer: Any = None,
    *,
    device: Any = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    backend: str = "auto",
    revision: str | None = None,
    **defaults: Any,
) -> "QuestionAnsweringPipeline":
    """Return a function that answers questions the way transformers 4.x's pipeline did.

        qa = spanqa.pipeline("question-answering", model="deepset/bert-large-uncased-whole-word-masking-squad2")
        qa(question="Who built it?", context="The pier was built by Anna Kestrel.")
        # {'score': 0.93, 'start': 22, 'end': 34, 'answer': 'Anna Kestrel', 'probability': 0.95}

    `model` is a bundled name (None is spanqa-mini), a folder, a hub id, a `Reader`, or a transformers model. `tokenizer` is a
    folder, a hub id or a fast tokenizer of transformers; only a transformers model needs it. `defaults` are call parameters
    (`top_k`, `max_answer_len`, ...) for calls that do not set them.

    Raises:
        InputError: the task is another one, or this pipeline does not have an argument.
        CheckpointError, BackendError: the model cannot be loaded or run.
    """
    if task != TASK:
        raise InputError(f"spanqa has no pipeline {task!r}. The only task is {TASK!r}.")
    return QuestionAnsweringPipeline(
        model, tokenizer, device=device, dtype=dtype or torch_dtype, backend=backend, revision=revision, **defaults
    )


class QuestionAnsweringPipeline:
    """What `pipeline` returns: a reader and default call parameters."""

    task = TASK
    # transformers 5 reads these flags of a registered pipeline: which parts to load before it creates one.
    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        task: str = TASK,
        device: Any = None,
        dtype: Any = None,
        backend: str = "auto",
        revision: str | None = None,
        framework: str | None = None,
        **defaults: Any,
    ) -> None:
        if framework not in (None, "pt"):
            raise InputError(f"framework is {framework!r}. Choose a backend with backend= instead (see `spanqa info`).")
        self._defaults = _parameters(defaults)
        self.reader = _reader(model, tokenizer, device=device, dtype=dtype, backend=backend, revision=revision)

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
        settings = CallSettings(**(self._defaults | _parameters(kwargs)))
        inputs = _inputs(args, texts)
        if isinstance(inputs, Iterator):
            return self._answers(map(_item, inputs), settings)
        answers = list(self._answers(map(_item, inputs), settings))
        single = len(answers) == 1 and not (
            args and isinstance(args[0], dict) and isinstance(args[0].get("question"), list)
        )
        return answers[0] if single else answers

    predict = transform = __call__

    def _answers(self, items: Iterable[Item], settings: CallSettings) -> Iterator[Any]:
        """Yield the result of each item; consecutive items with equal window settings share batches."""
        encoded = (self._encode(question, context, settings) for question, context in items)
        for windows, group in groupby(encoded, key=lambda item: self._windows(item[0], item[1], settings)):
            reader = self.reader.with_settings(windows=windows, answers=AnswerSettings(settings.max_answer_len))
            for reading in reader.forward((question, [passage]) for question, passage in group):
                answers = self._decode(reading, settings)
                yield answers[0] if len(answers) == 1 else answers

    def _encode(self, question: str, context: str, settings: CallSettings) -> tuple[Tokens, Passage]:
        """Encode both texts once, and cut the question to its first `max_question_len` tokens."""
        tokens = self.reader.checkpoint.tokenizer.encode(question)
        return tokens.first(settings.max_question_len), self.reader.prepare(context)

    def _windows(self, question: Tokens, passage: Passage, settings: CallSettings) -> WindowSettings:
        checkpoint = self.reader.checkpoint
        length = min(384, checkpoint.max_seq_length) if settings.max_seq_len is None else settings.max_seq_len
        room = length - checkpoint.tokenizer.template.special_tokens - len(question)
        overlap = min(length // 2, 128) if settings.doc_stride is None else settings.doc_stride
        fits = overlap < room or (settings.doc_stride is not None and len(passage.tokens) > room)
        return WindowSettings(length, overlap if fits else None, settings.max_question_len)

    def _decode(self, reading: Reading, settings: CallSettings) -> list[dict[str, Any]]:
        """Return the best answers to one question, each span once, with the probability of its best token span."""
        passage, windows = reading.passages[0], reading.logits[0]
        bounds = passage.tokens.offsets
        words = passage.tokens.word_bounds() if settings.align_to_words else bounds
        band = margins(passage, windows, settings.max_answer_len)
        calibration = self.reader.calibration
        probabilities = Probabilities(
            float(band.max(initial=-np.inf)), log_sum_exp(band, calibration.temperature), calibration
        )
        found: dict[tuple[int, int], tuple[float, int, int]] = {}
        for window in windows:
            for first, last, score in _best_spans(window, settings):
                if bounds[first, 0] < bounds[first, 1] and bounds[last, 0] < bounds[last, 1]:
                    span = int(words[first, 0]), int(words[last, 1])
                    if score > found.get(span, (-1.0,))[0]:
                        found[span] = score, first, last

        def probability(first: int, last: int) -> float:
            rows, mask = overlapping(band.shape, bounds, first, last)
            return probabilities.of_answer(log_sum_exp(band[rows][mask], calibration.temperature))

        answers: list[dict[str, Any]] = [
            {
                "score": score,
                "start": start,
                "end": end,
                "answer": passage.text[start:end],
                "probability": probability(*tokens),
            }
            for (start, end), (score, *tokens) in found.items()
        ]
        if settings.handle_impossible_answer or not answers:
            null = min(map(_null_probability, windows), default=1.0) if settings.handle_impossible_answer else 0.0
            answers.append(
                {"score": null, "start": 0, "end": 0, "answer": "", "probability": probabilities.of_no_answer}
            )
        return sorted(answers, key=lambda answer: answer["score"], reverse=True)[: settings.top_k]


def _best_spans(window: WindowLogits, settings: CallSettings) -> Iterator[tuple[int, int, float]]:
    """Yield the best token spans of a window (first, last, probability), more than the number of answers requested.

    The probability is softmax(start) x softmax(end), each over the window's passage tokens and [CLS].
    """
    start, end = (
        logits - np.float32(log_sum_exp(np.append(logits, np.float32(null))))
        for logits, null in ((window.start, window.null_start), (window.end, window.null_end))
    )
    band = span_band(start, end, settings.max_answer_len)
    count = min(band.size, 2 * settings.top_k + 10)
    best = np.argpartition(-band, count - 1, axis=None)[:count]
    for index in best[np.argsort(-band.ravel()[best], kind="stable")]:
        first, extent = divmod(int(index), band.shape[1])
        if band[first, extent] > -np.inf:
            yield window.first + first, window.first + first + extent, math.exp(band[first, extent])


def _null_probability(window: WindowLogits) -> float:
    """Return softmax(start) x softmax(end) of [CLS]."""
    start = window.null_start - log_sum_exp(np.append(window.start, np.float32(window.null_start)))
    end = window.null_end - log_sum_exp(np.append(window.end, np.float32(window.null_end)))
    return math.exp(start + end)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call parameters that have a value; None means not given, as in 4.57."""
    given = {name: value for name, value in given.items() if value is not None and name not in _CALL_ONLY}
    if "topk" in given:
        warnings.warn("topk is the old name of top_k. Use top_k.", SpanQAWarning, stacklevel=3)
        given = {"top_k": given["topk"]} | {name: value for name, value in given.items() if name != "topk"}
    known = [field.name for field in fields(CallSettings)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"The pipeline has no parameter {unknown[0]!r}. Expected {', '.join(known)}.")
    return given


def _inputs(args: Sequence[Any], texts: Mapping[str, Any]) -> Iterator[Any] | list[Any]:
    """Return the examples of a call, in any form that 4.57 accepted: an iterator for a generator or data set, else a list."""
    named = {name: value for name, value in texts.items() if value is not None}
    ways = [bool(args), "X" in named, "data" in named, "question" in named or "context" in named]
    if sum(ways) > 1:
        raise InputError("Examples were given in two ways. Give either question= and context=, or one list of both.")
    if len(args) == 2 and all(isinstance(arg, str) for arg in args):
        named = {"question": args[0], "context": args[1]}
    elif args:
        named = {"data": args[0] if len(args) == 1 else list(args)}
    if not named:
        raise InputError("No question was given. Give question= and context=.")
    if "data" in named or "X" in named:
        return _examples(named.get("data", named.get("X")))
    return _pairs(named.get("question"), named.get("context"))


def _examples(inputs: Any) -> Iterator[Any] | list[Any]:
    if isinstance(inputs, types.GeneratorType):
        return inputs
    if isinstance(inputs, dict) and isinstance(inputs.get("question"), list):
        return _pairs(inputs["question"], inputs.get("context"))
    if isinstance(inputs, dict) or hasattr(inputs, "question_text"):
        return [inputs]
    if isinstance(inputs, str) or not (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")):
        raise InputError(
            f"Expected examples, got {type(inputs).__name__}: {inputs!r:.60}. Give question= and context=."
        )
    if hasattr(inputs, "__getitem__") and not isinstance(inputs, (list, tuple)):  # a data set
        return (inputs[i] for i in range(len(inputs)))
    return list(inputs)


def _pairs(question: Any, context: Any) -> list[Any]:
    if isinstance(question, str) and isinstance(context, str):
        return [{"question": question, "context": context}]
    if isinstance(question, list) and isinstance(context, str):
        context = [context] * len(question)
    if isinstance(question, list) and isinstance(context, list):
        if len(question) != len(context):
            raise InputError(
                f"There are {len(question)} questions and {len(context)} contexts. Expected the same number of both."
            )
        return [{"question": q, "context": c} for q, c in zip(question, context, strict=True)]
    raise InputError(
        f"question is {type(question).__name__} and context is {type(context).__name__}. Expected two strings, two lists, "
        "or a list of questions and one context."
    )


def _item(example: Any) -> Item:
    """Return (question, context) of a dict, or of an object with transformers' old names (SquadExample)."""
    if isinstance(example, dict):
        missing = [name for name in ("question", "context") if name not in example]
        if missing:
            raise InputError(f"An example has no {missing[0]!r}: {example!r:.100}. Expected 'question' and 'context'.")
        question, context = example["question"], example["context"]
    elif hasattr(example, "question_text") and hasattr(example, "context_text"):
        question, context = example.question_text, example.context_text
    else:
        raise InputError(
            f"Expected an example as a dict with question and context, got {type(example).__name__}: {example!r:.60}."
        )
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            raise InputError(f"{name} must be a string (str), got {type(text).__name__}: {text!r:.60}.")
        if not text.strip():
            raise InputError(f"{name} is empty. Expected text.")
    return question, context


def _reader(model: Any, tokenizer: Any, *, device: Any, dtype: Any, backend: str, revision: str | None) -> Reader:
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


def revive_transformers_pipeline() -> None:
    """Make `transformers.pipeline("question-answering", ...)` work again on transformers 5, with this pipeline.

    This registers the pipeline with transformers' own registry and removes the task from its table of removed tasks. Call it once,
    before the old code runs. Nothing else in transformers changes. The default model is the old default of transformers.

    Raises:
        NotInstalledError: transformers is not installed.
        InputError: this version of transformers still has the task.
    """
    require("transformers")
    import transformers
    from transformers import pipelines

    registry = pipelines.PIPELINE_REGISTRY
    known = registry.supported_tasks.get(TASK)
    if known is not None and known["impl"] is not QuestionAnsweringPipeline:
        raise InputError(
            f"transformers {transformers.__version__} still has its own {TASK!r} pipeline. There is nothing to revive."
        )
    getattr(pipelines, "REMOVED_TASKS", {}).pop(TASK, None)
    if known is None:
        registry.register_pipeline(
            TASK,
            pipeline_class=QuestionAnsweringPipeline,
            pt_model=transformers.AutoModelForQuestionAnswering,
            default={"model": ("distilbert/distilbert-base-cased-distilled-squad", "564e9b5")},
            type="text",
        )
