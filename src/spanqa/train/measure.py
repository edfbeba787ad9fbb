"""What training would deliver, written as it would be, read back by the backend that users get, and scored.

WORK/best-N/       the best model so far, a whole checkpoint folder; N is its step
WORK/best.json     its step, F1 and threshold
"""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from spanqa.answers import AnswerSettings
from spanqa.checkpoint import Checkpoint, write_settings
from spanqa.evaluate.run import Score
from spanqa.files import write_json
from spanqa.reader import Reader
from spanqa.squad import Example
from spanqa.tokens import TOKENIZER_FILES
from spanqa.train.settings import DROPOUTS
from spanqa.windows import WindowSettings

Scorer = Callable[[Reader, Sequence[Example]], Score]
"""Answers the dev questions with a reader, and returns F1 and the threshold that is best for it."""


class Candidates:
    """What would be delivered, written to a folder, read back by the backend that users get, and scored."""

    def __init__(
        self,
        network: Any,
        base: Checkpoint,
        work: Path,
        dev: Sequence[Example],
        score: Scorer,
        windows: WindowSettings,
        answers: AnswerSettings,
        half_weights: bool,
    ) -> None:
        self._network, self._base, self._work, self._dev, self._score = network, base, work, dev, score
        self._windows, self._answers, self._half = windows, answers, half_weights

    def __call__(self, step: int) -> float:
        """Score the model as it is, keep it when it is the best so far, and return its F1."""
        folder = self._work / f"best-{step}"
        if folder.exists():
            shutil.rmtree(folder)
        self._write(folder)
        score = self._score(Reader.load(folder), self._dev)
        best = read_best(self._work)
        if best is not None and (best["f1"] > score.f1 or (best["f1"] == score.f1 and best["step"] <= step)):
            if best["step"] != step:
                shutil.rmtree(folder)
        else:
            if score.no_answer_threshold is not None:
                self._answers = replace(self._answers, no_answer_threshold=score.no_answer_threshold)
            self._write_settings(folder)
            write_json(self._work / "best.json", {"step": step, **asdict(score)})
            for older in self._work.glob("best-*"):
                if older != folder:
                    shutil.rmtree(older)
        return score.f1

    def _write(self, folder: Path) -> None:
        network = copy.deepcopy(self._network)
        if self._half:
            network = network.half()
        network.config._attn_implementation = None
        for name in DROPOUTS:
            if name in self._base.config:
                setattr(network.config, name, self._base.config[name])  # what this training chose is not the model's
        network.save_pretrained(folder)
        for name in TOKENIZER_FILES:
            if (self._base.path / name).exists():
                shutil.copyfile(self._base.path / name, folder / name)
        self._write_settings(folder)

    def _write_settings(self, folder: Path) -> None:
        settings = {"windows": asdict(self._windows), "answers": asdict(self._answers), "calibration": None}
        write_settings(folder, settings)


def read_best(work: Path) -> dict[str, Any] | None:
    """Return what is known of the best model so far: its step, F1 and threshold."""
    path = work / "best.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None
