"""The best model so far. Each candidate is written as it would be delivered, loaded as users load it, and scored.

WORK/best-N/       the best model so far, a whole checkpoint folder; N is its step
WORK/best.json     its step, F1 and threshold
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spanqa.answers import AnswerSettings
from spanqa.checkpoint import Checkpoint, write_settings
from spanqa.evaluate.run import score
from spanqa.files import write_json
from spanqa.reader import Reader
from spanqa.squad import Example
from spanqa.train.work import write_model
from spanqa.windows import WindowSettings


@dataclass(slots=True, eq=False)
class BestModel:
    """Keeps the best model so far, by F1 on the dev questions, in the folder `work`."""

    network: Any
    base: Checkpoint
    work: Path
    dev: Sequence[Example]
    windows: WindowSettings
    answers: AnswerSettings
    half_weights: bool = False
    name: str = "F1"

    def __call__(self, step: int) -> float:
        """Score the model as it is now, keep it if it is the best so far, and return its F1."""
        folder = self.work / f"best-{step}"
        best = read_best(self.work)
        if best is not None and best["step"] == step and folder.exists():  # measured before the run was stopped
            return float(best["f1"])
        if folder.exists():
            shutil.rmtree(folder)
        self._write(folder)
        with Reader.load(folder) as reader:
            found = score(reader, self.dev)
        if best is not None and (best["f1"] > found.f1 or (best["f1"] == found.f1 and best["step"] <= step)):
            shutil.rmtree(folder)
            return found.f1
        if found.no_answer_threshold is not None:
            self.answers = replace(self.answers, no_answer_threshold=found.no_answer_threshold)
        self._write_settings(folder)
        write_json(self.work / "best.json", {"step": step, **asdict(found)})
        for older in self.work.glob("best-*"):
            if older != folder:
                shutil.rmtree(older)
        return found.f1

    def _write(self, folder: Path) -> None:
        write_model(self.network, self.base, folder, half=self.half_weights)
        self._write_settings(folder)

    def _write_settings(self, folder: Path) -> None:
        settings = {"windows": asdict(self.windows), "answers": asdict(self.answers), "calibration": None}
        write_settings(folder, settings)


def read_best(work: Path) -> dict[str, Any] | None:
    """Return step, F1 and threshold of the best model so far, or None if nothing has been scored."""
    path = work / "best.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None
