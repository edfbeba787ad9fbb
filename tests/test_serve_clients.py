"""The real clients of others against a real server: huggingface_hub and tritonclient."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from serving import PASSAGE, running
from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service, make_app

pytestmark = pytest.mark.enable_socket

QUESTIONS = ["Who built the first pier?", "What is the capital of France?"]


@pytest.fixture(scope="module")
def address(mini: Reader) -> Iterator[str]:
    service = Service(ServeSettings(max_question=100))
    service.start(mini)
    with running(make_app(service, {})) as address:
        yield address


@pytest.fixture
def loading() -> Iterator[str]:
    with running(make_app(Service(name="spanqa-mini"), {})) as address:
        yield address


# --- huggingface_hub


@pytest.mark.parametrize("path", ["", "/", "/predict"])
def test_hugging_faces_client_gets_an_answer(address: str, path: str, mini: Reader) -> None:
    found: Any = InferenceClient(address + path).question_answering(QUESTIONS[0], PASSAGE)
    assert (found.answer, PASSAGE[found.start : found.end]) == ("Anna Kestrel", "Anna Kestrel")
    assert 0 < found.score <= 1
    assert found.probability == pytest.approx(mini.ask(QUESTIONS[0], PASSAGE).probability, abs=0.2)


def test_hugging_faces_client_gets_a_list_where_it_asks_for_more(address: str) -> None:
    found = InferenceClient(address).question_answering(QUESTIONS[0], PASSAGE, top_k=3, max_answer_len=6)
    assert isinstance(found, list)
    assert len(found) == 3
    assert found[0].answer == "Anna Kestrel"
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_hugging_faces_client_gets_no_answer_where_it_allows_it(address: str) -> None:
    client = InferenceClient(base_url=address)
    found: Any = client.question_answering(QUESTIONS[1], PASSAGE, handle_impossible_answer=True)
    assert (found.answer, found.start, found.end) == ("", 0, 0)
    found = client.question_answering(
        QUESTIONS[0], PASSAGE, align_to_words=False, doc_stride=8, max_seq_len=48, max_question_len=16
    )
    assert found.answer == "Anna Kestrel"


def test_hugging_faces_client_shows_what_is_wrong(address: str, loading: str) -> None:
    client = InferenceClient(address)
    with pytest.raises(HfHubHTTPError, match=r"parameters.top_k: is 0; expected 1 to 100") as caught:
        client.question_answering(QUESTIONS[0], PASSAGE, top_k=0)
    assert caught.value.response.status_code == 422
    with pytest.raises(HfHubHTTPError, match=r"inputs.question: has 101 characters; at most 100 are allowed"):
        client.question_answering("A" * 101, PASSAGE)
    with pytest.raises(HfHubHTTPError, match="There is nothing at this address"):
        InferenceClient(address + "/answers").question_answering(QUESTIONS[0], PASSAGE)
    with pytest.raises(HfHubHTTPError, match="The model is being loaded") as caught:
        InferenceClient(loading).question_answering(QUESTIONS[0], PASSAGE)
    assert caught.value.response.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1


# --- tritonclient


@pytest.fixture(scope="module")
def triton() -> Any:
    return pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def client(triton: Any, address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address.removeprefix("http://")) as client:
        yield client


def tensors(triton: Any, binary: bool, questions: list[str], *contexts: str) -> list[Any]:
    made = []
    for name, texts in (("question", questions), ("context", contexts)):
        tensor = triton.InferInput(name, [len(texts)], "BYTES")
        made.append(tensor.set_data_from_numpy(np.array(texts, np.object_), binary_data=binary))
    return made


def read(result: Any) -> dict[str, Any]:
    found = {name: result.as_numpy(name) for name in ("answer", "score", "probability", "start", "end")}
    return {name: None if values is None else values.tolist() for name, values in found.items()}


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_tritons_client_gets_answers(
    triton: Any, client: Any, mini: Reader, binary_input: bool, binary_output: bool | None
) -> None:
    inputs = tensors(triton, binary_input, QUESTIONS, PASSAGE)
    wanted = [
        triton.InferRequestedOutput(name, binary_data=bool(binary_output))
        for name in ("answer", "start", "end", "score")
    ]
    outputs = {} if binary_output is None else {"outputs": wanted}
    result = client.infer("spanqa-mini", inputs, model_version="1", request_id="x-1", **outputs)
    assert (result.get_response()["model_name"], result.get_response()["id"]) == ("spanqa-mini", "x-1")
    found = read(result)
    expected = [mini.ask(question, PASSAGE) for question in QUESTIONS]
    as_text = [answer.decode() if isinstance(answer, bytes) else answer for answer in found["answer"]]
    assert as_text == [each.text for each in expected] == ["Anna Kestrel", ""]
    assert found["start"] == [expected[0].start, -1]
    assert found["end"] == [expected[0].end, -1]
    assert found["score"] == pytest.approx([each.score for each in expected], abs=1e-4)
    if binary_output is None:
        assert found["probability"] == pytest.approx([each.probability for each in expected], abs=1e-5)
    else:
        assert found["probability"] is None


def test_tritons_client_gets_rows_of_answers(triton: Any, client: Any, mini: Reader) -> None:
    inputs = tensors(triton, True, QUESTIONS, PASSAGE, "Paris is the capital of France.")
    result = client.infer("spanqa-mini", inputs, parameters={"top_k": 2, "no_answer": "off"})
    assert result.as_numpy("answer").shape == result.as_numpy("start").shape == (2, 2)
    assert result.as_numpy("answer")[:, 0].tolist() == [b"Anna Kestrel", b"Paris"]
    assert (result.as_numpy("score").dtype, result.as_numpy("end").dtype) == (np.float32, np.int64)


def test_tritons_client_can_wait_for_several_requests(triton: Any, client: Any) -> None:
    waiting = [client.async_infer("spanqa-mini", tensors(triton, True, QUESTIONS[:1], PASSAGE)) for _ in range(4)]
    assert [each.get_result().as_numpy("answer").tolist() for each in waiting] == [[b"Anna Kestrel"]] * 4


def test_tritons_client_learns_what_is_served(triton: Any, client: Any, loading: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("spanqa-mini")
    assert client.is_model_ready("spanqa-mini", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_repository_index()[0]["name"] == "spanqa-mini"
    about = client.get_model_metadata("spanqa-mini")
    assert [each["name"] for each in about["inputs"]] == ["question", "context"]
    with triton.InferenceServerClient(loading.removeprefix("http://")) as other:
        assert other.is_server_live()
        assert not other.is_server_ready()
        assert not other.is_model_ready("spanqa-mini")


def test_tritons_client_shows_what_is_wrong(triton: Any, client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    good = tensors(triton, True, QUESTIONS, PASSAGE)
    wrong: list[tuple[Any, str]] = [
        (lambda: client.infer("other", good), r"\[404\] There is no such model here, only 'spanqa-mini'"),
        (lambda: client.infer("spanqa-mini", good, model_version="2"), r"\[404\] There is no such version"),
        (lambda: client.infer("spanqa-mini", good[:1]), r"\[422\] inputs: context is missing"),
        (lambda: client.infer("spanqa-mini", good, parameters={"topk": 2}), r"\[422\] parameters.topk: there is no"),
        (lambda: client.infer("spanqa-mini", good, priority=1), r"\[422\] parameters.priority: there is no such"),
        (
            lambda: client.infer("spanqa-mini", good, request_compression_algorithm="gzip"),
            r"\[415\] Send the body without Content-Encoding",
        ),
        (lambda: client.get_model_config("spanqa-mini"), r"\[404\] There is nothing at this address"),
        (lambda: client.get_inference_statistics("spanqa-mini"), r"\[404\] There is nothing at this address"),
    ]
    for call, message in wrong:
        with pytest.raises(InferenceServerException, match=message):
            call()
    empty = [triton.InferInput("question", [1], "FP32").set_data_from_numpy(np.zeros(1, np.float32)), good[1]]
    with pytest.raises(InferenceServerException, match=r"\[422\] inputs.0.datatype: input should be 'BYTES'"):
        client.infer("spanqa-mini", empty)
