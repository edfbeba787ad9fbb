"""The training loop: transformers' Trainer with an objective, checkpoints that survive a kill, and measurements on the way.

A new checkpoint is written beside the old one and renamed when it is complete. Only then is the old one removed, so a
process killed at any moment leaves a complete checkpoint. The loop does not know what is trained: an `Objective` gives it
batches and losses, and a `Measure` says how good the model is.
"""

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

from spanqa.errors import TrainingError
from spanqa.progress import Progress, silent
from spanqa.train.objective import Objective


class Measure(Protocol):
    """How good the model is now; higher is better. `name` is what the value is called, such as "F1"."""

    @property
    def name(self) -> str:
        """The name of the value; in lower case it is the key in the log."""

    def __call__(self, step: int, /) -> float:
        """Return the value of the model as it is after `step` steps."""


class TrainingLoop(Trainer):  # type: ignore[misc]
    """transformers' Trainer with our objective, measurements and checkpoints.

    `measure` is called at `evaluations` equal parts of the steps, and before the first step if `measure_first`; training
    stops after `patience` values that are no better. Without it nothing is measured.
    """

    def __init__(
        self,
        network: Any,
        arguments: TrainingArguments,
        items: Sequence[Any],
        objective: Objective,
        *,
        measure: Measure | None = None,
        evaluations: int = 1,
        patience: int | None = None,
        measure_first: bool = False,
        progress: Progress = silent,
    ) -> None:
        super().__init__(model=network, args=arguments, train_dataset=items, data_collator=objective.collate)
        self.objective = objective
        self.interrupted = False
        self.first_step = 0
        self.busy_seconds = 0.0
        self._writing = False
        for callback in (transformers.trainer_callback.PrinterCallback, transformers.trainer_callback.ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_Watch(self, measure, evaluations, patience, measure_first, progress))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the loss of one batch; the Trainer divides it by the number of batches in a step.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        loss = self.objective.loss(model(**inputs["inputs"]), inputs)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss.item()} after step {self.state.global_step}: the training diverged, and no model was written. "
                "Lower the learning rate, or train in fp32."
            )
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: the Trainer would count operations from a flat batch, and nothing here reads the count."""
        return 0

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Say nothing: a parameter that is stored once under two names is no missing one."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / "writing") if self._writing else str(self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, rename it when it is complete, and only then remove the one before."""
        work, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(work / "writing", ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            older = [path for path in work.glob("checkpoint-*") if path.name != name]
            shutil.rmtree(work / name, ignore_errors=True)
            (work / "writing" / name).rename(work / name)
            for path in [*older, work / "writing"]:
                shutil.rmtree(path)
        self.accelerator.wait_for_everyone()


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Measures when it is time to, stops the training when it should end, and reports progress."""

    def __init__(
        self,
        loop: TrainingLoop,
        measure: Measure | None,
        evaluations: int,
        patience: int | None,
        measure_first: bool,
        progress: Progress,
    ) -> None:
        self._loop, self._measure, self._progress = loop, measure, progress
        self._evaluations, self._patience, self._measure_first = evaluations, patience, measure_first
        self._begin = 0.0
        self._latest: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._loop.first_step = state.global_step
        if state.global_step == 0 and self._measure_first:
            self._evaluate(state, control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._loop.busy_seconds += time.perf_counter() - self._begin
        self._progress(state.global_step, state.max_steps)
        parts, steps = self._evaluations, state.max_steps
        if state.global_step in {max(1, round(steps * part / parts)) for part in range(1, parts + 1)}:
            self._evaluate(state, control)
        if _any(self._loop.interrupted, args):
            self._loop.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._report(state, loss=f"loss {logs['loss']:.4g}")

    def _evaluate(self, state: Any, control: Any) -> None:
        if self._measure is None:
            return
        value = self._measure(state.global_step) if self._loop.args.should_save else 0.0
        if self._loop.args.world_size > 1:
            shared = torch.tensor(value, dtype=torch.float64, device=self._loop.args.device)
            torch.distributed.broadcast(shared, 0)
            value = shared.item()
        name = self._measure.name
        key, due = name.lower(), control.should_log
        self._loop.log({key: value})
        control.should_log = due  # the Trainer takes any log for the one that was due
        self._report(state, value=f"{name} {value:.4g}")
        values = [entry[key] for entry in state.log_history if key in entry]
        since_best = len(values) - 1 - values.index(max(values))
        if self._patience is not None and since_best >= self._patience:
            control.should_training_stop = control.should_save = True

    def _report(self, state: Any, **latest: str) -> None:
        """Report progress with a note of the latest loss and value, such as "loss 1.23, F1 70.1"."""
        self._latest |= latest
        note = ", ".join(self._latest[name] for name in ("loss", "value") if name in self._latest)
        self._progress(state.global_step, state.max_steps, note)


def _any(flag: bool, arguments: Any) -> bool:
    """Return whether the flag is set in one of the processes: all must stop at the same step."""
    if arguments.world_size == 1:
        return flag
    shared = torch.tensor(int(flag), device=arguments.device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return bool(shared.item())


@contextmanager
def stops_at_signals(loop: TrainingLoop) -> Iterator[None]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP stop the loop after its step; a second one ends the process as usual."""
    names = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    names = [name for name in names if signal.getsignal(name) is not signal.SIG_IGN]  # nohup

    def stop(number: int, frame: FrameType | None) -> None:
        loop.interrupted = True
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {name: signal.signal(name, stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, which it draws when it writes weights."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
