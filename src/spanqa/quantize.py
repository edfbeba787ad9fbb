"""8-bit integers: makes a copy of a model that OpenVINO runs faster, and checks that it keeps its F1.

This is NNCF's post-training quantization, calibrated on the user's own passages. The float weights stay beside the integers, so
every other backend reads the folder as before. F1 and the speed on this machine are measured before and after, and the no-answer
threshold is fitted again. A model that loses more F1 than allowed is not written.

Needs: pip install 'spanqa[quantize]'.

Source: NNCF, post-training quantization with SmoothQuant (https://arxiv.org/abs/2211.10438) for transformers.
"""

import os
import random
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from spanqa import bounds
from spanqa.batches import Batch, pack
from spanqa.checkpoint import (
    INT8_GRAPH,
    INT8_WEIGHTS,
    Checkpoint,
    copy_checkpoint,
    write_settings,
)
from spanqa.errors import AccuracyLostError, InputError, SpanQAWarning
from spanqa.evaluate.run import score
from spanqa.extras import require
from spanqa.files import check_is_new, new_folder
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.signing import SIGNATURE
from spanqa.squad import Example
from spanqa.windows import cut

ROUNDS, ROUND_QUESTIONS = 5, 32
"""The speeds are measured in rounds of so many questions. In each, every dtype reads the same ones."""

PAYS = 1.05
"""int8 pays if it is at least this much faster than the floats that `auto` chooses; less is within the noise of a machine."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was done and measured. It is stored in spanqa.json as "quantization".

    `questions_per_s` is the speed of openvino on this machine, by dtype: the median of several rounds. `auto_dtype` is the float
    type that `auto` chooses here, and `speedup` the speed of int8 divided by the speed of that type.
    """

    engine: str
    graph_sha256: str
    ffn_outputs: str
    calibration_questions: int
    measured_questions: int
    data_sha256: str
    f1_before: float
    f1_after: float
    no_answer_threshold: float | None
    questions_per_s: Mapping[str, float]
    auto_dtype: str
    speedup: float


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
    whose activations have the largest outliers, stay in floats. A copy that is not faster on this machine is written with a
    `SpanQAWarning`.

    Raises:
        AccuracyLostError: that loses more, too. Nothing is written.
        InputError: there are too few questions, `out` already exists, or `most_f1_lost` is not a number from 0 to 100.
        NotInstalledError: NNCF is not installed.
    """
    out = Path(out)
    check_is_new(out)
    if len(examples) < 2 * calibration_questions:
        raise InputError(
            f"The data has {len(examples)} questions. Expected at least {2 * calibration_questions}: half to calibrate and half "
            "to measure. Give more questions, or lower the number of calibration questions."
        )
    bounds.check(("most_f1_lost",), {"most_f1_lost": most_f1_lost})
    require("quantize")
    shuffled = random.Random(0).sample(list(examples), len(examples))
    shown, measured = shuffled[:calibration_questions], shuffled[calibration_questions:]
    progress(0, 4, "measuring the original model")
    reader = Reader.load(model, backend="openvino", dtype="fp32", revision=revision)
    checkpoint = reader.checkpoint
    before = score(reader, measured)
    with new_folder(out) as folder:
        copy_checkpoint(checkpoint.path, folder, leave_out=(SIGNATURE, INT8_GRAPH, INT8_WEIGHTS))
        for ffn_outputs in ("int8", "floats"):
            progress(1, 4, f"quantizing, feed-forward outputs in {ffn_outputs}")
            engine, graph_sha256 = _write_int8(reader, shown, folder, keep_ffn_outputs=ffn_outputs == "floats")
            write_settings(folder, {**checkpoint.settings, "quantization": {"graph_sha256": graph_sha256}})
            progress(2, 4, "measuring the quantized model")
            with Reader.load(folder, backend="openvino", dtype="int8") as quantized:
                after = score(quantized, measured)
            if before.f1 - after.f1 <= most_f1_lost:
                break
        else:
            raise AccuracyLostError(
                f"int8 lowers F1 from {before.f1:.2f} to {after.f1:.2f}, also with feed-forward outputs in floats. At most "
                f"{most_f1_lost:g} points may be lost. Nothing was written. Calibrate on more questions, or allow a larger loss."
            )
        progress(3, 4, "measuring speeds")
        auto_dtype, speeds = _speeds(folder, measured)
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
            questions_per_s=speeds,
            auto_dtype=auto_dtype,
            speedup=speeds["int8"] / speeds[auto_dtype],
        )
        _write_settings(folder, checkpoint, done)
    progress(4, 4)
    if done.speedup < PAYS:
        warnings.warn(
            f"int8 does not pay on this machine: {done.speedup:.2f} times the speed of {auto_dtype}, which auto chooses. Use the copy "
            "on a processor with VNNI or AMX (`spanqa info` says whether it has them), or use the original model.",
            SpanQAWarning,
            stacklevel=2,
        )
    return done


def _speeds(folder: Path, examples: Sequence[Example]) -> tuple[str, dict[str, float]]:
    """Return the float type that auto chooses, and the questions per second of fp32, of that type and of int8.

    All read the same questions in turn, so that what else the machine does slows all of them.
    """
    with ExitStack() as stack:
        auto = stack.enter_context(Reader.load(folder, backend="openvino"))
        readers = {auto.backend.dtype: auto}
        for dtype in {"fp32", "int8"} - set(readers):
            readers[dtype] = stack.enter_context(Reader.load(folder, backend="openvino", dtype=dtype))
        rates = measure_speeds(readers, examples)
        return auto.backend.dtype, rates


def measure_speeds(readers: Mapping[str, Reader], examples: Sequence[Example]) -> dict[str, float]:
    """Return the questions per second of each reader, by its name: the median of rounds in which each reads the same questions."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(-1, ROUNDS):  # the round before the first one warms up
        first = max(number, 0) * ROUND_QUESTIONS
        questions = [examples[place % len(examples)] for place in range(first, first + ROUND_QUESTIONS)]
        for name, reader in readers.items():
            begin = perf_counter()
            for _ in reader.forward((example.question, [example.passage]) for example in questions):
                pass
            if number >= 0:
                rates[name].append(len(questions) / (perf_counter() - begin))
    return {name: median(values) for name, values in sorted(rates.items())}


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
