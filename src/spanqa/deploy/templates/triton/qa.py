"""Questions and texts in, answers out: spanqa's reader in Triton's python backend.

question, context   BYTES [n, 1], UTF-8
answer              BYTES [n, 1]; "" where the context has none
score               FP32: margin over "no answer", in logits
probability         FP32: that this is right, from 0 to 1
start, end          INT64: code points of the context, end exclusive; -1 where there is no answer
"""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
# How many public keys lie in keys/, of which one must have signed the model. 0: its signature is not verified.
KEYS = int("{{ keys }}")
sys.path.insert(0, str(HERE))

import carried  # noqa: E402

carried.use()

from spanqa import Reader  # noqa: E402
from spanqa.answers import least_score  # noqa: E402
from spanqa.errors import SpanQAError  # noqa: E402

LOWEST = float(np.finfo(np.float32).min)


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Load the model."""
        keys = sorted((HERE / "keys").iterdir()) if KEYS else []
        if len(keys) != KEYS:
            raise RuntimeError(f"{HERE / 'keys'} holds {len(keys)} keys; expected {KEYS}. Copy the folder again.")
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.reader = Reader.load(HERE / "model", device=device, verify_key=keys or None)
        self.least = least_score(self.reader.answers)

    def execute(self, requests):
        """Answer all requests with shared batches. What cannot be read is an error of its own request."""
        asked = [_asked(request) for request in requests]
        readings = self.reader.forward([each for questions in asked for each in questions or ()], errors="return")
        return [self._respond(questions, readings) for questions in asked]

    def finalize(self):
        """Free the model."""
        self.reader.close()

    def _respond(self, questions, readings):
        """Take the readings of a request's questions, and return its response."""
        if questions is None:
            return _refusal("A question or a context is not UTF-8.")
        own = list(islice(readings, len(questions)))
        for number, each in enumerate(own):
            if isinstance(each, SpanQAError):
                return _refusal(f"question {number}: {each}")
        answers = [self.reader.decode(each).best(self.least) for each in own]
        columns = {
            "answer": np.array([each.text.encode() for each in answers], np.object_),
            "score": np.array([max(each.score, LOWEST) for each in answers], np.float32),
            "probability": np.array([each.probability for each in answers], np.float32),
            "start": np.array([-1 if each.start is None else each.start for each in answers], np.int64),
            "end": np.array([-1 if each.end is None else each.end for each in answers], np.int64),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array[:, None]) for name, array in columns.items()])


def _asked(request):
    """Return the questions of a request with their contexts; None if they are not UTF-8."""
    try:
        questions, contexts = (
            [str(text, "utf-8") for text in pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()]
            for name in ("question", "context")
        )
    except UnicodeDecodeError:
        return None
    return [(question, (context,)) for question, context in zip(questions, contexts, strict=True)]


def _refusal(message):
    error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)
