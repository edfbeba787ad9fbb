"""The graph in Triton's python backend: the inputs and outputs of model.onnx, for servers without the onnxruntime backend."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

OUTPUTS = ["start_logits", "end_logits"]


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Load the graph."""
        gpu = ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]})
        provider = gpu if args["model_instance_kind"] == "GPU" else "CPUExecutionProvider"
        self.session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=[provider])
        self.inputs = [each.name for each in self.session.get_inputs()]

    def execute(self, requests):
        """Answer requests of one shape in one batch. Where that fails, each alone, so that only the bad one gets an error."""
        tensors = [
            [pb_utils.get_input_tensor_by_name(each, name).as_numpy() for name in self.inputs] for each in requests
        ]
        try:
            results = self._run(tensors)
        except Exception:
            results = [self._run_alone(each) for each in tensors]
        return [_response(each) for each in results]

    def _run_alone(self, tensors):
        try:
            return self._run([tensors])[0]
        except Exception as error:
            return error

    def _run(self, tensors):
        feeds = {
            name: np.concatenate(arrays) for name, arrays in zip(self.inputs, zip(*tensors, strict=True), strict=True)
        }
        places = np.cumsum([len(each[0]) for each in tensors])[:-1]
        parts = [np.split(logits, places) for logits in self.session.run(OUTPUTS, feeds)]
        return list(zip(*parts, strict=True))


def _response(result):
    if isinstance(result, Exception):
        error = pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array) for name, array in zip(OUTPUTS, result, strict=True)]
    )
