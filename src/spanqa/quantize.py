"""8-bit integers: makes a copy of a model that OpenVINO runs faster, and checks that it keeps its F1.

This is NNCF's post-training quantization, calibrated on the user's own passages. The float weights stay beside the integers, so
every other backend reads the folder as before. F1 is measured before and after, and the no-answer threshold is fitted again. A
model that loses more F1 than allowed is not written.

Needs: pip install 'spanqa[quantize]'.

Source: NNCF, post-training quantization with SmoothQuant (https://arxiv.org/abs/2211.10438) for transformers.
"""

import os
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spanqa.batches import Batch, pack
from spanqa.checkpoint import (
    INT8_GRAPH,
    INT8_WEIGHTS,
    SIGNATURE,
    Checkpoint,
    copy_checkpoint,
    write_settings,
)
from spanqa.errors import AccuracyLostError, InputError
from spanqa.evaluate.run import score
from spanqa.extras import require
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.squad import Example
from spanqa.windows import cut


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was done and measured. It is stored in spanqa.json as "quantization"."""

    engine: str
    graph_sha256: str
    ffn_outputs: str
    calibration_questions: int
    measured_questions: int
    data_sha256: str
    f1_before: float
    f1_after: float
    no_answer_threshold: float | None


def quantize(
    model: str | os.PathLike[str],
    examples: Sequence[Example],
    out: str | os.PathLike[str],
    *,
    data_sha256: str,
    revision: str | None = None,
    calibration_questions: int = 200,
    most_f1_lost: float = 1.0,
    progress: Progress = silent,
) -> Quantized:
    """Write a copy of a model with an int8 graph beside its weights, and return what was measured.

    `calibration_questions` questions, drawn with seed 0, show NNCF the range of the activations; the others measure F1. All
    matrix products become int8. If that loses more than `most_f1_lost` points, the second layers of the feed-forward blocks,
    whose activations have the largest outliers, stay in floats.

    Raises:
        AccuracyLostError: that loses more, too. Nothing is written.
        InputError: there are too few questions, or `out` already exists.
        NotInstalledError: NNCF is not installed.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"Output folder {str(out)!r} already exists. Choose a new path.")
    if len(examples) < 2 * calibration_questions:
        raise InputError(
            f"The data has {len(examples)} questions. Expected at least {2 * calibration_questions}: half to calibrate and half "
            "to measure. Give more questions, or lower the number of calibration questions."
        )
    require("quantize")
    shuffled = random.Random(0).sample(list(examples), len(examples))
    shown, measured = shuffled[:calibration_questions], shuffled[calibration_questions:]
    progress(0, 3, "measuring the original model")
    reader = Reader.load(model, backend="openvino", dtype="fp32", revision=revision)
    checkpoint = reader.checkpoint
    before = score(reader, measured)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        copy_checkpoint(checkpoint.path, folder, leave_out=(SIGNATURE, INT8_GRAPH, INT8_WEIGHTS))
        for ffn_outputs in ("int8", "floats"):
            progress(1, 3, f"quantizing, feed-forward outputs in {ffn_outputs}")
            engine, graph_sha256 = _write_int8(reader, shown, folder, keep_ffn_outputs=ffn_outputs == "floats")
            write_settings(folder, {**checkpoint.settings, "quantization": {"graph_sha256": graph_sha256}})
            progress(2, 3, "measuring the quantized model")
            with Reader.load(folder, backend="openvino", dtype="int8") as quantized:
                after = score(quantized, measured)
            if before.f1 - after.f1 <= most_f1_lost:
                break
        else:
            raise AccuracyLostError(
                f"int8 lowers F1 from {before.f1:.2f} to {after.f1:.2f}, also with feed-forward outputs in floats. At most "
                f"{most_f1_lost:g} points may be lost. Nothing was written. Calibrate on more questions, or allow a larger loss."
            )
        done = Quantized(
            engine=engine,
            graph_sha256=graph_sha256,
            ffn_outputs=ffn_outputs,
            calibration_questions=len(shown),
            measured_questions=len(measured),
            data_sha256=data_sha256,
            f1_before=before.f1,
            f1_after=after.f1,
            no_answer_threshold=after.no_answer_threshold,
        )
        _write_settings(folder, checkpoint, done)
        folder.rename(out)
    progress(3, 3)
    return done


def _write_int8(
    reader: Reader, examples: Sequence[Example], folder: Path, *, keep_ffn_outputs: bool
) -> tuple[str, str]:
    """Write the graph, and return what made it and its hash."""
    import nncf
    import openvino

    from spanqa.backends.openvino import build_graph, graph_hash, sign_int8

    nncf.set_log_level("ERROR")
    graph = build_graph(reader.checkpoint)
    kept = _ffn_outputs(graph) if keep_ffn_outputs else []
    batches = _batches(reader, examples)
    with redirect_stdout(sys.stderr):  # NNCF prints its progress to standard output
        model = nncf.quantize(
            graph,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
        )
    sign_int8(model, reader.checkpoint)
    openvino.save_model(model, folder / INT8_GRAPH, compress_to_fp16=True)
    written = graph_hash((folder / INT8_GRAPH).read_bytes(), (folder / INT8_WEIGHTS).read_bytes())
    return f"nncf {nncf.__version__}, openvino {openvino.__version__}", written


def _ffn_outputs(graph: Any) -> list[str]:
    """Return the names of the matrix products at the end of the feed-forward blocks."""
    found = []
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            weight = node.input_value(1).get_node()
            while weight.get_type_name() == "Convert":
                weight = weight.input_value(0).get_node()
            if weight.get_friendly_name().startswith("layer.") and weight.get_friendly_name().endswith(
                ".output.weight"
            ):
                found.append(node.get_friendly_name())
    return found


def _batches(reader: Reader, examples: Sequence[Example]) -> list[list[Any]]:
    tokenizer = reader.checkpoint.tokenizer
    batches = []
    for example in examples:
        (windows,) = cut(example.question, [tokenizer.prepare(example.passage)], tokenizer, reader.windows)
        for window in windows:
            batch = pack([[window]])
            batches.append([getattr(batch, name) for name in Batch.__slots__])
    return batches


def _write_settings(folder: Path, checkpoint: Checkpoint, done: Quantized) -> None:
    settings = {**checkpoint.settings, "quantization": asdict(done)}
    if done.no_answer_threshold is not None:
        settings["answers"] = {**(settings.get("answers") or {}), "no_answer_threshold": done.no_answer_threshold}
        settings["calibration"] = None  # it was fitted to the scores of the float model
    write_settings(folder, settings)
