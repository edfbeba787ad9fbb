"""The command line, run as a user runs it: in a process of its own."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
HARBOUR = EXAMPLES / "harbour.txt"
QUESTION = "Who built the first pier?"


def spanqa(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spanqa", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"} | options.pop("env", {})
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


def fails(done: subprocess.CompletedProcess[str], message: str, code: int = 1) -> None:
    """It ended with this code and one message, and without a traceback."""
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code == 1:
        assert len(done.stderr.splitlines()) == 1


def test_ask_prints_the_answer_with_its_sentence_and_place() -> None:
    done = spanqa("ask", QUESTION, HARBOUR)
    answer, sentence, place = done.stdout.splitlines()
    assert answer.startswith("Anna Kestrel  (")
    assert "uncalibrated" not in answer
    assert "by the engineer [Anna Kestrel], who" in sentence
    assert "characters 141-153" in place
    assert (done.returncode, done.stderr) == (0, "")


def test_ask_says_when_the_text_does_not_hold_the_answer() -> None:
    done = spanqa("ask", "Who was the king of Spain?", HARBOUR)
    assert done.stdout.startswith("Not in this text.")
    assert done.returncode == 0


def test_ask_reads_several_files_and_standard_input_together(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("It rained all day.")
    files = spanqa("ask", QUESTION, other, HARBOUR, "--json")
    piped = spanqa("ask", QUESTION, other, "-", "--json", input=HARBOUR.read_text("utf-8"))
    answers = [json.loads(done.stdout) for done in (files, piped)]
    assert [answer["text"] for answer in answers] == ["Anna Kestrel"] * 2
    assert [answer["source"] for answer in answers] == [str(HARBOUR), "standard input"]
    assert [answer["passage_index"] for answer in answers] == [1, 1]


def test_ask_json_has_the_fields_of_an_answer_and_the_question() -> None:
    lines = spanqa("ask", "When?", HARBOUR, "--json", "--top-k", "3", "--threshold", "-50").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    text = HARBOUR.read_text("utf-8")
    names = (
        "question text start end score probability no_answer_probability sentence sentence_start passage_index source"
    )
    assert [list(answer) for answer in answers] == [names.split()] * 3
    assert all(text[answer["start"] : answer["end"]] == answer["text"] for answer in answers)
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)
    [nothing] = [
        json.loads(line) for line in spanqa("ask", "Who?", HARBOUR, "--json", "--threshold", "99").stdout.splitlines()
    ]
    assert (nothing["text"], nothing["start"], nothing["end"]) == ("", None, None)
    assert nothing["probability"] == nothing["no_answer_probability"]


def test_a_terminal_control_sequence_in_a_text_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "evil.txt").write_text("The pier was built by \x1b[31m[bold]Anna Kestrel[/bold]\x07 in 1873.")
    done = spanqa("ask", "Who built the pier?", tmp_path / "evil.txt")
    assert done.returncode == 0
    assert "Anna" in done.stdout
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout


def test_an_empty_file_among_others_is_told_and_passed_over(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    done = spanqa("ask", QUESTION, tmp_path / "empty.txt", HARBOUR, "--json")
    assert json.loads(done.stdout)["text"] == "Anna Kestrel"
    assert "empty.txt" in done.stderr


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    return {
        "empty.txt": (b"", "There is no text to read"),
        "binary.bin": (b"\x89PNG\x00\x01", "is a binary file"),
        "latin1.txt": ("Zürich".encode("latin1"), "is not UTF-8: found byte 0xfc at position 1"),
        "cut.gz": (gzip.compress(b"Anna Kestrel built it." * 99)[:-9], "is a damaged gzip file"),
    }


@pytest.mark.parametrize("name", ["empty.txt", "binary.bin", "latin1.txt", "cut.gz"])
def test_a_file_that_cannot_be_read_fails_with_one_message(name: str, tmp_path: Path) -> None:
    content, message = bad_files(tmp_path)[name]
    (tmp_path / name).write_bytes(content)
    fails(spanqa("ask", QUESTION, tmp_path / name), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", QUESTION, "missing.txt"], "File 'missing.txt' does not exist"),
        (["ask", QUESTION, EXAMPLES], "is a folder. Expected a file"),
        (["ask", " ", HARBOUR], "The question is empty"),
        (["ask", "why " * 400, HARBOUR], "The question has 400 tokens"),
        (["ask", QUESTION, HARBOUR, "--overlap", "380"], "windows could not advance"),
        (["ask", QUESTION, HARBOUR, "--max-seq-length", "513"], "this model reads at most 512 tokens"),
        (["ask", QUESTION, HARBOUR, "--model", "./nowhere"], "There is no folder 'nowhere'"),
        (["ask", QUESTION, HARBOUR, "--model", HARBOUR], "is a file; expected the folder"),
        (["ask", QUESTION, HARBOUR, "--model", EXAMPLES], "has no config.json"),
        (["ask", QUESTION, HARBOUR, "--backend", "openvin"], "Did you mean 'openvino'?"),
        (["ask", QUESTION, HARBOUR, "--device", "cuda:9"], "does not see device 'cuda:9'"),
        (["ask", QUESTION, HARBOUR, "--dtype", "fp7"], "Unknown dtype 'fp7'"),
        (["ask", QUESTION, HARBOUR, "--backend", "numpy", "--dtype", "bf16"], "does not support dtype 'bf16'"),
        (["evaluate", HARBOUR], "is not JSON"),
        (["evaluate", EXAMPLES / "harbour.json", "--predictions", EXAMPLES / "harbour.json"], "harbour-1"),
        (["evaluate", EXAMPLES / "harbour.json", "--out", HARBOUR], "Name a folder that can be written to"),
    ],
)
def test_bad_input_fails_with_one_message(arguments: list[str | Path], message: str) -> None:
    fails(spanqa(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask"], "QUESTION"),
        (["ask", QUESTION, HARBOUR, "--top-k", "0"], "--top-k"),
        (["ask", QUESTION, HARBOUR, "--colour"], "--colour"),
        (["sing"], "sing"),
        (["evaluate", EXAMPLES / "harbour.json", "--na-probs", HARBOUR], "goes with --predictions"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str | Path], message: str) -> None:
    fails(spanqa(*arguments), message, code=2)


def test_debug_shows_the_traceback() -> None:
    done = spanqa("--debug", "ask", QUESTION, "missing.txt")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "DatasetError" in done.stderr


def test_evaluate_prints_both_blocks_and_writes_the_files_of_run_qa(tmp_path: Path) -> None:
    out = tmp_path / "results"
    record = json.loads(spanqa("evaluate", EXAMPLES / "harbour.json", "--out", out, "--json", "--dtype", "fp32").stdout)
    assert record["metrics"]["total"] == 8
    assert record["metrics"]["HasAns_f1"] > 80
    assert record["reader"]["f1"] == pytest.approx(record["metrics"]["f1"])
    assert sorted(path.name for path in out.iterdir()) == [
        "nbest_predictions.json", "null_odds.json", "predictions.json", "record.json",
    ]  # fmt: skip
    assert json.loads((out / "record.json").read_text("utf-8")) == record
    assert len(json.loads((out / "predictions.json").read_text("utf-8"))) == 8
    again = spanqa("evaluate", EXAMPLES / "harbour.json", "--predictions", out / "predictions.json", "--json")
    again_odds = spanqa(
        "evaluate", EXAMPLES / "harbour.json", "--predictions", out / "predictions.json",
        "--na-probs", out / "null_odds.json", "--json",
    )  # fmt: skip
    metrics = json.loads(again.stdout)["metrics"]
    assert metrics == {name: record["metrics"][name] for name in metrics}
    assert json.loads(again_odds.stdout)["metrics"]["best_f1"] == pytest.approx(record["metrics"]["best_f1"])


def test_evaluate_shows_no_progress_bar_in_a_pipe() -> None:
    done = spanqa("evaluate", EXAMPLES / "harbour.json", "--max-questions", "2")
    assert done.stderr == ""
    assert "HasAns_f1" in done.stdout


def test_info_tells_what_is_here_and_what_auto_takes() -> None:
    done = spanqa("info")
    assert "openvino" in done.stdout and "numpy" in done.stdout and "Uses" in done.stdout
    facts = json.loads(spanqa("info", "--json", "--backend", "numpy").stdout)
    assert facts["would use"] == {"backend": "numpy", "device": "cpu", "dtype": "fp32", "because": "it was asked for"}
    assert facts["backends"]["openvino"]["installed"]
    assert facts["settings"]["probability"] == "calibrated"


def test_version_and_help_answer() -> None:
    import spanqa as package

    assert spanqa("--version").stdout == f"spanqa {package.__version__}\n"
    assert "ask" in spanqa("--help").stdout
    assert "--top-k" in spanqa("ask", "--help").stdout


FRAMEWORKS = {
    "torch",
    "transformers",
    "openvino",
    "jax",
    "tensorflow",
    "onnxruntime",
    "pandas",
    "sklearn",
    "matplotlib",
}


def loaded_by(*command: str) -> set[str]:
    """The top-level packages that a Python command imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    return {line.split("|")[-1].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}


def test_importing_spanqa_loads_no_framework_and_not_even_numpy() -> None:
    assert not loaded_by("-c", "import spanqa") & (FRAMEWORKS | {"numpy", "tokenizers", "huggingface_hub", "rich"})


def test_help_loads_no_framework() -> None:
    assert not loaded_by("-m", "spanqa", "--help") & (FRAMEWORKS | {"numpy", "tokenizers", "huggingface_hub"})


def test_ask_loads_only_what_it_uses() -> None:
    loaded = loaded_by("-m", "spanqa", "ask", QUESTION, str(HARBOUR))
    assert "openvino" in loaded
    assert not loaded & (FRAMEWORKS - {"openvino"} | {"huggingface_hub", "urllib3", "requests", "httpx"})


def test_check_compares_the_backends_with_the_reference() -> None:
    rows = [json.loads(line) for line in spanqa("check", "--json").stdout.splitlines()]
    by_name = {(row["backend"], row["dtype"]): row for row in rows}
    assert by_name["numpy", "fp32"]["logits"] == 0
    assert by_name["openvino", "fp32"]["ran"] and by_name["openvino", "fp32"]["problem"] is None
    assert 0 < by_name["openvino", "fp32"]["logits"] < 1e-3
    table = spanqa("check", EXAMPLES / "harbour.json", "--max-questions", "2")
    assert table.returncode == 0
    assert "same answers" in table.stdout and "ok" in table.stdout
