"""`spanqa train`: a model fine-tuned on labelled questions."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.squad import Example
    from spanqa.train.labels import LabelReport


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
    seeds: Annotated[int, typer.Option(min=1, help="Models of each size of the learning curve.")] = 3,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    as_json: options.Json = False,
) -> None:
    """Fine-tune a model on labelled questions, and keep the best of it by F1 on the dev questions.

    Several GPUs: torchrun --nproc-per-node N -m spanqa train ...
    """
    import hashlib
    import os
    import random
    import sys

    from spanqa.backends.base import BackendInfo
    from spanqa.errors import BackendNotInstalledError

    needs = BackendInfo("train", "spanqa.train.finetune", ("torch", "transformers", "accelerate"), "train", ())
    if not needs.installed:
        raise BackendNotInstalledError(
            "Training needs torch, transformers and accelerate. Install with: pip install 'spanqa[train]'"
        )
    sizes = None if learning_curve is None else _sizes(learning_curve)
    from spanqa.checkpoint import open_checkpoint
    from spanqa.evaluate import score
    from spanqa.evaluate.record import describe_file
    from spanqa.evaluate.tune import fit, gather, store
    from spanqa.reader import Reader, stored_settings
    from spanqa.train.labels import align_all, hold_out
    from spanqa.train.settings import preset
    from spanqa.train.tables import read_labelled

    first = int(os.environ.get("RANK", "0")) == 0
    examples: list[Example] = []
    reports: list[LabelReport] = []
    for path in data:
        found, report = align_all(read_labelled(path), strict=strict)
        examples += found
        reports.append(report)
        if first:
            typer.echo(f"{path}: {report}", err=True)
    if dev is not None:
        measured, report = align_all(read_labelled(dev), strict=strict)
        if first:
            typer.echo(f"{dev}: {report}", err=True)
    else:
        examples, measured = hold_out(examples, seed=0)
        if first:
            typer.echo(f"held out to measure with: {len(measured):,} questions", err=True)
    if max_questions is not None and max_questions < len(examples):
        examples = random.Random(seed).sample(examples, max_questions)
    from spanqa.train.card import model_card  # from here on torch is loaded; bad data was told before
    from spanqa.train.finetune import train as fine_tune

    checkpoint = open_checkpoint(model, revision)
    stored = stored_settings(checkpoint)
    width = checkpoint.config.get("hidden_size") or checkpoint.config.get("dim") or 768
    chosen: dict[str, Any] = {
        "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "dropout": dropout, "max_steps": max_steps,
        "evaluations": evaluations, "patience": patience,
    }  # fmt: skip
    settings = replace(
        preset(len(examples), int(width)),
        **{name: value for name, value in chosen.items() if value is not None},
        accumulation=accumulation,
        dtype=dtype,
        seed=seed,
        save_steps=save_steps,
        gradient_checkpointing=gradient_checkpointing,
        half_weights=half_weights,
        device=device,
    )
    windows, answers = stored.windows, stored.answers
    if max_seq_length is not None:
        windows = replace(windows, max_seq_length=max_seq_length)
    if overlap is not None:
        windows = replace(windows, overlap=overlap)
    if max_answer_tokens is not None:
        answers = replace(answers, max_answer_tokens=max_answer_tokens)
    notes = {
        "base": str(model) if not Path(model).exists() else Path(model).name,
        "base_sha256": checkpoint.sha256,
        "data": [describe_file(path) for path in [*data, *([dev] if dev else [])] if path.is_file()],
        "train_questions": len(examples),
        "dev_questions": len(measured),
        "labels": [report.counts for report in reports],
        "command": " ".join(["spanqa", *sys.argv[1:]]),
    }
    if sizes is not None:

        def settings_for(questions: int, seed: int) -> Any:
            given = {name: value for name, value in chosen.items() if value is not None}
            few = preset(questions, int(width))
            return replace(
                few, **given, accumulation=accumulation, dtype=dtype, seed=seed, evaluations=1, device=device
            )

        _learning_curve(
            sizes, seeds, examples, measured, model, out, settings_for, as_json, score=score, windows=windows, answers=answers,
            revision=revision,
        )  # fmt: skip
        return
    with _progress(first) as progress:
        done = fine_tune(
            examples,
            measured,
            model,
            out,
            settings,
            score=score,
            windows=windows,
            answers=answers,
            revision=revision,
            resume=resume,
            notes=notes,
            card=lambda done: model_card(out.name, done, notes, settings, windows),
            progress=progress,
        )
    if not first:
        return
    reader = Reader.load(out)
    digest = hashlib.sha256("\n".join(example.id for example in measured).encode()).hexdigest()
    tuned = fit(
        gather(reader, measured), reader.answers.no_answer_threshold, describe_file(dev)["sha256"] if dev else digest
    )
    store(reader.checkpoint, tuned)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(done), "tuned": asdict(tuned)}))
        return
    before = "" if done.f1_before is None else f"{done.f1_before:.2f} before, "
    typer.echo(f"{out}: F1 {before}{done.f1:.2f} after, on {len(measured):,} questions")
    typer.echo(
        f"best at step {done.best_step:,} of {done.steps:,}; {done.windows_per_s:.0f} windows/s; use it with: --model {out}"
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
    settings_for: Any,
    as_json: bool,
    **rest: Any,
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
            **rest,
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
