"""Evaluation: a reader and examples, or files of predictions, to metrics and the settings that made them.

A reader is measured by two rules in one pass of the model. The `official` numbers are those of transformers' run_qa and the
SQuAD script; compare them with published ones. The `reader` numbers are those of what `Reader.ask` returns. Questions stream
through: two outcomes of each are kept, and its entries in run_qa's files are written at once. Nothing is printed.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spanqa.answers import least_score
from spanqa.errors import DatasetError, InputError
from spanqa.evaluate.metrics import Missing, averages, best_threshold, score_squad, summarize
from spanqa.evaluate.official import Decision, OfficialSettings, Rule, official_answer
from spanqa.evaluate.outcomes import Outcome, collect, score_question
from spanqa.evaluate.record import describe_reader, describe_run, finite, reader_packages
from spanqa.files import load_json, write_json
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.squad import Example, json_object_writer

File = str | os.PathLike[str]

RESULT_FILES = ("predictions.json", "nbest_predictions.json", "null_odds.json", "record.json")
"""What a run writes: run_qa's files (without null odds for data like SQuAD 1.1), and the record."""

N_BEST_FIELDS = ("start_logit", "end_logit", "text", "probability")
"""What run_qa writes of each candidate, in its order."""


def evaluate(
    reader: Reader,
    examples: Sequence[Example],
    *,
    out: File | None = None,
    data: Mapping[str, str] | None = None,
    threshold: float | None = None,
    official: OfficialSettings | None = None,
    rule: Rule | None = None,
    on_outcome: Callable[[Outcome], object] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return `{"metrics": …, "reader": …, "settings": …}`, which JSON can write.

    `metrics` is what the official script says of run_qa's predictions, with sigmoid(N - S) as their no-answer probability.
    `reader` is the same for what `ask` returns at `threshold` (None is the stored one), and the `no_answer_threshold`
    that would have been best on this data. Both come from one pass of the model, and so do the outcomes: `on_outcome` is
    called with the reader's outcome of each question, which is what a report needs.

    `out` is a folder for run_qa's files: predictions.json, nbest_predictions.json and null_odds.json. They appear when
    all is done; a run that fails leaves none. The official script computes `metrics` from them. As in run_qa, a prediction
    is already "" where N - S is above the threshold, so `best_f1` cannot see a higher threshold. That of `reader` can.

    `rule` is squad_v2 where a question has no reference, else squad_v1, as run_qa is called for data of either kind. With
    squad_v1, official predictions are never "", and there are no null odds. `official` has the model's `max_answer_tokens`
    when None. `data` describes the file that the examples come from, for the record: `read_examples`
    returns it.

    Raises:
        DatasetError: there is no question.
        QuestionTooLongError: a question leaves no room for the passage; the message names its id. It is never cut.
        InputError: a question is empty (the message names its id), or `out` is not a folder.
    """
    if not examples:
        raise DatasetError("There is no question to evaluate. Give at least one.")
    rule = rule or ("squad_v1" if all(example.answers for example in examples) else "squad_v2")
    official = official or OfficialSettings(max_answer_tokens=reader.answers.max_answer_tokens)
    threshold = least_score(reader.answers, threshold=threshold)
    settings = {
        **describe_run(reader_packages(reader)),
        **describe_reader(reader),
        "answers": asdict(reader.answers) | {"no_answer_threshold": finite(threshold)},
        "data": {**(data or {}), "questions": len(examples)},
        "rule": rule,
        "official": asdict(official),
    }
    by_rule: list[Outcome] = []
    by_reader: list[Outcome] = []
    with ExitStack() as stack:
        write = _open_files(stack, Path(out), rule) if out is not None else None
        for example, reading, outcome in collect(reader, examples, threshold=threshold, progress=progress):
            decision = official_answer(reading.passages[0], reading.logits[0], official, rule)
            no_answer = decision.no_answer_probability if rule == "squad_v2" else None
            by_rule.append(score_question(example, decision.text, no_answer))
            by_reader.append(outcome)
            if on_outcome:
                on_outcome(outcome)
            if write:
                write(example.id, decision)
    return {"metrics": summarize(by_rule), "reader": _of_reader(by_reader), "settings": settings}


@dataclass(frozen=True, slots=True)
class Score:
    """F1 in percent at the best no-answer threshold, and that threshold. It is None where every question has an answer."""

    f1: float
    no_answer_threshold: float | None


def score(reader: Reader, examples: Sequence[Example]) -> Score:
    """Return F1 at the threshold that is best on these examples, and that threshold.

    Where every question has an answer, there is no threshold, and F1 is that of the best span of each.
    """
    if all(example.answers for example in examples):
        return Score(evaluate(reader, examples, threshold=-math.inf)["reader"]["f1"], None)
    metrics = evaluate(reader, examples)["reader"]
    return Score(metrics["best_f1"], metrics["best_f1_no_answer_threshold"])


def score_file(
    examples: Sequence[Example],
    predictions: File,
    na_probs: File | None = None,
    *,
    data: Mapping[str, str] | None = None,
    na_prob_thresh: float = 1.0,
    missing: Missing = "error",
) -> dict[str, Any]:
    """Return `{"metrics": …, "settings": …}` of a predictions file, without a model; see `score_squad`.

    `predictions` holds `{id: text}` and `na_probs` `{id: number}`, as JSON, gzip'd or not. `predictions` can also be a list of
    objects with "id", "prediction_text" and perhaps "no_answer_probability", as the metrics of Hugging Face take it. `data` describes the file that
    the examples come from, for the record.

    Raises:
        DatasetError: a file cannot be read, or does not hold what it should; the message says what and where.
    """
    texts, given, source = _read_predictions(predictions)
    numbers, na_source = (given, None) if na_probs is None else _read_object(na_probs, "numbers")
    settings = {
        **describe_run(),
        "data": {**(data or {}), "questions": len(examples)},
        "predictions": source,
        "na_probs": na_source,
        "na_prob_thresh": finite(na_prob_thresh),
        "missing": missing,
    }
    metrics = score_squad(examples, texts, numbers, na_prob_thresh=na_prob_thresh, missing=missing)
    return {"metrics": metrics, "settings": settings}


def write_record(folder: File, record: Mapping[str, Any]) -> None:
    """Write `record.json` into a folder.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "record.json", record)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _of_reader(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    metrics = averages(outcomes)
    for name in ("exact", "f1"):
        best, no_answer_score = best_threshold(outcomes, name)
        metrics |= {f"best_{name}": best, f"best_{name}_no_answer_threshold": 0.0 - no_answer_score}
    return metrics


def _open_files(stack: ExitStack, folder: Path, rule: Rule) -> Callable[[str, Decision], None]:
    """Open run_qa's files for as long as the stack lives, and return a function that writes a question to them."""
    names = RESULT_FILES[: 3 if rule == "squad_v2" else 2]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        predictions, n_best, *null_odds = [stack.enter_context(json_object_writer(folder / name)) for name in names]
    except OSError as error:
        raise _not_writable(folder, error) from error

    def write(key: str, decision: Decision) -> None:
        predictions(key, decision.text)
        n_best(key, [{name: getattr(line, name) for name in N_BEST_FIELDS} for line in decision.candidates])
        for file in null_odds:
            file(key, decision.null_odds)

    return write


def _not_writable(folder: File, error: OSError) -> InputError:
    return InputError(
        f"The results cannot be written to {str(folder)!r}: {error.strerror}. Name a folder that can be written to."
    )


def _read_object(path: File, values: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    content, source = load_json(path)
    if not isinstance(content, dict):
        raise DatasetError(
            f"{str(path)!r} should hold an object {{question id: …}} of {values}; found {content!r:.60}."
        )
    return content, source


def _read_predictions(path: File) -> tuple[Mapping[str, Any], Mapping[str, Any] | None, dict[str, str]]:
    """Return texts by id, no-answer scores by id where the file has them, and the file's name and sha256.

    The file holds `{id: text}`, or the list of objects that the squad metrics of Hugging Face take.
    """
    content, source = load_json(path)
    if isinstance(content, dict):
        return content, None, source
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) and {"id", "prediction_text"} <= row.keys() for row in rows):
        raise DatasetError(
            f"{str(path)!r} should hold an object {{question id: …}} of texts, or a list of objects with id and prediction_text; "
            f"found {content!r:.60}."
        )
    texts = {str(row["id"]): row["prediction_text"] for row in rows}
    if len(texts) < len(rows):
        raise DatasetError(f"{str(path)!r} has {len(rows)} predictions for {len(texts)} ids. Expected one of each.")
    numbers = {str(row["id"]): row["no_answer_probability"] for row in rows if "no_answer_probability" in row}
    return texts, numbers or None, source
