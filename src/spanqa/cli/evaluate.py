"""`spanqa evaluate`: official SQuAD numbers, of a model or of a file of predictions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.reader import Reader
    from spanqa.squad import Example


def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A SQuAD 1.1 or 2.0 file, .json or .json.gz.")],
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score this {id: text} file, without a model.")
    ] = None,
    na_probs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --predictions: {id: no-answer score}, for best_*.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write predictions, n-best, null odds and a record of the run here."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page to look at: scores, curves, groups, mistakes.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --report: outcomes.jsonl of another run's report, to compare with."),
    ] = None,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many questions.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Answer only from this score on; the model's setting by default.")
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

    "official" follows the rule of transformers' run_qa, "reader" what `spanqa ask` answers.
    """
    from spanqa.evaluate import evaluate as evaluate_reader
    from spanqa.evaluate import score_file
    from spanqa.files import write_json
    from spanqa.squad import read_squad

    if na_probs is not None and predictions is None:
        raise typer.BadParameter("it goes with --predictions", param_hint="--na-probs")
    if against is not None and report is None:
        raise typer.BadParameter("it goes with --report", param_hint="--against")
    if report is not None and predictions is not None:
        raise typer.BadParameter("a file of predictions has no scores to report on", param_hint="--report")
    examples = read_squad(data)[:max_questions]
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
        with options.progress_bar("questions", len(examples)) as progress:
            record = evaluate_reader(reader, examples, out=out, data=data, threshold=threshold, progress=progress)
    if report is not None:
        with options.progress_bar("report", len(examples)) as progress:
            page = _report(reader, examples, record, report, against, threshold, progress)
        typer.echo(str(page), err=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "record.json", record)
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        _show(record)


def _report(
    reader: "Reader",
    examples: "list[Example]",
    record: dict[str, Any],
    report: Path,
    against: Path | None,
    threshold: float | None,
    progress: Callable[[int], None],
) -> Path:
    from spanqa.evaluate.outcomes import collect, compare_runs, read_outcomes
    from spanqa.evaluate.report import write_report

    others = read_outcomes(against) if against is not None else None
    outcomes = collect(reader, examples, threshold=threshold, progress=progress)
    comparison = compare_runs(outcomes, others) if others is not None else None
    return write_report(report, examples, outcomes, record, calibrated=reader.calibrated, difference=comparison)


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
