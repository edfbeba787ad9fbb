"""The pipeline against transformers 4.57.6 (golden file), and against the installed transformers 5 once revived."""

import importlib.util
import json
import math
import pickle
import random
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spanqa
from conftest import need_backend
from spanqa.answers import AnswerSettings
from spanqa.calibration import Calibration
from spanqa.errors import BackendError, CheckpointError, InputError, SpanQAWarning
from spanqa.pipelines import QuestionAnsweringPipeline, pipeline
from spanqa.reader import Reader
from spanqa.tokens import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
MODEL = Path(spanqa.__file__).parent / "models" / "spanqa-mini"

# Calls that we answer differently, because 4.57.6 was wrong; docs/migrating.md lists these differences.
OTHERWISE = {
    **dict.fromkeys(
        ("keywords-007", "keywords-008", "keywords-009", "keywords-010", "keywords-011"),
        "'[CLS]' or '[SEP]' in a text was taken for the model's special token",
    ),
    **dict.fromkeys(
        ("ordinary-145", "ordinary-146", "parameters-073"),
        "an answer ended inside a character: an emoji lost its variant mark",
    ),
    **dict.fromkeys(
        ("parameters-034", "parameters-035", "keywords-012", "keywords-013"), "max_question_len was ignored"
    ),
    **dict.fromkeys(("ordinary-176", "parameters-033"), "a word was cut at the edge of a window"),
    "dict-006": "a context string was zipped letter by letter with a list of questions",
}
EMPTY_CANDIDATES = {  # an answer "" with probability 0 was added although no-answer was not requested
    "parameters-078",
    "parameters-080",
    "parameters-081",
}
REFUSED = {
    **dict.fromkeys(("parameters-031", "parameters-032"), "max_seq_len"),
    **dict.fromkeys(("keywords-006", "generator-007"), "question is empty"),
    **dict.fromkeys(
        ("keywords-017", "keywords-018", "keywords-019", "list_of_dicts-010", "generator-008"), "context is empty"
    ),
    "keywords-022": "no parameter 'threshold'",
    "positional-004": "Expected examples, got str",
    "dict-005": r"2 questions and 1 contexts\. Expected the same number of both",
    **dict.fromkeys(("data-005", "X-003"), "given in two ways"),
}
ANSWERED = {  # calls that 4.57.6 refused or failed on, and that we answer
    "error-021": "an additional key in an example",
    **dict.fromkeys(("error-026", "error-027"), "an object with question_text and context_text"),
    **dict.fromkeys(
        ("error-050", "error-054"), "a stride that does not matter, because the passage fits into one window"
    ),
    **dict.fromkeys(("error-059", "error-060", "error-061"), "a long question is cut at max_question_len"),
    **dict.fromkeys(("error-057", "error-058"), "a question that leaves no room is cut at half of the window"),
    **dict.fromkeys(
        ("error-065", "error-066", "error-067", "error-068"), "padding, batch_size and num_workers change nothing"
    ),
}


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("make_pipeline_golden", GOLDEN / "make_pipeline_golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
[FILE] = GOLDEN.glob("pipeline-4.57.6-*.json")
RECORD = json.loads(FILE.read_text("utf-8"))


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.load(dtype="fp32")


class ListDataset:
    """A data set like those of torch: a length, and an item for each index."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def key_dataset(data: ListDataset, key: str) -> ListDataset:
    """Return what transformers' KeyDataset returns: one column."""
    return ListDataset([item[key] for item in data.items])


def key_pair_dataset(data: ListDataset, first: str, second: str) -> ListDataset:
    """Return what transformers' KeyPairDataset returns: two columns, as a text and its pair."""
    return ListDataset([{"text": item[first], "text_pair": item[second]} for item in data.items])


SCRIPT.list_dataset = ListDataset


def call(reader: Reader, recorded: dict[str, Any]) -> Any:
    def decode(value: Any) -> Any:
        sample = QuestionAnsweringPipeline.create_sample
        return SCRIPT.decode(
            value, RECORD["passages"], create_sample=sample, key_datasets=(key_dataset, key_pair_dataset)
        )

    answer = pipeline(model=reader, **recorded.get("init", {}))
    method = getattr(answer, recorded.get("method", "__call__"))
    result = method(*decode(recorded["args"]), **decode(recorded["kwargs"]))
    return list(result) if not isinstance(result, (dict, list)) else result


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def same_answers(theirs: Any, ours: Any) -> bool:
    """Return whether the spans, in order, and the scores are those of 4.57.6 with each span counted once."""
    spans = {}
    for answer in as_list(theirs):
        spans.setdefault((answer["start"], answer["end"]), answer)
    found = {(answer["start"], answer["end"]): answer for answer in as_list(ours)}
    if list(found)[: len(spans)] != list(spans):
        return False
    return all(
        found[span]["answer"] == answer["answer"] and math.isclose(found[span]["score"], answer["score"], abs_tol=1e-4)
        for span, answer in spans.items()  # measured: at most 4e-6 (torch there, openvino here)
    )


def same_result(recorded: dict[str, Any], result: Any) -> bool:
    theirs = recorded.get("result_unmerged", recorded["result"])
    if len(recorded["windows"]) == 1:
        return same_answers(theirs, result)
    return len(theirs) == len(result) and all(map(same_answers, theirs, result))


def recorded_calls(*, failed: bool) -> list[Any]:
    return [pytest.param(each, id=each["id"]) for each in RECORD["calls"] if ("error" in each) == failed]


pytestmark = pytest.mark.filterwarnings("ignore:topk is the old name:spanqa.errors.SpanQAWarning")


def test_the_golden_file_was_made_with_the_bundled_weights(reader: Reader) -> None:
    sha256 = reader.checkpoint.weights.sha256
    assert RECORD["made_by"]["sha256"]["model.safetensors"] == sha256, "run tests/golden/make_pipeline_golden.py again"
    assert sha256[:12] in FILE.name
    assert len(RECORD["calls"]) >= 200


@pytest.mark.parametrize("recorded", recorded_calls(failed=False))
def test_a_call_gives_what_4_57_gave(reader: Reader, recorded: dict[str, Any]) -> None:
    name = recorded["id"]
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            call(reader, recorded)
        return
    result = call(reader, recorded)
    if name in EMPTY_CANDIDATES:
        assert [answer["answer"] for answer in as_list(result)] == [
            answer["answer"] for answer in recorded["result"] if answer["answer"]
        ]
        return
    assert same_result(recorded, result) != (name in OTHERWISE)
    assert isinstance(result, dict) == isinstance(recorded["result"], dict)


@pytest.mark.parametrize("recorded", recorded_calls(failed=True))
def test_a_call_that_failed_in_4_57_fails_clearly_or_is_answered(reader: Reader, recorded: dict[str, Any]) -> None:
    if recorded["id"] in ANSWERED:
        assert as_list(call(reader, recorded))[0].keys() >= {"score", "start", "end", "answer", "probability"}
    else:
        with pytest.raises(InputError):
            call(reader, recorded)


HARBOUR = RECORD["passages"]["harbour"]


def test_answers_have_the_old_keys_and_a_probability_and_reproduce_the_text(reader: Reader) -> None:
    answers = pipeline(model=reader)(question="Who is the harbour master?", context=HARBOUR, top_k=5)
    assert [set(answer) for answer in answers] == [{"score", "start", "end", "answer", "probability"}] * 5
    assert all(HARBOUR[answer["start"] : answer["end"]] == answer["answer"] for answer in answers)
    assert all(0 <= answer["score"] <= 1 and 0 <= answer["probability"] <= 1 for answer in answers)


@pytest.mark.parametrize("align_to_words", [True, False])
def test_an_answer_length_beyond_the_context_costs_nothing(reader: Reader, align_to_words: bool) -> None:
    call = {"question": "Who built the pier?", "context": "The pier was built by Anna Kestrel.", "top_k": 3}
    qa = pipeline(model=reader, align_to_words=align_to_words)
    assert qa(**call, max_answer_len=10**9) == qa(**call, max_answer_len=20)


def test_scores_never_exceed_one_however_many_windows_contain_the_answer(reader: Reader) -> None:
    answer = pipeline(model=reader)(
        question="Who is the harbour master?", context=HARBOUR, max_seq_len=64, doc_stride=50
    )
    assert answer["answer"] == "Ingrid Solvang"
    assert answer["score"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "summarization"}, "no pipeline 'summarization'. The only task is 'question-answering'"),
        ({"framework": "tf"}, "framework is 'tf'. Choose a backend with backend= instead"),
        ({"temperature": 1}, "no parameter 'temperature'"),
        ({"dtype": "float8"}, "dtype is 'float8'. Expected one of auto, float32"),
        (
            {"dtype": "float32", "torch_dtype": "bfloat16"},
            "dtype was given twice: 'float32' and 'bfloat16'. Give it once",
        ),
        ({"use_fast": False}, "use_fast is False. spanqa reads fast tokenizers only. Leave it out"),
        ({"device": "cpu", "device_map": "auto"}, "device is 'cpu' and device_map is 'auto'. Give device alone"),
        ({"device": True}, "device is True. Expected a number, such as 0"),
        ({"device": 1.0}, "device is 1.0. Expected a number, such as 0"),
        ({"device_map": "balanced"}, "device_map is 'balanced'; spanqa does not divide a model. Give device='cuda:0'"),
        ({"device_map": {"bert": 0, "qa_outputs": 1}}, "spanqa does not divide a model"),
        ({"device_map": {}}, "spanqa does not divide a model"),
        ({"model_kwargs": 7}, "model_kwargs is 7. Expected a dictionary"),
        (
            {"model_kwargs": {"from_tf": True}},
            "model_kwargs has 'from_tf', which spanqa does not have. Load the model with",
        ),
        ({"model_kwargs": {"device_map": "cpu"}, "device_map": 0}, "device_map was given twice: 0 and 'cpu'"),
        ({"model_kwargs": {"cache_dir": "/tmp"}}, "cache_dir is '/tmp'. Fetch the model first"),
        ({"model_kwargs": {"local_files_only": True}}, "local_files_only is True. Fetch the model first"),
        ({"model_kwargs": {"force_download": True}}, "force_download is True. Fetch the model first"),
        ({"model_kwargs": {"proxies": {}}}, "proxies is {}. Fetch the model first"),
        ({"model_kwargs": {"subfolder": "onnx"}}, "subfolder is 'onnx'. Fetch the model first"),
        ({"model_kwargs": {"load_in_8bit": True}}, "load_in_8bit is True. Make an int8 copy with `spanqa quantize`"),
        ({"model_kwargs": {"load_in_4bit": True}}, "load_in_4bit is True. Make an int8 copy"),
        ({"model_kwargs": {"quantization_config": object()}}, "quantization_config is .*Make an int8 copy"),
        ({"model_kwargs": {"attn_implementation": "paged"}}, "attn_implementation is 'paged'. The backend chooses"),
        ({"model_kwargs": {"use_safetensors": False}}, "use_safetensors is False. spanqa reads safetensors only"),
        ({"code_revision": "abc"}, "code_revision is 'abc'. spanqa runs no code of a model"),
        ({"pipeline_class": dict}, "pipeline_class is <class 'dict'>. Expected a subclass"),
        ({"binary_output": True}, "binary_output is True. Answers are dictionaries. Pickle them yourself"),
        ({"feature_extractor": "x"}, "feature_extractor is 'x'. A question-answering model reads text alone"),
        ({"image_processor": "x"}, "image_processor is 'x'. A question-answering model reads text alone"),
        ({"video_processor": "x"}, "video_processor is 'x'. A question-answering model reads text alone"),
        ({"processor": "x"}, "processor is 'x'. A question-answering model reads text alone"),
        ({"modelcard": "x"}, "modelcard is 'x'. The pipeline has no model card"),
        ({"tokenizer": "spanqa-mini"}, "A tokenizer was given without a model"),
        ({"model": "spanqa-mini", "config": "bert-base"}, "config is 'bert-base', but a model comes with its own"),
        ({"model": "spanqa-mini", "tokenizer": ("spanqa-mini",)}, r"Expected \(name, options\), where options is"),
        (
            {"model": "spanqa-mini", "tokenizer": ("spanqa-mini", {"do_lower_case": False})},
            "tokenizer has the option do_lower_case=False. Load it with transformers.AutoTokenizer",
        ),
        (
            {"model": "spanqa-mini", "tokenizer": ("spanqa-mini", {"use_fast": False})},
            "tokenizer has the option use_fast=False",
        ),
        (
            {"model": "example/model", "token": "hf_secret"},
            "token is given, but spanqa takes the token of this machine",
        ),
        ({"model": "example/model", "use_auth_token": "hf_secret"}, "set the environment variable HF_TOKEN"),
        ({"model": "example/model", "token": False}, "token is given"),
        ({"model": "example/model", "model_kwargs": {"use_auth_token": "hf_secret"}}, "token is given"),
        (
            {"model": "example/model", "token": "hf_secret", "use_auth_token": "hf_b"},
            "token was given twice. Give it once",
        ),
        (
            {"model": 7},
            "model is of type int. Expected a folder, a hub id, a Reader, or a PyTorch model of transformers",
        ),
    ],
)
def test_an_argument_that_cannot_be_honoured_names_its_replacement(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipeline(**arguments)
    assert "hf_" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": ""}, CheckpointError, "The model's name is empty"),
        ({"model": "spanqa-mini", "revision": "main"}, CheckpointError, "only hub models have revisions"),
        (
            {"model": "spanqa-mini", "model_kwargs": {"revision": "main"}},
            CheckpointError,
            "only hub models have revisions",
        ),
        ({"device_map": {"": "cuda:77"}}, BackendError, "cuda:77"),
        ({"device": 77}, BackendError, "cuda:77"),
        ({"dtype": "int8", "backend": "numpy"}, BackendError, "does not support dtype 'int8'"),
    ],
)
def test_an_argument_reaches_the_reader(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pipeline(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"task": None},
        {"use_fast": True, "trust_remote_code": True, "token": True, "framework": "pt", "code_revision": None},
        {"trust_remote_code": False, "binary_output": False, "batch_size": 8, "num_workers": 2, "use_fast": None},
        {"feature_extractor": None, "image_processor": None, "processor": None, "modelcard": None},
        {"device": -1},
        {"device": "cpu"},
        {"device_map": "auto"},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"device_map": {"bert": "cpu", "qa_outputs": "cpu"}},
        {"dtype": "auto", "torch_dtype": "float32"},
        {"torch_dtype": "torch.float32"},
        {"dtype": "float", "torch_dtype": "float"},
        {"model_kwargs": {"dtype": "float32", "low_cpu_mem_usage": True}},
        {"model_kwargs": {"torch_dtype": "float32", "device_map": "cpu", "trust_remote_code": True}},
        {"model_kwargs": {"attn_implementation": "sdpa", "use_safetensors": True}},
        {"model_kwargs": {}, "token": "hf_of_no_use_with_a_folder", "revision": None},
        {"pipeline_class": QuestionAnsweringPipeline},
        {"tokenizer": "FOLDER", "config": "FOLDER"},
        {"tokenizer": ("FOLDER", {"use_fast": True})},
    ],
    ids=str,
)
def test_an_old_argument_gives_what_it_meant(tiny: Callable[..., Path], arguments: dict[str, Any]) -> None:
    folder = tiny("bert")
    given = {
        name: folder if value == "FOLDER" else (folder, value[1]) if isinstance(value, tuple) else value
        for name, value in arguments.items()
    }
    question = {"question": "Who built the lighthouse?", "context": "Anna Kestrel built it in 1891."}
    qa = pipeline(model=folder, backend="numpy", **given)
    assert (qa.reader.backend.device, qa.reader.backend.dtype) == ("cpu", "fp32")
    assert qa(**question) == pipeline(model=folder, backend="numpy")(**question)


def test_the_third_positional_argument_is_the_config_and_the_fourth_the_tokenizer(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert")
    assert pipeline("question-answering", folder, folder, folder).reader.checkpoint.path == folder


def test_numbers_of_numpy_are_numbers(reader: Reader) -> None:
    answers = pipeline(model=reader)(question="Who?", context=HARBOUR, top_k=np.int64(2), max_answer_len=np.int32(3))
    assert len(answers) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"backend": "numpy"}, {"device": 0}, {"device": "cpu"}, {"device_map": "cpu"}, {"dtype": "float32"},
        {"torch_dtype": "bfloat16"}, {"model_kwargs": {"dtype": "float16"}}, {"revision": "main"}, {"tokenizer": "spanqa-mini"},
        {"config": "spanqa-mini"},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_reader_decides_cannot_be_given_beside_it(reader: Reader, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"was given together with a Reader, which has its own. Leave \w+ out"):
        pipeline(model=reader, **arguments)
    harmless = {"use_fast": True, "framework": "pt", "device": None, "dtype": "auto", "backend": "auto", "token": True}
    assert pipeline(model=reader, **harmless).reader is reader


def test_code_of_a_model_is_not_run(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy("bert")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModelForQuestionAnswering": "own.Model"}})
    )
    assert pipeline(model=folder, backend="numpy")
    with pytest.raises(InputError, match=r"has code of its own, which spanqa does not run. Load it with"):
        pipeline(model=folder, backend="numpy", trust_remote_code=True)


def test_windows_are_no_longer_than_the_tokenizer_says(
    tiny_copy: Callable[..., Path], tiny: Callable[..., Path]
) -> None:
    folder = tiny_copy("bert")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 40}')
    assert pipeline(model=folder, backend="numpy").reader.windows.max_seq_length == 40
    assert pipeline(model=tiny("bert"), tokenizer=folder, backend="numpy").reader.windows.max_seq_length == 40
    assert pipeline(model=folder, tokenizer=tiny("bert"), backend="numpy").reader.windows.max_seq_length == 64
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert pipeline(model=folder, backend="numpy").reader.windows.max_seq_length == 64


# --- long questions, long answers


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_a_question_of_any_length_is_cut_and_answered(tiny: Callable[..., Path], family: str) -> None:
    qa = pipeline(model=tiny(family), backend="numpy", dtype="float32")
    template = qa.reader.checkpoint.tokenizer.template.special_tokens
    generator = random.Random(0)
    words = [
        "누가부두를건설했습니까",
        "부두",
        "灯台は",
        "ประภาคาร",
        "Who",
        "x" * 90,
        "l'été",
        "🙂🙂",
        "المنارة",
        "[SEP]",
        "?",
    ]
    cut = 0
    for _ in range(350):
        question = "".join(
            generator.choice(words) + generator.choice(["", " "]) for _ in range(generator.randint(1, 60))
        )
        settings = {
            "max_seq_len": generator.choice([None, template + generator.randint(2, 64 - template)]),
            "max_question_len": generator.choice([None, 1, 5, 30, 64, 100, 10**9]),
        }
        answer = qa(question=question, context="Anna Kestrel.", **settings)
        assert answer["answer"] in "Anna Kestrel."
        cut += len(qa.reader.checkpoint.tokenizer.encode(question)) > 64 - template
    assert cut > 100


def test_a_question_is_cut_at_max_question_len_where_that_leaves_room(reader: Reader) -> None:
    qa, context = pipeline(model=reader), "The pier was built by Anna Kestrel in 1873."
    long = "Who built the pier " + "and why " * 400
    words = long.split()
    for settings, length in [
        ({}, 64),
        ({"max_question_len": 9}, 9),
        ({"max_seq_len": 67}, 32),
        ({"max_question_len": 999}, 190),
    ]:
        assert qa(question=long, context=context, **settings) == qa(
            question=" ".join(words[:length]), context=context, **settings
        )


@pytest.mark.parametrize("longest", [10**9, 10**400])
def test_an_answer_of_any_length_may_be_allowed(reader: Reader, longest: int) -> None:
    qa, question = pipeline(model=reader), {"question": "Who is the harbour master?", "context": HARBOUR, "top_k": 3}
    assert qa(**question, max_answer_len=longest) == qa(**question, max_answer_len=len(HARBOUR))
    assert qa(**question | {"top_k": longest, "context": HARBOUR[:300]}, max_answer_len=longest)[0]["answer"]


# --- data sets


class RowsLikeDatasets(ListDataset):
    """A data set like those of `datasets`, which have an iterator too: 4.57 answered it with a list."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def test_a_data_set_with_an_iterator_is_answered_with_a_list(reader: Reader) -> None:
    rows = [{"question": "Who?", "context": HARBOUR, "id": str(i)} for i in range(2)]
    answers = pipeline(model=reader)(RowsLikeDatasets(rows))
    assert isinstance(answers, list) and len(answers) == 2 and answers[0] == answers[1]


def test_data_sets_of_torch_are_answered_lazily(reader: Reader) -> None:
    need_backend("torch")
    from torch.utils.data import Dataset, IterableDataset

    row = {"question": "Who?", "context": HARBOUR}

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            yield row
            yield row

    class Rows(Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> Any:
            return row

    for given in (Stream(), Rows()):
        answers = pipeline(model=reader)(given)
        assert isinstance(answers, Iterator) and len(list(answers)) == 2


# --- attributes, pickles, folders


def test_attributes_of_torch_exist_on_torch_and_say_what_to_use_elsewhere(
    transformers: Any, tiny: Callable[..., Path]
) -> None:
    import torch

    qa = pipeline(model=tiny("bert"), backend="torch", device="cpu", dtype="float32")
    assert type(qa.model).__name__ == "BertForQuestionAnswering"
    assert (qa.device, qa.dtype, qa.torch_dtype, qa.framework) == (
        torch.device("cpu"),
        torch.float32,
        torch.float32,
        "pt",
    )
    qa = pipeline(model=tiny("bert"), backend="numpy")
    assert (qa.device, qa.framework) == ("cpu", "numpy")
    assert qa.tokenizer("Who?")["input_ids"] == [2, *qa.reader.checkpoint.tokenizer.encode("Who?").ids, 3]
    for name, message in {
        "model": "It has one on one device of backend torch, .* use .reader.backend, and .reader.checkpoint.config",
        "dtype": "It has one on one device of backend torch, .* use .reader.backend.dtype",
        "preprocess": "no attribute 'preprocess'. Use .reader.prepare",
        "postprocess": "Use .reader.decode",
        "push_to_hub": "Use .save_pretrained, then: hf upload",
        "anything": "no attribute 'anything'. Its model is behind .reader",
    }.items():
        assert not hasattr(qa, name)
        with pytest.raises(AttributeError, match=message):
            getattr(qa, name)


@pytest.mark.parametrize("given", ["-1", "cpu", "torch"])
def test_devices_are_accepted_as_in_4_57(given: str) -> None:
    device: Any = {"-1": -1, "cpu": "cpu"}.get(given)
    if given == "torch":
        need_backend("torch")
        import torch

        device = torch.device("cpu")
    assert pipeline(device=device, torch_dtype="float32").reader.backend.device == "cpu"


def test_topk_is_accepted_with_a_warning(reader: Reader) -> None:
    with pytest.warns(SpanQAWarning, match="old name of top_k"):
        assert len(pipeline(model=reader)(question="Who?", context=HARBOUR, topk=3)) == 3


def test_a_transformers_model_and_tokenizer_in_memory_are_accepted(transformers: Any, reader: Reader) -> None:
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(MODEL, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    question = {"question": "Who is the harbour master?", "context": HARBOUR}
    answer = pipeline(model=model, tokenizer=tokenizer)(**question)
    expected = pipeline(model=reader)(**question)
    for number in ("score", "probability"):
        assert answer.pop(number) == pytest.approx(expected.pop(number), abs=1e-4)
    assert answer == expected
    with pytest.raises(InputError, match="needs its tokenizer"):
        pipeline(model=model)


REVIVED = """
import pickle, warnings, transformers, spanqa
try:
    transformers.pipeline("question-answering", model=MODEL)
    raise SystemExit("transformers still has the task: nothing was tested")
except KeyError as error:
    assert "removed" in str(error), error
spanqa.revive_transformers_pipeline()
spanqa.revive_transformers_pipeline()
qa = transformers.pipeline("question-answering", model=MODEL, dtype="float32", device_map="cpu", use_fast=True)
print(qa(question="Who is the harbour master?", context=CONTEXT))
print(qa(question=["Who?", "When was it dug?"], context=CONTEXT, top_k=2)[1][0]["answer"])
model = transformers.AutoModelForQuestionAnswering.from_pretrained(MODEL)
tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
print(transformers.pipeline("question-answering", model=model, tokenizer=tokenizer)("Who is the harbour master?", CONTEXT))
from transformers import QuestionAnsweringPipeline
from transformers.pipelines import QuestionAnsweringPipeline as second
from transformers.pipelines.question_answering import QuestionAnsweringPipeline as third
assert QuestionAnsweringPipeline is second is third is type(qa) is transformers.pipelines.QuestionAnsweringPipeline
assert isinstance(qa, transformers.Pipeline)
class Own(QuestionAnsweringPipeline):
    pass
assert type(transformers.pipeline("question-answering", model, tokenizer=tokenizer, pipeline_class=Own)) is Own
print(QuestionAnsweringPipeline(model=model, tokenizer=tokenizer, framework="pt", task="qa")("Who is the harbour master?", CONTEXT))
print(pickle.loads(pickle.dumps(qa))(question="Who is the harbour master?", context=CONTEXT))
"""


def test_revived_pipelines_of_transformers_5_answer(transformers: Any, reader: Reader) -> None:
    names = f"MODEL, CONTEXT = {str(MODEL)!r}, {HARBOUR!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", names + REVIVED], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, *others = done.stdout.splitlines()
    assert second == "1874"
    expected = pipeline(model=reader)(**QUESTION)  # calibrated
    for answer in map(literal_eval, [first, *others]):
        assert answer["answer"] == "Ingrid Solvang"
        assert answer["probability"] == pytest.approx(expected["probability"], abs=1e-4)  # measured: 1e-6


def test_the_probability_is_that_of_the_reader_for_the_same_span(reader: Reader) -> None:
    question, context = (
        "Who built it?",
        "The pier at Penmar was built by Anna Kestrel, and mended by Oswin Tregarth in 1911.",
    )
    answers = pipeline(model=reader)(
        question=question, context=context, top_k=20, max_answer_len=30, align_to_words=False
    )
    ranked = reader.with_settings(answers=AnswerSettings(30)).rank(question, context, 1, no_answer="off")
    same = {(answer["start"], answer["end"]): answer["probability"] for answer in answers}
    assert len(same) > 5 and len(set(same.values())) > 1
    assert same[ranked[0].start, ranked[0].end] == pytest.approx(ranked[0].probability, abs=1e-6)


def test_a_call_encodes_each_text_once(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: encoded.append(text) or encode(self, text))
    monkeypatch.setattr(Tokenizer, "encode_many", lambda self, texts: [self.encode(text) for text in texts])
    pair = ("Who mended it by night?", "It was mended by night, by Oswin Tregarth alone.")
    pipeline(model=reader)(question=pair[0], context=pair[1], handle_impossible_answer=True, top_k=3)
    assert encoded == list(pair)


QUESTION = {"question": "Who is the harbour master?", "context": HARBOUR}


def test_a_pickled_pipeline_answers_the_same(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny("bert").parent)
    by_name = pipeline(model=tiny("bert").name, tokenizer=(tiny("electra"), {}), backend="numpy", top_k=2)
    loaded = Reader.load(tiny("bert"), backend="numpy").with_settings(calibration=Calibration(b=0.5))
    pickled = [(qa, pickle.dumps(qa)) for qa in (by_name, pipeline(model=loaded, max_answer_len=3))]
    monkeypatch.chdir("/")
    for qa, written in pickled:
        again = pickle.loads(written)
        assert type(again) is QuestionAnsweringPipeline and again.reader.backend.name == "numpy"
        assert again(**QUESTION) == qa(**QUESTION)


def test_a_pipeline_around_a_model_in_memory_is_pickled_with_it(transformers: Any, tiny: Callable[..., Path]) -> None:
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tiny("bert"))
    qa = pipeline(model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(tiny("bert")))
    assert pickle.loads(pickle.dumps(qa))(**QUESTION) == qa(**QUESTION)
    with pytest.raises(
        TypeError, match=r"made around a model in memory, which cannot be pickled. Load it from a folder"
    ):
        pickle.dumps(pipeline(model=qa.reader))
    model.inner = lambda: 0
    with pytest.raises(
        TypeError, match=r"This pipeline cannot be pickled: .* Save its model with save_pretrained, and make"
    ):
        pickle.dumps(qa)


def test_save_pretrained_writes_a_folder_that_answers_the_same(tiny: Callable[..., Path], tmp_path: Path) -> None:
    qa = pipeline(model="spanqa-mini", dtype="float32")
    qa.save_pretrained(tmp_path / "mini" / "copy")
    assert pipeline(model=tmp_path / "mini" / "copy", dtype="float32")(**QUESTION) == qa(**QUESTION)
    settings = qa.reader.with_settings(calibration=Calibration(b=0.5))
    pipeline(model=settings).save_pretrained(str(tmp_path / "settings"))
    assert Reader.load(tmp_path / "settings").calibration == Calibration(b=0.5)
    other = pipeline(model=tiny("bert"), tokenizer=tiny("electra"), backend="numpy")
    other.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other" / "tokenizer.json").read_bytes() == (tiny("electra") / "tokenizer.json").read_bytes()


def test_save_pretrained_says_why_it_cannot(tiny: Callable[..., Path], tmp_path: Path) -> None:
    qa, file = pipeline(model=tiny("bert"), backend="numpy"), tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=r"file' is a file. Give a folder"):
        qa.save_pretrained(file)
    with pytest.raises(InputError, match=r"is the folder that the model was loaded from. Give another one"):
        qa.save_pretrained(tiny("bert"))
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        qa.save_pretrained(file / "below")
    with pytest.raises(InputError, match=r"safe_serialization is False. spanqa writes safetensors only"):
        qa.save_pretrained(tmp_path / "out", safe_serialization=False)
    assert not (tmp_path / "out").exists()


# --- the caller's own model


@pytest.fixture
def own(transformers: Any, tiny_copy: Callable[..., Path]) -> tuple[Any, Any, Path]:
    """A model in memory, its tokenizer, and the folder that they came from, which stores a calibration."""
    folder = tiny_copy("bert")
    (folder / "spanqa.json").write_text(
        '{"format": "spanqa/1", "calibration": {"b": 0.5}, "windows": {"max_seq_length": 48}}'
    )
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder), folder


def state(model: Any) -> dict[str, Any]:
    """What may be seen of a model from outside."""
    modes = [module.training for module in model.modules()]
    places = [(value.data_ptr(), value.dtype, value.device, value.requires_grad) for value in model.parameters()]
    return {
        "modes": modes,
        "places": places,
        "attention": model.config._attn_implementation,
        "config": model.config.to_dict(),
    }


@pytest.mark.parametrize("change", ["train", "half", "mixed", "frozen", "bfloat16"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_callers_model_stays_as_it_is(own: tuple[Any, Any, Path], change: str, dtype: str | None) -> None:
    import torch

    model, tokenizer, _ = own
    if change == "mixed":
        model.bert.encoder.layer[0].train()
        model.qa_outputs.to(torch.float64)
        model.qa_outputs.register_forward_pre_hook(lambda _, given: (given[0].double(),))
    elif change == "frozen":
        model.requires_grad_(False)
    else:
        getattr(model, change)()
    before = state(model)
    qa = pipeline(model=model, tokenizer=tokenizer, dtype=dtype if change != "mixed" else None)
    first = qa(**QUESTION)
    assert first == qa(**QUESTION)  # no dropout
    assert state(model) == before
    assert qa.model is model and qa.tokenizer is tokenizer


def test_a_pipeline_follows_the_training_of_the_callers_model(own: tuple[Any, Any, Path]) -> None:
    import torch

    model, tokenizer, _ = own
    qa = pipeline(model=model.train(), tokenizer=tokenizer)
    before = qa(**QUESTION)
    with torch.no_grad():
        model.qa_outputs.weight.mul_(-1)
    assert qa(**QUESTION) != before
    loss = model(**tokenizer("Who?", return_tensors="pt")).start_logits.sum()
    loss.backward()
    assert model.qa_outputs.weight.grad is not None


def test_a_model_in_memory_has_the_settings_of_its_folder_until_it_is_trained(own: tuple[Any, Any, Path]) -> None:
    import torch

    model, tokenizer, folder = own
    reader = pipeline(model=model, tokenizer=tokenizer).reader
    assert (reader.calibration, reader.windows.max_seq_length) == (Calibration(b=0.5), 48)
    assert pipeline(model=model.bfloat16(), tokenizer=tokenizer).reader.calibration == Calibration(b=0.5)
    with torch.no_grad():
        model.qa_outputs.bias.add_(0.1)
    with pytest.warns(
        SpanQAWarning, match="has other weights than its folder .* The settings there, such as the calibration"
    ):
        assert pipeline(model=model, tokenizer=tokenizer).reader.calibration == Calibration()
    shutil.rmtree(folder)
    assert pipeline(model=model, tokenizer=tokenizer).reader.calibration == Calibration()


def test_a_model_in_memory_is_saved_with_its_tokenizer_and_settings(own: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, tokenizer, _ = own
    qa = pipeline(model=model, tokenizer=tokenizer)
    qa.save_pretrained(tmp_path / "out")
    saved = pipeline(model=tmp_path / "out", backend="torch", device="cpu", dtype="float32")
    assert saved.reader.calibration == Calibration(b=0.5)
    assert saved(**QUESTION) == qa(**QUESTION)
    with pytest.raises(
        InputError, match=r"made around a model in memory. Save that model and its tokenizer themselves"
    ):
        pipeline(model=qa.reader).save_pretrained(tmp_path / "again")


def test_a_compiled_model_answers_as_the_model_itself(own: tuple[Any, Any, Path]) -> None:
    import torch

    model, tokenizer, _ = own
    compiled = torch.compile(model, backend="eager")
    assert pipeline(model=compiled, tokenizer=tokenizer)(**QUESTION) == pipeline(model=model, tokenizer=tokenizer)(
        **QUESTION
    )


def test_a_model_in_memory_without_a_head_is_refused(own: tuple[Any, Any, Path]) -> None:
    import torch

    model, tokenizer, _ = own
    with pytest.raises(
        InputError, match=r"BertModel has no question-answering head. Load the model with AutoModelForQuestion"
    ):
        pipeline(model=model.bert, tokenizer=tokenizer)
    with pytest.raises(
        InputError, match=r"model is of type DataParallel. Expected a folder, a hub id, a Reader, or a PyTorch"
    ):
        pipeline(model=torch.nn.DataParallel(model), tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"config is 'BertConfig', but a model comes with its own"):
        pipeline(model="spanqa-mini", config=model.config)
    assert pipeline(model=model, config=model.config, tokenizer=tokenizer)


def test_a_model_that_cannot_be_copied_is_refused(own: tuple[Any, Any, Path]) -> None:
    model, tokenizer, _ = own
    model.lock = (i for i in ())
    with pytest.raises(
        BackendError, match=r"BertForQuestionAnswering cannot be copied: .* Save the model and its tokenizer"
    ):
        pipeline(model=model, tokenizer=tokenizer)
