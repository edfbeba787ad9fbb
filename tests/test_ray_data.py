"""Ray without Ray: what is refused before it starts, and the stage of a pipeline. scripts/platforms/batch-ray has the rest."""

import json
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spanqa import __version__, extras
from spanqa.errors import BackendError, DatasetError, InputError, NotInstalledError
from spanqa.reader import Reader
from spanqa.scale import AnswerRows, AnswerRule, Fleet, ray_actors
from spanqa.scale.answering import setup_of
from spanqa.scale.ray_actors import Actors, _Loaded
from spanqa.scale.ray_fleet import address_of, device_of, on_every_machine

Command = Callable[..., subprocess.CompletedProcess[str]]

PIER = "The pier was built in 1873 by Anna Kestrel. It is made of granite."


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"least": 0}, "The number of actors is 0 to None; expected at least 1"),
        ({"least": 4, "most": 2}, "4 to 2; expected at least 1, and the second not below the first"),
        ({"cpus": 0.0}, "cpus is 0.0; expected a number from 0.0001 on"),
        ({"gpus": -1.0}, "gpus is -1.0; expected a part of one, such as 0.5, or a whole number"),
        ({"gpus": 0.00001}, "gpus is 1e-05; expected a part of one"),
        ({"gpus": 1.5}, "gpus is 1.5; expected a part of one"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Fleet(**wanted)


def test_without_ray_the_way_to_install_it_is_named(
    command: Command, mini: Reader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extras, "missing", lambda name: ["ray"] if name == "ray" else [])
    with pytest.raises(NotInstalledError, match=r"Ray needs ray, .*pip install 'spanqa\[ray\]'"), ray_actors(mini):
        pass
    done = command("batch", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--ray")
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'spanqa[ray]'" in done.stderr


def test_a_gpu_that_no_actor_has_is_refused_before_ray_starts(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing", lambda name: [])
    with (
        pytest.raises(InputError, match=r"device is 'cuda', but no GPU is set aside.*--gpus-per-actor 1"),
        ray_actors(mini, device="cuda"),
    ):
        pass


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 0.0, "cpu"), ("auto", 0.5, "cuda"), ("cpu", 1.0, "cpu"), ("mps", 0.0, "mps")],
)
def test_a_process_computes_on_the_gpu_that_is_set_aside_for_it(device: str, gpus: float, expected: str) -> None:
    assert device_of(device, gpus, "--gpus-per-actor 1") == expected


def test_a_folder_is_named_in_full_and_a_bundled_model_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("spanqa-mini", "mine", "organization/model"):
        Path(name).mkdir(parents=True)
    names = ["spanqa-mini", "mine", Path("mine"), "~/mine", "organization/model", "organization/another", "~nobody/x"]
    mine = str(tmp_path / "mine")
    assert [on_every_machine(name) for name in names] == [
        "spanqa-mini", mine, mine, mine, str(tmp_path / "organization" / "model"), "organization/another", "~nobody/x",
    ]  # fmt: skip


def test_the_address_local_is_that_of_a_ray_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert [address_of(each) for each in (None, "", "auto", "local")] == ["10.0.0.7:6379"] * 2 + ["auto", None]
    for value in ("local", ""):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert address_of(None) is None


@pytest.mark.enable_socket
@pytest.mark.parametrize(
    ("address", "says"), [(f"127.0.0.1:{10**20}", "too large"), (f"{'a' * 64}:6379", "label .*too long")]
)
def test_an_address_that_cannot_be_is_named(
    mini: Reader, monkeypatch: pytest.MonkeyPatch, address: str, says: str
) -> None:
    monkeypatch.setattr(extras, "missing", lambda name: [])
    with (
        pytest.raises(BackendError, match=f"There is no Ray to join at '{address}': .*{says}"),
        ray_actors(mini, Fleet(address=address)),
    ):
        pass


def test_an_output_that_is_there_is_refused_before_ray_starts(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extras, "missing", lambda name: [])
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Who built it?", "context": PIER}))
    (tmp_path / "out.jsonl").touch()
    done = command("batch", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--ray")
    assert (done.returncode, done.stdout) == (1, "")
    assert "already exists. Choose another name, or give --overwrite." in done.stderr


@pytest.mark.enable_socket
def test_an_address_where_nothing_listens_is_named_at_once(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing", lambda name: [])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with (
            pytest.raises(BackendError, match=f"There is no Ray to join at '{address}': Connection refused"),
            ray_actors(mini, Fleet(address=address)),
        ):
            pass


def test_an_actor_that_would_answer_otherwise_is_refused(mini: Reader) -> None:
    load = {"backend": "auto", "threads": None}
    actors = Actors(Fleet(1, 1, cpus=1), load, mini, AnswerRule(), None)
    sound = _Loaded(
        "10.0.0.7", __version__, mini.checkpoint.weights.sha256, mini.checkpoint.tokenizer.fingerprint, setup_of(mini)
    )
    actors._check(sound)
    with pytest.raises(BackendError, match=r"An actor on 10\.0\.0\.7 has another weights than the job: abc, expected"):
        actors._check(replace(sound, weights="abc"))
    with pytest.raises(BackendError, match=r"has another dtype than the job: none, expected \w+\. .* name --backend"):
        actors._check(replace(sound, setup=replace(sound.setup, dtype="none")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--actors", "2"], "--actors: is for --ray"),
        (["--address", "auto"], "--address: is for --ray"),
        (["--gpus-per-actor", "0.5"], "--gpus-per-actor: is for --ray"),
        (["--ray", "--actors", "2-"], "'2-' is neither a number, such as 4, nor two, such as 1-8"),
        (["--ray", "--actors", "many"], "'many' is neither a number"),
    ],
)
def test_options_of_ray_that_mean_nothing_are_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], message: str
) -> None:
    monkeypatch.setattr(extras, "missing", lambda name: [])
    done = command("batch", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_with_ray_the_output_is_a_file(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "missing", lambda name: [])
    done = command("batch", tmp_path / "rows.jsonl", "-", "--ray")
    assert done.returncode == 2
    assert "chunks end in any order; give the name of a file" in " ".join(done.stderr.replace("│", " ").split())


def test_a_stage_answers_what_can_be_read_and_says_why_not(mini: Reader) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rows = [
        {"n": 1, "question": ["Who built the pier?", "What is it made of?"], "body": PIER},
        {"n": 2, "question": ["Who built the pier?"], "body": None},
        {"n": 3, "question": ["Who built the pier?"], "body": "There are lamps."},
        {"n": 4, "question": [], "body": PIER},
    ]
    rule = AnswerRule(top_k=2, no_answer="off")
    stage = AnswerRows(context="body", into="found", backend=mini.backend.name, rule=rule)
    table = stage(pyarrow.Table.from_pylist(rows))
    assert table.column_names == ["n", "question", "body", "found", "founds", "found_error"]
    found = table.to_pylist()
    assert [row["n"] for row in found] == [1, 1, 2, 3, 4]
    for row in (found[0], found[1], found[3]):
        question = row["found"]["question"]
        expected = mini.ask(question, row["body"], no_answer="off").as_json(question)
        assert row["found"] == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}
        assert [each["text"] for each in row["founds"]] == [
            each.text for each in mini.rank(question, row["body"], 2, no_answer="off")
        ]
        assert row["found_error"] is None
    errors = [(row["found"] or row["founds"], row["found_error"]) for row in (found[2], found[4])]
    assert errors == [(None, "body: expected a text, found null"), (None, "question: holds no questions")]


def test_a_stage_without_rows_has_the_columns_all_the_same(mini: Reader) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    empty = pyarrow.table({"context": pyarrow.array([], pyarrow.string())})
    stage = AnswerRows(asks=["Who?"], backend=mini.backend.name)
    answered = stage(empty)
    assert answered.schema == stage(pyarrow.table({"context": [PIER]})).schema
    assert answered.num_rows == 0


def test_a_stage_refuses_columns_that_are_missing_or_there_already(mini: Reader) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    stage = AnswerRows(backend=mini.backend.name)
    with pytest.raises(
        DatasetError, match=r"The dataset has no column that is called like a context\. It has: question"
    ):
        stage(pyarrow.table({"question": ["Who?"]}))
    with pytest.raises(InputError, match=r"There is a column 'prediction' already. Give `into` another name"):
        stage(pyarrow.table({"question": ["Who?"], "context": [PIER], "prediction": ["she"]}))


def test_a_stage_is_given_tables_and_a_list_of_questions(mini: Reader) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"asks is 'Who\?'; expected a list of questions, such as \['Who\?'\]"):
        AnswerRows(asks="Who?")
    stage = AnswerRows(asks=["Who?"], backend=mini.backend.name)
    table = pyarrow.table({"context": [PIER]})
    for batch in (table.to_pydict(), table.to_batches()[0]):  # the first is what Ray Data gives by itself
        with pytest.raises(InputError, match=rf'type {type(batch).__name__}; expected .*batch_format="pyarrow"'):
            stage(batch)
