"""Reader: the chain from question and passage to answer, behind one object.

    prepare   text -> Passage          encode once, ask often
    forward   questions -> Reading     windows, batches, logits; a stream in, a stream out
    decode    Reading -> Ranking       places, probabilities, no answer

`ask`, `ask_many` and `rank` compose the three. It adds nothing of its own but their order.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np

from spanqa.answers import Answer, AnswerSettings, Calibration, NoAnswer, Ranking, least_score, rank_places
from spanqa.backends.base import Backend
from spanqa.backends.registry import load_backend, preferred_layout
from spanqa.batches import PADDING, Batch, BatchLayout, SpanLogits, pack, plan_batches
from spanqa.checkpoint import BUNDLED, Checkpoint, open_checkpoint
from spanqa.errors import BackendError, CheckpointError, InputError
from spanqa.spans import WindowLogits, split_logits
from spanqa.tokens import Passage
from spanqa.windows import Window, WindowSettings, make_windows

BATCH_TOKENS = 4096
"""Tokens of a batch, padding counted: enough to keep matrix products busy, little enough to fit the caches."""

_CHUNK_TOKENS = 16 * BATCH_TOKENS  # sorted by length together; also bounds what a stream holds in memory

Settings = TypeVar("Settings", WindowSettings, AnswerSettings, Calibration)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A question, its passages, and what the model made of each: the logits of the windows of every passage."""

    question: str
    passages: tuple[Passage, ...]
    logits: tuple[tuple[WindowLogits, ...], ...]


Item = tuple[str, tuple[Passage, ...], list[list[Window]]]
"""A question, its passages, and the windows of each passage."""

Running = tuple[list[list[int]], "Future[list[WindowLogits]]"]
"""A planned batch, as rows of positions of windows, and what is becoming of it."""


class Reader:
    """A model that reads passages for the answers to questions.

        reader = Reader.load()
        reader.ask("Who built it?", "The pier was built by Anna Kestrel.").text    # 'Anna Kestrel'

    `windows`, `answers` and `calibration` are the settings stored with the model; a reader with others is made by
    `with_settings`. `reason` says why `backend` is the one it is; `layout` is how its batches are laid out.
    """

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, reason: str = "it was given", layout: BatchLayout | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.backend = backend
        self.layout: BatchLayout = layout or preferred_layout(backend)
        self.reason = reason
        stored = stored_settings(checkpoint)
        self.windows, self.answers, self.calibration = stored.windows, stored.answers, stored.calibration

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = BUNDLED[0],
        *,
        backend: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        threads: int | None = None,
        layout: BatchLayout | None = None,
    ) -> "Reader":
        """Load a model: a bundled name, a folder, or a Hugging Face hub id.

        `device` may name several, as in "cuda:0,cuda:1": each then holds a replica. `layout` is chosen by backend when None.

        Raises:
            CheckpointError: the model is missing, incomplete, damaged, or nothing here can run it.
            BackendError: no such backend, device or dtype on this machine, or it is not installed.
        """
        checkpoint = open_checkpoint(model, revision)
        chosen, reason = load_backend(backend, checkpoint, device=device, dtype=dtype, threads=threads)
        return cls(checkpoint, chosen, reason, layout)

    @property
    def calibrated(self) -> bool:
        """Whether probabilities were fitted on data, rather than being the model's raw belief."""
        return self.calibration.data_sha256 is not None

    def with_settings(
        self, *, windows: WindowSettings | None = None, answers: AnswerSettings | None = None
    ) -> "Reader":
        """Return a reader of the same model and backend with other settings.

        Raises:
            InputError: the windows are longer than the model can read.
        """
        other = Reader(self.checkpoint, self.backend, self.reason, self.layout)
        other.windows = windows or self.windows
        other.answers = answers or self.answers
        if other.windows.max_seq_length > self.checkpoint.max_seq_length:
            raise InputError(
                f"max_seq_length is {other.windows.max_seq_length}; this model reads at most {self.checkpoint.max_seq_length} tokens."
            )
        return other

    def ask(
        self,
        question: str,
        passage: str | Passage,
        *,
        threshold: float | None = None,
        no_answer: NoAnswer = "auto",
        min_probability: float = 0.0,
    ) -> Answer:
        """Return the words of the passage that answer the question, or an answer whose text is "".

        `threshold`, on the score, is the stored one when None. `no_answer="off"` always answers; "on" takes 0 where no
        threshold is stored. An answer less probable than `min_probability` is not given.

        Raises:
            InputError: the question or the passage is empty, or not a string; `no_answer` or `min_probability` is impossible.
            QuestionTooLongError: the question leaves no room for the passage.
        """
        prepared = self.prepare(passage)
        if not prepared.text.strip():
            raise InputError("The passage is empty: there is nothing to read. Give a text that may hold the answer.")
        least = self._least(threshold, no_answer, min_probability)
        return self.decode(next(self.forward([(question, [prepared])]))).best(*least)

    def ask_many(
        self,
        pairs: Iterable[tuple[str, str | Passage]],
        *,
        threshold: float | None = None,
        no_answer: NoAnswer = "auto",
        min_probability: float = 0.0,
    ) -> Iterator[Answer]:
        """Yield an answer for each (question, passage), in order, as the stream comes in; memory stays bounded.

        An empty passage is answered "no answer"; it does not stop the stream. The rest is as in `ask`.

        Raises:
            InputError: as `ask`, for an empty or too long question; the message says which pair it was.
        """
        least = self._least(threshold, no_answer, min_probability)
        taken, question = 0, ""

        def questions() -> Iterator[tuple[str, list[str | Passage]]]:
            nonlocal taken, question
            for question, passage in pairs:
                taken += 1
                yield question, [passage]

        try:
            for reading in self.forward(questions()):
                yield self.decode(reading).best(*least)
        except InputError as error:  # pairs are checked as they are taken, so it is the last
            raise type(error)(f"Pair {taken} ({question!r:.60}): {error}") from None

    def rank(
        self,
        question: str,
        passages: str | Passage | Sequence[str | Passage],
        top_k: int = 5,
        *,
        threshold: float | None = None,
        no_answer: NoAnswer = "auto",
        min_probability: float = 0.0,
    ) -> list[Answer]:
        """Return the best places of all passages, best first: distinct, non-overlapping, and on one scale.

        [] when all score below the threshold. A passage given twice is read once, under its first index. The rest is as in
        `ask`.

        Raises:
            InputError: `top_k` is below 1, or the question is empty or not a string.
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise InputError(f"top_k is {top_k!r}; expected a whole number, at least 1.")
        given = [passages] if isinstance(passages, (str, Passage)) else list(passages)
        least = self._least(threshold, no_answer, min_probability)
        reading = next(self.forward([(question, given)]))
        return self.decode(reading, top_k=top_k).above(*least)

    def prepare(self, passage: str | Passage, source: str | None = None) -> Passage:
        """Encode a passage, to ask several questions of it; a `Passage` is returned as it is.

        Raises:
            InputError: it is not a string, or not valid Unicode.
        """
        if isinstance(passage, Passage):
            return passage
        return Passage(passage, self.checkpoint.tokenizer.encode_passage(_text(passage, "passage")), source)

    def forward(self, questions: Iterable[tuple[str, Sequence[str | Passage]]]) -> Iterator[Reading]:
        """Run the model on (question, passages) items and yield a reading of each, in order.

        Items are taken from the stream in chunks; the windows of a chunk are sorted by length and batched under a token
        budget, so that little padding is computed.

        Raises:
            InputError: a question is empty, too long or not a string. Items are checked as they are taken from the stream,
                so it is the last one taken.
            BackendError: the logits are not numbers.
        """
        stream = iter(questions)
        running: deque[tuple[list[Item], list[Running]]] = deque()
        with ThreadPoolExecutor(self.backend.batches_at_once, "spanqa") as pool:
            try:
                while items := self._take(stream):
                    running.append((items, self._start(items, pool)))
                    if len(running) > 1:  # one chunk computes while the next is being encoded
                        yield from _finish(*running.popleft())
                while running:
                    yield from _finish(*running.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _start(self, items: list[Item], pool: ThreadPoolExecutor) -> list[Running]:
        """Plan the windows of a chunk into batches and give these to the backend."""
        windows = [window for _, _, cut in items for piece in cut for window in piece]
        plan = plan_batches(list(map(len, windows)), self.layout, BATCH_TOKENS)
        return [(rows, pool.submit(self._run, [[windows[i] for i in row] for row in rows])) for rows in plan]

    def _run(self, rows: list[list[Window]]) -> list[WindowLogits]:
        batch = pack(rows)
        return list(split_logits([window for row in rows for window in row], batch, self._logits(batch)))

    def _logits(self, batch: Batch) -> SpanLogits:
        logits = self.backend.forward(batch)
        of_tokens = batch.window_index != PADDING
        if not (np.isfinite(logits.start[of_tokens]).all() and np.isfinite(logits.end[of_tokens]).all()):
            raise BackendError(
                f"Backend {self.backend.name!r} gave NaN or infinity for logits, computing in {self.backend.dtype}: the numbers of "
                "this model are too large for it. Choose dtype='fp32'; if it is that already, the weights are damaged."
            )
        return logits

    def _take(self, stream: Iterator[tuple[str, Sequence[str | Passage]]]) -> list[Item]:
        """Cut the next questions of the stream into windows, up to the chunk's number of tokens."""
        items: list[Item] = []
        tokens = 0
        for question, given in stream:
            passages = tuple(self.prepare(passage) for passage in given)
            cut = self._cut(question, passages)
            items.append((question, passages, cut))
            tokens += sum(len(window) for piece in cut for window in piece)
            if tokens >= _CHUNK_TOKENS:
                break
        return items

    def _cut(self, question: str, passages: Sequence[Passage]) -> list[list[Window]]:
        if not _text(question, "question").strip():
            raise InputError("The question is empty. Ask something, such as: Who signed the treaty?")
        tokens = self.checkpoint.tokenizer.encode(question)
        if not len(tokens):
            raise InputError(f"The question {question!r:.60} holds nothing that the model can read. Ask in words.")
        layout = self.checkpoint.tokenizer.layout
        seen: set[str] = set()
        cuts: list[list[Window]] = []
        for passage in passages:
            read = passage.text not in seen  # a passage given twice is read once
            cuts.append(make_windows(tokens, passage.tokens, layout, self.windows) if read else [])
            seen.add(passage.text)
        return cuts

    def decode(self, reading: Reading, *, top_k: int = 1) -> Ranking:
        """Return the best places of a reading with their probabilities."""
        return rank_places(
            reading.passages, reading.logits, top_k=top_k, settings=self.answers, calibration=self.calibration
        )

    def _least(self, threshold: float | None, no_answer: NoAnswer, min_probability: float) -> tuple[float, float]:
        """The least score and the least probability of an answer."""
        if not (isinstance(min_probability, (int, float)) and 0 <= min_probability <= 1):
            raise InputError(f"min_probability is {min_probability!r}; expected a number from 0 to 1.")
        return least_score(self.answers, no_answer, threshold), min_probability


def _finish(items: list[Item], running: list[Running]) -> Iterator[Reading]:
    """Wait for the batches of a chunk and yield its readings, in the order of the questions."""
    logits = {i: found for rows, future in running for i, found in zip(chain(*rows), future.result(), strict=True)}
    each = (logits[i] for i in range(len(logits)))
    for question, passages, cut in items:
        yield Reading(question, passages, tuple(tuple(islice(each, len(piece))) for piece in cut))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"The {name} should be a text (str), got {type(value).__name__}: {value!r:.60}")
    return value


@dataclass(frozen=True, slots=True)
class StoredSettings:
    """The settings that a checkpoint carries in spanqa.json, or the defaults where it is silent."""

    windows: WindowSettings
    answers: AnswerSettings
    calibration: Calibration


def stored_settings(checkpoint: Checkpoint) -> StoredSettings:
    """Read the settings of a checkpoint; windows are no longer than the model can read.

    Raises:
        CheckpointError: a section has unknown fields or impossible values.
    """
    windows = _section(checkpoint, "windows", WindowSettings)
    return StoredSettings(
        replace(windows, max_seq_length=min(windows.max_seq_length, checkpoint.max_seq_length)),
        _section(checkpoint, "answers", AnswerSettings),
        _section(checkpoint, "calibration", Calibration),
    )


def _section(checkpoint: Checkpoint, name: str, kind: type[Settings]) -> Settings:
    """Read one section of spanqa.json into its settings; what it does not say keeps its default."""
    section = checkpoint.settings.get(name)
    section = {} if section is None else section
    known = {field.name for field in fields(kind)}
    where = f"{str(checkpoint.path / 'spanqa.json')!r}, {name!r}"
    if not isinstance(section, dict) or set(section) - known:
        raise CheckpointError(
            f"{where}: expected an object with the fields {', '.join(sorted(known))}, found {section!r:.200}."
        )
    try:
        return kind(**section)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from None
