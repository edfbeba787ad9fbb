"""The loop: transformers' Trainer with our batches, our loss, our checkpoints, and someone who watches over it.

A checkpoint is written beside the others, gets its name when it is whole, and only then is the one before removed: a process
killed at any moment leaves a whole one. It decides nothing about what a model is worth; it is told by `measure`.
"""

import inspect
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

from spanqa.backends import torch_attention
from spanqa.batches import BatchLayout
from spanqa.errors import TrainingError
from spanqa.train.features import TrainingWindow, collate, span_loss
from spanqa.train.settings import TrainSettings

Measure = Callable[[int], float]
"""Given the step, writes and scores what would be delivered, and returns its F1."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with the steps done, the steps in all, and what was measured: nothing, "loss" with the rest of a log, or "f1"."""


class TrainingLoop(Trainer):  # type: ignore[misc]
    """transformers' Trainer with our batches, loss, measuring and checkpoints."""

    def __init__(
        self,
        network: Any,
        arguments: TrainingArguments,
        features: list[TrainingWindow],
        layout: BatchLayout,
        *,
        measure: Measure,
        settings: TrainSettings,
        family: bool,
        position_offset: int,
        measures_first: bool,
        progress: Progress | None,
        cols: int | None = None,
    ) -> None:
        if layout == "flat":
            network.set_attn_implementation(torch_attention.NAME)
        self._inputs = set(inspect.signature(network.forward).parameters)
        collator = partial(collate, layout=layout, position_offset=position_offset, cols=cols)
        super().__init__(model=network, args=arguments, train_dataset=features, data_collator=collator)
        self.interrupted = False
        self.first_step = 0
        self.busy_seconds = 0.0
        self.measures_first = measures_first
        self._family = family
        self._writing = False
        for callback in (transformers.trainer_callback.PrinterCallback, transformers.trainer_callback.ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_Watch(self, measure, settings, progress))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss of one batch; the Trainer divides it by the number of batches that make a step."""
        given: dict[str, Any] = {
            name: inputs[name] for name in ("input_ids", "attention_mask", "window_lengths") if name in inputs
        }
        if self._family:
            given["position_ids"] = inputs["position_ids"]
        if "token_type_ids" in self._inputs:
            given["token_type_ids"] = inputs["token_type_ids"]
        output = model(**given)
        loss = span_loss(output.start_logits, output.end_logits, inputs)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss.item()} after step {self.state.global_step}: the training diverged. Nothing was delivered; "
                "lower --learning-rate, or choose --dtype fp32."
            )
        return loss

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / "writing") if self._writing else str(self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside the others, name it when it is whole, and only then remove the one before."""
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
    """Measures at the times that were asked for, stops when it is time to, and tells how far the work has come."""

    def __init__(
        self,
        loop: TrainingLoop,
        measure: Measure,
        settings: TrainSettings,
        progress: Progress | None,
    ) -> None:
        self._loop, self._measure, self._settings, self._progress = loop, measure, settings, progress
        self._begin = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._loop.first_step = state.global_step
        if state.global_step == 0 and self._loop.measures_first:
            self._evaluate(state, control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._loop.busy_seconds += time.perf_counter() - self._begin
        if self._progress:
            self._progress(state.global_step, state.max_steps, {})
        parts, steps = self._settings.evaluations, state.max_steps
        if state.global_step in {max(1, round(steps * part / parts)) for part in range(1, parts + 1)}:
            self._evaluate(state, control)
        if _any(self._loop.interrupted, args):
            self._loop.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self._progress and logs and "loss" in logs:
            self._progress(state.global_step, state.max_steps, logs)

    def _evaluate(self, state: Any, control: Any) -> None:
        f1 = self._measure(state.global_step) if self._loop.args.should_save else 0.0
        if self._loop.args.world_size > 1:
            told = torch.tensor(f1, dtype=torch.float64, device=self._loop.args.device)
            torch.distributed.broadcast(told, 0)
            f1 = told.item()
        found = {"f1": f1}
        due = control.should_log
        self._loop.log(dict(found))
        control.should_log = due  # the Trainer takes any log for the one that was due
        if self._progress:
            self._progress(state.global_step, state.max_steps, found)
        scores = [entry["f1"] for entry in state.log_history if "f1" in entry]
        behind = len(scores) - 1 - scores.index(max(scores))
        if self._settings.patience is not None and behind >= self._settings.patience:
            control.should_training_stop = control.should_save = True


def _any(flag: bool, arguments: Any) -> bool:
    """Whether the flag is set in one of the processes: all must stop at the same step."""
    if arguments.world_size == 1:
        return flag
    told = torch.tensor(int(flag), device=arguments.device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return bool(told.item())


@contextmanager
def stops_at_signals(loop: TrainingLoop) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a checkpoint after the step; a second one ends the process as usual."""
    names = (signal.SIGINT, signal.SIGTERM)

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
