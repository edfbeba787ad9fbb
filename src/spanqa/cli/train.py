"""`spanqa train`: a model fine-tuned on labelled questions."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.progress import Progress
    from spanqa.train.curve import Point
    from spanqa.train.recipe import FineTuned, Questions


def train(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="TRAIN...", help="Labelled questions: SQuAD .json, .jsonl, .csv, .parquet, ..."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist.")],
    dev: Annotated[
        Path | None,
        typer.Option(
            metavar="DEV", help="Questions to measure on; by default a twentieth of the articles is held out."
        ),
    ] = None,
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Learn from the answers of this better model, too.")
    ] = None,
    teacher_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the teacher.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Divides the logits of teacher and student.", show_default="2")
    ] = None,
    teacher_weight: Annotated[
        float | None, typer.Option(help="The teacher's share of the loss.", show_default="0.5")
    ] = None,
    unlabelled: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Questions without labels, for the teacher.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the questions.", show_default="by their number")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The peak learning rate.", show_default="by the hidden size")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows per step, in one process.", show_default="32; 16 for few labels")
    ] = None,
    accumulation: Annotated[int, typer.Option(min=1, help="Batches whose gradients make one step.")] = 1,
    dropout: Annotated[
        float | None, typer.Option(help="Dropout.", show_default="the model's; 0.1 for few labels")
    ] = None,
    dtype: options.Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the order of questions and of a new head.")] = 0,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    evaluations: Annotated[int | None, typer.Option(min=1, help="How often to measure.", show_default="4")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many measurements without a better F1.")
    ] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Use less memory and more time.")] = False,
    half_weights: Annotated[bool, typer.Option(help="Write fp16 weights, half the size.")] = False,
    max_seq_length: options.MaxSeqLength = None,
    overlap: options.Overlap = None,
    max_answer_tokens: options.MaxAnswerTokens = None,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Train on this many questions, drawn by the seed.")
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Stop at the first label that is ambiguous or not in its passage.")
    ] = False,
    learning_curve: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Measure F1 by number of questions, and whether more labels would pay."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train this many models and keep the best.", show_default="1; 3 for each size of a curve"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue a run that was stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    as_json: options.Json = False,
) -> None:
    """Fine-tune a model on labelled questions, and keep the best one by F1 on the dev questions.

    With several GPUs: torchrun --nproc-per-node N -m spanqa train ...
    """
    from spanqa.extras import require
    from spanqa.files import check_is_new

    require("train")
    sizes = None if learning_curve is None else _sizes(learning_curve)
    if sizes is not None and teacher is not None:
        raise typer.BadParameter("a learning curve has no teacher", param_hint="--learning-curve")
    if sizes is None:
        check_is_new(out)
    from spanqa.progress import ignore
    from spanqa.train.recipe import fine_tune, read_questions, train_learning_curve

    first = int(os.environ.get("RANK", "0")) == 0  # of several processes, only the first one prints
    changes = {
        "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "accumulation": accumulation,
        "dropout": dropout, "dtype": dtype, "seed": seed, "max_steps": max_steps, "evaluations": evaluations,
        "patience": patience, "save_steps": save_steps, "gradient_checkpointing": gradient_checkpointing,
        "half_weights": half_weights, "device": device, "temperature": temperature, "teacher_weight": teacher_weight,
    }  # fmt: skip
    chosen: dict[str, Any] = {
        "model": model, "revision": revision, "max_seq_length": max_seq_length, "overlap": overlap,
        "max_answer_tokens": max_answer_tokens, "notify": options.print_note if first else ignore,
        **{name: value for name, value in changes.items() if value is not None},
    }  # fmt: skip
    questions = read_questions(
        data,
        dev,
        strict=strict,
        max_questions=max_questions,
        seed=seed,
        unlabelled=unlabelled or (),
        notify=chosen["notify"],
    )
    if sizes is not None:
        with options.lines_or_bar("models", shown=first) as progress:
            points = train_learning_curve(questions, out, sizes, seeds=seeds or 3, progress=progress, **chosen)
        _print_curve(points, out, questions, as_json)
        return
    with _bars("step", "teacher's window", shown=first) as (steps, windows):
        done = fine_tune(
            questions, out, teacher=teacher, teacher_revision=teacher_revision, seeds=seeds or 1, resume=resume,
            progress=steps, teacher_progress=windows, **chosen,
        )  # fmt: skip
    if done is not None:
        _print_result(done, questions, as_json)


@contextmanager
def _bars(*what: str, shown: bool) -> "Iterator[list[Progress]]":
    """Give a bar for each kind of work; the one that was used last is shown."""
    current = ""
    with ExitStack() as stack:
        bar: Progress

        def update(name: str, done: int, total: int, note: str = "") -> None:
            nonlocal current, bar
            if name != current:
                stack.close()
                current, bar = name, stack.enter_context(options.lines_or_bar(name, shown=shown))
            bar(done, total, note)

        yield [partial(update, name) for name in what]


def _sizes(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} should be numbers with commas, such as 50,100,300", param_hint="--learning-curve"
        ) from None


def _print_result(done: "FineTuned", questions: "Questions", as_json: bool) -> None:
    training = done.training
    if as_json:
        result = {"out": str(done.out), "training": dict(training), "tuned": asdict(done.tuned)}
        typer.echo(json.dumps(result))
        return
    if len(done.f1_by_seed) > 1:
        typer.echo(f"F1 by seed: {', '.join(f'{f1:.2f}' for f1 in done.f1_by_seed.values())}")
    before = "" if training["dev_f1_before"] is None else f"{training['dev_f1_before']:.2f} before, "
    typer.echo(f"{done.out}: F1 {before}{training['dev_f1']:.2f} after, on {len(questions.dev):,} questions")
    speed = training["windows_per_s"]  # 0 where no step was trained: the run was resumed after its last one
    rate = f", at {speed:,.0f} windows/s" if speed >= 10 else f", at {speed:.2g} windows/s" if speed else ""
    typer.echo(f"best step: {training['best_step']:,} of {training['steps']:,}{rate}; use it with --model {done.out}")


def _print_curve(points: "list[Point]", out: Path, questions: "Questions", as_json: bool) -> None:
    """Draw the curve, and print its points and what they mean."""
    from rich.table import Table

    from spanqa.train.curve import advice, plot

    plot(points, out / "curve.png")
    conclusion = advice(points) if sum(point.questions > 0 for point in points) > 1 else None
    if as_json:
        typer.echo(json.dumps({"points": [asdict(point) for point in points], "advice": conclusion}))
        return
    table = Table("questions", "F1", "± over seeds", box=None, padding=(0, 2))
    for point in points:
        table.add_row(f"{point.questions:,}", f"{point.mean:.2f}", f"{point.deviation:.2f}")
    options.output().print(table)
    typer.echo(f"{out / 'curve.png'}, measured on {len(questions.dev):,} questions")
    if conclusion:
        typer.echo(conclusion)
