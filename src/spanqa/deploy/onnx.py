"""Target "onnx": the graph alone, with its tokenizer, for whatever runs ONNX. spanqa is not needed there.

model.onnx          see `spanqa.deploy.onnx_graph`; beside it model.onnx.data where the weights are larger than 2 GB
tokenizer.json      for the library `tokenizers`; it cuts passages into windows
run.py              answers a question with tokenizers, onnxruntime and numpy
example.json        inputs, and the logits that the reference computes for them
"""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from spanqa.backends import numpy as reference
from spanqa.batches import pad
from spanqa.checkpoint import Checkpoint
from spanqa.deploy.render import write
from spanqa.deploy.target import Deployment, Target
from spanqa.errors import DeploymentError, UnsupportedModelError
from spanqa.extras import require
from spanqa.families import FAMILIES
from spanqa.files import read_object, write_json
from spanqa.reader import stored_settings
from spanqa.windows import make_windows, room_and_overlap

MODEL, TOKENIZER, EXAMPLE = "model.onnx", "tokenizer.json", "example.json"
OUTPUTS = ("start_logits", "end_logits")
QUESTION = "Who built the first pier?"
PASSAGE = (
    "The first pier of Lindow was built in 1871 by Anna Kestrel, a bridge engineer from Oslo. It burned down in 1902, and the town "
    "had no pier until 1911."
)
_TOLERANCE = 1e-3  # of logits that spread over ten units; processors differ by 1e-5


def write_model(checkpoint: Checkpoint, folder: Path) -> None:
    """Write model.onnx, and example.json with which `check_model` finds out whether it is still whole.

    Raises:
        UnsupportedModelError: the encoder is none that is written here.
    """
    check_family(checkpoint, "as an ONNX graph")
    require("onnx")
    from spanqa.deploy.onnx_graph import write_graph

    folder.mkdir(parents=True, exist_ok=True)
    write_graph(checkpoint, folder / MODEL)
    write_json(folder / EXAMPLE, _example(checkpoint))


def check_family(checkpoint: Checkpoint, how: str) -> None:
    """Refuse a model that is not of one of the families whose computation spanqa knows.

    Raises:
        UnsupportedModelError: so it is.
    """
    if checkpoint.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{str(checkpoint.path)!r} is a {checkpoint.model_type!r} model; spanqa writes {', '.join(FAMILIES)} models {how}. "
            "Choose a target that runs spanqa itself, such as kubernetes: it serves every question-answering model of transformers."
        )


def _example(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the inputs of two windows, one of them padded, and the logits of the reference."""
    tokenizer, settings = checkpoint.tokenizer, stored_settings(checkpoint).windows
    question = tokenizer.encode(QUESTION)
    passages = [tokenizer.encode(text) for text in (PASSAGE, PASSAGE[: len(PASSAGE) // 2])]
    batch = pad([make_windows(question, passage, tokenizer.template, settings)[0] for passage in passages])
    logits = reference.NumpyBackend(checkpoint).forward(batch)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.window_index + 1}
    if checkpoint.encoder.token_types > 1:
        inputs["token_type_ids"] = batch.token_type_ids
    outputs = zip(OUTPUTS, (logits.start, logits.end), strict=True)
    return {
        "inputs": {name: array.tolist() for name, array in inputs.items()},
        "outputs": {name: array.tolist() for name, array in outputs},
    }


def check_model(folder: Path) -> list[str]:
    """Check model.onnx and run it on the example; return what was checked.

    Raises:
        DeploymentError: it is damaged, needs operators that are not standard, or gives other logits than the reference.
    """
    require("onnx")
    import onnx
    import onnxruntime

    file = folder / MODEL
    try:
        onnx.checker.check_model(str(file), full_check=True)
        domains = {each.domain: each.version for each in onnx.load(file, load_external_data=False).opset_import}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # theirs have no common class
        raise DeploymentError(
            f"{str(file)!r} is not a whole ONNX file: {str(error).strip().splitlines()[0]:.300} Make the folder again."
        ) from error
    foreign = sorted(set(domains) - {""})
    if foreign:
        raise DeploymentError(
            f"{str(file)!r} needs the operators of {', '.join(foreign)}; expected those of ONNX alone. Make the folder again."
        )
    example = read_object(folder / EXAMPLE)
    inputs = {name: np.array(values, np.int64) for name, values in example["inputs"].items()}
    if sorted(each.name for each in session.get_inputs()) != sorted(inputs):
        raise DeploymentError(
            f"{str(file)!r} has the inputs {', '.join(each.name for each in session.get_inputs())}; expected {', '.join(inputs)}."
        )
    seen = inputs["attention_mask"] == 1
    for name, found in zip(OUTPUTS, session.run(list(OUTPUTS), inputs), strict=True):
        apart = np.abs(found - np.array(example["outputs"][name], np.float32))[seen].max()
        if not apart <= _TOLERANCE:
            raise DeploymentError(
                f"{str(file)!r}: {name} of the example are {apart:.3g} from those of the reference; expected {_TOLERANCE:g} at most. "
                "Make the folder again."
            )
    return [
        f"model.onnx: standard operators (opset {domains['']}), shapes inferred",
        f"model.onnx: onnxruntime {onnxruntime.__version__} computes the logits of the reference for the example",
    ]


def emit(folder: Path, deployment: Deployment) -> None:
    """Write the files."""
    checkpoint = deployment.model
    write_model(checkpoint, folder)
    settings = stored_settings(checkpoint)
    raw = tokenizers.Tokenizer.from_str(checkpoint.tokenizer.as_json())
    question = checkpoint.tokenizer.encode(QUESTION)
    _, overlap = room_and_overlap(question, checkpoint.tokenizer.template, settings.windows)
    raw.enable_truncation(settings.windows.max_seq_length, stride=overlap, strategy="only_second")
    raw.save(str(folder / TOKENIZER))
    write(
        folder,
        "onnx",
        name=deployment.name,
        length=settings.windows.max_seq_length,
        most=settings.answers.max_answer_tokens,
        threshold=settings.answers.no_answer_threshold,
        types=checkpoint.encoder.token_types > 1,
        beside=(folder / f"{MODEL}.data").exists(),
    )


def verify(folder: Path) -> list[str]:
    """Check the files."""
    lines = check_model(folder)
    example = read_object(folder / EXAMPLE)
    expected, found = example["inputs"]["input_ids"][0], _encode(folder / TOKENIZER)
    shared = min(len(expected), len(found)) - 1  # a long text is cut, and ends earlier
    if found[:shared] != expected[:shared]:
        raise DeploymentError(
            f"{str(folder / TOKENIZER)!r} gives other tokens for the example than the model's own tokenizer. Make the folder again."
        )
    return [*lines, "tokenizer.json gives the tokens of the example", "not checked: run.py, which is yours to change"]


def _encode(file: Path) -> list[int]:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise DeploymentError(f"{str(file)!r} is not a tokenizer: {error}. Make the folder again.") from None
    tokenizer.no_truncation()
    return list(tokenizer.encode(QUESTION, PASSAGE).ids)


TARGET = Target(
    "onnx",
    emit,
    verify,
    model=None,
    carries=False,
    fixed=("model.onnx*", TOKENIZER, EXAMPLE),
)
