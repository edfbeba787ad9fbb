"""The command line: what it prints, where it prints it, and its exit codes.

`command` (see `conftest.py`) runs it in this process. Where a process of its own makes a difference (standard input and output
that are pipes, the exit code, what is imported), `spanqa` starts one.
"""

import gzip
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spanqa.backends.registry import BACKENDS
from spanqa.errors import DatasetError
from spanqa.evaluate import parity
from spanqa.files import read_standard_input

EXAMPLES = Path(__file__).parents[1] / "examples"
HARBOUR = EXAMPLES / "harbour.txt"
QUESTION = "Who built the first pier?"
Command = Callable[..., subprocess.CompletedProcess[str]]


def spanqa(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spanqa", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"} | options.pop("env", {})
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


def interrupted(*command: str | Path, after: str, times: int = 1) -> tuple[int, str, str]:
    """The code and the output of a process that gets Ctrl-C as soon as it writes `after` to standard error."""
    python = [sys.executable, "-X", "importtime", "-m", "spanqa", *map(str, command)]
    with subprocess.Popen(python, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any(after in line for line in lines)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        said = "".join(line for line in lines if not line.startswith("import time:"))
        return process.wait(), process.stdout.read(), said


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


def test_ask_says_when_the_text_does_not_hold_the_answer(command: Command) -> None:
    done = command("ask", "Who was the king of Spain?", HARBOUR)
    assert done.stdout.startswith("Not in this text.")
    assert done.returncode == 0


def test_ask_reads_several_files_and_standard_input_together(tmp_path: Path, command: Command) -> None:
    other = tmp_path / "other.txt"
    other.write_text("It rained all day.")
    files = command("ask", QUESTION, other, HARBOUR, "--json")
    piped = command("ask", QUESTION, other, "-", "--json", standard_input=HARBOUR.read_text("utf-8"))
    answers = [json.loads(done.stdout) for done in (files, piped)]
    assert [answer["text"] for answer in answers] == ["Anna Kestrel"] * 2
    assert [answer["source"] for answer in answers] == [str(HARBOUR), "standard input"]
    assert [answer["passage_index"] for answer in answers] == [1, 1]


def test_ask_json_has_the_fields_of_an_answer_and_the_question(command: Command) -> None:
    lines = command("ask", "When?", HARBOUR, "--json", "--top-k", "3", "--threshold", "-50").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    text = HARBOUR.read_text("utf-8")
    names = (
        "question text start end score probability no_answer_probability sentence sentence_start passage_index source "
        "windows_read windows_total"
    )
    assert [list(answer) for answer in answers] == [names.split()] * 3
    assert all(text[answer["start"] : answer["end"]] == answer["text"] for answer in answers)
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)
    [nothing] = [
        json.loads(line) for line in command("ask", "Who?", HARBOUR, "--json", "--threshold", "99").stdout.splitlines()
    ]
    assert (nothing["text"], nothing["start"], nothing["end"]) == ("", None, None)
    assert nothing["probability"] == nothing["no_answer_probability"]


def test_a_terminal_control_sequence_in_a_text_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "evil.txt").write_text("The pier was built by \x1b[31m[bold]Anna Kestrel[/bold]\x07 in 1873.")
    done = spanqa("ask", "Who built the pier?", tmp_path / "evil.txt")
    assert done.returncode == 0
    assert "Anna" in done.stdout
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout


def test_an_empty_file_among_others_is_told_and_passed_over(tmp_path: Path, command: Command) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    done = command("ask", QUESTION, tmp_path / "empty.txt", HARBOUR, "--json")
    assert json.loads(done.stdout)["text"] == "Anna Kestrel"
    assert "empty.txt" in done.stderr


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    return {
        "empty.txt": (b"", "There is no text to read"),
        "binary.bin": (b"\x89PNG\x00\x01", "is a binary file"),
        "latin1.txt": ("Zürich".encode("latin1"), "is not UTF-8: found byte 0xfc at position 1"),
        "cut.gz": (gzip.compress(b"Anna Kestrel built it." * 99)[:-9], "is a damaged gzip file"),
    }


@pytest.mark.every_version
@pytest.mark.parametrize("name", ["empty.txt", "binary.bin", "latin1.txt", "cut.gz"])
def test_a_file_that_cannot_be_read_fails_with_one_message(name: str, tmp_path: Path, command: Command) -> None:
    content, message = bad_files(tmp_path)[name]
    (tmp_path / name).write_bytes(content)
    fails(command("ask", QUESTION, tmp_path / name), message)


@pytest.mark.every_version
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
        (["ask", QUESTION, HARBOUR, "--backend", "openvino", "--device", "cuda:9"], "does not see device 'cuda:9'"),
        (["ask", QUESTION, HARBOUR, "--dtype", "fp7"], "Unknown dtype 'fp7'"),
        (["ask", QUESTION, HARBOUR, "--backend", "numpy", "--dtype", "bf16"], "does not support dtype 'bf16'"),
        (["evaluate", HARBOUR], "is not JSON"),
        (["evaluate", EXAMPLES / "harbour.json", "--predictions", EXAMPLES / "harbour.json"], "harbour-1"),
        (["evaluate", EXAMPLES / "harbour.json", "--out", HARBOUR], "Name a folder that can be written to"),
    ],
)
def test_bad_input_fails_with_one_message(arguments: list[str | Path], message: str, command: Command) -> None:
    fails(command(*arguments), message)


@pytest.mark.every_version
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
def test_wrong_usage_exits_with_2(arguments: list[str | Path], message: str, command: Command) -> None:
    fails(command(*arguments), message, code=2)


def test_a_process_ends_with_the_code_and_the_one_message_of_its_failure() -> None:
    fails(spanqa("ask", " ", HARBOUR), "The question is empty")
    fails(spanqa("sing"), "sing", code=2)


def test_standard_input_is_read_from_a_pipe() -> None:
    done = spanqa("ask", QUESTION, "--json", input=HARBOUR.read_text("utf-8"))
    assert (json.loads(done.stdout)["text"], done.returncode, done.stderr) == ("Anna Kestrel", 0, "")


def test_debug_shows_the_traceback() -> None:
    done = spanqa("--debug", "ask", QUESTION, "missing.txt")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "DatasetError" in done.stderr


def test_evaluate_prints_both_blocks_and_writes_the_files_of_run_qa(tmp_path: Path, command: Command) -> None:
    out = tmp_path / "results"
    record = json.loads(
        command("evaluate", EXAMPLES / "harbour.json", "--out", out, "--json", "--dtype", "fp32").stdout
    )
    assert record["metrics"]["total"] == 8
    assert record["metrics"]["HasAns_f1"] > 80
    assert record["reader"]["f1"] == pytest.approx(record["metrics"]["f1"])
    assert sorted(path.name for path in out.iterdir()) == [
        "nbest_predictions.json", "null_odds.json", "predictions.json", "record.json",
    ]  # fmt: skip
    assert json.loads((out / "record.json").read_text("utf-8")) == record
    assert len(json.loads((out / "predictions.json").read_text("utf-8"))) == 8
    again = command("evaluate", EXAMPLES / "harbour.json", "--predictions", out / "predictions.json", "--json")
    again_odds = command(
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


def test_info_tells_what_is_here_and_what_auto_takes(command: Command) -> None:
    done = command("info")
    assert "openvino" in done.stdout and "numpy" in done.stdout and "Uses" in done.stdout
    facts = json.loads(command("info", "--json", "--backend", "numpy").stdout)
    assert facts["would use"] == {"backend": "numpy", "device": "cpu", "dtype": "fp32", "because": "it was asked for"}
    assert facts["backends"]["openvino"]["installed"]
    assert facts["settings"]["probability"] == "calibrated"


def test_version_and_help_answer(command: Command) -> None:
    import spanqa as package

    assert command("--version").stdout == f"spanqa {package.__version__}\n"
    assert "ask" in command("--help").stdout
    assert "--top-k" in command("ask", "--help").stdout


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


def test_help_loads_no_framework() -> None:
    assert not loaded_by("-m", "spanqa", "--help") & (FRAMEWORKS | {"numpy", "tokenizers", "huggingface_hub"})


def test_ask_loads_only_what_it_uses() -> None:
    loaded = loaded_by("-m", "spanqa", "ask", QUESTION, str(HARBOUR))
    assert "openvino" in loaded
    assert not loaded & (FRAMEWORKS - {"openvino"} | {"huggingface_hub", "urllib3", "requests", "httpx"})


def test_check_compares_every_backend_with_the_reference(command: Command) -> None:
    """One question is enough here: `test_backends.py` compares them on more, in every precision."""
    done = command("check", EXAMPLES / "harbour.json", "--max-questions", "1", "--json")
    rows = {(row["backend"], row["dtype"]): row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0
    assert {name for name, _ in rows} == set(BACKENDS)
    assert rows["numpy", "fp32"]["logits"] == 0
    for name, info in BACKENDS.items():
        if info.installed and name != "numpy":
            assert rows[name, "fp32"]["ran"] and rows[name, "fp32"]["problem"] is None
            assert 0 < rows[name, "fp32"]["logits"] < 1e-3
    assert "no int8 graph" in rows["openvino", "int8"]["problem"]


def test_check_prints_a_table_and_asks_questions_of_its_own(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "BACKENDS", {name: BACKENDS[name] for name in ("openvino", "numpy")})
    done = command("check")
    assert done.returncode == 0
    assert "same answers" in done.stdout and "ok" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_one_message_and_closed_output_none() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "spanqa", "ask", QUESTION, str(HARBOUR), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "spanqa: No space left on device.\n")
    shell = shlex.join([sys.executable, "-m", "spanqa", "--version"])
    for redirection in (">&-", "2>&-"):
        done = subprocess.run(f"{shell} {redirection}", shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "Traceback" not in done.stderr


def test_closed_standard_input_is_one_message() -> None:
    shell = shlex.join([sys.executable, "-m", "spanqa", "ask", QUESTION])
    done = subprocess.run(f"{shell} <&-", shell=True, capture_output=True, text=True, check=False)
    fails(done, "Standard input is closed. Give a file, or pipe text to standard input.")


def test_standard_input_that_cannot_be_read_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    number = os.open(os.devnull, os.O_RDONLY)
    with io.TextIOWrapper(io.BufferedReader(io.FileIO(number, closefd=False))) as stream:
        os.close(number)
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(DatasetError, match=r"Standard input cannot be read: Bad file descriptor\. Give a file\."):
            read_standard_input()


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """With standard output closed, the next file that is opened would be written to by whatever prints."""
    program = "import os, spanqa.__main__ as m; m._prepare_streams(); print(os.open(os.devnull, os.O_RDONLY) > 2, file=open(os.environ['OUT'], 'w'))"
    shell = shlex.join([sys.executable, "-c", program])
    subprocess.run(f"{shell} <&- >&- 2>&-", shell=True, check=True, env={**os.environ, "OUT": str(tmp_path / "out")})
    assert (tmp_path / "out").read_text() == "True\n"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_characters_that_the_encoding_of_the_output_lacks_are_escaped(encoding: str, tmp_path: Path) -> None:
    text = "灯台はAnna Kestrelが建てた 🙂。"
    (tmp_path / "text.txt").write_text(text, "utf-8")
    options = {"env": {"PYTHONIOENCODING": encoding}}
    arguments = ("ask", "誰が建てた?", tmp_path / "text.txt", "--no-answer", "off")
    done = spanqa(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u706f\\u53f0" in done.stdout
    answer = json.loads(spanqa(*arguments, "--json", **options).stdout)
    assert (answer["question"], answer["sentence"]) == ("誰が建てた?", text)


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_during_imports_ends_the_process_without_a_word(times: int) -> None:
    code, out, said = interrupted("ask", QUESTION, HARBOUR, after="typer", times=times)
    assert code in ((130,) if times == 1 else (130, -signal.SIGINT))
    assert (out, said) == ("", "")


def test_an_interrupt_while_a_long_text_is_read_ends_the_process(tmp_path: Path) -> None:
    text = HARBOUR.read_text("utf-8") * 1000
    (tmp_path / "long.txt").write_text(text, "utf-8")
    arguments = ("ask", QUESTION, tmp_path / "long.txt", "--max-windows", "300")
    code, out, said = interrupted(*arguments, after="most likely of")
    assert (code, out, said) == (130, "", "")
