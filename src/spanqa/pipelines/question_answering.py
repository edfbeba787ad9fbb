"""The pipeline itself: calls in, dictionaries out, and transformers' own registry."""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np

from spanqa.answers import AnswerSettings, margins
from spanqa.batches import WindowLogits
from spanqa.calibration import Probabilities, log_sum_exp
from spanqa.errors import InputError
from spanqa.extras import require
from spanqa.pipelines.calls import CallSettings, Item, inputs_of, pair_of, parameters
from spanqa.pipelines.loading import load_reader
from spanqa.spans import overlapping, span_band
from spanqa.stream import Reading
from spanqa.tokens import Passage, Tokens
from spanqa.windows import WindowSettings

TASK = "question-answering"


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
        self._defaults = parameters(defaults)
        self.reader = load_reader(model, tokenizer, device=device, dtype=dtype, backend=backend, revision=revision)

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
            for (start, end), (score, *tokens) in sorted(found.items(), key=lambda item: -item[1][0])[: settings.top_k]
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
