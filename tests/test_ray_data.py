"""Ray without Ray: what is refused before it starts, and the stage of a pipeline. scripts/platforms/batch-ray has the rest."""

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

Command = Callable[..., subprocess.CompletedProcess[str]]

PIER = "The pier was built in 1873 by Anna Kestrel. It is made of granite."


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"least": 0}, "The number of actors is 0 to None; expected at least 1"),
        ({"least": 4, "most": 2}, "4 to 2; expected at least 1, and the second not below the first"),
        ({"cpus": 0.0}, "cpus is 0.0; expected a number above 0"),
        ({"gpus": -1.0}, "gpus is -1.0; expected a part of one, such as 0.5, or a whole number"),
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
        pytest.raises(InputError, match=r"device is 'cuda', but the actors have no GPU.*--gpus-per-actor 1"),
        ray_actors(mini, device="cuda"),
    ):
        pass


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
