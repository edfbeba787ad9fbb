"""`spanqa adapt`: an encoder adapted to plain text, as a base for `spanqa train`."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.train.adapt import Adapted


def adapt(
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT...", help="Files and folders: .txt, .md, .html, .jsonl, .parquet; .gz too."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist.")],
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    text_column: Annotated[str, typer.Option(help="The column of texts in .jsonl and .parquet.")] = "text",
    masking: Annotated[str, typer.Option(help="word: mask whole words; token: single tokens.")] = "word",
    max_seq_length: Annotated[
        int | None, typer.Option(min=8, help="Tokens of the longest window.", show_default="256")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the texts.", show_default="3")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The peak learning rate.", show_default="by the hidden size")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per step, in one process.", show_default="32")
    ] = None,
    accumulation: Annotated[int, typer.Option(min=1, help="Batches whose gradients make one step.")] = 1,
    dtype: options.Dtype = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the masks, the order of texts and a new head.")] = 0,
    resume: Annotated[bool, typer.Option(help="Continue a run that was stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    as_json: options.Json = False,
) -> None:
    """Adapt an encoder to your own texts by whole-word masking, before you train it on questions.

    Some texts are held out, and the share of hidden words that the model predicts there is measured before, on the way and after. With several GPUs: torchrun --nproc-per-node N -m spanqa adapt ...
    """
    from spanqa.extras import require
    from spanqa.files import check_is_new
    from spanqa.progress import ignore

    require("adapt")
    check_is_new(out)
    from spanqa.train.adapt import adapt as run

    first = int(os.environ.get("RANK", "0")) == 0  # of several processes, only the first one prints
    changes = {
        "masking": masking, "max_seq_length": max_seq_length, "epochs": epochs, "max_steps": max_steps,
        "learning_rate": learning_rate, "batch_size": batch_size, "accumulation": accumulation, "dtype": dtype, "seed": seed,
        "device": device,
    }  # fmt: skip
    with options.lines_or_bar("step", shown=first) as progress:
        done = run(
            texts, out, model=model, revision=revision, text_column=text_column, resume=resume,
            notify=options.print_note if first else ignore, progress=progress,
            **{name: value for name, value in changes.items() if value is not None},
        )  # fmt: skip
    if done is not None:
        _print_result(done, as_json)


def _print_result(done: "Adapted", as_json: bool) -> None:
    if as_json:
        found = {"before": None if done.before is None else asdict(done.before), "after": asdict(done.after)}
        typer.echo(json.dumps({"out": str(done.out), **found, "training": dict(done.training)}))
        return
    before = "" if done.before is None else f"{done.before.words:.1f} % before, "
    typer.echo(f"{done.out}: masked-word accuracy {before}{done.after.words:.1f} % after")
    if done.before is not None and done.after.words <= done.before.words:
        typer.echo("The texts did not make it better. More text helps, or fewer epochs, or a lower learning rate.")
    steps, speed = done.training["steps"], done.training["windows_per_s"]
    rate = f", at {speed:,.1f} windows/s" if speed else ""
    typer.echo(f"{steps:,} steps{rate}; fine-tune it with: spanqa train ... --model {done.out}")
