"""The targets that there are."""

from spanqa.deploy.onnx import ONNX
from spanqa.deploy.target import Target
from spanqa.deploy.triton import TRITON
from spanqa.deploy.vllm import VLLM

_ALL: tuple[Target, ...] = (TRITON, VLLM, ONNX)

TARGETS: dict[str, Target] = {each.name: each for each in _ALL}
"""By name, in the order in which the documentation has them."""
