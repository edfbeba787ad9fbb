"""`spanqa tune`: the no-answer threshold and the calibration, stored beside the weights."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.evaluate.tune import Tuned


def tune(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Labelled questions that the model was not trained on: SQuAD .json, .jsonl, .csv, ... "
            "Several files are domains of equal weight.",
        ),
    ],
    model: Annotated[str, typer.Option(help="The model's folder; its spanqa.json is written. With --out, any model.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a copy of the model with the new settings; it must not exist."),
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="What the threshold should be best for: f1, exact, or precision.")
    ] = "f1",
    precision: Annotated[
        float | None,
        typer.Option(help="With --criterion precision: the share of answers that must be right.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be stored, and write nothing.")] = False,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Read only the first N questions of each file.", show_default=False)
    ] = None,
    as_json: options.Json = False,
    revision: options.Revision = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
) -> None:
    """Fit the no-answer threshold and the probabilities on labelled questions, and store them with the model."""
    from spanqa.evaluate.stored import check_is_own, store, store_copy
    from spanqa.evaluate.tune import fit, gather
    from spanqa.files import check_is_new
    from spanqa.tables import read_examples

    if criterion not in ("f1", "exact", "precision"):
        raise typer.BadParameter(f"{criterion!r}: choose f1, exact or precision", param_hint="--criterion")
    if (criterion == "precision") != (precision is not None):
        raise typer.BadParameter("it goes with --criterion precision", param_hint="--precision")
    if out is not None:
        check_is_new(out)
    files = [read_examples(path) for path in data]
    reader = options.load_reader(
        model=model, revision=revision, backend=backend, device=device, dtype=dtype, threads=threads
    )
    if out is None and not dry_run:
        check_is_own(reader.checkpoint)
    domains = []
    for examples, _ in files:
        with options.progress_bar("questions") as progress:
            domains.append(gather(reader, examples[:max_questions], progress))
    before = reader.answers.no_answer_threshold
    tuned = fit(
        [outcome for domain in domains for outcome in domain],
        before,
        reader.calibration,
        _joint_sha256([source["sha256"] for _, source in files]),
        criterion,  # type: ignore[arg-type]
        precision,
        sizes=[len(domain) for domain in domains] if len(files) > 1 else (),
    )
    if dry_run:
        written = "nothing was written"
    elif out is not None:
        store_copy(reader.checkpoint, tuned, out)
        written = f"stored in a copy: {out}"
    else:
        store(reader.checkpoint, tuned)
        written = f"stored in {reader.checkpoint.path / 'spanqa.json'}"
    if as_json:
        typer.echo(json.dumps(asdict(tuned)))
        return
    _show(tuned)
    _show_domains(tuned, data)
    typer.echo(written)


def _joint_sha256(files: list[str]) -> str:
    """Return the sha256 of a file, or one that names several files in this order."""
    return files[0] if len(files) == 1 else hashlib.sha256("\n".join(files).encode()).hexdigest()


def _show(tuned: "Tuned") -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("before", "best here", "95 % interval", "from now on"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in tuned.fitted.items():
        now = f"{each.best:.3f}" if each.stored else f"{each.before:.3f}, kept"
        interval = f"{each.low:.3f} to {each.high:.3f}"
        table.add_row(name.replace("_", " "), f"{each.before:.3f}", f"{each.best:.3f}", interval, now)
    options.output().print(table)
    if "no_answer_threshold" not in tuned.fitted:
        typer.echo("The threshold and the probability of no answer stay as they are: every question has an answer.")
    if not all(each.stored for each in tuned.fitted.values()):
        typer.echo(
            "kept: the data do not show that another value is better. More questions may, with and without an answer."
        )
    typer.echo(
        f"{tuned.criterion} {tuned.value:.2f} on {tuned.questions:,} questions; "
        f"calibration error {tuned.ece_before:.4f} before, {tuned.ece_after:.4f} after"
    )


def _show_domains(tuned: "Tuned", data: list[Path]) -> None:
    from rich.table import Table

    if not tuned.domains:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("questions", tuned.criterion, "calibration error before", "after", "fitted on the others"):
        table.add_column(name, justify="right")
    for path, domain in zip(data, tuned.domains, strict=True):
        errors = (domain.ece_before, domain.ece_after, domain.ece_left_out)
        table.add_row(path.name, f"{domain.questions:,}", f"{domain.value:.2f}", *(f"{error:.4f}" for error in errors))
    options.output().print(table)
