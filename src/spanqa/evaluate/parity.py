"""The same model on every backend and in every precision, compared with the reference: logits, answers, F1.

`check_backends` runs the questions once on NumPy in fp32, then on each backend and dtype of this machine, and says which
are outside their tolerance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from spanqa.backends.registry import BACKENDS
from spanqa.errors import BackendError, CheckpointError
from spanqa.evaluate.metrics import averages
from spanqa.evaluate.outcomes import score_question
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.squad import Example, read_squad

REFERENCE = "numpy"
EXAMPLES = Path(__file__).parent / "harbour.json"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a precision may be from the reference; None is "not compared".

    `logits` is in logits, `probability` is that of where the answer starts and ends within a window, `f1` is in points. F1
    is compared from 1,000 questions on: with fewer, one question moves it by more than the tolerance.
    """

    logits: float | None
    probability: float | None
    f1: float


TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-4, 0.05),
    "bf16": Tolerance(None, 0.1, 0.2),
    "fp16": Tolerance(None, 0.02, 0.1),
    "int8": Tolerance(None, None, 1.0),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One backend in one precision, compared with the reference.

    `logits` and `probability` are the largest differences, `answers` is the share of questions with the same answer, `f1`
    is in percent. `problem` says what is outside its tolerance, or, where `ran` is False, why the backend could not run.
    """

    backend: str
    dtype: str
    ran: bool
    logits: float | None = None
    probability: float | None = None
    answers: float | None = None
    f1: float | None = None
    f1_difference: float | None = None
    questions_per_s: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    logits: list[NDArray[np.float32]]  # each [2, token]: start and end of one window, [CLS] first
    answers: list[tuple[str, int | None]]
    f1: float
    seconds: float


def check_backends(
    load: Callable[[str, str], Reader],
    examples: Sequence[Example] | None = None,
    *,
    progress: Progress = silent,
) -> Iterator[Comparison]:
    """Yield a comparison for the reference, then for each other backend and dtype.

    `load(backend, dtype)` gives the reader. Without `examples`, eight questions that come with spanqa are asked.
    `progress` counts backends and dtypes; its note names the one that runs.
    """
    examples = examples or read_squad(EXAMPLES)
    reference: _Run | None = None
    names = [REFERENCE, *(name for name in BACKENDS if name != REFERENCE)]
    total = sum(len(BACKENDS[name].dtypes) for name in names if BACKENDS[name].installed)
    done = 0
    for name in names:
        if not BACKENDS[name].installed:
            yield Comparison(name, "", ran=False, problem="not installed")
            continue
        for dtype in BACKENDS[name].dtypes:
            progress(done, total, f"{name} {dtype}")
            row = Comparison(name, dtype, ran=False)
            try:
                reader = load(name, dtype)
                row = replace(row, ran=True)
                run = _run(reader, examples)
                reference = reference or run
                row = _compare(name, dtype, run, reference)
            except (BackendError, CheckpointError) as error:  # it cannot be loaded here, or failed on the questions
                row = replace(row, problem=str(error))
            done += 1
            progress(done, total)
            yield row


def _run(reader: Reader, examples: Sequence[Example]) -> _Run:
    logits, answers, outcomes = [], [], []
    begin = perf_counter()
    readings = list(reader.forward((example.question, [example.passage]) for example in examples))
    seconds = perf_counter() - begin
    for example, reading in zip(examples, readings, strict=True):
        answer = reader.decode(reading).best(reader.answers.no_answer_threshold)
        answers.append((answer.text, answer.start))
        outcomes.append(score_question(example, answer.text))
        for window in reading.logits[0]:
            start, end = np.append(np.float32(window.null_start), window.start), np.append(window.null_end, window.end)
            logits.append(np.stack([start, end]).astype(np.float32))
    return _Run(logits, answers, averages(outcomes)["f1"], seconds)


def _compare(name: str, dtype: str, run: _Run, reference: _Run) -> Comparison:
    pairs = list(zip(run.logits, reference.logits, strict=True))
    logits = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
    probability = max(float(np.abs(_softmax(ours) - _softmax(theirs)).max()) for ours, theirs in pairs)
    same = [ours == theirs for ours, theirs in zip(run.answers, reference.answers, strict=True)]
    tolerance = TOLERANCES[dtype]
    problems = []
    for what, difference, least in (
        ("logits", logits, tolerance.logits),
        ("probabilities", probability, tolerance.probability),
        ("F1", abs(run.f1 - reference.f1), tolerance.f1 if len(run.answers) >= 1000 else None),
    ):
        if least is not None and difference > least:
            problems.append(f"{what} differ by {difference:.2g}, more than {least:g}")
    return Comparison(
        name,
        dtype,
        ran=True,
        logits=logits,
        probability=probability,
        answers=sum(same) / len(same),
        f1=run.f1,
        f1_difference=run.f1 - reference.f1,
        questions_per_s=len(run.answers) / run.seconds,
        problem="; ".join(problems) or None,
    )


def _softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents: NDArray[np.float32] = np.exp(values - values.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True, dtype=np.float32)
    return shares
