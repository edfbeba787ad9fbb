"""What Hugging Face's inference toolkit loads and asks. The container has one call at a time."""

import carried

carried.use()
from spanqa.pipelines import pipeline  # noqa: E402
from spanqa.pipelines.bodies import answer_body  # noqa: E402


class EndpointHandler:
    """Answers the body of a request; an error becomes status 400 with its message."""

    def __init__(self, path=""):
        self.pipeline = pipeline(model=path, backend="openvino")

    def __call__(self, data):
        return answer_body(self.pipeline, data)
