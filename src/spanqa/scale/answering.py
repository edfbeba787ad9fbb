"""Chunks of rows to their answers, with one reader."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from spanqa.answers import least_score
from spanqa.checkpoint import Checkpoint
from spanqa.errors import SpanQAError
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.scale.job import Chunk, Result
from spanqa.scale.outputs import Answered
from spanqa.scale.questions import Asked, bad
from spanqa.scale.rows import BadRow
from spanqa.stream import Question, Reading, read_chunks

CHUNK_SECONDS = 30
"""What a chunk takes at most, on a machine that computes at least so many operations a second: a small CPU, a small GPU."""

_CPU_SPEED, _GPU_SPEED = 6e10, 3e12


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """How many answers a question gets at most, and when one is given: see `Reader.ask`."""

    top_k: int = 1
    threshold: float | None = None
    no_answer: str = "auto"
    min_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What computes a job's answers; they depend on it as far as rounding goes."""

    backend: str
    device: str
    dtype: str
    layout: str


def setup_of(reader: Reader) -> Setup:
    """Return what a reader computes with. Its device has no number: one GPU computes like the next."""
    backend = reader.backend
    return Setup(backend.name, backend.device.partition(":")[0], backend.dtype, reader.layout)


def chunk_tokens(checkpoint: Checkpoint, setup: Setup, window: int) -> int:
    """Return how many tokens a chunk holds: a matter of the model's size, so that every run cuts the same chunks.

    The operations for a token are two for each weight of the encoder, and four for each layer, hidden unit and token of a window.
    """
    config = checkpoint.config
    layers, hidden = (
        int(config.get("num_hidden_layers", config.get("n_layers", 12))),
        int(config.get("hidden_size", config.get("dim", 768))),
    )
    inner = int(config.get("intermediate_size", config.get("hidden_dim", 4 * hidden)))
    operations = layers * (8 * hidden**2 + 4 * hidden * inner + 4 * hidden * window)
    speed = _CPU_SPEED if setup.device == "cpu" else _GPU_SPEED
    return max(window, int(CHUNK_SECONDS * speed / operations))


def answer_chunks(
    chunks: Iterable[Chunk],
    reader: Reader,
    rule: AnswerRule,
    id_column: str | None = None,
    progress: Progress = silent,
) -> Iterator[Result]:
    """Yield the result of each chunk, in order. `progress` counts the windows of the chunk that is read.

    Raises:
        InputError: the rule is impossible.
        ClosedError: the reader was closed.
    """
    waiting: list[Chunk] = []

    def questions() -> Iterator[list[Question]]:
        for chunk in chunks:
            waiting.append(chunk)
            yield [
                (question, each.passages)
                for each in chunk.rows
                if isinstance(each, Asked)
                for question in each.questions
            ]

    for readings in read_chunks(questions(), reader.engine, reader.checkpoint.tokenizer, reader.windows, progress):
        yield _result(waiting.pop(0), readings, reader, rule, id_column)


def _result(
    chunk: Chunk, readings: list[Reading | SpanQAError], reader: Reader, rule: AnswerRule, id_column: str | None
) -> Result:
    least = least_score(reader.answers, rule.no_answer, rule.threshold)  # type: ignore[arg-type]
    found = iter(readings)
    answered: list[Answered] = []
    bads: list[BadRow] = []
    for each in chunk.rows:
        if isinstance(each, BadRow):
            bads.append(each)
            continue
        of_row = list(islice(found, len(each.questions)))
        errors = [reading for reading in of_row if not isinstance(reading, Reading)]
        if errors:
            bads.append(bad(each.row, str(errors[0]), id_column))
            continue
        for question, reading in zip(each.questions, of_row, strict=True):
            assert isinstance(reading, Reading)
            ranking = reader.decode(reading, top_k=rule.top_k)
            best = ranking.best(least, rule.min_probability).as_json(question)
            several = (
                [answer.as_json(question) for answer in ranking.above(least, rule.min_probability)]
                if rule.top_k > 1
                else []
            )
            answered.append(Answered(each.row, best, several))
    return Result(chunk.number, tuple(answered), tuple(bads))
