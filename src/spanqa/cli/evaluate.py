"""`spanqa evaluate`: official SQuAD numbers, of a model or of a file of predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.evaluate import Outcome
    from spanqa.reader import Reader
    from spanqa.squad import Example


def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A SQuAD 1.1 or 2.0 file, .json or .json.gz.")],
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score this {id: text} file; no model is run.")
    ] = None,
    na_probs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --predictions: {id: no-answer score}, for best_*.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write predictions, n-best lists, null odds and a record of the run to this folder."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write an HTML report: scores, curves, groups, mistakes.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --report: compare with the outcomes.jsonl of another report."),
    ] = None,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Read only the first N questions.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The lowest score that is answered; the model's setting by default.")
    ] = None,
    as_json: options.Json = False,
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    max_seq_length: options.MaxSeqLength = None,
    overlap: options.Overlap = None,
    max_answer_tokens: options.MaxAnswerTokens = None,
) -> None:
    """Score a model, or a file of predictions, on SQuAD data with the official metrics.

    "official" is the rule of transformers' run_qa, "reader" is what `spanqa ask` answers.
    """
    from spanqa.evaluate import evaluate as evaluate_reader
    from spanqa.evaluate import score_file
    from spanqa.evaluate.outcomes import read_outcomes
    from spanqa.evaluate.run import write_record
    from spanqa.extras import require
    from spanqa.squad import read_squad

    if na_probs is not None and predictions is None:
        raise typer.BadParameter("it goes with --predictions", param_hint="--na-probs")
    if against is not None and report is None:
        raise typer.BadParameter("it goes with --report", param_hint="--against")
    if report is not None and predictions is not None:
        raise typer.BadParameter(
            "it needs a model: a file of predictions has no scores to report on", param_hint="--report"
        )
    if report is not None:
        require("report")
    others = None if against is None else read_outcomes(against)
    examples = read_squad(data)[:max_questions]
    outcomes: list[Outcome] = []
    if predictions is not None:
        record = score_file(examples, predictions, na_probs, data=data)
    else:
        reader = options.load_reader(
            model=model,
            revision=revision,
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            max_seq_length=max_seq_length,
            overlap=overlap,
            max_answer_tokens=max_answer_tokens,
        )
        with options.progress_bar("questions") as progress:
            record = evaluate_reader(
                reader,
                examples,
                out=out,
                data=data,
                threshold=threshold,
                on_outcome=outcomes.append,
                progress=progress,
            )
    if out is not None:
        write_record(out, record)
    if report is not None:
        typer.echo(str(_report(report, reader, examples, outcomes, record, others)), err=True)
    if as_json:
        typer.echo(options.json_line(record))
    else:
        _show(record)


def _report(
    folder: Path,
    reader: "Reader",
    examples: "Sequence[Example]",
    outcomes: "Sequence[Outcome]",
    record: dict[str, Any],
    others: "Sequence[Outcome] | None",
) -> Path:
    from spanqa.evaluate.compare import compare_runs
    from spanqa.evaluate.report import write_report

    difference = None if others is None else compare_runs(outcomes, others)
    with options.progress_bar("report") as progress:
        return write_report(
            folder,
            examples,
            outcomes,
            record,
            calibrated=reader.calibrated,
            difference=difference,
            progress=progress,
        )


def _show(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    blocks = {"official": record["metrics"]} | ({"reader": record["reader"]} if "reader" in record else {})
    table = Table("", box=None, padding=(0, 2))
    for name in blocks:
        table.add_column(name, justify="right")
    for name in dict.fromkeys(name for block in blocks.values() for name in block):
        values = [block.get(name, "") for block in blocks.values()]
        table.add_row(name, *(f"{value:.2f}" if isinstance(value, float) else str(value) for value in values))
    Console(highlight=False).print(table)
