"""Evaluation: a reader and examples, or files of predictions, to metrics and the settings that made them.

A reader is measured by two rules over one pass of the model. `official` numbers are those of transformers' run_qa and the
SQuAD script, to be compared with published ones; `reader` numbers are those of what `Reader.ask` returns. Questions stream
through; of each a few floats are kept, and what is written goes to its file at once. Nothing is printed.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spanqa.errors import DatasetError, InputError
from spanqa.evaluate.metrics import (
    Missing,
    QuestionScore,
    averages,
    best_threshold,
    score_question,
    score_squad,
    summarize,
)
from spanqa.evaluate.official import Decision, OfficialSettings, Rule, official_answer
from spanqa.evaluate.record import describe_file, describe_reader, describe_run, finite, reader_packages
from spanqa.files import read_json
from spanqa.reader import Reader, Reading
from spanqa.squad import Example, JsonObjectWriter

File = str | os.PathLike[str]

N_BEST_FIELDS = ("start_logit", "end_logit", "text", "probability")
"""What run_qa writes of each candidate, in its order."""


def evaluate(
    reader: Reader,
    examples: Sequence[Example],
    *,
    out: File | None = None,
    data: File | None = None,
    threshold: float | None = None,
    official: OfficialSettings | None = None,
    rule: Rule | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return `{"metrics": …, "reader": …, "settings": …}`, which JSON can write.

    `metrics` is what the official script says of run_qa's predictions, its no-answer probability being sigmoid(N - S).
    `reader` is the same of what `ask` returns at `threshold` (the stored one when None), and the `no_answer_threshold`
    that would have been best on this data. Both see one run of the model.

    `out` is a folder for run_qa's files: predictions.json, nbest_predictions.json and null_odds.json. They appear when
    all is done; a run that fails leaves none. The official script gives `metrics` from them; like run_qa's, predictions
    already are "" where N - S is above the threshold, so that `best_f1` knows no higher one. `reader` does.

    `rule` is squad_v2 where a question has no reference, else squad_v1, as run_qa is called for data of either kind; then
    official predictions are never "", and there are no null odds. `official` has the model's `max_answer_tokens` when
    None. `data` is the file that the examples come from, for the record. `progress` is called with the number of questions
    done.

    Raises:
        DatasetError: there is no question.
        QuestionTooLongError: a question leaves no room for the passage; the message names its id. It is never cut.
        InputError: a question is empty, with its id, or `out` is not a folder.
    """
    if not examples:
        raise DatasetError("There is no question to evaluate. Give at least one.")
    rule = rule or ("squad_v1" if all(example.answers for example in examples) else "squad_v2")
    official = official or OfficialSettings(max_answer_tokens=reader.answers.max_answer_tokens)
    threshold = reader.answers.no_answer_threshold if threshold is None else threshold
    settings = {
        **describe_run(reader_packages(reader)),
        **describe_reader(reader),
        "answers": asdict(reader.answers) | {"no_answer_threshold": finite(threshold)},
        "data": (describe_file(data) if data is not None else {}) | {"questions": len(examples)},
        "rule": rule,
        "official": asdict(official),
    }
    by_rule: list[QuestionScore] = []
    by_reader: list[QuestionScore] = []
    with ExitStack() as stack:
        write = _open_files(stack, Path(out), rule) if out is not None else None
        for done, (example, reading) in enumerate(read_all(reader, examples), 1):
            decision = official_answer(reading.passages[0], reading.logits[0], official, rule)
            no_answer = decision.no_answer_probability if rule == "squad_v2" else None
            by_rule.append(score_question(example, decision.text, no_answer))
            ranking = reader.decode(reading)
            by_reader.append(score_question(example, ranking.best(-math.inf).text, -ranking.best_score))
            if write:
                write(example.id, decision)
            if progress:
                progress(done)
    return {"metrics": summarize(by_rule), "reader": _of_reader(by_reader, threshold), "settings": settings}


@dataclass(frozen=True, slots=True)
class Score:
    """F1 in percent at the best no-answer threshold, and that threshold (None where every question has an answer)."""

    f1: float
    no_answer_threshold: float | None


def score(reader: Reader, examples: Sequence[Example]) -> Score:
    """Return F1 at the threshold that is best on these examples, and that threshold.

    Where every question has an answer there is nothing to abstain from: F1 is then that of the best place of each, and
    there is no threshold.
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
    data: File | None = None,
    na_prob_thresh: float = 1.0,
    missing: Missing = "error",
) -> dict[str, Any]:
    """Return `{"metrics": …, "settings": …}` of a predictions file, without a model; see `score_squad`.

    `predictions` holds `{id: text}`, `na_probs` `{id: number}`, as JSON, gzip'd or not. `data` is the file that the examples
    come from, for the record.

    Raises:
        DatasetError: a file cannot be read, or does not hold what it should; the message says what and where.
    """
    texts = _read_object(predictions, "texts")
    numbers = None if na_probs is None else _read_object(na_probs, "numbers")
    settings = {
        **describe_run(),
        "data": (describe_file(data) if data is not None else {}) | {"questions": len(examples)},
        "predictions": describe_file(predictions),
        "na_probs": None if na_probs is None else describe_file(na_probs),
        "na_prob_thresh": finite(na_prob_thresh),
        "missing": missing,
    }
    metrics = score_squad(examples, texts, numbers, na_prob_thresh=na_prob_thresh, missing=missing)
    return {"metrics": metrics, "settings": settings}


def read_all(reader: Reader, examples: Sequence[Example]) -> Iterator[tuple[Example, Reading]]:
    """Yield each example with what the model made of it; errors are told with the id of the question."""
    taken: deque[Example] = deque()  # those that the reader has asked for and not yet answered

    def questions() -> Iterator[tuple[str, list[str]]]:
        for example in examples:
            taken.append(example)
            yield example.question, [example.passage]

    try:
        for reading in reader.forward(questions()):
            yield taken.popleft(), reading
    except InputError as error:  # the first that was not answered
        raise type(error)(f"Question id {taken[0].id!r}: {error}") from None


def _of_reader(scores: Sequence[QuestionScore], threshold: float) -> dict[str, Any]:
    """Metrics of the best places, scored by -M*: below the threshold the answer is ""."""
    metrics = averages(scores, no_answer_above=-threshold)
    for name in ("exact", "f1"):
        best, at_most = best_threshold(scores, name)
        metrics |= {f"best_{name}": best, f"best_{name}_no_answer_threshold": 0.0 - at_most}
    return metrics


def _open_files(stack: ExitStack, folder: Path, rule: Rule) -> Callable[[str, Decision], None]:
    """Open run_qa's files for the time of the stack, and return what writes a question to them."""
    names = ["predictions.json", "nbest_predictions.json", *(["null_odds.json"] if rule == "squad_v2" else [])]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        predictions, n_best, *null_odds = [stack.enter_context(JsonObjectWriter(folder / name)) for name in names]
    except OSError as error:
        raise InputError(
            f"The results cannot be written to {str(folder)!r}: {error.strerror}. Name a folder that can be written to."
        ) from error

    def write(key: str, decision: Decision) -> None:
        predictions.write(key, decision.text)
        n_best.write(key, [{name: getattr(line, name) for name in N_BEST_FIELDS} for line in decision.candidates])
        for file in null_odds:
            file.write(key, decision.null_odds)

    return write


def _read_object(path: File, values: str) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(
            f"{str(path)!r} should hold an object, {{question id: …}}, of {values}; found {content!r:.60}."
        )
    return content
