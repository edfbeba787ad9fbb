"""The command line: what it prints, where it prints it, and its exit codes.

`command` (see `conftest.py`) runs it in this process. Where a process of its own makes a difference (standard input and output
that are pipes, the exit code, what is imported), `spanqa` starts one.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spanqa.backends.registry import BACKENDS
from spanqa.checkpoint import find
from spanqa.cli import options
from spanqa.cli.show import percent
from spanqa.errors import DatasetError
from spanqa.evaluate import parity
from spanqa.evaluate.parity import Comparison
from spanqa.extras import NEEDS
from spanqa.files import claimed, read_standard_input
from spanqa.squad import read_squad

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
    first, sentence, place = done.stdout.splitlines()
    assert re.fullmatch(r"Not in this text \(9\d%\)\. Closest: .+ \(\d%\):", first)
    assert "[" in sentence and "harbour.txt, line " in place
    assert done.returncode == 0
    doubtful = command("ask", QUESTION, HARBOUR, "--threshold", "99").stdout
    assert re.match(r"Probably not in this text \(\d+%\)\. Closest: Anna Kestrel \(8\d%\):", doubtful)


def test_ask_prints_whole_percents_that_never_claim_certainty() -> None:
    assert [percent(p) for p in (0, 1e-9, 0.0099, 0.01, 0.824, 0.99, 0.9901, 1 - 1e-9, 1)] == [
        "0%", "<1%", "<1%", "1%", "82%", "99%", ">99%", ">99%", "100%",
    ]  # fmt: skip


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
    names = "question text start end score probability no_answer_probability sentence sentence_start passage_index source closest windows_read windows_total"
    assert [list(answer) for answer in answers] == [names.split()] * 3
    assert all(text[answer["start"] : answer["end"]] == answer["text"] for answer in answers)
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)
    [nothing] = [
        json.loads(line) for line in command("ask", "Who?", HARBOUR, "--json", "--threshold", "99").stdout.splitlines()
    ]
    assert (nothing["text"], nothing["start"], nothing["end"]) == ("", None, None)
    assert nothing["probability"] == nothing["no_answer_probability"]
    assert all(answer["closest"] is None for answer in answers)
    assert nothing["closest"]["text"] == "Anna Kestrel" and nothing["closest"]["closest"] is None
    assert list(nothing["closest"]) == names.split()[1:-2]


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


def test_ask_reads_folders_and_web_pages_and_counts_the_texts_as_given(tmp_path: Path, command: Command) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(" \n")
    (texts / "b.png").write_bytes(b"\x89PNG")
    (texts / "c.html").write_text(
        "<title>Pier</title>\n<script>var x</script><p>It was built\nby <b>Anna</b>&nbsp;Kestrel."
    )
    done = command(
        "ask", "Who built it?", HARBOUR.parent / "questions.txt", texts, "--json", "--save-text", tmp_path / "saved"
    )
    answer = json.loads(done.stdout)
    assert (answer["passage_index"], answer["source"]) == (2, str(texts / "c.html"))
    saved = (tmp_path / "saved" / "1-c.html.txt").read_text("utf-8")
    assert saved[answer["start"] : answer["end"]] == answer["text"] == "Anna\xa0Kestrel"
    assert f"skipped in {texts}, not text: {texts / 'b.png'}" in done.stderr
    assert "skipped empty files:" in done.stderr and "1 text of a web page is in" in done.stderr
    shown = command("ask", "Who built it?", texts / "c.html").stdout
    assert "It was built by [Anna Kestrel]." in shown and "c.html as text, line 3, characters" in shown
    fails(command("ask", "Who?", HARBOUR, "--save-text", texts), "already exists")
    (texts / "b.png").unlink()
    (texts / "a.txt").unlink()
    (texts / "c.html").unlink()
    fails(command("ask", "Who?", texts), "no file there holds text")


def test_ask_answers_a_file_of_questions_and_an_impossible_one_costs_itself(tmp_path: Path, command: Command) -> None:
    (tmp_path / "questions.txt").write_text(f"{QUESTION}\r\n\n{'why ' * 400}\nWhen did the cannery close?")
    arguments = ("ask", "--questions", tmp_path / "questions.txt", HARBOUR)
    done = command(*arguments, "--json")
    assert done.returncode == 1
    assert [(json.loads(line)["question"], json.loads(line)["text"]) for line in done.stdout.splitlines()] == [
        (QUESTION, "Anna Kestrel"),
        ("When did the cannery close?", "1954"),
    ]
    assert len(done.stderr.splitlines()) == 1 and "The question has 400 tokens" in done.stderr
    shown = command(*arguments).stdout.split("\n\n")
    assert [part.splitlines()[0] for part in shown] == [QUESTION, "When did the cannery close?"]
    piped = command("ask", "--questions", "-", HARBOUR, "--json", standard_input=QUESTION)
    assert json.loads(piped.stdout)["text"] == "Anna Kestrel"
    (tmp_path / "questions.txt").write_text("\n")
    fails(command(*arguments), "holds no question")


def test_the_order_of_several_answers_is_stated(command: Command) -> None:
    shown = command("ask", "When?", HARBOUR, "--top-k", "3", "--threshold", "-50").stdout
    assert shown.splitlines()[-1] == "In order of score; the percentages can have another order."


def test_the_example_is_the_file_that_check_reads() -> None:
    assert (EXAMPLES / "harbour.json").read_bytes() == parity.EXAMPLES.read_bytes()


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    return {
        "empty.txt": (b"", "There is no text to read"),
        "binary.bin": (b"\x7fELF\x00\x01", "is a binary file"),
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
        (
            ["ask", QUESTION, "https://example.org/a.html"],
            "'https://example.org/a.html' is a URL, and spanqa reads files",
        ),
        (["ask", QUESTION, HARBOUR, "--encoding", "base64"], "There is no text encoding 'base64'"),
        (["ask", "--questions", HARBOUR.parent / "nothing.txt", HARBOUR], "nothing.txt' does not exist"),
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
        (["evaluate", HARBOUR], "has a format that spanqa does not read"),
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
        (
            ["ask", "Who", "built", "the", "pier?", HARBOUR],
            f'Put the question in quotes: spanqa ask "Who built the pier?" {HARBOUR}',
        ),
        (["ask", "--questions", "-"], "standard input holds the questions"),
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


def test_evaluate_reads_a_pipe_once_and_hashes_what_it_read(tmp_path: Path) -> None:
    data = (EXAMPLES / "harbour.json").read_bytes()
    with (EXAMPLES / "harbour.json").open() as file:
        done = spanqa("evaluate", "/dev/stdin", "--max-questions", "1", "--json", stdin=file)
    assert json.loads(done.stdout)["settings"]["data"] == {
        "file": "stdin", "sha256": hashlib.sha256(data).hexdigest(), "questions": 1,
    }  # fmt: skip


def test_evaluate_reads_rows_and_lists_of_predictions(tmp_path: Path, command: Command) -> None:
    examples = read_squad(EXAMPLES / "harbour.json")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "id", "question", "context", "answer", "is_impossible"])
        for number, each in enumerate(examples):
            answer = each.answers[0].text if each.answers else "it was never said"
            rows.writerow([number, each.id, each.question, each.passage, answer, not each.answers])
    predictions = [
        {"id": each.id, "prediction_text": each.answers[0].text if each.answers else "", "no_answer_probability": 0.5}
        for each in examples
    ]
    (tmp_path / "list.json").write_text(json.dumps(predictions))
    done = command("evaluate", tmp_path / "rows.csv", "--predictions", tmp_path / "list.json", "--json")
    metrics = json.loads(done.stdout)["metrics"]
    assert (metrics["exact"], metrics["HasAns_total"], metrics["NoAns_total"]) == (100.0, 6, 2)
    assert metrics["best_f1"] == 100.0
    for wrong, message in (
        ([*predictions, predictions[0]], "9 predictions for 8 ids"),
        ([{"id": "1"}], "a list of objects with id and prediction_text; found"),
        ([*predictions[:-1], {k: v for k, v in predictions[-1].items() if "no" not in k}], "1 of 8 questions have no no-answer score"),
    ):  # fmt: skip
        (tmp_path / "list.json").write_text(json.dumps(wrong))
        fails(command("evaluate", tmp_path / "rows.csv", "--predictions", tmp_path / "list.json"), message)


def test_questions_without_answers_are_predicted_and_not_scored(tmp_path: Path, command: Command) -> None:
    row = {"id": "q\ud800", "question": QUESTION, "context": HARBOUR.read_text("utf-8")}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    fails(command("evaluate", tmp_path / "rows.json"), "spanqa evaluate FILE --predict-only --out DIR")
    done = command("evaluate", tmp_path / "rows.json", "--predict-only", "--out", tmp_path / "out")
    assert done.stdout == f"{tmp_path / 'out'}: predictions for 1 questions\n"
    assert json.loads((tmp_path / "out" / "predictions.json").read_text("utf-8")) == {"q\ud800": "Anna Kestrel"}
    assert list(json.loads((tmp_path / "out" / "record.json").read_text("utf-8"))) == ["settings"]
    empty = command("evaluate", write_rows(tmp_path / "empty.json", {**row, "answers": []}))
    assert "No question has an answer" in empty.stderr and "--predict-only" in empty.stderr
    assert command("evaluate", tmp_path / "rows.json", "--predict-only").returncode == 2


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_an_output_that_is_an_input_is_refused_before_work(tmp_path: Path, command: Command) -> None:
    data = tmp_path / "predictions.json"
    shutil.copy(EXAMPLES / "harbour.json", data)
    before = data.read_bytes()
    (tmp_path / "link.json").symlink_to(data)
    message = "is an input of this command, which would replace it"
    fails(command("evaluate", data, "--out", tmp_path), message)
    fails(command("evaluate", tmp_path / "link.json", "--out", tmp_path), message)
    fails(command("evaluate", EXAMPLES / "harbour.json", "--predictions", data, "--out", tmp_path / "."), message)
    assert data.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "predictions.json"]
    with claimed(tmp_path / "out"):
        fails(command("evaluate", data, "--out", tmp_path / "out"), "Another run writes to")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(tmp_path: Path, number: int) -> None:
    row = {"question": QUESTION, "context": HARBOUR.read_text("utf-8"), "answer": "Anna Kestrel"}
    data = write_rows(tmp_path / "rows.json", *[row] * 20_000)
    command = [sys.executable, "-m", "spanqa", "evaluate", str(data), "--out", str(tmp_path / "out"), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "out").glob(".*.partial")):
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate()
    assert (process.returncode, error) == (128 + number, "")
    assert list((tmp_path / "out").iterdir()) == []


ODD_NAME = os.fsdecode(b"daten-\xff.json")


def test_a_data_file_with_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    try:
        shutil.copy(EXAMPLES / "harbour.json", tmp_path / ODD_NAME)
    except OSError:
        pytest.skip("this file system takes no such name")
    done = spanqa("evaluate", tmp_path / ODD_NAME, "--out", tmp_path / "out", "--max-questions", "1")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "out" / "record.json").read_text("utf-8"))
    assert record["settings"]["data"]["file"] == "daten-\\udcff.json"
    assert r"daten-\udcff.json" in record["settings"]["command"]
    (tmp_path / ODD_NAME).write_text("[]")
    fails(spanqa("evaluate", tmp_path / ODD_NAME), r"daten-\udcff.json' holds no rows")


@pytest.mark.parametrize("option", ["--predictions", "--against", "DATA", "--out"])
def test_a_folder_where_a_file_should_be(tmp_path: Path, option: str, command: Command) -> None:
    for name in ("dev.json", "out", "out/predictions.json", "report"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "dev.json"
    arguments, message = {
        "--predictions": ([EXAMPLES / "harbour.json", "--predictions", folder], "is a folder. Expected a file"),
        "--against": ([EXAMPLES / "harbour.json", "--report", tmp_path / "report", "--against", folder], "is a folder. Expected a file"),
        "DATA": ([folder], "is not a folder saved by Hugging Face datasets"),
        "--out": ([EXAMPLES / "harbour.json", "--out", tmp_path / "out"], "Is a directory. Name a folder"),
    }[option]  # fmt: skip
    fails(command("evaluate", *arguments), message)


def test_info_tells_what_is_here_and_what_auto_takes(command: Command) -> None:
    done = command("info")
    assert "openvino" in done.stdout and "numpy" in done.stdout and "Uses" in done.stdout
    facts = json.loads(command("info", "--json", "--backend", "numpy").stdout)
    assert facts["would use"] == {"backend": "numpy", "device": "cpu", "dtype": "fp32", "because": "it was asked for"}
    assert facts["backends"]["openvino"]["installed"]
    assert facts["settings"]["probability"] == "calibrated"


def test_info_shows_every_hint_whole_in_a_pipe_and_says_whether_int8_pays(command: Command) -> None:
    shown = command("info").stdout
    lines = shown.splitlines()
    for name, need in NEEDS.items():
        if name in BACKENDS:
            hint = f"pip install 'spanqa[{need.extra}]'" if need.extra else "installed with spanqa"
            assert any(line.split()[:1] == [name] and line.rstrip().endswith(hint) for line in lines), name
    assert "…" not in shown
    said = json.loads(command("info", "--json").stdout)["int8"]
    assert any(line == f"int8  {said}" for line in lines)
    assert said.startswith(("pays here", "does not pay here", "may pay here"))


def test_info_shows_no_control_characters_of_a_path(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "red\x1b[31m"
    shutil.copytree(find("spanqa-mini"), folder)
    shown = command("info", "--model", folder, "--backend", "numpy").stdout
    assert "\x1b" not in shown and "red\\x1b[31m" in shown


def test_the_help_of_backend_names_every_backend() -> None:
    (option,) = typing.get_args(options.Backend)[1:]
    assert all(name in option.help for name in BACKENDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", QUESTION, HARBOUR, "--threshold", "nan"), "threshold is nan; expected a number from -inf to"),
        (("evaluate", EXAMPLES / "harbour.json", "--threshold", "nan"), "threshold is nan; expected a number"),
        (
            (
                *["quantize", "--out", "out", "--calibration-questions", "2", "--most-f1-lost", "nan", "--data"],
                EXAMPLES / "harbour.json",
            ),
            "most_f1_lost is nan; expected a number from 0 to 100",
        ),
    ],
)
def test_a_number_that_is_none_is_refused(arguments: tuple[str | Path, ...], message: str, command: Command) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"spanqa: {message}")


def test_a_probability_that_is_no_number_is_wrong_usage(command: Command) -> None:
    assert command("ask", QUESTION, HARBOUR, "--min-probability", "nan").returncode == 2


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


def test_check_shows_each_reason_whole_on_a_line_of_its_own(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "no int8 graph [in 'folder']. " + 30 * "Make a copy. "
    rows = [
        Comparison("openvino", "int8", ran=False, problem=reason),
        Comparison("torch", "fp32", ran=True, problem=reason),
    ]
    monkeypatch.setattr("spanqa.evaluate.parity.check_backends", lambda *args, **options: iter(rows))
    done = command("check")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"openvino int8  {reason}" in lines and f"torch fp32  {reason}" in lines
    assert [line.split()[-1] for line in lines[1:3]] == ["run", "failed"]


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
