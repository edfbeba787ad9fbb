"""One training run: examples and a base model in, a checkpoint folder that every backend reads out.

    OUT.training/      while it runs: checkpoint-N (the newest complete one), best-N (the best model so far), logs;
                       teacher (the logits of a teacher)
    OUT/               at the end: renamed from a complete folder

The loop is transformers' Trainer on top of accelerate, which bring mixed precision, gradient accumulation and several
processes. What it needs: pip install 'spanqa[train]'.
"""

import os
import shutil
import sys
import time
import types
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from spanqa.answers import AnswerSettings
from spanqa.backends import torch_attention
from spanqa.backends.torch import auto_dtype, build_network
from spanqa.backends.torch_dropout import use_byte_dropout
from spanqa.batches import BatchLayout
from spanqa.checkpoint import Checkpoint, open_checkpoint, read_settings, write_settings
from spanqa.errors import BackendError, InputError, InterruptedTrainingError
from spanqa.families import FAMILIES
from spanqa.files import check_is_new, claimed, set_usual_mode, write_json
from spanqa.progress import Progress, silent
from spanqa.reader import stored_settings
from spanqa.squad import Example
from spanqa.train.best import BestModel, read_best
from spanqa.train.loop import TrainingLoop, stops_at_signals, without_bars
from spanqa.train.objective import InputFormat, QuestionAnswering
from spanqa.train.settings import DROPOUTS, TrainSettings
from spanqa.train.targets import WindowReport, make_training_windows
from spanqa.train.teacher import Teacher, teach
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
    work = out.with_name(f"{out.name}.training")
    first = is_first_process()
    _check_folders(out, work, resume)
    with claimed(work) if first else nullcontext():
        if first:
            _make_ready(work)
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
            _check_space(network, out.parent)
        loop = TrainingLoop(
            network,
            _arguments(settings, work),
            items,
            QuestionAnswering(form, settings.teacher_weight if teacher else 0.0, settings.temperature),
            measure=BestModel(network, base, work, dev_examples, windows, answers, settings.half_weights),
            evaluations=settings.evaluations,
            patience=settings.patience,
            measure_first=has_head,  # a new head answers at random
            progress=progress if first else silent,
        )
        if first and find_spec("tensorboard"):
            loop.add_callback(_tensorboard(work / "logs"))
        seconds = _run(loop, work, resume)
        if not first:
            return Trained(None, 0.0, None, 0, loop.state.global_step, report, seconds, 0.0, [])
        done = _result(loop, work, settings, report, seconds)
        _deliver(work, out, settings, notes or {}, done, finish)
        return done


def is_first_process() -> bool:
    """Return whether this is the first process of a distributed run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _run(loop: TrainingLoop, work: Path, resume: bool) -> float:
    """Train to the end, from the last checkpoint when resuming, and return the seconds that it took.

    Raises:
        InterruptedTrainingError: a signal stopped it.
    """
    checkpoint = get_last_checkpoint(str(work)) if resume and work.is_dir() else None
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # it was stopped after its last step, before its model was delivered
            loop.state = state
            loop.first_step = state.global_step
            return 0.0
    begin = time.perf_counter()
    with stops_at_signals(loop), without_bars():
        loop.train(resume_from_checkpoint=checkpoint)
    if loop.interrupted:
        raise InterruptedTrainingError(
            f"Stopped after step {loop.state.global_step}. The work so far is in {str(work)!r}. Continue with --resume (resume=True in Python)."
        )
    return time.perf_counter() - begin


def _result(loop: TrainingLoop, work: Path, settings: TrainSettings, report: WindowReport, seconds: float) -> Trained:
    best = read_best(work)
    assert best is not None, "every run measures at its last step"
    history = loop.state.log_history
    trained = (loop.state.global_step - loop.first_step) * settings.batch_size * settings.accumulation
    return Trained(
        f1_before=next((entry["f1"] for entry in history if "f1" in entry and entry["step"] == 0), None),
        f1=best["f1"],
        no_answer_threshold=best["no_answer_threshold"],
        best_step=best["step"],
        steps=loop.state.global_step,
        windows=report,
        seconds=seconds,
        windows_per_s=trained * loop.args.world_size / loop.busy_seconds if trained else 0.0,
        history=[entry for entry in history if "loss" in entry or "f1" in entry],
    )


def _tensorboard(folder: Path) -> Any:
    """Return the callback that writes the log for TensorBoard, without loading TensorFlow where that is installed too."""
    import tensorboard.compat

    switch = (
        "tensorboard.compat.notf"  # the module that its builds without TensorFlow have; it is looked up at first use
    )
    tensorboard.compat.notf = sys.modules[switch] = types.ModuleType(switch)
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))


def _check_folders(out: Path, work: Path, resume: bool) -> None:
    check_is_new(out)
    if resume and not work.is_dir():
        raise InputError(f"There is nothing to resume: {str(work)!r} does not exist. Leave out --resume to start.")
    if is_first_process() and not resume and work.is_dir() and get_last_checkpoint(str(work)) is not None:
        raise InputError(
            f"{str(work)!r} holds the work of an earlier run. Continue it with --resume, or remove the folder to start again."
        )


def _make_ready(work: Path) -> None:
    """Empty the folder of a run that was stopped before its first checkpoint, and check that it can be written."""
    try:
        if get_last_checkpoint(str(work)) is None:
            for left in work.iterdir():  # its best model belongs to no run
                if left.name == TEACHER:  # says itself what it belongs to
                    continue
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        probe = work / ".probe"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise BackendError(
            f"{str(work)!r} cannot be written: {error.strerror}. Choose another output folder."
        ) from None


def _check_space(network: torch.nn.Module, parent: Path) -> None:
    """Check for space: two checkpoints (weights and AdamW's two moments), two models, and a margin."""
    weights = sum(parameter.numel() for parameter in network.parameters()) * 4
    needed = 2 * 3 * weights + 2 * weights + (50 << 20)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise BackendError(
            f"{str(parent)!r} has {free / 1e9:.1f} GB free; training needs {needed / 1e9:.1f} GB for checkpoints and the result. "
            "Free some space, or choose another output folder."
        )


def _network(base: Checkpoint, settings: TrainSettings) -> tuple[Any, bool, InputFormat]:
    """Return the base model for question answering in float32, whether it had the head, and how it reads windows."""
    dropout = settings.dropout
    changes = {} if dropout is None else {name: dropout for name in DROPOUTS if name in base.config}
    network, has_head = build_network(base, torch.float32, new_head=True, **changes)
    use_byte_dropout(network)
    layout: BatchLayout = settings.layout or ("flat" if base.model_type in FAMILIES else "padded")
    if layout == "flat":
        network.set_attn_implementation(torch_attention.FLAT)
    return network, has_head, InputFormat.of(network, base, layout)


def _arguments(settings: TrainSettings, work: Path) -> TrainingArguments:
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    dtype = settings.dtype
    if dtype == "auto":
        dtype = auto_dtype("cpu" if cpu else "cuda")
    if dtype == "fp16" and cpu:
        raise BackendError("fp16 training needs a GPU. Choose bf16 or fp32.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TrainingArguments(
            output_dir=str(work),
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulation,
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps or -1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            weight_decay=settings.weight_decay,
            bf16=dtype == "bf16",
            fp16=dtype == "fp16",
            seed=settings.seed,
            data_seed=settings.seed,
            use_cpu=cpu,
            ddp_backend="gloo" if cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
            gradient_checkpointing=settings.gradient_checkpointing,
            logging_steps=10,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=settings.save_steps,
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=not cpu,
            optim="adamw_torch_fused",
        )


def _deliver(
    work: Path,
    out: Path,
    settings: TrainSettings,
    notes: dict[str, Any],
    done: Trained,
    finish: Callable[[Path, Trained], None] | None,
) -> None:
    """Complete the folder of the best model and rename it to `out`."""
    folder = work / f"best-{done.best_step}"
    training = {name: getattr(done, name) for name in ("best_step", "steps", "windows_per_s", "seconds")}
    training |= {"settings": asdict(settings), "dev_f1": done.f1, "dev_f1_before": done.f1_before, **notes}
    write_settings(folder, {**read_settings(folder), "training": training})
    (folder / "training").mkdir(exist_ok=True)
    write_json(folder / "training" / "log.json", done.history)
    if (work / "logs").is_dir():
        shutil.copytree(work / "logs", folder / "training" / "tensorboard", dirs_exist_ok=True)
    if finish is not None:
        finish(folder, done)
    set_usual_mode(folder)
    folder.rename(out)
    shutil.rmtree(work)
