"""One training run: examples and a base model in, a checkpoint folder that every backend reads out.

    OUT.training/      beside what every run has there: best-N (the best model so far), teacher (the logits of a teacher)

The loop is transformers' Trainer on top of accelerate, which bring mixed precision, gradient accumulation and several
processes. What it needs: pip install 'spanqa[train]'.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from spanqa.answers import AnswerSettings
from spanqa.backends.torch_networks import build_network
from spanqa.checkpoint import Checkpoint, open_checkpoint
from spanqa.errors import InputError
from spanqa.progress import Progress, silent
from spanqa.reader import stored_settings
from spanqa.squad import Example
from spanqa.train.best import BestModel, read_best
from spanqa.train.loop import TrainingLoop
from spanqa.train.objective import InputFormat, QuestionAnswering
from spanqa.train.settings import DROPOUTS, TrainSettings
from spanqa.train.targets import WindowReport, make_training_windows
from spanqa.train.teacher import Teacher, teach
from spanqa.train.work import (
    check_space,
    deliver,
    is_first_process,
    prepared,
    train_to_end,
    training_arguments,
    windows_per_s,
    work_folder,
)
from spanqa.windows import WindowSettings

TEACHER = "teacher"
"""The folder of the teacher's logits."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a run: F1 on the dev questions before and after, the threshold, and the cost.

    `windows_per_s` is 0 where this process trained no step: the run was resumed after its last one. `history` is the log of
    losses and F1. Only the first process of a distributed run measures; the others know steps, windows and seconds.
    """

    f1_before: float | None
    f1: float
    no_answer_threshold: float | None
    best_step: int
    steps: int
    windows: WindowReport
    seconds: float
    windows_per_s: float
    history: list[dict[str, float]]


def train(
    train_examples: Sequence[Example],
    dev_examples: Sequence[Example],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: TrainSettings,
    *,
    windows: WindowSettings | None = None,
    answers: AnswerSettings | None = None,
    revision: str | None = None,
    teacher: Teacher | None = None,
    resume: bool = False,
    notes: dict[str, Any] | None = None,
    finish: Callable[[Path, Trained], None] | None = None,
    progress: Progress = silent,
) -> Trained:
    """Fine-tune `model` and write the best checkpoint, by F1 on the dev questions, to the folder `out`.

    `windows` and `answers` replace the base model's settings. `teacher` is a model to learn from beside the labels. `notes` are stored in spanqa.json beside the training
    settings. `finish` is called with the complete folder before it is renamed to `out`. `progress` counts steps; its notes
    are the latest loss and F1.

    Raises:
        InputError: there are no questions, `out` already exists or cannot be written, another run writes to it, or there is
            nothing to resume.
        CheckpointError: the base model is not an encoder that can be trained for question answering, or the teacher cannot answer
            questions.
        TrainingError: the loss is not a number.
        InterruptedTrainingError: a signal stopped the training; a checkpoint was written.
        BackendError: the disk has too little space, or the folder cannot be written.
    """
    out = Path(out)
    first = is_first_process()
    with work_folder(out, resume, keep=(TEACHER,)) as work:
        if not train_examples or not dev_examples:
            raise InputError(
                f"There are {len(train_examples)} questions to train on and {len(dev_examples)} to measure on; expected some of each."
            )
        base = open_checkpoint(model, revision)
        stored = stored_settings(base)
        windows, answers = windows or stored.windows, answers or stored.answers
        items, report = make_training_windows(
            train_examples, base.tokenizer, windows, empty_windows=settings.empty_windows, seed=settings.seed
        )
        if not items:
            raise InputError(f"No window is left to train on: {report}. Check the answers, or use longer windows.")
        if teacher is not None:
            items = teach(teacher, items, base.tokenizer, windows, work / TEACHER, device=settings.device, reads=first)
        transformers.set_seed(settings.seed)  # a new head is drawn from it
        network, has_head, form = _network(base, settings)
        if first:
            check_space(network, out.parent)
        loop = TrainingLoop(
            network,
            training_arguments(settings, work),
            items,
            QuestionAnswering(form, settings.teacher_weight if teacher else 0.0, settings.temperature),
            measure=BestModel(network, base, work, dev_examples, windows, answers, settings.half_weights),
            evaluations=settings.evaluations,
            patience=settings.patience,
            measure_first=has_head,  # a new head answers at random
            progress=progress if first else silent,
        )
        seconds = train_to_end(loop, work, resume)
        if not first:
            return Trained(None, 0.0, None, 0, loop.state.global_step, report, seconds, 0.0, [])
        done = _result(loop, work, settings, report, seconds)
        training = {name: getattr(done, name) for name in ("best_step", "steps", "windows_per_s", "seconds")}
        training |= {"settings": asdict(settings), "dev_f1": done.f1, "dev_f1_before": done.f1_before, **(notes or {})}
        deliver(
            work / f"best-{done.best_step}", work, out, training, done.history,
            lambda folder: finish(folder, done) if finish is not None else None,
        )  # fmt: skip
        return done


def _result(loop: TrainingLoop, work: Path, settings: TrainSettings, report: WindowReport, seconds: float) -> Trained:
    best = read_best(work)
    assert best is not None, "every run measures at its last step"
    history = loop.state.log_history
    return Trained(
        f1_before=next((entry["f1"] for entry in history if "f1" in entry and entry["step"] == 0), None),
        f1=best["f1"],
        no_answer_threshold=best["no_answer_threshold"],
        best_step=best["step"],
        steps=loop.state.global_step,
        windows=report,
        seconds=seconds,
        windows_per_s=windows_per_s(loop, settings),
        history=[entry for entry in history if "loss" in entry or "f1" in entry],
    )


def _network(base: Checkpoint, settings: TrainSettings) -> tuple[Any, bool, InputFormat]:
    """Return the base model for question answering in float32, whether it had the head, and how it reads windows."""
    dropout = settings.dropout
    changes = {} if dropout is None else {name: dropout for name in DROPOUTS if name in base.config}
    network, has_head = build_network(base, torch.float32, new_head=True, **changes)
    return network, has_head, prepared(network, base, settings.layout)
