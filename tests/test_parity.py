"""Comparing backends: what the comparison says when one of them is wrong."""

from dataclasses import replace

import pytest

from spanqa.backends.registry import BACKENDS
from spanqa.batches import Batch, Capture, SpanLogits
from spanqa.errors import BackendError
from spanqa.evaluate import parity
from spanqa.progress import Progress, silent
from spanqa.reader import Reader


class Shifted:
    """The bundled model with its logits moved."""

    name, device, dtype, batches_at_once = "openvino", "cpu", "fp32", 1

    def __init__(self, reader: Reader, shift: float) -> None:
        self.backend, self.shift = reader.backend, shift
        self.layouts, self.batch_tokens = reader.backend.layouts, reader.backend.batch_tokens

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        logits = self.backend.forward(batch, capture=capture)
        return replace(logits, start=logits.start + self.shift * (batch.position_ids > 0))


def compare(
    mini: Reader, shift: float, monkeypatch: pytest.MonkeyPatch, progress: Progress = silent
) -> dict[tuple[str, str], parity.Comparison]:
    monkeypatch.setattr(parity, "BACKENDS", {name: BACKENDS[name] for name in ("openvino", "numpy")})

    def load(backend: str, dtype: str) -> Reader:
        if dtype == "fp16":
            raise BackendError("no fp16 here")
        return mini if backend == "numpy" else Reader(mini.checkpoint, Shifted(mini, shift))

    return {(row.backend, row.dtype): row for row in parity.check_backends(load, progress=progress)}


def test_a_backend_that_agrees_has_no_problem(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    row = compare(mini, 0.0, monkeypatch)["openvino", "fp32"]
    assert (row.problem, row.logits, row.answers, row.f1_difference) == (None, 0.0, 1.0, 0.0)


def test_a_backend_with_other_logits_has_problems(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = compare(mini, 2.0, monkeypatch)
    assert rows["openvino", "fp32"].logits == pytest.approx(2.0)
    assert "logits differ by 2, more than 0.001" in str(rows["openvino", "fp32"].problem)
    assert "probabilities differ" in str(rows["openvino", "bf16"].problem)


def test_a_backend_that_cannot_run_says_why_and_is_no_failure(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    row = compare(mini, 0.0, monkeypatch)["openvino", "fp16"]
    assert (row.ran, row.problem) == (False, "no fp16 here")


def test_progress_counts_backends_and_dtypes_and_names_them(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, str]] = []
    rows = compare(mini, 0.0, monkeypatch, lambda done, total, note="": seen.append((done, total, note)))
    assert seen[0] == (0, len(rows), "numpy fp32")
    assert seen[-1] == (len(rows), len(rows), "")
    assert [note for _, _, note in seen if note] == [" ".join(row) for row in rows]
