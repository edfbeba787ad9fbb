"""A teacher: a better model whose starts and ends a student learns, beside the labels. Its logits are read once and kept on disk.

    training windows -> the same text as the teacher's windows -> Engine -> logits at the student's tokens -> training windows

    FOLDER/logits.f16      float16 `[token, 2]`: start and end, for the tokens of all windows, in the order in which they are read
    FOLDER/logits.json     a hash of all that they depend on, and how many windows are complete

What is kept is a logarithm of the teacher's probabilities at each token of the student's window, before any temperature. A
window's largest value is 0, where half precision is finest. Only passage tokens and [CLS] ("no answer") have a value: an answer
can lie nowhere else, and the question and special tokens of another tokenizer have no counterpart. The student's softmax covers
all tokens of its window, as it does for the labels, so it learns to give those others nothing.

A teacher with the student's tokenizer reads the student's own windows. Another one reads the same question and the tokens that
cover the same characters. What it gives to a start (end) at one of its tokens goes to the student's token that covers the first
(last) character of that token, and is added up there. What falls on no token is lost to the others, in proportion. Since
temperature comes later, the result does not depend on how finely the teacher cuts words. A window that is longer than the teacher
can read has -inf throughout: no teacher.

No framework is loaded here but the one that the teacher's backend needs.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spanqa.batches import WindowLogits
from spanqa.checkpoint import Checkpoint, open_checkpoint
from spanqa.errors import BackendError
from spanqa.files import write_json
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.squad import Example
from spanqa.tokens import Tokenizer
from spanqa.train.targets import TrainingWindow, make_unlabelled_windows
from spanqa.windows import Window, WindowSettings

_LOG = logging.getLogger(__name__)

_FORMAT = 1
"""Changes with the meaning of what is kept."""

_BATCHES = 8
"""So many of the engine's batches are read and stored together: what a kill can cost."""

_GROUP_TOKENS = 1 << 18
"""Within so many tokens, windows are read and stored by length; batches then have little padding."""

_BETWEEN_NOTES = 60.0
"""Seconds between two notes on the time that is left."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model to learn from: a bundled name, a folder, or a Hugging Face hub id.

    `unlabelled` are questions for which it alone counts. `notify` is called with each line that the user should see, and
    `progress` with the number of windows that it has read.
    """

    model: str | os.PathLike[str]
    revision: str | None = None
    unlabelled: Sequence[Example] = ()
    notify: Callable[[str], object] = _LOG.info
    progress: Progress = silent


def teach(
    teacher: Teacher,
    items: Sequence[TrainingWindow],
    student: Tokenizer,
    settings: WindowSettings,
    folder: Path,
    *,
    device: str = "auto",
    reads: bool = True,
) -> list[TrainingWindow]:
    """Return the windows, and those of the unlabelled questions, with the teacher's logits, which are kept in the folder.

    What the folder holds of the same teacher and windows is not read again. Of several processes one `reads`; the others wait
    until it is done, and need the same folder.

    Raises:
        CheckpointError: the teacher is missing or damaged, or has no question-answering head.
        BackendError: the teacher's logits are not numbers, or the folder cannot be written.
    """
    unlabelled, lost = make_unlabelled_windows(teacher.unlabelled, student, settings)
    if lost and reads:
        teacher.notify(f"{lost:,} unlabelled questions are left out: they are too long for the windows")
    items = [*items, *unlabelled]
    checkpoint = open_checkpoint(teacher.model, teacher.revision)
    order = _order(items)
    store = _Store(folder, _sha256(checkpoint, student, items), [len(items[i]) for i in order])
    if reads:
        _read(teacher, checkpoint, [items[i] for i in order], student, store, device)
    while store.done() < len(items):
        time.sleep(0.5)
    logits = store.load()
    for i, first, stop in zip(order, store.bounds[:-1], store.bounds[1:], strict=True):
        items[i] = replace(items[i], teacher=logits[first:stop])
    without = int(np.isneginf(logits[store.bounds[:-1], 0]).sum())
    if without and reads:
        teacher.notify(
            f"{without:,} of {len(items):,} windows are longer than the teacher can read "
            f"({checkpoint.max_seq_length} of its tokens), and have none. Use shorter windows (max_seq_length) for all to have one."
        )
    return items


def _order(items: Sequence[TrainingWindow]) -> list[int]:
    """Return the order in which windows are read: by length in groups, so that a passage is not encoded again and again."""
    lengths = np.array(list(map(len, items)))
    order: list[int] = np.lexsort((-lengths, np.cumsum(lengths) // _GROUP_TOKENS)).tolist()
    return order


def _read(
    teacher: Teacher,
    checkpoint: Checkpoint,
    items: Sequence[TrainingWindow],
    student: Tokenizer,
    store: "_Store",
    device: str,
) -> None:
    """Let the teacher read the windows that the store lacks. Its memory is free again afterwards."""
    done = store.done()
    if done == len(items):
        return
    if not done and store.exists():
        teacher.notify("the teacher's logits of before belong to another model or other windows, and are read anew")
    with Reader.load(teacher.model, revision=teacher.revision, device=device) as reader:
        first, begin, noted = done, time.monotonic(), -math.inf
        while done < len(items):
            stop = store.stop_of(done, _BATCHES * reader.engine.batch_tokens)
            lessons = [_lesson(item, student, checkpoint) for item in items[done:stop]]
            windows = [lesson.window for lesson in lessons if lesson is not None]
            progress = _after(done, len(items), teacher.progress)
            found = reader.engine.submit(windows, progress=progress).result()
            store.append(_at_students_tokens(items[done:stop], lessons, iter(found)))
            done, now = stop, time.monotonic()
            read, of_all = store.bounds[done] - store.bounds[first], store.bounds[-1] - store.bounds[first]
            left = (now - begin) * (of_all - read) / read
            note = _time(left) if left and now - noted > _BETWEEN_NOTES else ""
            noted = now if note else noted
            teacher.progress(done, len(items), note)


def _after(before: int, of_all: int, progress: Progress) -> Progress:
    """Return the progress of a part as that of the whole."""

    def report(done: int, total: int, note: str = "") -> None:
        progress(before + done, of_all, note)

    return report


def _time(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"


# --- from the student's windows to the teacher's, and back


@dataclass(frozen=True, slots=True, eq=False)
class _Lesson:
    """What the teacher reads for a window of the student.

    `starts` and `ends` int `[passage token of the teacher]`: the student's token to which a start (end) there belongs, as a
    position in its window; -1 where it belongs to none.
    """

    window: Window
    starts: NDArray[np.intp]
    ends: NDArray[np.intp]


def _lesson(item: TrainingWindow, student: Tokenizer, checkpoint: Checkpoint) -> _Lesson | None:
    """Return what the teacher reads for a window; None where it cannot read it whole."""
    tokenizer = checkpoint.tokenizer
    same = tokenizer.fingerprint == student.fingerprint and tokenizer.template == student.template
    lesson = _same_window(item.window) if same else _same_characters(item, tokenizer)
    return lesson if lesson is not None and len(lesson.window) <= checkpoint.max_seq_length else None


def _same_window(window: Window) -> _Lesson:
    places = window.passage_start + np.arange(window.stop - window.first)
    return _Lesson(window, places, places)


def _same_characters(item: TrainingWindow, tokenizer: Tokenizer) -> _Lesson | None:
    """Return the question and the tokens that cover the characters of the window's passage; None where there are none."""
    window = item.window
    ours = window.passage.offsets[window.first : window.stop]
    question, passage = tokenizer.encode(item.example.question), tokenizer.prepare(item.example.passage).tokens
    first, last = passage.covering(int(ours[0, 0]), int(ours[-1, 1]))
    if not len(question) or last < first:
        return None
    theirs = passage.offsets[first : last + 1]
    visible = theirs[:, 0] < theirs[:, 1]
    starts = np.searchsorted(ours[:, 1], theirs[:, 0], side="right")  # the first token that ends behind the character
    ends = np.searchsorted(ours[:, 0], theirs[:, 1], side="left") - 1  # the last token that begins before or with it
    starts_inside = visible & (starts < len(ours)) & (ours[np.minimum(starts, len(ours) - 1), 0] <= theirs[:, 0])
    ends_inside = visible & (ends >= 0) & (ours[np.maximum(ends, 0), 1] >= theirs[:, 1])
    return _Lesson(
        Window(question, passage, first, last + 1, tokenizer.template),
        np.where(starts_inside, window.passage_start + starts, -1),
        np.where(ends_inside, window.passage_start + ends, -1),
    )


def _at_students_tokens(
    items: Sequence[TrainingWindow], lessons: Sequence[_Lesson | None], found: Iterator[WindowLogits]
) -> list[NDArray[np.float16]]:
    """Return the teacher's logits at the tokens of each window, float16 `[token, 2]`."""
    made = []
    for item, lesson in zip(items, lessons, strict=True):
        values = np.full((len(item), 2), -np.inf)
        if lesson is not None:
            logits = next(found)
            values[:, 0] = _moved(logits.start, logits.null_start, lesson.starts, len(item))
            values[:, 1] = _moved(logits.end, logits.null_end, lesson.ends, len(item))
        made.append(values.astype(np.float16))
    return made


def _moved(logits: NDArray[np.float32], null: float, places: NDArray[np.intp], length: int) -> NDArray[np.float64]:
    """Return logits at other tokens, less the largest one; probabilities that meet at a token are added up."""
    values: NDArray[np.float64] = np.full(length, -np.inf)
    values[0] = null
    inside = places >= 0
    np.logaddexp.at(values, places[inside], logits[inside].astype(np.float64))
    values -= values.max()
    return values


# --- what is kept


class _Store:
    """The logits on disk, for windows of these lengths; `sha256` says what they are of."""

    def __init__(self, folder: Path, sha256: str, lengths: Sequence[int]) -> None:
        self._logits, self._state, self._sha256 = folder / "logits.f16", folder / "logits.json", sha256
        self.bounds = np.cumsum([0, *lengths])

    def exists(self) -> bool:
        """Whether there are logits, of whatever model."""
        return self._state.exists()

    def done(self) -> int:
        """Return how many windows are complete; 0 where the folder holds logits of another model or of other windows."""
        try:
            state = json.loads(self._state.read_text("utf-8"))
            size = self._logits.stat().st_size
        except (OSError, ValueError):
            return 0
        if state.get("sha256") != self._sha256 or size < self._bytes(state["windows"]):
            return 0
        return int(state["windows"])

    def stop_of(self, first: int, tokens: int) -> int:
        """Return the end of the windows from `first` on that have at most so many tokens; at least one of them."""
        return max(first + 1, int(np.searchsorted(self.bounds, self.bounds[first] + tokens, side="right")) - 1)

    def append(self, logits: Sequence[NDArray[np.float16]]) -> None:
        """Store the logits of the next windows; a kill at any moment costs no more than these."""
        done = self.done()
        try:
            self._logits.parent.mkdir(parents=True, exist_ok=True)
            if not done:
                self._state.unlink(missing_ok=True)  # it speaks of other logits
            with self._logits.open("r+b" if done else "wb") as file:
                file.seek(self._bytes(done))
                file.write(np.concatenate(logits).tobytes())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            write_json(self._state, {"sha256": self._sha256, "windows": done + len(logits)})
        except OSError as error:
            raise BackendError(
                f"{str(self._logits)!r} cannot be written: {error.strerror}. It needs {self._bytes(-1) / 1e6:,.0f} MB. Free some "
                "space, or choose another output folder."
            ) from None

    def load(self) -> NDArray[np.float16]:
        """Return the logits of all windows."""
        return np.fromfile(self._logits, np.float16).reshape(-1, 2)

    def _bytes(self, windows: int) -> int:
        return int(self.bounds[windows]) * 2 * np.dtype(np.float16).itemsize


def _sha256(checkpoint: Checkpoint, student: Tokenizer, items: Sequence[TrainingWindow]) -> str:
    """Return a hash of all that the logits depend on: the teacher, both tokenizers, and the windows with their texts."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(json.dumps(parts).encode())

    add(_FORMAT, _GROUP_TOKENS, checkpoint.weights.sha256, dict(checkpoint.config))
    for tokenizer in (checkpoint.tokenizer, student):
        add(tokenizer.fingerprint, repr(tokenizer.template))
    before: Example | None = None
    for item in items:
        if item.example is not before:
            add(item.example.question, item.example.passage)
            before = item.example
        add(item.window.first, item.window.stop)
    return digest.hexdigest()
