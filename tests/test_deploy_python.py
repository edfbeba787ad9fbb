"""The targets whose platform runs a Python file of ours: Hugging Face's handler and Azure ML's scoring script.

The platforms' own servers run them in scripts/platforms/deploy-huggingface and deploy-azureml.
"""

import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("packaging")
pytest.importorskip("yaml")

import tiny
from spanqa.deploy import azureml, huggingface
from spanqa.deploy.folder import verify_folder, write_folder
from spanqa.deploy.target import DeploySettings, Target
from spanqa.errors import DeploymentError, InputError
from spanqa.extras import installed
from spanqa.pipelines import QuestionAnsweringPipeline, pipeline
from spanqa.pipelines.bodies import answer_body
from spanqa.reader import Reader

PASSAGE = "The old lighthouse at Penmar was built by Anna Kestrel in 1891, after two ships were lost in one winter."
ONE = {"question": "Who built the lighthouse?", "context": PASSAGE}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make("bert", tmp_path_factory.mktemp("model") / "tiny-bert")


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("made")
    for target in (huggingface.TARGET, azureml.TARGET):
        write_folder(target, str(model), parent / target.name, DeploySettings(), verify=True)
    return {target.name: parent / target.name for target in (huggingface.TARGET, azureml.TARGET)}


@pytest.fixture
def folder(made: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the folder for a target, to be changed."""
    return Path(shutil.copytree(made[request.param], tmp_path / "folder"))


def loaded(file: Path) -> Any:
    """The module of a file of a folder."""
    spec = importlib.util.spec_from_file_location(f"test_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text, (old, text)
    file.write_text(text.replace(old, new, 1), "utf-8")


# The wheel beside a script


def test_the_carried_spanqa_is_checked_unpacked_once_and_found_first(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    carried = loaded(made["huggingface"] / "repository" / "carried.py")
    carried.use()
    carried.use()
    place = Path(sys.path[0])
    assert (place / "spanqa" / "__init__.py").exists() and (place / "spanqa-0.1.0.dist-info" / "METADATA").exists()
    assert not (place / "spanqa" / "models").exists()
    assert [each for each in sys.path if "spanqa-carried-" in each] == [str(place)]
    assert place.stat().st_mode & 0o077 == 0  # of this user alone
    shutil.rmtree(place)


@pytest.mark.parametrize("folder", ["azureml"], indirect=True)
def test_another_wheel_and_an_old_python_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = loaded(folder / "code" / "carried.py")
    wheel = folder / "code" / carried.WHEEL
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(RuntimeError, match=rf"The SHA-256 of {carried.WHEEL} is \w+; expected {carried.SHA256}"):
        carried.use()
    monkeypatch.setattr(sys, "version_info", (3, 10, 14, "final", 0))
    with pytest.raises(RuntimeError, match=r"This is Python 3\.10; spanqa needs 3\.11 or newer"):
        carried.use()


def test_a_published_version_is_installed_and_nothing_is_carried(model: Path, tmp_path: Path) -> None:
    for target in (huggingface.TARGET, azureml.TARGET):
        write_folder(target, str(model), tmp_path / target.name, DeploySettings(from_pypi="1.2"), verify=True)
    assert not list(tmp_path.rglob("*.whl"))
    assert loaded(tmp_path / "huggingface" / "repository" / "carried.py").use() is None
    assert "spanqa==1.2" in (tmp_path / "huggingface" / "repository" / "requirements.txt").read_text().splitlines()
    assert '- "spanqa[serve]==1.2"' in (tmp_path / "azureml" / "conda.yml").read_text()


# The form of Hugging Face's endpoints


@pytest.fixture(scope="module")
def answers(model: Path) -> QuestionAnsweringPipeline:
    return pipeline(model=str(model))


def test_one_question_gives_an_object_and_several_answers_or_questions_a_list(
    answers: QuestionAnsweringPipeline,
) -> None:
    best, three = answers(**ONE), answers(**ONE, top_k=3)
    assert answer_body(answers, {"inputs": ONE}) == best
    assert answer_body(answers, {"inputs": ONE, "parameters": {"top_k": 3}}) == three
    assert answer_body(answers, {"inputs": [ONE]}) == [best]
    assert answer_body(answers, {"inputs": [ONE, ONE], "parameters": {"top_k": 3}}) == [three, three]
    lists = {"question": [ONE["question"]] * 2, "context": PASSAGE}
    assert answer_body(answers, {"inputs": lists, "parameters": None}) == [best, best]
    # One word has one answer: with top_k it is a list all the same, as clients expect.
    word = {"question": "Who?", "context": "Anna"}
    assert [each["answer"] for each in answer_body(answers, {"inputs": word, "parameters": {"top_k": 3}})] == ["Anna"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([ONE], "The body is a list; expected an object with inputs"),
        ({}, "inputs is a NoneType; expected an object with question and context"),
        ({"inputs": []}, "inputs is an empty list"),
        ({"inputs": {"question": "violet?"}}, "inputs.context is a NoneType; expected a text"),
        ({"inputs": [ONE, {"question": "violet?", "context": " "}]}, "inputs.1.context is empty"),
        ({"inputs": {"question": ["violet?"], "context": ["a", "b"]}}, "has 1 questions and 2 contexts"),
        ({"inputs": ONE, "parameters": [3]}, "parameters is a list; expected an object"),
        ({"inputs": ONE, "parameters": {"topk": 3}}, "parameters has 'topk'; expected some of top_k, doc_stride"),
        ({"inputs": ONE, "parameters": {"align_to_words": "no"}}, "parameters.align_to_words is a str; expected true"),
        ({"inputs": ONE, "parameters": {"top_k": "3"}}, "top_k is '3'. Expected a whole number"),
    ],
)
def test_a_wrong_body_is_refused_without_the_words_of_the_user(
    answers: QuestionAnsweringPipeline, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        answer_body(answers, body)
    assert "violet" not in str(refused.value) and "Penmar" not in str(refused.value)


# Hugging Face


def test_the_handler_answers_with_only_its_folder(made: dict[str, Path], answers: QuestionAnsweringPipeline) -> None:
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import handler, spanqa\n"
        "assert 'spanqa-carried-' in spanqa.__file__, spanqa.__file__\n"
        "assert not {'fastapi', 'typer', 'transformers', 'torch'} & set(sys.modules)\n"
        "print(json.dumps(handler.EndpointHandler(sys.argv[1])(json.loads(sys.argv[2]))))"
    )
    body = {"inputs": ONE, "parameters": {"top_k": 2}}
    command = [sys.executable, "-I", "-c", code, str(made["huggingface"] / "repository"), json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for found, wanted in zip(json.loads(done.stdout), answers(**ONE, top_k=2), strict=True):
        assert (found["start"], found["end"], found["answer"]) == (wanted["start"], wanted["end"], wanted["answer"])
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)


def test_the_handler_asks_for_nothing_that_the_container_has(made: dict[str, Path]) -> None:
    lines = (made["huggingface"] / "repository" / "requirements.txt").read_text().splitlines()
    assert [re.split("[<>=]", line)[0] for line in lines if not line.startswith("#")] == ["openvino", "ml-dtypes"]


def test_the_card_names_the_task_and_keeps_what_it_said(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    (copy / "README.md").write_text(
        "---\npipeline_tag: fill-mask\nlicense: mit\nlanguage: no  # nb\n---\nEn modell.\n", "utf-8"
    )
    write_folder(huggingface.TARGET, str(copy), tmp_path / "out", DeploySettings(), verify=True)
    card = (tmp_path / "out" / "repository" / "README.md").read_text("utf-8")
    assert card == (
        "---\nlicense: mit\nlanguage: no  # nb\npipeline_tag: question-answering\nlibrary_name: spanqa\n---\nEn modell.\n"
    )


@pytest.mark.parametrize(
    ("mebibytes", "gpu", "wanted"),
    [
        (1_280, False, ("intel-spr", "x2")),
        (7_168, False, ("intel-spr", "x4")),
        (90_000, False, ("intel-spr", "x16")),
        (10_496, True, ("nvidia-t4", "x1")),
        (20_000, True, ("nvidia-l4", "x1")),
        (500_000, True, ("nvidia-a100", "x1")),
    ],
)
def test_the_instance_has_room_for_the_model(mebibytes: int, gpu: bool, wanted: tuple[str, str]) -> None:
    assert huggingface.instance(mebibytes, gpu=gpu) == wanted


def test_the_endpoint_is_what_was_asked_for(model: Path, tmp_path: Path) -> None:
    settings = DeploySettings(name="tide", min_replicas=0, max_replicas=7, region="eu-west-1")
    lines = write_folder(huggingface.TARGET, str(model), tmp_path / "out", settings, verify=True)
    assert "still to fill in: repository in endpoint.json" in lines
    endpoint = json.loads((tmp_path / "out" / "endpoint.json").read_text())
    wanted = {
        "name": "tide", "min_replica": 0, "max_replica": 7, "scale_to_zero_timeout": 60, "region": "eu-west-1", "accelerator": "cpu",
        "type": "authenticated", "scaling_metric": "pendingRequests", "scaling_threshold": 1.5,
    }  # fmt: skip
    assert endpoint | wanted == endpoint


@pytest.mark.parametrize("reason", ["device", "architecture"])
def test_what_the_default_container_cannot_run_takes_our_own(model: Path, tmp_path: Path, reason: str) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    settings = DeploySettings(image="registry.example.org/qa:7", device="cuda" if reason == "device" else "cpu")
    if reason == "architecture":
        edit(copy / "config.json", '"bert"', '"deberta-v2"')
    lines = write_folder(huggingface.TARGET, str(copy), tmp_path / "out", settings, verify=True)
    assert "there is no handler: this deployment takes the container" in lines
    assert not (tmp_path / "out" / "endpoint.json").exists()
    endpoint = json.loads((tmp_path / "out" / "container" / "endpoint.json").read_text())
    assert endpoint["custom_image"] == {"url": "registry.example.org/qa:7", "port": 8080, "healthRoute": "/ready"}
    assert endpoint["accelerator"] == ("gpu" if reason == "device" else "cpu")
    if reason == "device":
        assert '--model", "/repository' in (tmp_path / "out" / "container" / "Dockerfile.cuda").read_text()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (b"---\ntags: [a\n---\n", "the front matter is not YAML"),
        (b"---\nmade: 2024-13-45\n---\n", "the front matter is not YAML"),
        (b"---\n- a\n---\n", "the front matter is a list; expected fields"),
        (b"---\n{license: mit}\n---\n", "a front matter that cannot be completed"),
        (b"---\nlicense: mit\npipeline_tag: |\n  fill-mask\n---\n", "a front matter that cannot be completed"),
        (b"caf\xe9", "out/repository/README.md' is not UTF-8"),
    ],
)
def test_a_card_that_cannot_be_completed_is_an_error(model: Path, tmp_path: Path, card: bytes, message: str) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    (copy / "README.md").write_bytes(card)
    with pytest.raises((DeploymentError, InputError), match=re.escape(message)):
        write_folder(huggingface.TARGET, str(copy), tmp_path / "out", DeploySettings())


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.skipif(not installed("sign"), reason="needs spanqa[sign]")
def test_a_signed_model_is_left_as_it_was_signed(model: Path, tmp_path: Path, named: bool) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    from spanqa.signing import Signer, sign

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    if named:
        (copy / "README.md").write_text("---\npipeline_tag: question-answering\n---\n")
    sign(copy, Signer(private_key=private))
    for target in (huggingface.TARGET, azureml.TARGET):
        out = tmp_path / target.name
        write_folder(target, str(copy), out, DeploySettings(), verify_keys=[str(public)], verify=True)
        Reader.load(out / str(target.model), verify_key=public).close()
    assert not (tmp_path / "huggingface" / "repository" / "handler.py").exists()
    assert (tmp_path / "huggingface" / "container" / "keys" / "0-key.pub").exists()
    assert (tmp_path / "azureml" / "code" / "keys" / "0-key.pub").read_bytes() == public.read_bytes()
    assert "model-signing==" in (tmp_path / "azureml" / "conda.yml").read_text()


def takes() -> set[str]:
    """The arguments of huggingface_hub's own function."""
    from huggingface_hub import HfApi

    return set(inspect.signature(HfApi.create_inference_endpoint).parameters)


@pytest.mark.skipif("private_link_region" not in takes(), reason="needs a newer huggingface_hub")
def test_the_request_is_made_by_the_real_client_and_not_sent(made: dict[str, Path]) -> None:
    assert {name.rstrip("!") for name in huggingface.ARGUMENTS} <= takes()
    script = made["huggingface"] / "endpoint.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["url"].endswith("/endpoint/YOUR-NAME")
    assert shown["json"]["compute"] == {
        "accelerator": "cpu",
        "instanceSize": "x2",
        "instanceType": "intel-spr",
        "scaling": {"maxReplica": 3, "minReplica": 1, "scaleToZeroTimeout": None, "measure": {"pendingRequests": 1.5}},
    }
    assert shown["json"]["model"]["image"] == {"huggingface": {}} and shown["json"]["model"]["task"] == "custom"
    done = subprocess.run([sys.executable, str(script), "--create"], capture_output=True, text=True)
    assert done.returncode == 1 and "still has a name to fill in: look for YOUR-" in done.stderr


@pytest.mark.parametrize("folder", ["huggingface"], indirect=True)
@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("endpoint.json", '"scaling_metric"', '"scaling_metrics"', "endpoint.json has no field 'scaling_metrics'; expected some"),
        ("endpoint.json", '"vendor": "aws",', "", "endpoint.json lacks 'vendor'"),
        ("endpoint.json", '"min_replica": 1', '"min_replica": "1"', "min_replica is '1'; expected a value of type int"),
        ("endpoint.json", '"min_replica": 1', '"min_replica": true', "min_replica is True; expected a value of type int"),
        ("endpoint.json", '"pendingRequests"', '"pending"', "scaling_metric is 'pending'; expected one of pendingRequests"),
        ("endpoint.json", '"max_replica": 3', '"max_replica": 0', "min_replica is 1 and max_replica is 0; expected 0 <= min"),
        ("endpoint.json", '"task"', '"scale_to_zero_timeout": 15, "task"', "scale_to_zero_timeout is set, and min_replica is 1"),
        ("endpoint.json", '"task"', '"custom_image": {"ulr": "x"}, "task"', "custom_image has no field 'ulr'; expected some of url"),
        ("endpoint.json", "{", "[", "endpoint.json"),
        ("repository/README.md", "question-answering", "text-generation", "pipeline_tag is 'text-generation'"),
        ("repository/README.md", "pipeline_tag: ", "pipeline_tag: [", "the front matter is not YAML"),
        ("repository/handler.py", "def __call__(self, data):", "def __call__(self, data:", "repository/handler.py, line"),
    ],
)  # fmt: skip
def test_a_broken_edit_for_hugging_face_is_found(folder: Path, file: str, old: str, new: str, message: str) -> None:
    edit(folder / file, old, new)
    with pytest.raises(DeploymentError, match=re.escape(message)):
        verify_folder(folder)


# Azure ML


def test_azures_folder_asks_for_what_its_server_takes(made: dict[str, Path]) -> None:
    import yaml

    conda = yaml.safe_load((made["azureml"] / "conda.yml").read_text())
    assert conda["dependencies"][0] == "python=3.11"
    packages = conda["dependencies"][-1]["pip"]
    names = [re.split("[<>=]", each)[0] for each in packages]
    assert len(set(names)) == len(names), "a package is named twice"
    assert {"azureml-inference-server-http", "fastapi", "openvino", "prometheus-client"} <= set(names)
    assert "torch" not in names
    deployment = yaml.safe_load((made["azureml"] / "deployment.yml").read_text())
    assert deployment["instance_type"] == "Standard_DS3_v2" and deployment["instance_count"] == 1


def test_azure_does_not_scale_to_zero(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="azureml does not scale to zero here"):
        write_folder(azureml.TARGET, str(model), tmp_path / "out", DeploySettings(min_replicas=0))


def test_azure_with_a_gpu_scales_by_its_load(model: Path, tmp_path: Path) -> None:
    settings = DeploySettings(device="cuda", min_replicas=2, max_replicas=9, region="westeurope")
    write_folder(azureml.TARGET, str(model), tmp_path / "out", settings, verify=True)
    resource = json.loads((tmp_path / "out" / "autoscale.json").read_text())["resources"][0]
    profile = resource["properties"]["profiles"][0]
    assert profile["capacity"] == {"minimum": "2", "maximum": "9", "default": "2"}
    metrics = [rule["metricTrigger"]["metricName"] for rule in profile["rules"]]
    assert metrics == ["GpuUtilizationPercentage", "RequestLatency_P95", "GpuUtilizationPercentage"]
    text = (tmp_path / "out" / "deployment.yml").read_text()
    assert "SPANQA_DEVICE: cuda" in text and "Standard_NC4as_T4_v3" in text and "cuda12" in text
    assert re.search(r"^ +- \"torch[=>]", (tmp_path / "out" / "conda.yml").read_text(), re.M)


YAML_EDITS = [
    ("endpoint.yml", "public_network_access", "public_network_acces", "endpoint.yml has no field 'public_network_acces'"),
    ("endpoint.yml", "auth_mode: aad_token", "auth_mode: aad", "auth_mode is 'aad'; expected one of key"),
    ("endpoint.yml", "type: system_assigned", "typ: system_assigned", "identity has no field 'typ'"),
    ("endpoint.yml", "name: ", "nam: ", "endpoint.yml has no field 'nam'"),
    ("endpoint.yml", "identity:\n  type: system_assigned", "identity: mine #", "identity is 'mine'; expected the fields type"),
    ("endpoint-private.yml", "user_assigned_identities", "user_assigned_identites", "no field 'user_assigned_identites'"),
    ("deployment.yml", "request_timeout_ms:", "request_timeout:", "request_settings has no field 'request_timeout'"),
    ("deployment.yml", "failure_threshold", "failure_treshold", "liveness_probe has no field 'failure_treshold'"),
    ("deployment.yml", "instance_count: 1", "instance_count: '1'", "instance_count is '1'; expected a value of type int"),
    ("deployment.yml", "instance_count: 1", "instance_count: true", "instance_count is True; expected a value of type int"),
    ("deployment.yml", "instance_count: 1", "instance_count: 0", "instance_count is 0; expected at least 1"),
    ("deployment.yml", "endpoint_name: ", "endpoint_name: other-", "endpoint.yml has the name"),
    ("deployment.yml", "code: code", "code: codes", "deployment.yml needs 'codes/score.py', which is missing"),
    ("deployment.yml", 'SPANQA_DEADLINE: "30"', 'SPANQA_DEADLINE: "50"', "SPANQA_DEADLINE is 50 seconds; expected more"),
    ("deployment.yml", "request_timeout_ms: 40000", "request_timeout_ms: 200000", "and at most 180000"),
    ("deployment.yml", 'WORKER_COUNT: "1"', "WORKER_COUNT: 1", "environment_variables.WORKER_COUNT is 1; expected a text"),
    ("deployment.yml", "--threads 32", "--threads 4", "expected --threads 32 or more"),
    ("deployment.yml", "name: blue", "name: [blue", "is not YAML"),
    ("conda.yml", "channels", "channel", "conda.yml has no field 'channel'"),
    ("conda.yml", "python=3.11", "python=3.10", "conda.yml asks for python=3.10; expected python=3.11"),
    ("conda.yml", "  - python=3.11\n", "", "conda.yml asks for no Python"),
    ("deployment.yml", "  path: model\n", "", "deployment.yml: model lacks 'path'"),
    ("deployment.yml", "  scoring_script: score.py\n", "", "deployment.yml: code_configuration lacks 'scoring_script'"),
    ("deployment.yml", "code: code", "code: ../codes", "deployment.yml needs '../codes/score.py', which is missing"),
    ("deployment.yml", 'SPANQA_DEADLINE: "30"', "SPANQA_DEADLINE: soon", "SPANQA_DEADLINE is 'soon'; expected a number"),
    ("deployment.yml", "name: blue", "name: 2024-13-45", "deployment.yml' is not YAML: month must be in 1..12"),
    ("endpoint.yml", "$schema", "---\nname: a\n---\n$schema", "holds a dict and a dict; expected fields"),
    ("endpoint.yml", "description", "description: \x00 #", "endpoint.yml"),
    ("endpoint-private.yml", "name: ", "name: other-", "endpoint-private.yml: name is 'other-"),
    ("autoscale.json", '"minimum": "1"', '"minimum": "\u00b2"', "expected 1 <= minimum <= default <= maximum"),
    ("autoscale.json", '"operator": "LessThan",', "", "metricTrigger lacks 'operator'"),
    ("autoscale.json", '"cooldown"', '"cooldwn"', "scaleAction has no field 'cooldwn'"),
    ("autoscale.json", '"enabled": true', '"enabled": false', "enabled is not true"),
    ("autoscale.json", '"Decrease"', '"Increase"', "LessThan has the direction 'Increase'; expected 'Decrease'"),
    ("autoscale.json", '"GreaterThan"', '"Greater"', "operator is 'Greater'; expected one of Equals"),
    ("autoscale.json", '"maximum": "3"', '"maximum": "0"', "expected 1 <= minimum <= default <= maximum"),
    ("autoscale.json", '"rules": [', '"rules": {}, "fixed": [', "rules is {}; expected a list"),
    ("autoscale.json", '"threshold": 70', '"threshold": "70"', "threshold is '70'; expected a value of type int or float"),
    ("autoscale.json", "{", "", "autoscale.json"),
    ("code/score.py", "def init():", "def init(:", "code/score.py, line"),
]  # fmt: skip


@pytest.mark.parametrize("folder", ["azureml"], indirect=True)
@pytest.mark.parametrize(("file", "old", "new", "message"), YAML_EDITS)
def test_a_broken_edit_for_azure_is_found(folder: Path, file: str, old: str, new: str, message: str) -> None:
    edit(folder / file, old, new)
    with pytest.raises(DeploymentError, match=re.escape(message)):
        verify_folder(folder)


@pytest.mark.parametrize("folder", ["azureml"], indirect=True)
def test_azure_may_use_what_was_registered_before(folder: Path) -> None:
    edit(folder / "deployment.yml", "model:\n  path: model\n  type: custom_model\n", "model: azureml:tide:3\n")
    assert "edited since it was made: deployment.yml" in verify_folder(folder)
    (folder / "endpoint.yml").write_text("just words")
    with pytest.raises(DeploymentError, match="holds a str; expected fields"):
        verify_folder(folder)


@pytest.mark.parametrize("target", [huggingface.TARGET, azureml.TARGET])
def test_a_missing_file_is_found(target: Target, made: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made[target.name], tmp_path / "folder"))
    script = next(copy.rglob("carried.py"))
    script.unlink()
    with pytest.raises(DeploymentError, match=r"lacks \w+/carried\.py"):
        verify_folder(copy)
    with pytest.raises(DeploymentError, match=r"carried\.py.*missing"):
        target.verify(copy)
    if target is azureml.TARGET:
        (copy / "endpoint.yml").unlink()
        with pytest.raises(DeploymentError, match=r"endpoint\.yml.*missing"):
            target.verify(copy)


# The application inside another server


@pytest.mark.skipif(not installed("serve"), reason="needs spanqa[serve]")
def test_threads_of_another_server_get_the_answers_and_the_statuses_of_ours(
    model: Path, answers: QuestionAnsweringPipeline
) -> None:
    from spanqa.serve import ServeSettings
    from spanqa.serve.inside import Inside

    json_type = [("Content-Type", "application/json")]
    body = json.dumps({"inputs": ONE}).encode()
    server = Inside(Reader.load(model), ServeSettings(hosts=("*",), max_body=10_000), name="tide")
    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: server.answer("POST", "/predict", json_type, body), range(24)))
        for status, headers, content in found:
            assert status == 200 and dict(headers)["content-type"] == "application/json"
            assert json.loads(content)["answer"] == answers(**ONE)["answer"]
        several = json.dumps({"question": ONE["question"], "passages": [PASSAGE]}).encode()
        status, _, content = server.answer("POST", "/v1/answers", json_type, several)
        assert status == 200 and json.loads(content)["model"] == "tide"
        for wanted, method, headers, sent in (
            (400, "POST", json_type, b"{"),
            (405, "PUT", json_type, body),
            (413, "POST", json_type, b" " * 10_001),
            (415, "POST", [("content-length", "9")], body),
            (422, "POST", json_type, b"{}"),
        ):
            status, headers, content = server.answer(method, "/predict", headers, sent)
            assert status == wanted and json.loads(content)["error_type"] and dict(headers)["x-request-id"]
    finally:
        server.close()


@pytest.mark.skipif(not installed("serve"), reason="needs spanqa[serve]")
def test_inside_another_server_the_deadline_and_the_longest_wait_hold(model: Path) -> None:
    from spanqa.serve import ServeSettings
    from spanqa.serve.inside import Inside

    json_type = [("Content-Type", "application/json")]
    body = json.dumps({"inputs": {"question": "Who?", "context": f"{PASSAGE} " * 300}}).encode()
    server = Inside(Reader.load(model), ServeSettings(hosts=("*",), deadline=0.01))
    try:
        status, _, content = server.answer("POST", "/predict", json_type, body)
        assert (status, json.loads(content)["error_type"]) == (504, "deadline_exceeded")
    finally:
        server.close()
    server = Inside(Reader.load(model), ServeSettings(hosts=("*",), max_requests=1))
    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: server.answer("POST", "/predict", json_type, body), range(8)))
        assert {status for status, _, _ in found} == {200, 429}
        assert all(dict(headers)["retry-after"].isdigit() for status, headers, _ in found if status == 429)
    finally:
        server.close()
