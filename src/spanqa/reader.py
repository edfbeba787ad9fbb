"""Reader: the chain from question and passage to answer, behind one object.

    prepare   text -> Passage          encode once, ask often
    forward   questions -> Reading     windows, batches, logits; a stream in, a stream out
    decode    Reading -> Ranking       spans, probabilities, no answer

`ask`, `ask_many`, `rank` and `ranking` compose the three. It adds nothing of its own but their order.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, overload

from spanqa import bounds
from spanqa.answers import Answer, AnswerSettings, NoAnswer, Ranking, least_score, rank_spans
from spanqa.backends.base import Backend
from spanqa.backends.registry import BACKENDS, load_backend
from spanqa.batches import BatchLayout
from spanqa.calibration import Calibration
from spanqa.checkpoint import BUNDLED, SETTINGS, Checkpoint, opened_checkpoint
from spanqa.engine import Engine
from spanqa.errors import CheckpointError, InputError, SpanQAError
from spanqa.progress import Progress, silent
from spanqa.signing import VerifyKey, as_keys
from spanqa.stream import Question, Reading, read_one, read_stream
from spanqa.tokens import Passage
from spanqa.windows import WindowSettings

Settings = TypeVar("Settings", WindowSettings, AnswerSettings, Calibration)
Questions = Iterable[Question]
Pairs = Iterable[tuple[str, str | Passage]]
Errors = Literal["raise", "return"]
"""What becomes of an item that cannot be read: an exception, or the error in the place of its answer."""


class Reader:
    """A model that reads passages for the answers to questions.

        with Reader.load() as reader:
            reader.ask("Who built it?", "The pier was built by Anna Kestrel.").text    # 'Anna Kestrel'

    `windows`, `answers` and `calibration` are the settings stored with the model; a reader with others is made by
    `with_settings`. `reason` says why `backend` is the one it is; `layout` is how its batches are laid out. A reader is safe to
    use from many threads; a pickled one loads its model again where it is unpickled.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        backend: Backend,
        reason: str = "it was given",
        layout: BatchLayout | None = None,
        *,
        rebuild: Callable[[], Backend] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.reason = reason
        self.engine = Engine(backend, layout, rebuild=rebuild)
        stored = stored_settings(checkpoint)
        self.windows, self.answers, self.calibration = stored.windows, stored.answers, stored.calibration
        self._source: tuple[Any, ...] | None = None

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
        verify_key: VerifyKey | Sequence[VerifyKey] | None = None,
    ) -> "Reader":
        """Load a model: a bundled name, a folder, or a Hugging Face hub id.

        `device` may name several, as in "cuda:0,cuda:1": each then holds a replica. `layout` is the backend's preferred one when
        None. `verify_key` is the public key (see `spanqa.signing.VerifyKey`) with which the model must have been signed, or several,
        of which one has to hold; the bytes that were verified are those that are loaded.

        Raises:
            CheckpointError: the model is missing, incomplete, damaged, or nothing here can run it.
            SignatureError: none of the keys has signed it, or it was changed since.
            BackendError: no such backend, device or dtype on this machine.
            NotInstalledError: the backend's packages are not installed.
            InputError: the backend does not read this layout with this model.
        """
        keys = as_keys(verify_key)
        source = str(Path(model).resolve()) if Path(model).is_dir() else os.fspath(model)

        def load() -> tuple[Checkpoint, Backend, str]:
            with opened_checkpoint(model, revision, keys) as checkpoint:
                return checkpoint, *load_backend(backend, checkpoint, device=device, dtype=dtype, threads=threads)

        checkpoint, chosen, reason = load()

        def rebuild() -> Backend:
            if keys:  # the verified copy is gone
                return load()[1]
            return load_backend(backend, checkpoint, device=device, dtype=dtype, threads=threads)[0]

        reader = cls(checkpoint, chosen, reason, layout, rebuild=rebuild if BACKENDS[chosen.name].after_fork else None)
        reader._source = (source, backend, device, dtype, revision, threads, layout, keys)
        return reader

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            raise TypeError(
                "This reader was made around a model in memory, which cannot be pickled. Load it from a folder."
            )
        return _load_again, (self._source, self.windows, self.answers, self.calibration)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine: what waits is dropped, what runs is waited for. Readers made by `with_settings` share it."""
        self.engine.close()

    @property
    def backend(self) -> Backend:
        """What computes."""
        return self.engine.backend

    @property
    def layout(self) -> BatchLayout:
        """How batches are laid out."""
        return self.engine.layout

    @property
    def calibrated(self) -> bool:
        """Whether probabilities were fitted on data, rather than being the model's own."""
        return self.calibration.data_sha256 is not None

    def with_settings(
        self,
        *,
        windows: WindowSettings | None = None,
        answers: AnswerSettings | None = None,
        calibration: Calibration | None = None,
    ) -> "Reader":
        """Return a reader of the same model and engine with other settings; those not given stay as they are.

        Raises:
            InputError: the windows are longer than the model can read.
        """
        if windows is not None and windows.max_seq_length > self.checkpoint.max_seq_length:
            raise InputError(
                f"max_seq_length is {windows.max_seq_length}; this model reads at most {self.checkpoint.max_seq_length} tokens."
            )
        other = object.__new__(Reader)
        other.__dict__.update(self.__dict__)
        other.windows = windows or self.windows
        other.answers = answers or self.answers
        other.calibration = calibration or self.calibration
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
        return self.ranking(question, [prepared], 1).best(*least)

    @overload
    def ask_many(
        self,
        pairs: Pairs,
        *,
        errors: Literal["raise"] = "raise",
        threshold: float | None = None,
        no_answer: NoAnswer = "auto",
        min_probability: float = 0.0,
    ) -> Iterator[Answer]: ...
    @overload
    def ask_many(
        self,
        pairs: Pairs,
        *,
        errors: Errors,
        threshold: float | None = None,
        no_answer: NoAnswer = "auto",
        min_probability: float = 0.0,
    ) -> Iterator[Answer | SpanQAError]: ...
    def ask_many(
        self,
        pairs: Pairs,
        *,
        errors: Errors = "raise",
        threshold: float | None = None,
        no_answer: NoAnswer = "auto",
        min_probability: float = 0.0,
    ) -> Iterator[Answer | SpanQAError]:
        """Yield an `Answer` for each (question, passage), in order, as the stream comes in; memory stays bounded.

        An empty passage is answered "no answer"; it does not stop the stream. A pair that cannot be read is an error, raised
        after the pairs before it were answered; with `errors="return"` the error takes the place of the answer, and the stream
        goes on. The rest is as in `ask`.

        Raises:
            InputError: as `ask`, for an empty or too long question; the message says which pair it was.
        """
        _check_errors(errors)
        least = self._least(threshold, no_answer, min_probability)
        stream = (_one_passage(each) for each in pairs)
        for number, (item, reading) in enumerate(
            read_stream(stream, self.engine, self.checkpoint.tokenizer, self.windows), 1
        ):
            if isinstance(reading, Reading):
                yield self.decode(reading).best(*least)
                continue
            error = type(reading)(f"Pair {number} ({item.question!r:.60}): {reading}")
            if errors == "raise":
                raise error from None
            yield error

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
        """Return the best spans of all passages, best first: distinct, non-overlapping, and on one scale.

        [] when all score below the threshold. A passage given twice is read once, under its first index. The rest is as in
        `ask`.

        Raises:
            InputError: `top_k` is below 1, or the question is empty or not a string.
        """
        least = self._least(threshold, no_answer, min_probability)
        return self.ranking(question, passages, top_k).above(*least)

    def ranking(
        self,
        question: str,
        passages: str | Passage | Sequence[str | Passage],
        top_k: int = 5,
        *,
        progress: Progress = silent,
    ) -> Ranking:
        """Return the best spans of all passages whatever their score, and the probability that there is no answer.

        `progress` is called with the number of windows that have been read, and of all.

        Raises:
            InputError: as `rank`.
        """
        _check_top_k(top_k)
        given = [passages] if isinstance(passages, (str, Passage)) else passages
        reading = read_one(question, given, self.engine, self.checkpoint.tokenizer, self.windows, progress)
        return self.decode(reading, top_k=top_k)

    def prepare(self, passage: str | Passage, source: str | None = None) -> Passage:
        """Encode a passage, to ask several questions of it; a `Passage` is returned as it is.

        Raises:
            InputError: it is not a string, not valid Unicode, or was prepared by a reader with another tokenizer.
        """
        return self.checkpoint.tokenizer.prepare(passage, source)

    @overload
    def forward(self, questions: Questions, *, errors: Literal["raise"] = "raise") -> Iterator[Reading]: ...
    @overload
    def forward(self, questions: Questions, *, errors: Errors) -> Iterator[Reading | SpanQAError]: ...
    def forward(self, questions: Questions, *, errors: Errors = "raise") -> Iterator[Reading | SpanQAError]:
        """Run the model on (question, passages) items and yield a `Reading` of each, in order.

        Items are taken from the stream in chunks, whose windows share batches: a small chunk first, then larger ones. An item
        that cannot be read is an error, raised after the readings of the items before it; with `errors="return"` the error takes
        its place. A question that was encoded before is given as its `Tokens`.

        Raises:
            InputError: a question is empty, too long or not a string, or a passage is not a string; `errors` is impossible.
            BackendError: the logits are not numbers.
        """
        _check_errors(errors)
        for _, reading in read_stream(iter(questions), self.engine, self.checkpoint.tokenizer, self.windows):
            if errors == "raise" and not isinstance(reading, Reading):
                raise reading
            yield reading

    def decode(self, reading: Reading, *, top_k: int = 1) -> Ranking:
        """Return the best spans of a reading with their probabilities.

        Raises:
            InputError: `top_k` is below 1.
        """
        _check_top_k(top_k)
        return rank_spans(
            reading.passages, reading.logits, top_k=top_k, settings=self.answers, calibration=self.calibration
        )

    def _least(self, threshold: float | None, no_answer: NoAnswer, min_probability: float) -> tuple[float, float]:
        """The least score and the least probability of an answer."""
        bounds.check(("min_probability",), {"min_probability": min_probability})
        return least_score(self.answers, no_answer, threshold), min_probability


def _one_passage(each: tuple[str, str | Passage]) -> Question:
    """A pair of question and passage as an item of a stream; what is no pair is left for the stream to refuse."""
    return (each[0], (each[1],)) if isinstance(each, (tuple, list)) and len(each) == 2 else each


def _check_top_k(top_k: int) -> None:
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise InputError(f"top_k is {top_k!r}; expected a whole number, at least 1.")


def _check_errors(errors: Errors) -> None:
    if errors not in get_args(Errors):
        raise InputError(f"errors is {errors!r}; expected one of {', '.join(get_args(Errors))}.")


def _load_again(
    source: tuple[Any, ...], windows: WindowSettings, answers: AnswerSettings, calibration: Calibration
) -> Reader:
    model, backend, device, dtype, revision, threads, layout, keys = source
    reader = Reader.load(
        model,
        backend=backend,
        device=device,
        dtype=dtype,
        revision=revision,
        threads=threads,
        layout=layout,
        verify_key=keys,
    )
    return reader.with_settings(windows=windows, answers=answers, calibration=calibration)


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
    where = f"{str(checkpoint.path / SETTINGS)!r}, {name!r}"
    if not isinstance(section, dict) or set(section) - known:
        raise CheckpointError(
            f"{where}: expected an object with the fields {', '.join(sorted(known))}, found {section!r:.200}."
        )
    try:
        return kind(**section)
    except (InputError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from None
