"""The targets that are graphs: the logits of what they write are the reference's, and verification finds what was spoilt."""

import importlib.util
import json
import runpy
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("jinja2")
pytest.importorskip("packaging")

from spanqa.backends.base import Backend
from spanqa.batches import Batch, pad
from spanqa.checkpoint import Checkpoint, open_checkpoint
from spanqa.deploy.folder import verify_folder, write_folder
from spanqa.deploy.onnx import TARGET as ONNX
from spanqa.deploy.onnx import check_model, write_model
from spanqa.deploy.target import DeploySettings
from spanqa.deploy.triton import TARGET as TRITON
from spanqa.deploy.vllm import TARGET as VLLM
from spanqa.errors import DeploymentError, UnsupportedModelError
from spanqa.extras import installed
from spanqa.files import read_object, write_json
from spanqa.reader import Reader
from spanqa.windows import WindowSettings, make_windows
from tiny import FAMILIES, MAX_SEQ_LENGTH, SENTENCES, word_piece

QUESTION = "Who built the lighthouse?"
WITHIN = 1e-4
MODELS = [
    *((family, {}) for family in FAMILIES),
    ("bert", {"hidden_act": "gelu_new"}),
    ("electra", {"hidden_act": "relu"}),
]
NAMES = [family if not changes else f"{family}-{changes['hidden_act']}" for family, changes in MODELS]


@pytest.fixture
def graph_file(need: Callable[[str], None], tmp_path: Path) -> Path:
    need("onnx")
    return tmp_path / "model.onnx"


def batch_of(checkpoint: Checkpoint) -> Batch:
    """Three windows: one as long as the model can read, one shorter, one of a word."""
    tokenizer, settings = checkpoint.tokenizer, WindowSettings(MAX_SEQ_LENGTH)
    texts = (SENTENCES, SENTENCES[:50], "Anna")
    windows = [
        make_windows(tokenizer.encode(QUESTION), tokenizer.encode(text), tokenizer.template, settings)[0]
        for text in texts
    ]
    assert len(windows[0]) == MAX_SEQ_LENGTH > len(windows[1]) > len(windows[2])
    return pad(windows)


def feeds_of(batch: Batch, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.window_index + 1}
    if checkpoint.encoder.token_types > 1:
        feeds["token_type_ids"] = batch.token_type_ids
    return {name: array.astype(np.int64) for name, array in feeds.items()}


# --- the graph


@pytest.mark.parametrize(("family", "changes"), MODELS, ids=NAMES)
def test_the_graph_gives_the_logits_of_the_reference(
    family: str, changes: dict[str, Any], graph_file: Path, tiny: Callable[..., Path], load: Callable[..., Backend]
) -> None:
    import onnx
    import onnxruntime

    from spanqa.deploy.onnx_graph import write_graph

    checkpoint = open_checkpoint(tiny(family, **changes))
    write_graph(checkpoint, graph_file)
    model = onnx.load(graph_file)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)] and model.ir_version == 8
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(graph_file, providers=["CPUExecutionProvider"])
    batch = batch_of(checkpoint)
    feeds, real = feeds_of(batch, checkpoint), batch.window_index >= 0
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        (name, "tensor(int64)", ["batch", "sequence"]) for name in feeds
    ]
    expected = load("numpy", tiny(family, **changes)).forward(batch)
    assert np.ptp(expected.start[real]) > 1
    found = session.run(["start_logits", "end_logits"], feeds)
    for logits, reference in zip(found, (expected.start, expected.end), strict=True):
        np.testing.assert_allclose(logits[real], reference[real], rtol=0, atol=WITHIN)
    # padded on the left, and with a row of nothing else: other libraries do so
    lengths = real.sum(1)
    left = {
        name: np.stack([np.roll(row, -int(n)) for row, n in zip(array, lengths, strict=True)])
        for name, array in feeds.items()
    }
    left = {name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in left.items()}
    for logits, reference in zip(
        session.run(["start_logits", "end_logits"], left), (expected.start, expected.end), strict=True
    ):
        assert np.isfinite(logits).all()
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(logits[row, -n:], reference[row, :n], rtol=0, atol=WITHIN)


def test_weights_that_are_too_large_lie_beside_the_graph(graph_file: Path, tiny: Callable[..., Path]) -> None:
    import onnxruntime

    from spanqa.deploy.onnx_graph import write_graph

    checkpoint = open_checkpoint(tiny("roberta"))
    write_model(checkpoint, graph_file.parent)
    whole = graph_file.stat().st_size
    feeds = feeds_of(batch_of(checkpoint), checkpoint)
    inside = onnxruntime.InferenceSession(graph_file, providers=["CPUExecutionProvider"]).run(None, feeds)
    write_graph(checkpoint, graph_file, within=1000)
    data = graph_file.with_name("model.onnx.data")
    assert graph_file.stat().st_size < whole / 3 and data.stat().st_size > whole / 2
    beside = onnxruntime.InferenceSession(graph_file, providers=["CPUExecutionProvider"]).run(None, feeds)
    assert all(np.array_equal(a, b) for a, b in zip(inside, beside, strict=True))
    assert check_model(graph_file.parent)[0] == "model.onnx: standard operators (opset 17), shapes inferred"
    data.unlink()
    with pytest.raises(DeploymentError, match="is not a whole ONNX file"):
        check_model(graph_file.parent)


def test_a_graph_that_was_spoilt_does_not_pass(graph_file: Path, tiny: Callable[..., Path]) -> None:
    import onnx

    folder = graph_file.parent
    write_model(open_checkpoint(tiny("bert")), folder)
    check_model(folder)
    whole = graph_file.read_bytes()
    graph_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DeploymentError, match="is not a whole ONNX file"):
        check_model(folder)
    model = onnx.load_from_string(whole)
    weight = next(each for each in model.graph.initializer if each.name == "layer.1.output.weight")
    weight.raw_data = bytes(len(weight.raw_data))
    graph_file.write_bytes(model.SerializeToString())
    with pytest.raises(DeploymentError, match=r"start_logits of the example are .* from those of the reference"):
        check_model(folder)
    model = onnx.load_from_string(whole)
    model.opset_import.add(domain="com.microsoft", version=1)
    graph_file.write_bytes(model.SerializeToString())
    with pytest.raises(DeploymentError, match=r"needs the operators of com\.microsoft; expected those of ONNX alone"):
        check_model(folder)
    graph_file.write_bytes(whole)
    example = read_object(folder / "example.json")
    del example["inputs"]["token_type_ids"]
    write_json(folder / "example.json", example)
    with pytest.raises(
        DeploymentError, match="has the inputs input_ids, attention_mask, token_type_ids; expected input_ids, atten"
    ):
        check_model(folder)


def test_a_model_whose_computation_is_not_known_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("bert"))
    other = replace(checkpoint, config={**checkpoint.config, "model_type": "deberta-v2"})
    with pytest.raises(
        UnsupportedModelError, match=r"is a 'deberta-v2' model; spanqa writes bert, .* as an ONNX graph\. Choose a"
    ):
        write_model(other, tmp_path)


# --- the folder of the graph alone


def run_alone(folder: Path, question: str, passage: str) -> str:
    """Run run.py where spanqa cannot be imported."""
    program = "import runpy, sys; sys.modules['spanqa'] = None; runpy.run_path(sys.argv.pop(1))"
    command = [sys.executable, "-I", "-c", program, str(folder / "run.py"), question, passage]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_the_folder_answers_without_spanqa(need: Callable[[str], None], tmp_path: Path, mini: Reader) -> None:
    need("onnx")
    out = tmp_path / "out"
    lines = write_folder(ONNX, "spanqa-mini", out, DeploySettings(), verify=True)
    assert "tokenizer.json gives the tokens of the example" in lines
    assert not list(out.glob("*.whl"))
    passage = "The pier of Lindow was built in 1871 by Anna Kestrel, an engineer. " + "Gulls sat on it. " * 120
    texts = {"Who built the pier?": passage, "Who sank the ship?": "The pier stands on [SEP] oak piles."}
    answers = {question: mini.ask(question, text) for question, text in texts.items()}
    assert [answer.text for answer in answers.values()] == ["Anna Kestrel", ""]
    for question, answer in answers.items():
        found, _, margin = run_alone(out, question, texts[question]).partition(" margin over no answer: ")
        assert found == repr(answer.text) and float(margin) == pytest.approx(answer.score, abs=1e-3)
    assert "margin" in run_alone(
        out, "Tell me, " * 90 + "who built the pier?", passage
    )  # room for less than windows share
    tokenizer = out / "tokenizer.json"
    text = tokenizer.read_text("utf-8")
    tokenizer.write_text(text.replace('"pier":', '"piex":'), "utf-8")
    with pytest.raises(DeploymentError, match=r"tokenizer\.json changed since it was made"):
        verify_folder(out)
    with pytest.raises(DeploymentError, match="gives other tokens for the example than the model's own tokenizer"):
        ONNX.verify(out)
    tokenizer.write_text(text[:1000], "utf-8")
    with pytest.raises(DeploymentError, match=r"tokenizer\.json' is not a tokenizer: .*\. Make the folder again"):
        ONNX.verify(out)


def test_a_model_without_tokenizer_json_gets_one(
    need: Callable[[str], None], tmp_path: Path, tiny_copy: Callable[..., Path]
) -> None:
    need("onnx")
    model = tiny_copy("bert")
    (model / "tokenizer.json").unlink()
    word_piece().model.save(str(model))
    assert (model / "vocab.txt").exists()
    write_folder(ONNX, str(model), tmp_path / "out", DeploySettings(), verify=True)
    assert (tmp_path / "out" / "tokenizer.json").exists()


# --- Triton


@pytest.fixture
def repository(need: Callable[[str], None], tmp_path: Path, tiny: Callable[..., Path]) -> Path:
    need("onnx")
    out = tmp_path / "out"
    write_folder(TRITON, str(tiny("bert")), out, DeploySettings(name="harbour", device="cuda"))
    return out / "model_repository"


def test_the_repository_is_what_triton_reads(repository: Path) -> None:
    pytest.importorskip("tritonclient.grpc")
    assert verify_folder(repository.parent)[1:] == [
        "model.onnx: standard operators (opset 17), shapes inferred",
        f"model.onnx: onnxruntime {importlib.import_module('onnxruntime').__version__} computes the logits of the reference for the example",
        "4 configurations: read with Triton's schema; names, types and shapes are those of the graph",
        "not checked: Dockerfile, because it needs Docker and Triton's image",
    ]
    qa = repository / "harbour-qa" / "1"
    assert {each.name for each in qa.iterdir()} >= {"model.py", "carried.py", "model"} and list(qa.glob("*.whl"))
    tensorrt = (repository / "harbour" / "configs" / "tensorrt.pbtxt").read_text()
    assert '"input_ids:8x64,attention_mask:8x64,token_type_ids:8x64"' in tensorrt
    assert "KIND_GPU" in (repository / "harbour-qa" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("file", "right", "wrong", "message"),
    [
        ("harbour/config.pbtxt", "max_queue_size", "max_queue_sice", 'has no field named "max_queue_sice"'),
        ("harbour/configs/python.pbtxt", "KIND_GPU", "KIND_GPUS", "KIND_GPUS"),
        ("harbour/configs/tensorrt.pbtxt", "gpu_execution_accelerator", "gpu_accelerator", "has no field named"),
        ("harbour-qa/config.pbtxt", "max_queue_delay_microseconds", "max_delay", "has no field named"),
        ("harbour-qa/config.pbtxt", 'name: "harbour-qa"', 'name: "qa"', "name is 'qa'; expected 'harbour-qa', as the folder"),
        ("harbour/config.pbtxt", "TYPE_INT64", "TYPE_INT32", r"has the tensors attention_mask TYPE_INT32 .*; expected attention_mask TYPE_INT64"),
        ("harbour-qa/config.pbtxt", '"start" data_type: TYPE_INT64 dims: [ 1 ]', '"start" data_type: TYPE_INT64 dims: [ 2 ]', r"start TYPE_INT64 \[2\]"),
        ("harbour/config.pbtxt", "max_batch_size: 32", "", "max_batch_size 0; expected .* at least 1"),
        ("harbour-qa/1/model.py", "def execute", "der execute", "harbour-qa/1/model.py, line"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_repository_is_found(
    file: str, right: str, wrong: str, message: str, repository: Path
) -> None:
    pytest.importorskip("tritonclient.grpc")
    (repository / "notes.txt").touch()  # which Triton does not read
    text = (repository / file).read_text("utf-8")
    assert right in text
    (repository / file).write_text(text.replace(right, wrong), "utf-8")
    with pytest.raises(DeploymentError, match=message):
        verify_folder(repository.parent)


def test_what_cannot_be_checked_is_said(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tritonclient" else found(name))
    assert verify_folder(repository.parent)[-1] == (
        "not checked: config.pbtxt, because tritonclient is missing: pip install 'tritonclient[grpc]'"
    )


def test_a_repository_without_segment_ids_from_pypi_on_a_cpu(
    need: Callable[[str], None], tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    need("onnx")
    out = tmp_path / "out"
    write_folder(TRITON, str(tiny("roberta")), out, DeploySettings(name="harbour", from_pypi="1.2"), verify=True)
    config = (out / "model_repository/harbour/config.pbtxt").read_text()
    assert "token_type_ids" not in config and "KIND_CPU" in config
    packages = (out / "requirements.txt").read_text().split()
    assert "spanqa==1.2" in packages and not any(each.startswith(("torch", "numpy==")) for each in packages)
    assert not list(out.rglob("*.whl"))


@pytest.mark.skipif(not installed("sign"), reason="needs spanqa[sign]")
def test_the_repository_has_the_keys_of_a_signed_model(
    need: Callable[[str], None], tmp_path: Path, tiny_copy: Callable[..., Path]
) -> None:
    need("onnx")
    from spanqa.signing import Signer, sign
    from test_signing import ec, write_key

    model = tiny_copy("bert")
    write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()))
    sign(model, Signer(tmp_path / "key.pem"))
    out = tmp_path / "out"
    settings = DeploySettings(name="harbour")
    write_folder(TRITON, str(model), out, settings, verify_keys=[str(tmp_path / "key.pub")], verify=True)
    qa = out / "model_repository/harbour-qa/1"
    assert 'KEYS = int("1")' in (qa / "model.py").read_text()
    (key,) = (qa / "keys").iterdir()
    Reader.load(qa / "model", verify_key=key).close()
    key.write_text("another")
    with pytest.raises(DeploymentError, match=r"keys/0-key\.pub changed since it was made"):
        verify_folder(out)


# --- vLLM


def with_more(model: Path) -> Path:
    """Add what checkpoints carry beside the model: a pooler, position ids; and the names that TensorFlow gave layer norms."""
    weights = load_file(model / "model.safetensors")
    weights = {
        name.replace("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"): array
        for name, array in weights.items()
    }
    prefix = next(name for name in weights if not name.startswith("qa_outputs")).split(".")[0]
    weights[f"{prefix}.pooler.dense.weight"] = np.ones((32, 32), np.float32)
    weights[f"{prefix}.embeddings.position_ids"] = np.arange(64)[None]
    save_file(weights, model / "model.safetensors")
    return model


def classifier(transformers: Any, model: Path) -> Any:
    """The class that config.json names, with nothing missing and nothing left over."""
    cls = getattr(transformers, json.loads((model / "config.json").read_text())["architectures"][0])
    found, loading = cls.from_pretrained(model, output_loading_info=True, attn_implementation="eager")
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    return found.eval()


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("more", [False, True])
def test_the_token_classifier_of_transformers_gives_the_logits_of_the_reference(
    family: str,
    more: bool,
    transformers: Any,
    tiny_copy: Callable[..., Path],
    tmp_path: Path,
    load: Callable[..., Backend],
) -> None:
    import torch

    model = with_more(tiny_copy(family)) if more else tiny_copy(family)
    write_folder(VLLM, str(model), tmp_path / "out", DeploySettings(), verify=True)
    exported = classifier(transformers, tmp_path / "out" / "model")
    assert exported.config.id2label == {0: "start", 1: "end"}
    checkpoint = open_checkpoint(model)
    batch = batch_of(checkpoint)
    feeds = {name: torch.from_numpy(array) for name, array in feeds_of(batch, checkpoint).items()}
    with torch.no_grad():
        logits = exported(**feeds).logits.numpy()
    expected, real = load("numpy", model).forward(batch), batch.window_index >= 0
    np.testing.assert_allclose(logits[real][:, 0], expected.start[real], rtol=0, atol=WITHIN)
    np.testing.assert_allclose(logits[real][:, 1], expected.end[real], rtol=0, atol=WITHIN)


def test_half_precision_stays_as_it_is_stored(tiny_copy: Callable[..., Path], tmp_path: Path) -> None:
    import ml_dtypes

    model = tiny_copy("bert")
    weights = {name: array.astype(ml_dtypes.bfloat16) for name, array in load_file(model / "model.safetensors").items()}
    weights["bert.embeddings.LayerNorm.bias"] = weights["bert.embeddings.LayerNorm.bias"].astype(np.float16)
    save_file(weights, model / "model.safetensors")
    write_folder(VLLM, str(model), tmp_path / "out", DeploySettings(), verify=True)
    found = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {name.replace("classifier.", "qa_outputs.") for name in found} == set(weights)
    for name, array in found.items():
        stored = weights[name.replace("classifier.", "qa_outputs.")]
        assert array.dtype == stored.dtype and array.tobytes() == stored.tobytes()


def test_models_that_vllm_cannot_be_given_are_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    for family in ("distilbert", "electra"):
        with pytest.raises(
            UnsupportedModelError,
            match=f"is a '{family}' model, for which vLLM has no token classifier; it has one for",
        ):
            write_folder(VLLM, str(tiny(family)), tmp_path / "out", DeploySettings())
    checkpoint = open_checkpoint(tiny("bert"))
    template = checkpoint.tokenizer.template
    checkpoint.tokenizer.template = replace(template, question_type=1)
    with pytest.raises(
        UnsupportedModelError, match="gives other segment ids than 0 before the passage and 1 from there on"
    ):
        importlib.import_module("spanqa.deploy.vllm")._check_supported(checkpoint)


def test_a_relabelled_checkpoint_that_was_spoilt_does_not_pass(tiny: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(VLLM, str(tiny("bert")), out, DeploySettings())
    config, weights = (out / "model" / name for name in ("config.json", "model.safetensors"))
    whole, text, arrays = weights.read_bytes(), config.read_text(), load_file(weights)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DeploymentError, match=r"model/model\.safetensors changed since it was made"):
        verify_folder(out)
    weights.write_bytes(whole[:-8])
    with pytest.raises(DeploymentError, match=r"is not whole: .* is not a whole safetensors file"):
        VLLM.verify(out)
    save_file({**arrays, "classifier.bias": np.full(2, np.nan, np.float32)}, weights)
    with pytest.raises(DeploymentError, match=r"is not whole: classifier\.bias .* holds NaN or infinity"):
        VLLM.verify(out)
    save_file({**arrays, "classifier.bias": np.zeros(3, np.float32)}, weights)
    with pytest.raises(DeploymentError, match=r"does not fit config\.json: classifier\.bias\. Make the folder again"):
        VLLM.verify(out)
    weights.write_bytes(whole)
    config.write_text(text.replace("BertForTokenClassification", "BertForQuestionAnswering"))
    with pytest.raises(
        DeploymentError, match=r"has architectures \['BertForQuestionAnswering'\] and id2label .*; expected \['BertForT"
    ):
        VLLM.verify(out)
    config.write_text(text)
    assert len(verify_folder(out)) == 3


class Computed:
    """What stands in for vLLM, which needs a GPU: transformers' token classifier, asked as vLLM's source says that it can be."""

    def __init__(self, transformers: Any, model: Path) -> None:
        self.model = classifier(transformers, model)

    def __call__(self, ids: list[int], first: int | None) -> Any:
        import torch

        segments = None if first is None else torch.tensor([[int(place >= first) for place in range(len(ids))]])
        with torch.no_grad():
            return self.model(torch.tensor([ids]), token_type_ids=segments).logits[0]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Computed], str]]:
    """A server of /pooling on 127.0.0.1 around a model; segment ids it has none."""
    servers = []

    def serve(computed: Computed) -> str:
        class Pooling(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                rows = body.pop("input")
                known = {"model": "harbour", "task": "token_classify", "use_activation": False}
                data = [{"index": number, "data": computed(ids, None).tolist()} for number, ids in enumerate(rows)]
                self.send_response(200 if (self.path, body) == ("/pooling", known) else 400)
                self.end_headers()
                self.wfile.write(json.dumps({"data": data[::-1]}).encode())

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Pooling))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.enable_socket
@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_the_program_decodes_what_vllm_computes(
    family: str,
    transformers: Any,
    tiny: Callable[..., Path],
    load: Callable[..., Backend],
    tmp_path: Path,
    served: Callable[[Computed], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    write_folder(VLLM, str(tiny(family)), out, DeploySettings(name="harbour"))
    computed = Computed(transformers, out / "model")
    arguments = ["ask.py", QUESTION, SENTENCES]
    if family == "roberta":
        arguments.append(served(computed))
        assert "vllm serve ./model" in (out / "README.md").read_text()
    else:
        assert "do not serve this model with `vllm serve`" in (out / "README.md").read_text()

        def encode(prompts: Any, params: Any, **options: Any) -> Any:
            assert options == {"pooling_task": "token_classify", "use_tqdm": False}
            firsts = [each["extra_kwargs"]["compressed_token_type_ids"] for each in params]
            pairs = zip(prompts, firsts, strict=True)
            logits = [computed(prompt["prompt_token_ids"], first) for prompt, first in pairs]
            return [types.SimpleNamespace(outputs=types.SimpleNamespace(data=each)) for each in logits]

        vllm: Any = types.ModuleType("vllm")
        vllm.LLM = lambda **_: types.SimpleNamespace(encode=encode)
        vllm.PoolingParams = dict
        monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(out / "ask.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    checkpoint = open_checkpoint(tiny(family))
    with Reader(checkpoint, load("numpy", tiny(family))) as reader:
        expected = reader.ask(QUESTION, SENTENCES)
    assert found["text"] == expected.text and (found["start"], found["end"]) == (expected.start, expected.end)
    assert found["score"] == pytest.approx(expected.score, abs=1e-3)
