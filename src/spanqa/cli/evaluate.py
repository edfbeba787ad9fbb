"""`spanqa evaluate`: official SQuAD numbers, of a model or of a file of predictions."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.evaluate import Outcome
    from spanqa.reader import Reader
    from spanqa.squad import Example


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Labelled questions: SQuAD .json, rows as .json, .jsonl or .csv, .parquet, ..."
        ),
    ],
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Score this file, {id: text} or Hugging Face's list; no model is run."),
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
    predict_only: Annotated[
        bool,
        typer.Option("--predict-only", help="With --out: write predictions for questions without answers; no scores."),
    ] = False,
    max_questions: Annotated[
        int | None, typer.Option(min=1, help="Read only the first N questions.", show_default=False)
    ] = None,
    threshold: options.Threshold = None,
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
    from spanqa.tables import read_examples

    for given, what, needed in (
        (na_probs is not None and predictions is None, "--na-probs", "it goes with --predictions"),
        (against is not None and report is None, "--against", "it goes with --report"),
        (predict_only and out is None, "--predict-only", "it goes with --out"),
        (predict_only and (predictions, report) != (None, None), "--predict-only", "there are no answers to score or report"),
        (report is not None and predictions is not None, "--report",
         "it needs a model: a file of predictions has no scores to report on"),
    ):  # fmt: skip
        if given:
            raise typer.BadParameter(needed, param_hint=what)
    if report is not None:
        require("report")
    others = None if against is None else read_outcomes(against)
    examples, source = read_examples(data, answers=not predict_only)
    examples = examples[:max_questions]
    if not predict_only and not any(example.answers for example in examples):
        typer.echo(
            "No question has an answer, so each counts as right when it is left unanswered. For predictions of questions "
            "whose answers are not known: --predict-only",
            err=True,
        )
    with _claimed(out, report, (data, predictions, na_probs, against)):
        if predictions is not None:
            record = score_file(examples, predictions, na_probs, data=source)
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
            outcomes: list[Outcome] = []
            with options.progress_bar("questions") as progress:
                record = evaluate_reader(
                    reader,
                    examples,
                    out=out,
                    data=source,
                    threshold=threshold,
                    rule="squad_v2" if predict_only else None,
                    on_outcome=outcomes.append,
                    progress=progress,
                )
        if predict_only:
            record = {"settings": record["settings"]}
        if out is not None:
            write_record(out, record)
        if report is not None:
            typer.echo(str(_report(report, reader, examples, outcomes, record, others)), err=True)
    if as_json:
        typer.echo(options.json_line(record))
    elif predict_only:
        typer.echo(f"{out}: predictions for {len(examples):,} questions")
    else:
        _show(record)


@contextmanager
def _claimed(out: Path | None, report: Path | None, inputs: "Sequence[Path | None]") -> Iterator[None]:
    """Make the output folders, keep other runs out of them, and check that no input would be replaced."""
    from spanqa.evaluate.report import REPORT_FILES
    from spanqa.evaluate.run import RESULT_FILES
    from spanqa.files import check_keeps, claimed

    outputs = [(folder, names) for folder, names in ((out, RESULT_FILES), (report, REPORT_FILES)) if folder is not None]
    for folder, names in outputs:
        check_keeps(inputs, folder, names)
    with ExitStack() as stack:
        for each in {folder.resolve() for folder, _ in outputs}:
            stack.enter_context(claimed(each))
        yield


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
    from rich.table import Table

    blocks = {"official": record["metrics"]} | ({"reader": record["reader"]} if "reader" in record else {})
    table = Table("", box=None, padding=(0, 2))
    for name in blocks:
        table.add_column(name, justify="right")
    for name in dict.fromkeys(name for block in blocks.values() for name in block):
        values = [block.get(name, "") for block in blocks.values()]
        table.add_row(name, *(f"{value:.2f}" if isinstance(value, float) else str(value) for value in values))
    options.output().print(table)
