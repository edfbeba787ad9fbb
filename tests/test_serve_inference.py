"""Open Inference Protocol v2, in process: what tensors mean, and what becomes of those that are wrong."""

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from hypothesis import given, strategies

from serving import PASSAGE, ask
from spanqa.answers import AnswerSettings, least_score
from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service, make_app
from spanqa.serve.problems import STATUS, Problem
from spanqa.serve.tensors import Output, TextTensor, read_texts, split, write

QUESTIONS = ["Who built the first pier?", "What is the capital of France?", "When did it burn down?"]
LOWEST = float(np.finfo(np.float32).min)
SETTINGS = ServeSettings(max_questions=4, max_top_k=5, max_question=100, max_passage=1_000)


@pytest.fixture(scope="module")
def app(mini: Reader) -> Any:
    return served(mini)


def served(reader: Reader | None, settings: ServeSettings = SETTINGS) -> Any:
    service = Service(settings, name="a-model")
    if reader is not None:
        service.start(reader)
    return make_app(service, {})


def tensor(name: str, *texts: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}


def body(**changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor("question", QUESTIONS[0]), tensor("context", PASSAGE)], **changes}


def infer(app: Any, given: Any, length: object = None, path: str = "/v2/models/a-model/infer") -> Any:
    content = given if isinstance(given, bytes) else json.dumps(given).encode()
    return ask(
        app,
        "POST",
        path,
        content=content,
        headers={} if length is None else {"inference-header-content-length": str(length)},
    )


def outputs(response: Any) -> dict[str, Any]:
    """Return the outputs of a JSON response, in their shapes."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]).tolist() for each in response.json()["outputs"]}


def packed(*texts: str | bytes) -> bytes:
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"".join(struct.pack("<I", len(each)) + each for each in encoded)


def binary(head: dict[str, Any], *blobs: bytes) -> tuple[bytes, int]:
    """Return a body with bytes behind its JSON, and the length of the JSON."""
    encoded = json.dumps(head).encode()
    return encoded + b"".join(blobs), len(encoded)


def sized(name: str, blob: bytes, count: int = 1) -> dict[str, Any]:
    return {"name": name, "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}


def assert_refused(response: Any, error_type: str, *words: str) -> None:
    assert set(response.json()) == {"error", "error_type"}
    assert (response.json()["error_type"], response.status_code) == (error_type, STATUS[error_type]), response.text
    for word in words:
        assert word in response.json()["error"]


# --- answers


def test_the_answers_are_those_of_the_reader(app: Any, mini: Reader) -> None:
    response = infer(app, body(inputs=[tensor("question", *QUESTIONS), tensor("context", PASSAGE)], id="41"))
    found = outputs(response)
    expected = [mini.ask(question, PASSAGE) for question in QUESTIONS]
    assert found["answer"] == [each.text for each in expected] == ["Anna Kestrel", "", "1902"]
    assert found["start"] == [each.start if each else -1 for each in expected]
    assert found["end"] == [each.end if each else -1 for each in expected]
    assert found["score"] == pytest.approx([each.score for each in expected], abs=1e-4)
    assert found["probability"] == pytest.approx([each.probability for each in expected], abs=1e-5)
    assert PASSAGE[found["start"][0] : found["end"][0]] == "Anna Kestrel"
    about = response.json()
    assert (about["model_name"], about["model_version"], about["id"]) == ("a-model", "1", "41")
    types = {each["name"]: each["datatype"] for each in about["outputs"]}
    assert types == {"answer": "BYTES", "score": "FP32", "probability": "FP32", "start": "INT64", "end": "INT64"}


def test_each_question_has_its_own_context_or_all_have_one(app: Any) -> None:
    other = "The second pier was built by Ole Berg."
    found = outputs(
        infer(
            app, body(inputs=[tensor("question", "Who built it?", "Who built it?"), tensor("context", PASSAGE, other)])
        )
    )
    assert found["answer"] == ["Anna Kestrel", "Ole Berg"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_last_axis_of_one_is_the_same(app: Any, nested: bool) -> None:
    inputs = [tensor("question", *QUESTIONS), tensor("context", *[PASSAGE] * 3)]
    for each in inputs:
        each["shape"] = [3, 1]
        each["data"] = [[text] for text in each["data"]] if nested else each["data"]
    response = infer(app, body(inputs=inputs))
    assert outputs(response)["answer"] == ["Anna Kestrel", "", "1902"]
    assert response.json()["outputs"][0]["shape"] == [3]


def test_more_answers_make_rows_that_are_filled_up(app: Any, mini: Reader) -> None:
    given = body(
        inputs=[tensor("question", *QUESTIONS[:2]), tensor("context", PASSAGE)],
        parameters={"top_k": 3, "no_answer": "auto"},
    )
    found = outputs(infer(app, given))
    ranking = mini.ranking(QUESTIONS[0], [PASSAGE], top_k=3)
    texts = [each.text for each in ranking.above(least_score(mini.answers))]
    assert 1 <= len(texts) < 3
    assert found["answer"] == [texts + [""] * (3 - len(texts)), ["", "", ""]]
    assert found["start"][1] == found["end"][1] == [-1, -1, -1]
    assert found["score"][0][len(texts) :] == [LOWEST] * (3 - len(texts))
    assert found["probability"][0][len(texts) :] == [0.0] * (3 - len(texts))
    nothing = mini.ask(QUESTIONS[1], PASSAGE)
    assert found["score"][1] == pytest.approx([nothing.score, LOWEST, LOWEST], rel=1e-5)
    assert found["probability"][1] == pytest.approx([nothing.probability, 0, 0], abs=1e-5)


def test_parameters_decide_what_is_an_answer(app: Any, mini: Reader) -> None:
    def first(question: str, **parameters: Any) -> Any:
        found = outputs(
            infer(app, body(inputs=[tensor("question", question), tensor("context", PASSAGE)], parameters=parameters))
        )
        return found["answer"]

    ranking = mini.ranking(QUESTIONS[1], [PASSAGE], top_k=5)
    assert first(QUESTIONS[1], no_answer="off") == [ranking.answers[0].text]
    assert first(QUESTIONS[1], no_answer="off", top_k=5) == [[each.text for each in ranking.answers]]
    assert first(QUESTIONS[0], threshold=1000.0) == [""]
    assert first(QUESTIONS[0], threshold=3) == ["Anna Kestrel"]
    assert first(QUESTIONS[0], min_probability=1) == [""]
    assert first(QUESTIONS[0], top_k=None, no_answer=None, threshold=None, min_probability=None) == ["Anna Kestrel"]


def test_no_answer_can_be_on_where_no_threshold_is_stored(mini: Reader) -> None:
    reader = mini.with_settings(answers=replace(mini.answers, no_answer_threshold=-float("inf")))
    assert reader.answers == AnswerSettings(mini.answers.max_answer_tokens, -float("inf"))
    given = body(inputs=[tensor("question", QUESTIONS[1]), tensor("context", PASSAGE)])
    assert outputs(infer(served(reader), given))["answer"] != [""]
    assert outputs(infer(served(reader), given | {"parameters": {"no_answer": "on"}}))["answer"] == [""]


def test_a_context_without_tokens_has_the_lowest_score(app: Any) -> None:
    found = outputs(infer(app, body(inputs=[tensor("question", "Who?"), tensor("context", "\u200b")])))
    assert (found["answer"], found["score"], found["start"]) == ([""], [LOWEST], [-1])


def test_only_the_outputs_that_are_wanted_are_sent_in_their_order(app: Any) -> None:
    response = infer(app, body(outputs=[{"name": "end"}, {"name": "answer"}]))
    assert [each["name"] for each in response.json()["outputs"]] == ["end", "answer"]
    assert "id" not in response.json()
    assert len(infer(app, body(outputs=[])).json()["outputs"]) == 5


# --- bytes


def test_bytes_mean_what_json_means(app: Any) -> None:
    questions, context = packed(*QUESTIONS), packed(PASSAGE)
    given, length = binary({"inputs": [sized("question", questions, 3), sized("context", context)]}, questions, context)
    expected = outputs(infer(app, body(inputs=[tensor("question", *QUESTIONS), tensor("context", PASSAGE)])))
    assert outputs(infer(app, given, length)) == expected


def test_one_input_can_be_bytes_and_the_other_json(app: Any) -> None:
    question = packed(QUESTIONS[0])
    given, length = binary({"inputs": [tensor("context", PASSAGE), sized("question", question)]}, question)
    assert outputs(infer(app, given, length))["answer"] == ["Anna Kestrel"]


def test_outputs_are_bytes_where_they_are_asked_for(app: Any) -> None:
    inputs = [tensor("question", *QUESTIONS), tensor("context", PASSAGE)]
    expected = outputs(infer(app, body(inputs=inputs)))
    wanted = [
        {"name": "start"},
        {"name": "answer"},
        {"name": "score", "parameters": {"binary_data": False}},
        {"name": "probability"},
    ]
    response = infer(app, body(inputs=inputs, outputs=wanted, parameters={"binary_data_output": True}))
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    about = {each["name"]: each for each in json.loads(response.content[:length])["outputs"]}
    blob = response.content[length:]
    assert about["score"]["data"] == pytest.approx(expected["score"])
    assert [about[name]["parameters"]["binary_data_size"] for name in ("start", "answer", "probability")] == [
        24,
        28,
        12,
    ]
    assert np.frombuffer(blob[:24], "<i8").tolist() == expected["start"]
    assert blob[24:52] == packed(*expected["answer"])
    assert np.frombuffer(blob[52:], "<f4").tolist() == expected["probability"]


WRONG_BYTES: dict[str, tuple[bytes, int, str, str]] = {
    "cut off in a text": (packed("Who built it?")[:-1], 1, "bad_request", "element 0 is 13 bytes long, but 12 are left"),
    "cut off in a length": (packed("Who?") + b"\0\0", 2, "bad_request", "its 10 bytes hold 1 elements; its shape says 2"),
    "nothing": (b"", 1, "bad_request", "its 0 bytes hold 0 elements"),
    "a huge length": (b"\xff\xff\xff\xffWho?", 1, "bad_request", "element 0 is 4,294,967,295 bytes long, but 4 are left"),
    "too many texts": (packed("Who?", "When?"), 1, "bad_request", "has 9 bytes more than its 1 elements"),
    "no UTF-8": (packed(b"\xff\xfe\xfa"), 1, "validation", "element 0 is not UTF-8"),
    "half of a pair": (packed(b"\xed\xa0\x80"), 1, "validation", "element 0 is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_BYTES)
def test_bytes_that_are_no_texts_are_refused(case: str, app: Any) -> None:
    blob, count, error_type, words = WRONG_BYTES[case]
    context = packed(*[PASSAGE] * count)
    given, length = binary(
        {"inputs": [sized("question", blob, count), sized("context", context, count)]}, blob, context
    )
    assert_refused(infer(app, given, length), error_type, "question: ", words)


def test_bytes_that_are_left_over_or_missing_are_refused(app: Any) -> None:
    blob = packed("Who?")
    head = {"inputs": [sized("question", blob), tensor("context", PASSAGE)]}
    given, length = binary(head, blob)
    assert infer(app, given, length).status_code == 200
    assert_refused(infer(app, given + b"1", length), "bad_request", "1 bytes more than its tensors")
    assert_refused(infer(app, given[:-1], length), "bad_request", "binary_data_size is 8, but 7 bytes are left")
    assert_refused(infer(app, head), "bad_request", "Inference-Header-Content-Length is the length of the JSON")
    head["inputs"][0]["parameters"]["binary_data_size"] = 10**30
    given, length = binary(head, blob)
    assert_refused(infer(app, given, length), "bad_request", "a number of more than 18 digits")


@pytest.mark.parametrize("length", ["", "0", "-1", "1.5", "1e3", "９", "x", "9" * 30, "1_0"])
def test_a_length_that_is_none_is_refused(app: Any, length: str) -> None:
    header = {"inference-header-content-length": length.encode()}
    response = ask(app, "POST", "/v2/models/a-model/infer", content=b"{}", headers=header)
    assert_refused(response, "bad_request", "Inference-Header-Content-Length: expected a number from 1 to 2")


def test_a_body_that_is_compressed_is_refused(app: Any) -> None:
    response = ask(app, "POST", "/v2/models/a-model/infer", content=b"{}", headers={"content-encoding": "gzip"})
    assert_refused(response, "unsupported_media_type", "Content-Encoding")


texts = strategies.lists(
    strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4
)


@given(texts, texts, strategies.booleans())
def test_texts_written_as_tensors_are_read_again(first: list[str], second: list[str], as_bytes: bool) -> None:
    written = [
        Output("first", (len(first),), first, as_bytes),
        Output("second", (len(second), 1), second, not as_bytes),
    ]
    content, length = write({"model_name": "a"}, written)
    head, blob = split(content, str(length))
    tensors = [TextTensor.model_validate(each) for each in json.loads(head)["outputs"]]
    assert read_texts(tensors, blob, 4) == {"first": first, "second": second}


@given(strategies.binary(max_size=40), strategies.integers(1, 3))
def test_any_bytes_are_texts_or_refused(blob: bytes, count: int) -> None:
    try:
        found = read_texts([TextTensor(**sized("question", blob, count))], memoryview(blob), 3)["question"]
    except Problem as problem:
        assert problem.error_type in ("bad_request", "validation")
    else:
        assert packed(*found) == blob


# --- what is refused

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no inputs": ({"inputs": []}, "inputs: question is missing; expected question and context"),
    "no field inputs": ({"inputs": None}, "inputs: "),
    "no context": ({"inputs": [tensor("question", "Who?")]}, "inputs: context is missing"),
    "another input": ({"inputs": [tensor("query", "Who?")]}, "inputs.0.name: input should be 'question' or 'context'"),
    "twice": ({"inputs": [tensor("context", "A"), tensor("context", "A")]}, "inputs: there are two of the name 'context'"),
    "numbers": ({"inputs": [tensor("question", "Who?") | {"datatype": "INT64"}]}, "inputs.0.datatype: input should be 'BYTES'"),
    "no texts": ({"inputs": [tensor("question", "Who?") | {"data": [7]}]}, "inputs.0.data.0: input should be a valid string"),
    "neither": ({"inputs": [tensor("question", "Who?") | {"data": None}]}, "question: give either data or parameters.binary"),
    "both": ({"inputs": [tensor("question", "A") | {"parameters": {"binary_data_size": 5}}]}, "question: give either data or"),
    "none": ({"inputs": [tensor("question")]}, "question: has 0 elements; expected 1 to 4"),
    "too many": ({"inputs": [tensor("question", *"ABCDE")]}, "question: has 5 elements; expected 1 to 4"),
    "fewer": ({"inputs": [tensor("question", "A") | {"shape": [2]}]}, "question: its data are not 2 texts"),
    "a negative shape": ({"inputs": [tensor("question", "A") | {"shape": [-1]}]}, "inputs.0.shape.0: input should be greater"),
    "no shape": ({"inputs": [tensor("question", "A") | {"shape": []}]}, "inputs.0.shape: list should have at least 1 item"),
    "a cube": ({"inputs": [tensor("question", "A") | {"shape": [1, 1, 1]}]}, "inputs.0.shape: list should have at most 2 items"),
    "a wide shape": ({"inputs": [tensor("question", "A") | {"shape": [1, 2]}]}, "its shape is [1, 2]; expected [n] or [n, 1]"),
    "a huge shape": ({"inputs": [tensor("question", "A") | {"shape": [10**40, 1]}]}, "has a number of more than 18 digits elements"),
    "a fraction": ({"inputs": [tensor("question", "A") | {"shape": [1.0]}]}, "inputs.0.shape.0: input should be a valid integer"),
    "ragged": ({"inputs": [tensor("question", "A", "B") | {"data": ["A", ["B"]]}]}, "question: its data are not 2 texts"),
    "nested twice": ({"inputs": [tensor("question", "A", "B") | {"data": [["A", "B"]]}]}, "question: its data are not 2 texts"),
    "other numbers": (
        {"inputs": [tensor("question", "A", "B", "C"), tensor("context", PASSAGE, PASSAGE)]},
        "inputs: there are 3 questions and 2 contexts; expected as many of both, or one context",
    ),
    "an empty question": ({"inputs": [tensor("question", "A", " "), tensor("context", PASSAGE)]}, "question.1: is empty"),
    "a long question": ({"inputs": [tensor("question", "A" * 101), tensor("context", PASSAGE)]}, "question.0: has 101 characters"),
    "a long context": ({"inputs": [tensor("question", "A"), tensor("context", "A" * 1001)]}, "context.0: has 1,001 characters"),
    "an unknown field": ({"input": []}, "input: there is no such field"),
    "an unknown parameter": ({"parameters": {"doc_stride": 3}}, "parameters.doc_stride: there is no such field"),
    "a parameter of a tensor": (
        {"inputs": [tensor("question", "A") | {"parameters": {"shared_memory_region": "a"}}]},
        "inputs.0.parameters.shared_memory_region: there is no such field",
    ),
    "another output": ({"outputs": [{"name": "text"}]}, "outputs.0.name: input should be 'answer', 'score', 'probability', "),
    "an output twice": ({"outputs": [{"name": "end"}, {"name": "end"}]}, "outputs: there are two of the name 'end'"),
    "classes": ({"outputs": [{"name": "answer", "parameters": {"classification": 3}}]}, "outputs.0.parameters.classification: there"),
    "no top_k": ({"parameters": {"top_k": 0}}, "parameters.top_k: is 0; expected 1 to 5"),
    "a huge top_k": ({"parameters": {"top_k": 6}}, "parameters.top_k: is 6; expected 1 to 5"),
    "true": ({"parameters": {"top_k": True}}, "parameters.top_k: input should be a valid integer"),
    "a text": ({"parameters": {"threshold": "1"}}, "parameters.threshold: input should be a valid number"),
    "NaN": ({"parameters": {"threshold": float("nan")}}, "parameters.threshold: input should be a finite number"),
    "off and a threshold": ({"parameters": {"threshold": 1, "no_answer": "off"}}, "parameters: no_answer is 'off'"),
    "no probability": ({"parameters": {"min_probability": float("nan")}}, "parameters.min_probability: input should be a finite number"),
    "a large probability": ({"parameters": {"min_probability": 1.5}}, "parameters.min_probability: expected a number from 0 to 1"),
    "another word": ({"parameters": {"no_answer": "never"}}, "parameters.no_answer: input should be 'auto', 'on' or 'off'"),
    "a number as id": ({"id": 7}, "id: input should be a valid string"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_understood_is_refused_by_name(case: str, app: Any) -> None:
    change, words = WRONG[case]
    assert_refused(infer(app, body(**change)), "validation", words)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"inputs": \xff}', b"\x00", b'{"id": "\\ud800"}'])
def test_what_is_no_json_is_refused(app: Any, content: bytes) -> None:
    assert_refused(infer(app, content), "invalid_json", "The body is not JSON.")


MANY: dict[str, bytes] = {
    "elements": b'{"inputs":[{"name":"question","shape":[1],"datatype":"BYTES","data":['
    + b",".join([b"1"] * 300_000)
    + b"]}]}",
    "tensors": b'{"inputs":[' + b",".join([b"{}"] * 300_000) + b"]}",
    "fields": b'{"inputs":[],' + b",".join(b'"f%d":1' % number for number in range(100_000)) + b"}",
    "a long name": b'{"inputs":[],"' + b"n" * 500_000 + b'":1}',
    "a long number": b'{"inputs":[],"parameters":{"top_k":' + b"9" * 4_000 + b"}}",
}


@pytest.mark.parametrize("path", ["/v2/models/a-model/infer", "/", "/v1/answers"])
@pytest.mark.parametrize("case", MANY)
def test_a_body_of_many_mistakes_gets_a_short_answer(case: str, path: str, app: Any) -> None:
    content = MANY[case].replace(b'"inputs"', b'"passages"') if path == "/v1/answers" else MANY[case]
    response = ask(app, "POST", path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert len(response.content) < 700
    assert response.json()["error"].count("; ") <= 2  # those of one item: nobody looked at the others


# --- the server and its model


def test_the_server_and_its_model_are_described(app: Any) -> None:
    about = ask(app, "GET", "/v2").json()
    assert (about["name"], about["extensions"]) == ("spanqa", ["binary_tensor_data"])
    for path in ("/v2/models/a-model", "/v2/models/a-model/versions/1"):
        about = ask(app, "GET", path).json()
        assert (about["name"], about["versions"]) == ("a-model", ["1"])
        assert [(each["name"], each["datatype"], each["shape"]) for each in about["inputs"]] == [
            ("question", "BYTES", [-1]),
            ("context", "BYTES", [-1]),
        ]
        assert {each["name"] for each in about["outputs"]} == {"answer", "score", "probability", "start", "end"}
        assert ask(app, "GET", f"{path}/ready").json() == {"name": "a-model", "ready": True}
        assert outputs(infer(app, body(), path=f"{path}/infer"))
    assert ask(app, "POST", "/v2/repository/index").json() == [{"name": "a-model", "version": "1", "state": "READY"}]
    assert ask(app, "GET", "/v2/health/live").json() == {"live": True}
    assert ask(app, "GET", "/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/a-model/versions/2"])
def test_another_model_or_version_is_not_found(app: Any, path: str) -> None:
    for response in (ask(app, "GET", path), ask(app, "GET", f"{path}/ready"), infer(app, body(), path=f"{path}/infer")):
        assert_refused(response, "not_found", "There is no such")
    assert_refused(infer(app, body(model_name="other")), "not_found", "There is no such model here, only 'a-model'.")
    assert infer(app, body(model_name="a-model")).status_code == 200
    assert_refused(ask(app, "GET", "/v2/models/a-model/config"), "not_found", "nothing at this address")


def test_a_server_that_loads_or_is_being_stopped_is_not_ready(mini: Reader) -> None:
    service = Service(name="a-model")
    app = make_app(service, {})
    assert ask(app, "GET", "/v2/health/live").status_code == 200
    paths = ("/v2/health/ready", "/v2/models/a-model/ready")
    for response in (*(ask(app, "GET", path) for path in paths), infer(app, body())):
        assert_refused(response, "loading", "The model is being loaded")
    service.start(mini)
    assert [ask(app, "GET", path).status_code for path in paths] == [200, 200]
    service.drain()
    for path in paths:
        assert_refused(ask(app, "GET", path), "draining", "being stopped")
    assert infer(app, body()).status_code == 200  # it was sent before the balancer knew
