"""The learning curve: F1 against the number of labels, and whether twice as many labels would pay.

For each seed the questions are shuffled once and trained on in growing prefixes, so that a larger set contains the smaller
ones. Each model is measured only at the end of its training, so no choice is made on the questions that it is measured on.
"""

import json
import math
import os
import random
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spanqa.answers import AnswerSettings
from spanqa.errors import InputError
from spanqa.evaluate.run import score
from spanqa.files import write_json
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.squad import Example
from spanqa.train.settings import TrainSettings
from spanqa.windows import WindowSettings


@dataclass(frozen=True, slots=True)
class Point:
    """F1 of the models that were trained on this many questions, one for each seed."""

    questions: int
    f1: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The average over the seeds."""
        return statistics.fmean(self.f1)

    @property
    def deviation(self) -> float:
        """The standard deviation over the seeds; 0 for a single seed."""
        return statistics.stdev(self.f1) if len(self.f1) > 1 else 0.0


def learning_curve(
    sizes: Sequence[int],
    seeds: Sequence[int],
    train_examples: Sequence[Example],
    dev_examples: Sequence[Example],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings_for: Callable[[int, int], TrainSettings],
    *,
    windows: WindowSettings | None = None,
    answers: AnswerSettings | None = None,
    revision: str | None = None,
    progress: Progress = silent,
) -> list[Point]:
    """Train for every size and seed, and return the points of the curve, smallest size first.

    The point at 0 questions is the base model. `settings_for(questions, seed)` returns the settings. Each result is written
    to `curve.json` in `out` at once, and a result that is already in the file is not computed again. `progress` counts
    models; `windows`, `answers` and `revision` are those of `spanqa.train.run.train`.

    Raises:
        InputError: a size is negative or larger than the number of questions, or `out` holds the curve of another model or
            of other dev questions.
    """
    out = Path(out)
    for size in sizes:
        if not 0 <= size <= len(train_examples):
            raise InputError(f"The curve asks for {size} questions, but there are {len(train_examples)} to train on.")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "curve.json"
    about = {"model": str(model), "dev_questions": len(dev_examples)}
    f1 = _read_curve(path, about)
    turns = [(size, seed) for size in sorted(set(sizes)) for seed in seeds]
    for done, (size, seed) in enumerate(turns, 1):
        key = f"{size}:{seed}"
        if key not in f1 and size == 0:
            with Reader.load(model, revision=revision) as base:
                f1_of_base = score(base.with_settings(windows=windows, answers=answers), dev_examples).f1
            f1 |= {f"0:{each}": f1_of_base for each in seeds}
        elif key not in f1:
            from spanqa.train.run import train

            chosen = random.Random(seed).sample(list(train_examples), len(train_examples))[:size]
            folder = out / f".model-{size}-{seed}"
            for old in (folder, folder.with_name(f"{folder.name}.training")):
                shutil.rmtree(old, ignore_errors=True)
            settings = replace(settings_for(size, seed), evaluations=1)
            options = {"windows": windows, "answers": answers, "revision": revision}
            trained = train(chosen, dev_examples, model, folder, settings, **options)  # type: ignore[arg-type]
            f1[key] = [entry["f1"] for entry in trained.history if "f1" in entry][-1]
            shutil.rmtree(folder)
        write_json(path, {**about, "f1": f1})
        progress(done, len(turns), f"{size:,} questions, seed {seed}: F1 {f1[key]:.1f}")
    return [Point(size, tuple(f1[f"{size}:{seed}"] for seed in seeds)) for size in sorted(set(sizes))]


def _read_curve(path: Path, about: dict[str, object]) -> dict[str, float]:
    """Return the F1 values that are already known, by "size:seed"."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text("utf-8"))
    f1: dict[str, float] = stored.pop("f1")
    if stored != about:
        raise InputError(f"{str(path)!r} holds the curve of {stored}; this one is of {about}. Choose a new path.")
    return f1


def gain_of_twice(points: Sequence[Point]) -> tuple[float, float]:
    """Return how much F1 twice as many labels would add if the last step of the curve continued, and its uncertainty.

    The step is F1 per doubling between the two largest sizes above 0. The uncertainty is its standard error over the seeds.

    >>> gain_of_twice([Point(100, (50.0, 52.0)), Point(400, (60.0, 58.0))])
    (4.0, 0.7071067811865476)

    Raises:
        InputError: there are not two sizes above 0.
    """
    last = [point for point in points if point.questions][-2:]
    if len(last) < 2:
        raise InputError(f"The curve has {len(last)} sizes above 0; expected at least two, to see its slope.")
    doublings = math.log2(last[1].questions / last[0].questions)
    errors = (point.deviation**2 / len(point.f1) for point in last)
    return (last[1].mean - last[0].mean) / doublings, math.sqrt(sum(errors)) / doublings


def advice(points: Sequence[Point]) -> str:
    """Say in words whether twice as many labels would pay."""
    gain, error = gain_of_twice(points)
    largest = points[-1].questions
    forecast = (
        f"If the last step of the curve continues, {2 * largest:,} labels would give {gain:+.1f} F1 (± {2 * error:.1f}) "
        f"over {largest:,}"
    )
    if gain - 2 * error > 0.5:
        return f"{forecast}: more labels would pay."
    if gain + 2 * error < 0.5:
        return f"{forecast}: more labels would hardly pay."
    return f"{forecast}: too close to tell. Try more seeds, or one larger size."


def plot(points: Sequence[Point], path: str | os.PathLike[str]) -> None:
    """Draw the curve with a band of one standard deviation over the seeds, as PNG or SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    x = [max(point.questions, 1) for point in points]
    mean = [point.mean for point in points]
    axes.plot(x, mean, marker="o", color="#1f5fa8")
    low, high = ([point.mean + sign * point.deviation for point in points] for sign in (-1, 1))
    axes.fill_between(x, low, high, color="#1f5fa8", alpha=0.18, linewidth=0)
    for at, point in zip(x, points, strict=True):
        axes.annotate(f"{point.mean:.1f}", (at, point.mean), textcoords="offset points", xytext=(0, 8), ha="center")
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{point.questions:,}" for point in points])
    axes.minorticks_off()
    axes.set(xlabel="labelled questions", ylabel="F1")
    axes.margins(x=0.08, y=0.18)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
