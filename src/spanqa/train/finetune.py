"""Fine-tuning: labelled questions and a base model in, a checkpoint folder that every backend reads out.

The loop is transformers' Trainer, with accelerate beneath it: mixed precision, gradient accumulation and several processes
come from there. Ours are the windows and their targets, the batches (`spanqa.train.features`), the loss, the measuring of
what would be delivered, and the safety of the work.

    OUT.training/      while it runs: checkpoint-N (the newest whole one), best (the best model so far), logs
    OUT/               at the end, and only then: renamed from a folder that was whole

It does not score: that is a function it is given. What it needs: pip install 'spanqa[train]'.
"""

import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from spanqa.answers import AnswerSettings
from spanqa.backends.torch import auto_dtype, build_network
from spanqa.backends.torch_dropout import use_byte_dropout
from spanqa.batches import BatchLayout
from spanqa.checkpoint import Checkpoint, open_checkpoint, read_settings, write_settings
from spanqa.errors import BackendError, InputError, InterruptedTrainingError
from spanqa.families import FAMILIES
from spanqa.files import write_json
from spanqa.reader import stored_settings
from spanqa.squad import Example
from spanqa.train.features import FeatureReport, make_features
from spanqa.train.loop import Progress, TrainingLoop, stops_at_signals
from spanqa.train.measure import Candidates, Scorer, read_best
from spanqa.train.settings import DROPOUTS, TrainSettings
from spanqa.windows import WindowSettings


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it: F1 on the dev questions before and after, the threshold, and the cost."""

    f1_before: float | None
    f1: float
    no_answer_threshold: float | None
    best_step: int
    steps: int
    windows: FeatureReport
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
    score: Scorer,
    windows: WindowSettings | None = None,
    answers: AnswerSettings | None = None,
    revision: str | None = None,
    resume: bool = False,
    notes: dict[str, Any] | None = None,
    card: Callable[["Trained"], str] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Fine-tune `model` and write the best checkpoint, by dev F1, to the folder `out`.

    `score` answers the dev questions with a reader. `windows` and `answers` replace the base's settings. `notes` are kept in
    spanqa.json beside the training settings; `card` writes README.md. `progress` is called with steps done, steps in all, and
    what was measured.

    Raises:
        InputError: no questions, `out` is there already, or there is nothing to resume.
        CheckpointError: the base is no encoder that can be trained for question answering.
        TrainingError: the loss is not a number; `InterruptedTrainingError`: a signal stopped it, a checkpoint is kept.
        BackendError: the disk has too little space, or the folder cannot be written.
    """
    out = Path(out)
    work = out.with_name(f"{out.name}.training")
    first = int(os.environ.get("RANK", "0")) == 0
    _check_folders(out, work, resume)
    if not train_examples or not dev_examples:
        raise InputError(
            f"There are {len(train_examples)} questions to train on and {len(dev_examples)} to measure with; expected some of each."
        )
    base = open_checkpoint(model, revision)
    stored = stored_settings(base)
    window_settings, answer_settings = windows or stored.windows, answers or stored.answers
    features, report = make_features(
        train_examples, base.tokenizer, window_settings, empty_windows=settings.empty_windows, seed=settings.seed
    )
    if not features:
        raise InputError(f"No window to train on is left: {report}. Check the answers, or widen the windows.")
    transformers.set_seed(settings.seed)  # a new head is drawn from it
    network, has_head = _network(base, settings.dropout)
    if first:
        _check_space(network, out.parent)
    layout: BatchLayout = settings.layout or ("flat" if base.model_type in FAMILIES else "padded")
    loop = TrainingLoop(
        network,
        _arguments(settings, work),
        features,
        layout,
        measure=Candidates(
            network, base, work, dev_examples, score, window_settings, answer_settings, settings.half_weights
        ),
        settings=settings,
        family=base.model_type in FAMILIES,
        position_offset=base.encoder.position_offset if base.model_type in FAMILIES else 0,
        measures_first=has_head,  # a new head answers at random
        progress=progress,
    )
    if first and find_spec("tensorboard"):
        loop.add_callback(_tensorboard(work / "logs"))
    begin = time.perf_counter()
    with stops_at_signals(loop):
        loop.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if resume and work.is_dir() else None)
    seconds = time.perf_counter() - begin
    if loop.interrupted:
        raise InterruptedTrainingError(
            f"Stopped after step {loop.state.global_step}; the work is kept in {str(work)!r}. Go on with --resume."
        )
    if not first:
        return Trained(None, 0.0, None, 0, loop.state.global_step, report, seconds, 0.0, [])
    best = read_best(work)
    assert best is not None, "every run measures at its last step"
    steps_here = loop.state.global_step - loop.first_step
    done = Trained(
        f1_before=next((entry["f1"] for entry in loop.state.log_history if "f1" in entry and entry["step"] == 0), None),
        f1=best["f1"],
        no_answer_threshold=best["no_answer_threshold"],
        best_step=best["step"],
        steps=loop.state.global_step,
        windows=report,
        seconds=seconds,
        windows_per_s=steps_here
        * settings.batch_size
        * settings.accumulation
        * loop.args.world_size
        / loop.busy_seconds,
        history=[entry for entry in loop.state.log_history if "loss" in entry or "f1" in entry],
    )
    kept = {name: getattr(done, name) for name in ("best_step", "steps", "windows_per_s", "seconds")}
    kept |= {"settings": asdict(settings), "dev_f1": done.f1, "dev_f1_before": done.f1_before}
    _deliver(work, out, {**kept, **(notes or {})}, done, card)
    return done


def _tensorboard(folder: Path) -> Any:
    """What writes the log for TensorBoard, without TensorFlow, which it would load where that is installed too."""
    import tensorboard.compat

    tensorboard.compat.notf = True  # the switch that its builds without TensorFlow have; read at its first use
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))


def _check_folders(out: Path, work: Path, resume: bool) -> None:
    if out.exists():
        raise InputError(f"{str(out)!r} is there already. Name a folder that is not.")
    if resume and not work.is_dir():
        raise InputError(f"There is nothing to resume: {str(work)!r} is not there. Leave out --resume to begin.")
    begun = work.is_dir() and get_last_checkpoint(str(work)) is not None
    if begun and not resume and int(os.environ.get("RANK", "0")) == 0:
        raise InputError(
            f"{str(work)!r} holds the work of an earlier run. Go on with it by --resume, or remove it to begin anew."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        probe = work / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise BackendError(f"{str(work)!r} cannot be written: {error.strerror}. Choose another --out.") from None


def _check_space(network: torch.nn.Module, parent: Path) -> None:
    """Two checkpoints (weights, and AdamW's two moments), two models, and some."""
    weights = sum(parameter.numel() for parameter in network.parameters()) * 4
    needed = 2 * 3 * weights + 2 * weights + (50 << 20)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise BackendError(
            f"{str(parent)!r} has {free / 1e9:.1f} GB free; training needs {needed / 1e9:.1f} GB for checkpoints and the result. "
            "Free some, or choose another --out."
        )


def _network(base: Checkpoint, dropout: float | None) -> tuple[Any, bool]:
    """The base as a question-answering model in float32, and whether it had the head, which is new where it had not."""
    changes = {} if dropout is None else {name: dropout for name in DROPOUTS if name in base.config}
    network, has_head = build_network(base, torch.float32, new_head=True, **changes)
    use_byte_dropout(network)
    return network, has_head


def _arguments(settings: TrainSettings, work: Path) -> TrainingArguments:
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    dtype = settings.dtype
    if dtype == "auto":
        dtype = auto_dtype("cpu" if cpu else "cuda")
    if dtype == "fp16" and cpu:
        raise BackendError("fp16 trains on GPUs only. Choose bf16 or fp32.")
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
    work: Path, out: Path, notes: dict[str, Any], done: Trained, card: Callable[[Trained], str] | None
) -> None:
    folder = work / f"best-{done.best_step}"
    write_settings(folder, {**read_settings(folder), "training": notes})
    (folder / "training").mkdir(exist_ok=True)
    write_json(folder / "training" / "log.json", done.history)
    if (work / "logs").is_dir():
        shutil.copytree(work / "logs", folder / "training" / "tensorboard", dirs_exist_ok=True)
    if card is not None:
        (folder / "README.md").write_text(card(done), "utf-8")
    folder.rename(out)
    shutil.rmtree(work)
