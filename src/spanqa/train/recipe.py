"""The whole recipe of fine-tuning: files of labelled questions in, a model that is ready to use out.

    questions = read_questions("labels.csv")
    fine_tune(questions, "my-model").training["dev_f1"]

`read_questions` checks every label and holds questions out to measure on. `fine_tune` chooses the settings, trains with one
seed or several, keeps the best model, fits its no-answer threshold and calibration, and writes its model card. With a teacher,
a better model, it learns from that one's answers, too, and from questions without labels.
`train_learning_curve` trains on growing numbers of questions instead. `spanqa train` is a thin layer over these three.

torch is loaded when training starts. What it needs: pip install 'spanqa[train]'.
"""

import os
import random
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanqa.answers import AnswerSettings
from spanqa.calibration import Calibration
from spanqa.checkpoint import BUNDLED, CARD, Checkpoint, name_for_records, open_checkpoint, read_settings
from spanqa.errors import InputError, SpanQAWarning
from spanqa.evaluate.record import describe_run, questions_sha256
from spanqa.evaluate.stored import store
from spanqa.evaluate.tune import Tuned, fit, gather
from spanqa.extras import require
from spanqa.files import check_is_new, shown, write_text
from spanqa.progress import Notify, Progress, ignore, silent
from spanqa.reader import Reader, stored_settings
from spanqa.squad import Example
from spanqa.tables import read_labelled
from spanqa.train.card import model_card
from spanqa.train.curve import Point, learning_curve
from spanqa.train.labels import (
    LabelReport,
    align_all,
    answer_length_tokens,
    hold_out,
    on_other_passages,
    shared_passages,
)
from spanqa.train.settings import TrainSettings, hidden_size_of, preset
from spanqa.train.teacher import Teacher
from spanqa.windows import WindowSettings

if TYPE_CHECKING:
    from spanqa.train.run import Trained

File = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions to train on and those to measure on, and what is recorded about them.

    `files` are names and hashes of the files that they come from; `reports` say what happened to the labels of each file.
    `dev_sha256` identifies the questions to measure on; None derives it from their ids. `unlabelled` are questions to train on
    for which only a teacher counts.
    """

    train: Sequence[Example]
    dev: Sequence[Example]
    files: Sequence[Mapping[str, str]] = ()
    reports: Mapping[str, LabelReport] = field(default_factory=dict)
    dev_sha256: str | None = None
    unlabelled: Sequence[Example] = ()


@dataclass(frozen=True, slots=True)
class FineTuned:
    """A model that was fine-tuned.

    `out` is its folder. `training` is what its spanqa.json records, with the F1 of the best seed as "dev_f1". `tuned` is the
    threshold and calibration that were fitted. `f1_by_seed` holds the F1 of every seed.
    """

    out: Path
    training: Mapping[str, Any]
    tuned: Tuned
    f1_by_seed: Mapping[int, float]


def read_questions(
    data: File | Iterable[File],
    dev: File | None = None,
    *,
    strict: bool = False,
    max_questions: int | None = None,
    seed: int = 0,
    unlabelled: Iterable[File] = (),
    notify: Notify = ignore,
) -> Questions:
    """Read the questions to train on and to measure on, and check their labels.

    The files are those that `spanqa.tables` reads. Without `dev`, a twentieth of the articles is held out to measure
    on, whole passages at a time. `strict` raises at the first label that is ambiguous or not in its passage. `max_questions` draws that many to train
    on, by `seed`. `unlabelled` are files of questions for a teacher; labels in them are ignored, and questions on a passage
    that is measured on are left out. `notify` gets the report on each file.

    Raises:
        DatasetError: a file cannot be read or has the wrong content, or `strict` found a bad label.
        InputError: nothing can be held out, because all questions are on one passage.
    """
    paths = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    reports: dict[str, LabelReport] = {}
    files: list[dict[str, str]] = []

    def read(path: File) -> list[Example]:
        labelled, source = read_labelled(path)
        examples, report = align_all(labelled, strict=strict)
        name = shown(os.fspath(path))
        reports[name] = report
        files.append(source)
        notify(f"{name}: {report}")
        return examples

    train = [example for path in paths for example in read(path)]
    without = [example for path in unlabelled for example in _read_unlabelled(path, files, notify)]
    if dev is not None:
        measured = read(dev)
        shared = shared_passages(train, measured)
        if shared:
            _warn(
                f"{shared:,} of the {len(measured):,} questions to measure on are on a passage that is also trained on, so F1 "
                "will be too high. Give dev questions on other passages.",
                notify,
            )
    else:
        train, measured = hold_out(train)
        notify(f"held out to measure on: {len(measured):,} questions")
    if max_questions is not None and max_questions < len(train):
        train = random.Random(seed).sample(train, max_questions)
    taught = on_other_passages(without, measured)
    if len(taught) < len(without):
        notify(f"{len(without) - len(taught):,} unlabelled questions are left out: their passages are measured on")
    return Questions(train, measured, files, reports, files[-1]["sha256"] if dev is not None else None, taught)


def _read_unlabelled(path: File, files: list[dict[str, str]], notify: Notify) -> list[Example]:
    """Return the questions of a file without their labels, and note the file."""
    found, source = read_labelled(path, answers=False)
    files.append(source)
    labelled = sum(bool(each.labels) for each in found)
    ignored = f"; the labels of {labelled:,} of them are ignored" if labelled else ""
    notify(f"{shown(os.fspath(path))}: {len(found):,} unlabelled questions{ignored}")
    return [Example(each.id, each.question, each.passage, title=each.title) for each in found]


def fine_tune(
    questions: Questions,
    out: File,
    *,
    model: File = BUNDLED[0],
    revision: str | None = None,
    max_seq_length: int | None = None,
    overlap: int | None = None,
    max_answer_tokens: int | None = None,
    teacher: File | None = None,
    teacher_revision: str | None = None,
    seeds: int = 1,
    resume: bool = False,
    notify: Notify = ignore,
    progress: Progress = silent,
    teacher_progress: Progress = silent,
    **changes: Any,
) -> FineTuned | None:
    """Fine-tune `model` and write the best checkpoint to the folder `out`, ready to use.

    The settings are those of `preset`; `changes` replaces fields of `TrainSettings`, as in `epochs=3, seed=1`. Windows and
    answers keep the settings of the base model, except that `max_answer_tokens` grows until 99 % of the answers fit.
    `seeds` trains that many models, from `seed` on, and keeps the best by F1. `resume` continues a run that was stopped.
    `teacher` is a model whose answers are learned beside the labels (see `spanqa.train.teacher`). `progress` counts the steps of
    each seed, `teacher_progress` the windows that the teacher reads for it.

    Returns the result, or None in every process of a distributed run except the first.

    Raises:
        SpanQAWarning: (a warning) every question to train on has an answer.
        InputError: `out` already exists, there is nothing to resume, `seeds` is below 1, a change is not a field of
            `TrainSettings`, or something is given that needs a teacher, and there is none.
        CheckpointError: the base model cannot be trained for question answering, or the teacher cannot answer questions.
        TrainingError: the loss is not a number.
        InterruptedTrainingError: a signal stopped the training; a checkpoint was written.
        BackendError: the disk has too little space, or the folder cannot be written.
        NotInstalledError: the packages for training are not installed.
    """
    require("train")
    if seeds < 1:
        raise InputError(f"seeds is {seeds!r}; expected a whole number, at least 1.")
    out = Path(out)
    check_is_new(out)
    plan = _plan(questions, model, revision, max_seq_length, overlap, max_answer_tokens, changes, notify)
    taught_by = None
    if teacher is not None:
        taught_by = Teacher(teacher, teacher_revision, questions.unlabelled, notify, teacher_progress)
    else:
        _check_needs_no_teacher(questions, changes)
    from spanqa.train.run import train
    from spanqa.train.work import is_first_process

    notes = _notes(questions, model, plan.base, taught_by)
    count = len(questions.train) + len(questions.unlabelled)
    first_seed = plan.settings(count).seed
    folders = {seed: _seed_folder(out, seed, seeds) for seed in range(first_seed, first_seed + seeds)}
    tuned: list[Tuned] = []
    for seed, folder in folders.items():
        settings = plan.settings(count, seed)

        def finish(best: Path, done: "Trained", settings: TrainSettings = settings) -> None:
            write_text(best / CARD, model_card(out.name, done, notes=notes, settings=settings, windows=plan.windows))
            if seeds == 1:  # of several seeds, only the best one is tuned
                tuned.append(_tune(best, questions, plan, notify))

        if seeds > 1 and resume and folder.is_dir():  # this seed is done
            continue
        continues = resume and (seeds == 1 or folder.with_name(f"{folder.name}.training").is_dir())
        train(
            questions.train, questions.dev, model, folder, settings, windows=plan.windows, answers=plan.answers,
            revision=revision, teacher=taught_by, resume=continues, notes=notes, finish=finish, progress=progress,
        )  # fmt: skip
    if not is_first_process():
        return None
    f1 = {seed: float(read_settings(folder)["training"]["dev_f1"]) for seed, folder in folders.items()}
    if seeds > 1:
        best = folders[max(f1, key=lambda seed: f1[seed])]
        tuned.append(_tune(best, questions, plan, notify))
        best.rename(out)
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
    return FineTuned(out, read_settings(out)["training"], tuned[0], f1)


def train_learning_curve(
    questions: Questions,
    out: File,
    sizes: Iterable[int],
    *,
    model: File = BUNDLED[0],
    revision: str | None = None,
    max_seq_length: int | None = None,
    overlap: int | None = None,
    max_answer_tokens: int | None = None,
    seeds: int = 3,
    notify: Notify = ignore,
    progress: Progress = silent,
    **changes: Any,
) -> list[Point]:
    """Train on growing numbers of questions, with several seeds each, and return F1 by number of questions.

    The settings are chosen as in `fine_tune`, for each size; there is no teacher. `progress` counts models. See `spanqa.train.curve`.

    Raises:
        InputError: a size is negative or larger than the number of questions, a change is not a field of `TrainSettings`, or
            something is given that only a teacher could use.
        NotInstalledError: the packages for training are not installed.
    """
    require("train")
    _check_needs_no_teacher(questions, changes)
    plan = _plan(questions, model, revision, max_seq_length, overlap, max_answer_tokens, changes, notify)
    return learning_curve(
        sorted(set(sizes)), range(seeds), questions.train, questions.dev, model, out, plan.settings,
        windows=plan.windows, answers=plan.answers, revision=revision, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Plan:
    """The base model, the settings of windows and answers, its calibration, and the changes to the preset."""

    base: Checkpoint
    windows: WindowSettings
    answers: AnswerSettings
    calibration: Calibration
    changes: Mapping[str, Any]

    def settings(self, questions: int, seed: int | None = None) -> TrainSettings:
        """Return the settings for a number of questions; `seed` replaces the one in the changes."""
        changes = dict(self.changes) if seed is None else {**self.changes, "seed": seed}
        return replace(preset(questions, hidden_size_of(self.base.config)), **changes)


def _plan(
    questions: Questions,
    model: File,
    revision: str | None,
    max_seq_length: int | None,
    overlap: int | None,
    max_answer_tokens: int | None,
    changes: Mapping[str, Any],
    notify: Notify,
) -> _Plan:
    known = [each.name for each in fields(TrainSettings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise InputError(f"There is no training setting {unknown[0]!r}. Expected one of {', '.join(known)}.")
    base = open_checkpoint(model, revision)
    stored = stored_settings(base)
    windows, answers = stored.windows, stored.answers
    if max_seq_length is not None:
        windows = replace(windows, max_seq_length=max_seq_length)
    if overlap is not None:
        windows = replace(windows, overlap=overlap)
    if questions.train and all(example.answers for example in questions.train):
        _warn(
            "Every question to train on has an answer. From these alone a model unlearns to say that a text has none. Add "
            "questions that their text does not answer, for example questions about another passage of the same kind; in SQuAD "
            "2.0 they are a third. Or use the model where every text has the answer (--no-answer off).",
            notify,
        )
    longest = answer_length_tokens(questions.train, base.tokenizer)
    if max_answer_tokens is None and longest > answers.max_answer_tokens:
        max_answer_tokens = longest
        notify(f"answers may be up to {longest} tokens long, so that 99 % of them fit (max_answer_tokens)")
    if max_answer_tokens is not None:
        answers = replace(answers, max_answer_tokens=max_answer_tokens)
    return _Plan(base, windows, answers, stored.calibration, changes)


def _check_needs_no_teacher(questions: Questions, changes: Mapping[str, Any]) -> None:
    """Check that nothing is given that only a teacher could use.

    Raises:
        InputError: something is.
    """
    given = [name for name in ("temperature", "teacher_weight") if name in changes]
    if questions.unlabelled:
        given.append(f"{len(questions.unlabelled):,} unlabelled questions")
    if given:
        raise InputError(
            f"There is no teacher, which {given[0]} would be for. Give one (--teacher), or leave that out."
        )


def _notes(questions: Questions, model: File, base: Checkpoint, teacher: Teacher | None) -> dict[str, Any]:
    """Return what spanqa.json and the model card record about the run."""
    taught_by: dict[str, Any] = {}
    if teacher is not None:
        taught_by = {
            "teacher": name_for_records(teacher.model),
            "teacher_sha256": open_checkpoint(teacher.model, teacher.revision).weights.sha256,
            "unlabelled_questions": len(questions.unlabelled),
        }
    return {
        "base": name_for_records(model),
        "base_sha256": base.weights.sha256,
        **taught_by,
        "data": [dict(file) for file in questions.files],
        "train_questions": len(questions.train),
        "dev_questions": len(questions.dev),
        "labels": [report.counts for report in questions.reports.values()],
        "command": describe_run()["command"],
    }


def _seed_folder(out: Path, seed: int, seeds: int) -> Path:
    return out if seeds == 1 else out.with_name(f"{out.name}.seed-{seed}")


def _tune(folder: Path, questions: Questions, plan: _Plan, notify: Notify) -> Tuned:
    """Fit the threshold and the calibration on the dev questions, and store them in the folder.

    What the dev questions cannot decide stays as the base model has it.
    """
    with Reader.load(folder) as reader:
        digest = questions.dev_sha256 or questions_sha256(questions.dev)
        tuned = fit(gather(reader, questions.dev), plan.answers.no_answer_threshold, plan.calibration, digest)
        store(reader.checkpoint, tuned)
    kept = [name.replace("_", " ") for name, each in tuned.fitted.items() if not each.stored]
    if kept:
        notify(
            f"the base model's {', '.join(kept)} stay: {len(questions.dev):,} questions to measure on do not show that other "
            "values are better. `spanqa tune` fits them to more questions"
        )
    return tuned


def _warn(message: str, notify: Notify) -> None:
    """Show a line that matters: through `notify` or, where nobody listens, as a warning."""
    if notify is ignore:
        warnings.warn(message, SpanQAWarning, stacklevel=4)
    else:
        notify(message)
