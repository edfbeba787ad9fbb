"""Target "vllm": the checkpoint as a token classifier with two labels, which is what a question-answering head is.

model/     config.json and model.safetensors under the names of transformers' token classifiers; tokenizer and settings as they were
ask.py     spanqa's reader, with vLLM as what computes

vLLM's /pooling takes token ids without segment ids, so a model that reads them is asked through vLLM's Python interface alone. Families
whose token classifier vLLM does not have are refused.

Sources: vllm, vllm/model_executor/models/{bert,registry}.py, vllm/entrypoints/pooling, docs/models/pooling_models/token_classify.md and
pull requests 21985 (segment ids) and 47991 (RoBERTa); safetensors, README.md (the format).
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from spanqa.checkpoint import CARD, CONFIG, SETTINGS, Checkpoint
from spanqa.deploy.checks import check_program
from spanqa.deploy.onnx import check_family
from spanqa.deploy.render import render
from spanqa.deploy.target import Deployment, Target
from spanqa.deploy.wheel import write_wheel
from spanqa.errors import CheckpointError, DeploymentError, UnsupportedModelError
from spanqa.families import FAMILIES, encoder_config
from spanqa.files import read_object, write_json
from spanqa.tokenizer_files import TOKENIZER_FILES
from spanqa.weights import WEIGHTS, WeightFiles, some
from spanqa.weights import verify as match_weights

_ARCHITECTURES = {
    "bert": "BertForTokenClassification",
    "roberta": "RobertaForTokenClassification",
    "xlm-roberta": "XLMRobertaForTokenClassification",
    "camembert": "RobertaForTokenClassification",
}
"""`model_type` -> the class that vLLM computes it with."""

_LABELS = {"0": "start", "1": "end"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def emit(folder: Path, deployment: Deployment) -> None:
    """Write the files."""
    checkpoint, settings = deployment.model, deployment.settings
    _check_supported(checkpoint)
    model = folder / "model"
    model.mkdir()
    for name in (*TOKENIZER_FILES, SETTINGS, CARD):
        if (checkpoint.folder / name).exists():
            shutil.copyfile(checkpoint.folder / name, model / name)
    architecture = _ARCHITECTURES[checkpoint.model_type]
    labels = {"id2label": _LABELS, "label2id": {label: int(number) for number, label in _LABELS.items()}}
    write_json(model / CONFIG, {**checkpoint.config, "architectures": [architecture], **labels})
    _write_weights(checkpoint, model / WEIGHTS)
    wheel, sha256 = ("", "") if settings.from_pypi else write_wheel(folder)
    values = {
        "name": deployment.name,
        "architecture": architecture,
        "segments": checkpoint.tokenizer.template.highest_type > 0,
        "longest": checkpoint.max_seq_length,
        "wheel": wheel,
        "sha256": sha256,
        "version": settings.from_pypi,
    }
    program = "engine.py" if values["segments"] else "served.py"
    (folder / "ask.py").write_text(render(f"vllm/{program}", **values), "utf-8")
    (folder / "README.md").write_text(render("vllm/README.md", **values), "utf-8")


def _check_supported(checkpoint: Checkpoint) -> None:
    check_family(checkpoint, "as token classifiers")
    if checkpoint.model_type not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{str(checkpoint.path)!r} is a {checkpoint.model_type!r} model, for which vLLM has no token classifier; it has one for "
            f"{', '.join(_ARCHITECTURES)}. Choose another target, such as kubernetes or triton."
        )
    template = checkpoint.tokenizer.template
    types = [template.question_type, *(kind for part in (template.before, template.between) for _, kind in part)]
    after = [template.passage_type, *(kind for _, kind in template.after)]
    if any(types) or len(set(after)) > 1 or template.highest_type > 1:
        raise UnsupportedModelError(
            f"The tokenizer of {str(checkpoint.path)!r} gives other segment ids than 0 before the passage and 1 from there on, which is "
            "all that vLLM can be given. Choose another target, such as kubernetes or triton."
        )


def _exported(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the names of the parameters in the token classifier -> the names they are stored under."""
    stored, _ = match_weights(checkpoint.weights, checkpoint.encoder, repr(str(checkpoint.path)))
    return {_classifier_name(checkpoint.model_type, name): place for name, place in stored.items()}


def _classifier_name(model_type: str, name: str) -> str:
    return FAMILIES[model_type].stored_name(name).replace("qa_outputs.", "classifier.")


def _write_weights(checkpoint: Checkpoint, file: Path) -> None:
    """Write the parameters one by one, as they are stored, so that memory holds one at a time."""
    files, names = checkpoint.weights, _exported(checkpoint)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, place in names.items():
        size = _BYTES[files.dtypes[place]]
        for axis in files.shapes[place]:
            size *= axis
        header[name] = {
            "dtype": files.dtypes[place],
            "shape": list(files.shapes[place]),
            "data_offsets": [at, at + size],
        }
        at += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for place in names.values():
            array = files.read(place)
            out.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def verify(folder: Path) -> list[str]:
    """Check the files."""
    model = folder / "model"
    try:
        config = read_object(model / CONFIG)
        files = WeightFiles([model / WEIGHTS])
        architecture = _ARCHITECTURES.get(str(config.get("model_type")))
        if architecture is None or config.get("architectures") != [architecture] or config.get("id2label") != _LABELS:
            raise DeploymentError(
                f"{str(model / CONFIG)!r} has architectures {config.get('architectures')!r} and id2label {config.get('id2label')!r}; "
                f"expected [{architecture!r}] and {_LABELS}. Make the folder again."
            )
        shapes = FAMILIES[config["model_type"]].shapes(encoder_config(config))
        expected = {_classifier_name(config["model_type"], name): shape for name, shape in shapes.items()}
        if files.shapes != expected:
            wrong = sorted(name for name, _ in files.shapes.items() ^ expected.items())
            raise DeploymentError(
                f"{str(model / WEIGHTS)!r} does not fit config.json: {some(dict.fromkeys(wrong))}. Make the folder again."
            )
        for name in expected:
            files.read(name)
    except DeploymentError:
        raise
    except (CheckpointError, KeyError, OSError, TypeError, ValueError) as error:
        raise DeploymentError(f"{str(folder)!r} is not whole: {error}") from None
    check_program(folder / "ask.py", "ask.py")
    return [
        f"model/: the parameters of {architecture} with two labels, all of them numbers",
        "not checked: that vLLM computes it, because vLLM needs a GPU; compare the first answers with those of `spanqa ask`",
    ]


TARGET = Target(
    "vllm",
    emit,
    verify,
    model=None,
    carries=False,  # a key could verify nothing: the files of the model are new
    fixed=("model/*",),
)
