"""What Azure ML's scoring server loads: `init` once in each worker, `run` for each request, in one of the worker's threads.

A body is {"inputs": {"question": ..., "context": ...}, "parameters": {...}}, or {"question": ..., "passages": [...]}. Both, their
responses and the errors are those of `spanqa serve`, which answers here too, without its socket.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import carried  # noqa: E402

carried.use()
from azureml_inference_server_http.api.aml_request import rawhttp  # noqa: E402
from flask import Response, g  # noqa: E402

from spanqa import Reader  # noqa: E402
from spanqa.serve import ServeSettings  # noqa: E402
from spanqa.serve.inside import Inside  # noqa: E402

SETTINGS = ServeSettings(
    deadline=float(os.environ.get("SPANQA_DEADLINE", "30")),
    max_wait=float(os.environ.get("SPANQA_MAX_WAIT", "5")),
    hosts=("*",),  # the platform's front end says which
)
PASSED_ON = ("content-type", "content-encoding", "traceparent")
server = None


def init():
    """Load the model and read a few batches. An error ends the worker, and the deployment says why."""
    global server
    keys = [str(key) for key in sorted((HERE / "keys").glob("*"))]
    reader = Reader.load(model_folder(), device=os.environ.get("SPANQA_DEVICE", "auto"), verify_key=keys or None)
    server = Inside(reader, SETTINGS, name="{{ name }}")


def model_folder():
    """Return the folder that holds config.json, the one nearest to AZUREML_MODEL_DIR."""
    root = Path(os.environ["AZUREML_MODEL_DIR"])
    found = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    if not found:
        raise FileNotFoundError(
            f"There is no config.json under AZUREML_MODEL_DIR, {root}. Register the model's folder."
        )
    return found[0].parent


@rawhttp
def run(request):
    """Answer a request."""
    body = request.stream.read(SETTINGS.max_body + 1)
    headers = [(name, request.headers[name]) for name in PASSED_ON if name in request.headers]
    headers += [("x-request-id", g.request_id), ("content-length", str(len(body)))]
    status, headers, content = server.answer(request.method, path_of(body), headers, body)
    return Response(content, status, headers)


def path_of(body):
    """Return the route of a body, by its fields; what is no JSON object is left to a route that says so."""
    try:
        return "/v1/answers" if "passages" in json.loads(body) else "/predict"
    except (ValueError, TypeError, RecursionError):
        return "/predict"
