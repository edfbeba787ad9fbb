"""What one question of the pipeline goes through: encoded, cut into windows, and decoded the way transformers 4.57 did."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from spanqa.answers import margins
from spanqa.batches import WindowLogits
from spanqa.calibration import Probabilities, log_sum_exp
from spanqa.pipelines.calls import CallSettings
from spanqa.reader import Reader
from spanqa.spans import overlapping, span_band
from spanqa.stream import Reading
from spanqa.tokens import Passage, Tokens
from spanqa.windows import WindowSettings


def encode(reader: Reader, question: str, context: str, settings: CallSettings) -> tuple[Tokens, Passage]:
    """Encode both texts once, and cut the question at `max_question_len`; at half of a window that this would fill."""
    tokenizer = reader.checkpoint.tokenizer
    tokens = tokenizer.encode(question)
    room = _length(reader, settings) - tokenizer.template.special_tokens
    kept = tokens.first(settings.max_question_len)
    return kept if len(kept) < room else tokens.first(max(1, room // 2)), reader.prepare(context)


def window_settings(reader: Reader, question: Tokens, passage: Passage, settings: CallSettings) -> WindowSettings:
    """Return how the passage is cut into windows beside the question, as the call asked for it."""
    length = _length(reader, settings)
    room = length - reader.checkpoint.tokenizer.template.special_tokens - len(question)
    overlap = min(length // 2, 128) if settings.doc_stride is None else settings.doc_stride
    fits = overlap < room or (settings.doc_stride is not None and len(passage.tokens) > room)
    return WindowSettings(length, overlap if fits else None, min(settings.max_question_len, length))


def _length(reader: Reader, settings: CallSettings) -> int:
    return min(384, reader.windows.max_seq_length) if settings.max_seq_len is None else settings.max_seq_len


def decode(reader: Reader, reading: Reading, settings: CallSettings) -> list[dict[str, Any]]:
    """Return the best answers to one question, each span once, with the probability of its best token span."""
    passage, windows = reading.passages[0], reading.logits[0]
    bounds = passage.tokens.offsets
    words = passage.tokens.word_bounds() if settings.align_to_words else bounds
    band = margins(passage, windows, min(settings.max_answer_len, len(passage.tokens)))
    calibration = reader.calibration
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
        answers.append({"score": null, "start": 0, "end": 0, "answer": "", "probability": probabilities.of_no_answer})
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
