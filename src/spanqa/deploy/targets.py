"""The targets that there are."""

from spanqa.deploy import azureml, huggingface, kserve, kubernetes, onnx, triton, vllm
from spanqa.deploy.target import NAMES, Target

_ALL: tuple[Target, ...] = (
    huggingface.TARGET,
    azureml.TARGET,
    kubernetes.TARGET,
    kserve.TARGET,
    triton.TARGET,
    vllm.TARGET,
    onnx.TARGET,
)

TARGETS: dict[str, Target] = {each.name: each for each in _ALL}
assert tuple(TARGETS) == NAMES
