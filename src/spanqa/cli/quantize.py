"""`spanqa quantize`: make an int8 copy of a model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spanqa.cli import options


def quantize(
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Labelled questions to calibrate on and to measure F1 on.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to create. It must not exist yet.")],
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    max_questions: Annotated[int, typer.Option(min=2, help="Use at most this many questions of the file.")] = 2200,
    calibration_questions: Annotated[
        int, typer.Option(min=1, help="Number of these questions used to calibrate; the others measure F1.")
    ] = 200,
    most_f1_lost: Annotated[
        float, typer.Option(help="Write nothing if the model loses more F1 points than this.")
    ] = 1.0,
    as_json: options.Json = False,
) -> None:
    """Make a copy of a model that OpenVINO runs in 8-bit integers, if it keeps its F1.

    F1 and speed are measured here, before and after.
    """
    import random
    import warnings

    from spanqa.errors import SpanQAWarning
    from spanqa.quantize import quantize as quantize_model
    from spanqa.tables import read_examples

    examples, source = read_examples(data)
    examples = random.Random(0).sample(examples, min(max_questions, len(examples)))
    with options.progress_bar("steps") as progress, warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always", SpanQAWarning)
        done = quantize_model(
            model,
            examples,
            out,
            data_sha256=source["sha256"],
            revision=revision,
            calibration_questions=calibration_questions,
            most_f1_lost=most_f1_lost,
            progress=progress,
        )
    for each in noted:
        if issubclass(each.category, SpanQAWarning):
            typer.echo(f"spanqa: {each.message}", err=True)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(done)}))
        return
    typer.echo(
        f"{out}: F1 {done.f1_before:.2f} in fp32, {done.f1_after:.2f} in int8, on {done.measured_questions} questions"
    )
    speeds = ", ".join(f"{rate:.1f} in {dtype}" for dtype, rate in done.questions_per_s.items())
    typer.echo(
        f"questions/s here: {speeds}; int8 is {done.speedup:.2f} times as fast as {done.auto_dtype}, which auto chooses"
    )
    typer.echo(f"Feed-forward outputs are in {done.ffn_outputs}. Use the copy with: --model {out} --dtype int8")
