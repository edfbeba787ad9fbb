"""What every run shares: its folder from start to delivery, its arguments, and how it is trained to the end.

OUT.training/      while it runs: checkpoint-N (the newest complete one), logs, and what the run itself puts there
OUT/               at the end: renamed from a complete folder
"""

import copy
import os
import shutil
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from spanqa.backends import torch_attention
from spanqa.backends.torch import auto_dtype
from spanqa.backends.torch_dropout import use_byte_dropout
from spanqa.batches import BatchLayout
from spanqa.checkpoint import Checkpoint, read_settings, write_settings
from spanqa.errors import BackendError, InputError, InterruptedTrainingError
from spanqa.families import FAMILIES
from spanqa.files import check_is_new, claimed, set_usual_mode, write_json
from spanqa.tokenizer_files import TOKENIZER_FILES
from spanqa.train.loop import TrainingLoop, stops_at_signals, without_bars
from spanqa.train.objective import InputFormat
from spanqa.train.settings import DROPOUTS, LoopSettings

_LONGEST_WAIT = 7 * 24 * 3600
"""Seconds that the other processes wait for the first one, which reads texts and measures alone."""


def is_first_process() -> bool:
    """Return whether this is the first process of a distributed run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def work_folder(out: Path, resume: bool, keep: Sequence[str] = ()) -> Iterator[Path]:
    """Give the folder of a run that writes to `out`, and keep other runs out of it during the `with` block.

    What a run that was stopped before its first checkpoint left is removed, but the files and folders in `keep`.

    Raises:
        InputError: `out` exists or cannot be written, another run writes to it, there is nothing to resume, or the folder
            holds the work of an earlier run that is not to be resumed.
        BackendError: the folder cannot be written.
    """
    work = out.with_name(f"{out.name}.training")
    first = is_first_process()
    check_is_new(out)
    if resume and not work.is_dir():
        raise InputError(f"There is nothing to resume: {str(work)!r} does not exist. Leave out --resume to start.")
    if first and not resume and work.is_dir() and get_last_checkpoint(str(work)) is not None:
        raise InputError(
            f"{str(work)!r} holds the work of an earlier run. Continue it with --resume, or remove the folder to start again."
        )
    with claimed(work) if first else nullcontext():
        if first:
            _make_ready(work, keep)
        yield work


def _make_ready(work: Path, keep: Sequence[str]) -> None:
    """Empty the folder of a run that was stopped before its first checkpoint, and check that it can be written."""
    try:
        if get_last_checkpoint(str(work)) is None:
            for left in work.iterdir():  # its best model belongs to no run
                if left.name not in keep:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
        probe = work / ".probe"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise BackendError(
            f"{str(work)!r} cannot be written: {error.strerror}. Choose another output folder."
        ) from None


def check_space(network: torch.nn.Module, parent: Path) -> None:
    """Check for space: two checkpoints (weights and AdamW's two moments), two models, and a margin.

    Raises:
        BackendError: there is too little.
    """
    weights = sum(parameter.numel() for parameter in network.parameters()) * 4
    needed = 2 * 3 * weights + 2 * weights + (50 << 20)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise BackendError(
            f"{str(parent)!r} has {free / 1e9:.1f} GB free; training needs {needed / 1e9:.1f} GB for checkpoints and the result. "
            "Free some space, or choose another output folder."
        )


def prepared(network: Any, base: Checkpoint, layout: BatchLayout | None) -> InputFormat:
    """Make a network ready to train, and return how it reads windows: without padding where it can."""
    use_byte_dropout(network)
    layout = layout or ("flat" if base.model_type in FAMILIES else "padded")
    if layout == "flat":
        network.set_attn_implementation(torch_attention.FLAT)
    return InputFormat.of(network, base, layout)


def training_arguments(settings: LoopSettings, work: Path) -> TrainingArguments:
    """Return transformers' arguments for our settings.

    Raises:
        BackendError: fp16 was asked for on a CPU.
    """
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    dtype = settings.dtype
    if dtype == "auto":
        dtype = auto_dtype("cpu" if cpu else "cuda")
    if dtype == "fp16" and cpu:
        raise BackendError("fp16 training needs a GPU. Choose bf16 or fp32.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = TrainingArguments(
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
            ddp_timeout=_LONGEST_WAIT,
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
    if (
        arguments.n_gpu > 1
    ):  # in one process: transformers would cut each batch into parts, which our layouts are not made for
        arguments._n_gpu = 1
    return arguments


def train_to_end(loop: TrainingLoop, work: Path, resume: bool) -> float:
    """Train to the last step, from the last checkpoint when resuming, and return the seconds that it took.

    Raises:
        TrainingError: the loss is not a number.
        InterruptedTrainingError: a signal stopped it.
    """
    if is_first_process() and find_spec("tensorboard"):
        loop.add_callback(_tensorboard(work / "logs"))
    checkpoint = get_last_checkpoint(str(work)) if resume and work.is_dir() else None
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # it was stopped after its last step, before its model was delivered
            loop._load_from_checkpoint(checkpoint)
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


def windows_per_s(loop: TrainingLoop, settings: LoopSettings) -> float:
    """Return the windows that were trained on in a second, in all processes; 0 where this run trained no step."""
    trained = (loop.state.global_step - loop.first_step) * settings.batch_size * settings.accumulation
    return trained * loop.args.world_size / loop.busy_seconds if trained else 0.0


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


def write_model(
    network: Any, base: Checkpoint, folder: Path, *, half: bool = False, more: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write a network as a checkpoint folder with the base model's tokenizer; `more` are parameters that it does not have."""
    network = copy.deepcopy(network)
    if half:
        network = network.half()
    network.config._attn_implementation = None
    for name in DROPOUTS:
        if name in base.config:
            setattr(network.config, name, base.config[name])  # dropout is a choice of this run, not of the model
    with without_bars():
        network.save_pretrained(folder, state_dict={**network.state_dict(), **more} if more else None)
    for name in TOKENIZER_FILES:
        if (base.path / name).exists():
            shutil.copyfile(base.path / name, folder / name)


def deliver(
    folder: Path,
    work: Path,
    out: Path,
    training: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    finish: Callable[[Path], None],
) -> None:
    """Complete the folder of a model with the record of its training, and rename it to `out`; `finish` is called before that."""
    write_settings(folder, {**read_settings(folder), "training": training})
    (folder / "training").mkdir(exist_ok=True)
    write_json(folder / "training" / "log.json", history)
    if (work / "logs").is_dir():
        shutil.copytree(work / "logs", folder / "training" / "tensorboard", dirs_exist_ok=True)
    finish(folder)
    set_usual_mode(folder)
    folder.rename(out)
    shutil.rmtree(work)
