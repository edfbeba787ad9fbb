"""`spanqa train`: a model fine-tuned on labelled questions."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.squad import Example
    from spanqa.train.labels import LabelReport
    from spanqa.train.settings import TrainSettings


def train(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="TRAIN...", help="Labelled questions: SQuAD .json, .jsonl, .csv, .parquet, ..."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist.")],
    dev: Annotated[
        Path | None,
        typer.Option(
            metavar="DEV", help="Questions to measure with; by default a twentieth of the passages is held out."
        ),
    ] = None,
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the questions.", show_default="by their number")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(show_default="by the model's width")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows of a step, in one process.", show_default="32; 16 if few")
    ] = None,
    accumulation: Annotated[int, typer.Option(min=1, help="Batches whose gradients make one step.")] = 1,
    dropout: Annotated[float | None, typer.Option(show_default="the model's; 0.1 if few labels")] = None,
    dtype: options.Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Of the order of questions and of a new head.")] = 0,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps, whatever the epochs.")] = None,
    evaluations: Annotated[int | None, typer.Option(min=1, help="How often to measure.", show_default="4")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many measurements without a better F1.", show_default=False)
    ] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    half_weights: Annotated[bool, typer.Option(help="Write fp16 weights: half the size.")] = False,
    max_seq_length: options.MaxSeqLength = None,
    overlap: options.Overlap = None,
    max_answer_tokens: options.MaxAnswerTokens = None,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Train on so many, drawn by seed.", show_default=False)
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Stop at the first label that is not in its passage, or is ambiguous.")
    ] = False,
    learning_curve: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Instead of one model: F1 by number of questions, a plot, and whether more would pay.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Train so many, keep the best; of each size of a curve.", show_default="1; 3"),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    as_json: options.Json = False,
) -> None:
    """Fine-tune a model on labelled questions, and keep the best of it by F1 on the dev questions.

    Several GPUs: torchrun --nproc-per-node N -m spanqa train ...
    """
    import os
    import random
    import sys

    from spanqa.extras import require

    require("train")
    sizes = None if learning_curve is None else _sizes(learning_curve)
    from spanqa.checkpoint import open_checkpoint
    from spanqa.evaluate import score
    from spanqa.evaluate.record import describe_file
    from spanqa.reader import stored_settings
    from spanqa.train.labels import answer_tokens
    from spanqa.train.settings import preset

    tell = typer.echo if int(os.environ.get("RANK", "0")) == 0 else lambda *_, **__: None
    examples, measured, reports = _questions(data, dev, strict, tell)
    if max_questions is not None and max_questions < len(examples):
        examples = random.Random(seed).sample(examples, max_questions)
    checkpoint = open_checkpoint(model, revision)
    stored = stored_settings(checkpoint)
    windows, answers = stored.windows, stored.answers
    if max_seq_length is not None:
        windows = replace(windows, max_seq_length=max_seq_length)
    if overlap is not None:
        windows = replace(windows, overlap=overlap)
    longest = answer_tokens(examples, checkpoint.tokenizer)
    if max_answer_tokens is None and longest > answers.max_answer_tokens:
        max_answer_tokens = longest
        tell(f"answers may be {longest} tokens long, so that 99 % of these fit (--max-answer-tokens)", err=True)
    if max_answer_tokens is not None:
        answers = replace(answers, max_answer_tokens=max_answer_tokens)
    width = int(checkpoint.config.get("hidden_size") or checkpoint.config.get("dim") or 768)
    wishes: dict[str, Any] = {
        "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "dropout": dropout, "max_steps": max_steps,
        "evaluations": evaluations, "patience": patience, "accumulation": accumulation, "dtype": dtype, "save_steps": save_steps,
        "gradient_checkpointing": gradient_checkpointing, "half_weights": half_weights, "device": device,
    }  # fmt: skip
    wishes = {name: value for name, value in wishes.items() if value is not None}

    def settings_for(questions: int, seed: int) -> "TrainSettings":
        return replace(preset(questions, width), **wishes, seed=seed)

    common: dict[str, Any] = {"score": score, "windows": windows, "answers": answers, "revision": revision}
    from transformers.utils.logging import (
        disable_progress_bar,  # from here on torch is loaded; bad data was told before
    )

    disable_progress_bar()
    if sizes is not None:
        _learning_curve(sizes, seeds or 3, examples, measured, model, out, settings_for, as_json, common)
        return
    notes = {
        "base": str(model) if not Path(model).exists() else Path(model).name,
        "base_sha256": checkpoint.weights.sha256,
        "data": [describe_file(path) for path in [*data, *([dev] if dev else [])] if path.is_file()],
        "train_questions": len(examples),
        "dev_questions": len(measured),
        "labels": [report.counts for report in reports],
        "command": " ".join(["spanqa", *sys.argv[1:]]),
    }
    from spanqa.train.card import model_card
    from spanqa.train.finetune import train as fine_tune

    places = [out if (seeds or 1) == 1 else out.with_name(f"{out.name}.seed-{each}") for each in range(seeds or 1)]
    for each, place in enumerate(places, seed):
        settings = settings_for(len(examples), each)
        if place != out and resume and place.is_dir():
            continue
        write_card = partial(model_card, out.name, notes=notes, settings=settings, windows=windows)
        begun = resume and place.with_name(f"{place.name}.training").is_dir()
        with _progress(tell is typer.echo) as progress:
            fine_tune(
                examples, measured, model, place, settings, resume=begun or (resume and place == out), notes=notes, card=write_card,
                progress=progress, **common,
            )  # fmt: skip
    if tell is typer.echo:
        _deliver(places, out, dev, measured, as_json)


def _questions(
    data: list[Path], dev: Path | None, strict: bool, tell: Callable[..., None]
) -> "tuple[list[Example], list[Example], list[LabelReport]]":
    """Read the questions to train on and to measure with, and tell what became of their labels."""
    from spanqa.train.labels import align_all, hold_out
    from spanqa.train.tables import read_labelled

    examples: list[Example] = []
    reports: list[LabelReport] = []
    for path in data:
        found, report = align_all(read_labelled(path), strict=strict)
        examples += found
        reports.append(report)
        tell(f"{path}: {report}", err=True)
    if dev is not None:
        measured, report = align_all(read_labelled(dev), strict=strict)
        tell(f"{dev}: {report}", err=True)
    else:
        examples, measured = hold_out(examples)
        tell(f"held out to measure with: {len(measured):,} questions", err=True)
    return examples, measured, reports


def _deliver(places: list[Path], out: Path, dev: Path | None, measured: "list[Example]", as_json: bool) -> None:
    """Keep the best seed, fit its threshold and calibration, and say what it is worth."""
    import shutil

    from spanqa.evaluate.record import describe_file, questions_sha256
    from spanqa.evaluate.tune import fit, gather, store
    from spanqa.reader import Reader

    results = {place: json.loads((place / "spanqa.json").read_text("utf-8"))["training"] for place in places}
    best = max(places, key=lambda place: results[place]["dev_f1"])
    result = results[best]
    if best != out:
        best.rename(out)
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
    reader = Reader.load(out)
    digest = questions_sha256(measured) if dev is None else describe_file(dev)["sha256"]
    tuned = fit(gather(reader, measured), reader.answers.no_answer_threshold, digest)
    store(reader.checkpoint, tuned)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "training": result, "tuned": asdict(tuned)}))
        return
    if len(places) > 1:
        spread = ", ".join(f"{each['dev_f1']:.2f}" for each in results.values())
        typer.echo(f"F1 by seed: {spread}")
    before = "" if result["dev_f1_before"] is None else f"{result['dev_f1_before']:.2f} before, "
    typer.echo(f"{out}: F1 {before}{result['dev_f1']:.2f} after, on {len(measured):,} questions")
    typer.echo(
        f"best at step {result['best_step']:,} of {result['steps']:,}; {result['windows_per_s']:.0f} windows/s; use it with: --model {out}"
    )


def _sizes(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} should be numbers with commas, such as 50,100,300", param_hint="--learning-curve"
        ) from None


def _learning_curve(
    sizes: list[int],
    seeds: int,
    examples: "list[Example]",
    measured: "list[Example]",
    model: str,
    out: Path,
    settings_for: "Callable[[int, int], TrainSettings]",
    as_json: bool,
    common: dict[str, Any],
) -> None:
    """Train the models of the curve, draw it, and say what it means."""
    from rich.console import Console
    from rich.table import Table

    from spanqa.train.curve import advice, learning_curve, plot

    with options.progress_bar("models", len(sizes) * seeds) as bar:
        points = learning_curve(
            sizes,
            range(seeds),
            examples,
            measured,
            model,
            out,
            settings_for,
            progress=lambda done, _: bar(done),
            **common,
        )
    plot(points, out / "curve.png")
    told = advice(points) if sum(point.questions > 0 for point in points) > 1 else None
    if as_json:
        typer.echo(json.dumps({"points": [asdict(point) for point in points], "advice": told}))
        return
    table = Table("questions", "F1", "± over seeds", box=None, padding=(0, 2))
    for point in points:
        table.add_row(f"{point.questions:,}", f"{point.mean:.2f}", f"{point.deviation:.2f}")
    Console(highlight=False).print(table)
    typer.echo(f"{out / 'curve.png'}, measured on {len(measured):,} questions")
    if told:
        typer.echo(told)


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int, dict[str, float]], None] | None]:
    """A bar with loss and F1 on a terminal; elsewhere a line for each measurement."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    if not shown:
        yield None
        return
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:

        def line(step: int, steps: int, found: dict[str, float]) -> None:
            if found:
                told = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name in ("loss", "f1"))
                console.print(f"step {step:,} of {steps:,}: {told}")

        yield line
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("steps", total=None)
        told: dict[str, str] = {}

        def update(step: int, steps: int, found: dict[str, float]) -> None:
            told.update({name: f"{name} {value:.4g}" for name, value in found.items() if name in ("loss", "f1")})
            bar.update(task, completed=step, total=steps, description=" ".join(["steps", *told.values()]))
            if "f1" in found:
                console.print(f"step {step:,}: F1 {found['f1']:.2f}")

        yield update
