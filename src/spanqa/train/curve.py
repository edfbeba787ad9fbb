"""The learning curve: F1 against the number of labels, and whether twice as many would pay.

For each seed the questions are shuffled once and trained on by growing prefixes, so that a larger number of labels holds
the smaller ones. Each model is measured at the end of its training only, so that nothing was chosen by what it is measured on.
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
from typing import Any

from spanqa.errors import InputError
from spanqa.files import write_json
from spanqa.squad import Example
from spanqa.train.finetune import train
from spanqa.train.measure import Scorer
from spanqa.train.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Point:
    """F1 of the models trained on so many questions, one for each seed."""

    questions: int
    f1: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The average over the seeds."""
        return statistics.fmean(self.f1)

    @property
    def deviation(self) -> float:
        """The standard deviation over the seeds; 0 where there is one."""
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
    score: Scorer,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Point]:
    """Train for every size and seed and return the points of the curve, smallest first; 0 questions is the base itself.

    `settings_for(questions, seed)` gives the settings. Results are written to `curve.json` in `out` as they come, and those
    that are there already are not computed again. `options` go to `train`.

    Raises:
        InputError: a size is negative, or larger than the number of questions.
    """
    out = Path(out)
    for size in sizes:
        if not 0 <= size <= len(train_examples):
            raise InputError(f"The curve asks for {size} questions; there are {len(train_examples)} to train on.")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "curve.json"
    found: dict[str, float] = json.loads(path.read_text("utf-8"))["f1"] if path.exists() else {}
    turns = [(size, seed) for size in sorted(set(sizes)) for seed in seeds]
    for done, (size, seed) in enumerate(turns):
        key = f"{size}:{seed}"
        if key not in found and size == 0:
            from spanqa.reader import Reader

            base = Reader.load(model).with_settings(windows=options.get("windows"), answers=options.get("answers"))
            f1 = score(base, dev_examples).f1
            found |= {f"0:{each}": f1 for each in seeds}
        elif key not in found:
            chosen = random.Random(seed).sample(list(train_examples), len(train_examples))[:size]
            folder = out / f".model-{size}-{seed}"
            for old in (folder, folder.with_name(f"{folder.name}.training")):
                shutil.rmtree(old, ignore_errors=True)
            settings = replace(settings_for(size, seed), evaluations=1)
            trained = train(chosen, dev_examples, model, folder, settings, score=score, **options)
            found[key] = [entry["f1"] for entry in trained.history if "f1" in entry][-1]
            shutil.rmtree(folder)
        write_json(path, {"model": str(model), "dev_questions": len(dev_examples), "f1": found})
        if progress:
            progress(done + 1, len(turns))
    return [Point(size, tuple(found[f"{size}:{seed}"] for seed in seeds)) for size in sorted(set(sizes))]


def gain_of_twice(points: Sequence[Point]) -> tuple[float, float]:
    """Return what twice as many labels would add to F1 if the last step of the curve went on, and how uncertain that is.

    The step is F1 per doubling between the two largest sizes above 0; the uncertainty is its standard error over the seeds.

    >>> gain_of_twice([Point(100, (50.0, 52.0)), Point(400, (60.0, 58.0))])
    (4.0, 0.7071067811865476)

    Raises:
        InputError: there are not two sizes above 0.
    """
    last = [point for point in points if point.questions][-2:]
    if len(last) < 2:
        raise InputError(f"The curve has {len(last)} sizes above 0; expected two, to see where it goes.")
    doublings = math.log2(last[1].questions / last[0].questions)
    errors = (point.deviation**2 / len(point.f1) for point in last)
    return (last[1].mean - last[0].mean) / doublings, math.sqrt(sum(errors)) / doublings


def advice(points: Sequence[Point]) -> str:
    """Answer in words: would twice the labels pay?"""
    gain, error = gain_of_twice(points)
    largest = points[-1].questions
    told = f"Going on as between the last two sizes, {2 * largest:,} labels would give {gain:+.1f} F1 (± {2 * error:.1f}) over {largest:,}"
    if gain - 2 * error > 0.5:
        return f"{told}: more labels would pay."
    if gain + 2 * error < 0.5:
        return f"{told}: more labels would hardly pay."
    return f"{told}: too close to tell; more seeds, or one larger size, would."


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
