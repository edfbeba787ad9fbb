"""Target "triton": a model repository for Triton Inference Server.

model_repository/NAME/             the graph (`spanqa.deploy.onnx`), in the onnxruntime backend; other configurations in configs/
model_repository/NAME-qa/          spanqa's reader, in the python backend; its version folder holds all that it needs
Dockerfile, requirements.txt       Triton's image with the packages that spanqa needs
example-load.json                  for perf_analyzer

Sources: Triton, docs/user_guide/model_configuration.md; onnxruntime_backend, README.md; python_backend, README.md.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from spanqa.checkpoint import Checkpoint
from spanqa.deploy import onnx
from spanqa.deploy.checks import check_program
from spanqa.deploy.render import render
from spanqa.deploy.target import Deployment, Target
from spanqa.deploy.wheel import carry, pinned
from spanqa.errors import DeploymentError

REPOSITORY = "model_repository"
_TYPES = {1: "TYPE_FP32", 7: "TYPE_INT64"}  # ONNX's number of a type -> Triton's name


def emit(folder: Path, deployment: Deployment) -> None:
    """Write the files."""
    from spanqa.deploy.folder import copy_model

    name, settings, checkpoint = deployment.name, deployment.settings, deployment.model
    gpu = settings.device == "cuda"
    kind = "KIND_GPU" if gpu else "KIND_CPU"
    graph, qa = folder / REPOSITORY / name, folder / REPOSITORY / f"{name}-qa"
    onnx.write_model(checkpoint, graph / "1")
    _write_graph(graph, checkpoint, name, kind)
    (qa / "1" / "model").mkdir(parents=True)
    copy_model(checkpoint, qa / "1" / "model")
    if deployment.keys:
        shutil.move(folder / "keys", qa / "1" / "keys")
    carry(qa / "1", settings)
    (qa / "1" / "model.py").write_text(render("triton/qa.py", keys=len(deployment.keys)), "utf-8")
    (qa / "config.pbtxt").write_text(render("triton/qa.pbtxt", name=name, kind=kind), "utf-8")
    extras = [*(["torch"] if deployment.needs_torch else []), *(["sign"] if deployment.keys else [])]
    packages = [*pinned(extras, without=("numpy",)), *([f"spanqa=={settings.from_pypi}"] if settings.from_pypi else [])]
    (folder / "requirements.txt").write_text("\n".join(packages) + "\n", "utf-8")
    image = settings.image.partition("@")[0] or f"{name}-triton:1"  # it is built, and has no digest yet
    for file in ("README.md", "Dockerfile", "example-load.json"):
        (folder / file).write_text(render(f"triton/{file}", name=name, image=image, gpu=gpu), "utf-8")


def _write_graph(folder: Path, checkpoint: Checkpoint, name: str, kind: str) -> None:
    """Write the configurations of the graph, and the program that runs it in the python backend."""
    types = ["token_type_ids"] if checkpoint.encoder.token_types > 1 else []
    inputs = ["input_ids", "attention_mask", *types]
    values: dict[str, Any] = {
        "name": name,
        "inputs": inputs,
        "longest": checkpoint.max_seq_length,
        "shapes": lambda rows, cols: ",".join(f"{each}:{rows}x{cols}" for each in inputs),
    }
    configurations = {
        "config.pbtxt": ("Triton's onnxruntime backend.", "onnxruntime", kind, False),
        "configs/tensorrt.pbtxt": ("The same through TensorRT: --model-config-name=tensorrt", "onnxruntime", "KIND_GPU", True),
        "configs/python.pbtxt": ("For servers without the onnxruntime backend: --model-config-name=python", "python", kind, False),
    }  # fmt: skip
    (folder / "configs").mkdir()
    for file, (comment, backend, where, tensorrt) in configurations.items():
        text = render("triton/graph.pbtxt", comment=comment, backend=backend, kind=where, tensorrt=tensorrt, **values)
        (folder / file).write_text(text, "utf-8")
    (folder / "1" / "model.py").write_text(render("triton/graph.py"), "utf-8")


def verify(folder: Path) -> list[str]:
    """Check the files."""
    lines = []
    for version in sorted(each for each in (folder / REPOSITORY).glob("*/*/") if each.name.isdecimal()):
        if (version / onnx.MODEL).exists():
            lines += onnx.check_model(version)
        check_program(version / "model.py", (version / "model.py").relative_to(folder).as_posix())
    configurations = sorted((folder / REPOSITORY).glob("**/*.pbtxt"))
    if importlib.util.find_spec("tritonclient") is None or importlib.util.find_spec("grpc") is None:
        return [*lines, "not checked: config.pbtxt, because tritonclient is missing: pip install 'tritonclient[grpc]'"]
    for file in configurations:
        _check_configuration(file)
    return [
        *lines,
        f"{len(configurations)} configurations: read with Triton's schema; names, types and shapes are those of the graph",
        "not checked: Dockerfile, because it needs Docker and Triton's image",
    ]


def _check_configuration(file: Path) -> None:
    """Read a configuration with Triton's schema, and compare it with the graph.

    Raises:
        DeploymentError: a field is unknown or of another type, or it is not the configuration of its model.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(file.read_text("utf-8"), config)
    except (text_format.ParseError, ValueError) as error:
        raise DeploymentError(
            f"{str(file)!r} is not a configuration of a Triton model: {str(error).rstrip('.')}."
        ) from None
    folder = file.parents[1] if file.parent.name == "configs" else file.parent
    if config.name != folder.name:
        raise DeploymentError(f"{str(file)!r}: name is {config.name!r}; expected {folder.name!r}, as the folder.")
    expected = _graph_tensors(folder / "1" / onnx.MODEL) if (folder / "1" / onnx.MODEL).exists() else _QA_TENSORS
    kinds = model_config_pb2.DataType
    found = {each.name: (kinds.Name(each.data_type), [*each.dims]) for each in (*config.input, *config.output)}
    if found != expected or config.max_batch_size < 1:
        raise DeploymentError(
            f"{str(file)!r} has the tensors {_show(found)} and max_batch_size {config.max_batch_size}; expected {_show(expected)}, and "
            "at least 1, since the first axis is the batch."
        )


_QA_TENSORS = {
    "question": ("TYPE_STRING", [1]),
    "context": ("TYPE_STRING", [1]),
    "answer": ("TYPE_STRING", [1]),
    "score": ("TYPE_FP32", [1]),
    "probability": ("TYPE_FP32", [1]),
    "start": ("TYPE_INT64", [1]),
    "end": ("TYPE_INT64", [1]),
}


def _graph_tensors(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Return the inputs and outputs of the graph as Triton names them, without the batch."""
    import onnx as library

    graph = library.load(str(file), load_external_data=False).graph
    return {
        each.name: (
            _TYPES[each.type.tensor_type.elem_type],
            [axis.dim_value or -1 for axis in each.type.tensor_type.shape.dim][1:],
        )
        for each in (*graph.input, *graph.output)
    }


def _show(tensors: dict[str, tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} {kind} {dims}" for name, (kind, dims) in sorted(tensors.items()))


TARGET = Target(
    "triton",
    emit,
    verify,
    model=None,
    fixed=("*/model.onnx*", "*/example.json", "*-qa/1/model/*", "*-qa/1/keys/*", "*/carried.py"),
)
