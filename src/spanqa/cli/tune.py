"""`spanqa tune`: the no-answer threshold and the calibration, stored beside the weights."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spanqa.cli import options


def tune(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A SQuAD file that the model was not trained on.")],
    model: Annotated[str, typer.Option(help="The model's folder; its spanqa.json is written.")],
    criterion: Annotated[
        str, typer.Option(help="What the threshold should be best for: f1, exact, or precision.")
    ] = "f1",
    precision: Annotated[
        float | None,
        typer.Option(help="With --criterion precision: the share of answers that must be right.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be stored, and write nothing.")] = False,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Read only the first N questions.", show_default=False)
    ] = None,
    as_json: options.Json = False,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Fit the no-answer threshold and the probabilities on labelled questions, and store them with the model."""
    from spanqa.evaluate.record import describe_file
    from spanqa.evaluate.tune import fit, gather, store
    from spanqa.squad import read_squad

    if criterion not in ("f1", "exact", "precision"):
        raise typer.BadParameter(f"{criterion!r}: choose f1, exact or precision", param_hint="--criterion")
    if (criterion == "precision") != (precision is not None):
        raise typer.BadParameter("it goes with --criterion precision", param_hint="--precision")
    examples = read_squad(data)[:max_questions]
    reader = options.load_reader(
        model=model, revision=None, backend=backend, device=device, dtype=dtype, threads=threads
    )
    with options.progress_bar("questions") as progress:
        outcomes = gather(reader, examples, progress)
    tuned = fit(outcomes, reader.answers.no_answer_threshold, describe_file(data)["sha256"], criterion, precision)  # type: ignore[arg-type]
    if not dry_run:
        store(reader.checkpoint, tuned)
    if as_json:
        typer.echo(json.dumps(asdict(tuned)))
        return
    threshold = (
        "unchanged: every question has an answer"
        if tuned.no_answer_threshold is None
        else f"{tuned.no_answer_threshold:.4f}"
    )
    calibration = tuned.calibration
    typer.echo(f"no-answer threshold {threshold}  ({criterion} {tuned.value:.2f} on {tuned.questions:,} questions)")
    typer.echo(
        f"calibration a {calibration.a:.4f}, b {calibration.b:.4f}, temperature {calibration.temperature:.4f}  "
        f"(calibration error {tuned.ece_before:.4f} before, {tuned.ece_after:.4f} after)"
    )
    typer.echo("nothing was written" if dry_run else f"stored in {reader.checkpoint.path / 'spanqa.json'}")
