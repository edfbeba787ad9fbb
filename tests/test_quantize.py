"""int8 copies: written when they keep F1, refused when they do not."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from spanqa.calibration import Calibration
from spanqa.errors import AccuracyLostError, BackendError, CheckpointError, InputError, NotInstalledError
from spanqa.evaluate.run import Score
from spanqa.extras import installed
from spanqa.quantize import quantize
from spanqa.reader import Reader
from spanqa.squad import Example, read_squad

EXAMPLES = Path(__file__).parents[1] / "examples"
HARBOUR = (EXAMPLES / "harbour.txt").read_text("utf-8")

needs_nncf = pytest.mark.skipif(not installed("quantize"), reason="nncf is not installed")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 copy of the bundled model, made on the command line with eight questions."""
    out = tmp_path_factory.mktemp("quantized") / "int8"
    arguments = [
        "--data",
        EXAMPLES / "harbour.json",
        "--out",
        out,
        "--calibration-questions",
        "4",
        "--most-f1-lost",
        "50",
    ]
    command = [sys.executable, "-m", "spanqa", "quantize", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["calibration_questions"] == record["measured_questions"] == 4
    return out


@needs_nncf
def test_an_int8_copy_answers_and_says_how_it_was_made(quantized: Path, mini: Reader) -> None:
    reader = Reader.load(quantized, dtype="int8")
    answer = reader.ask("Who built the first pier?", HARBOUR, threshold=0.0)
    assert answer.text == "Anna Kestrel"
    assert answer.score == pytest.approx(
        mini.ask("Who built the first pier?", HARBOUR).score, abs=1.0
    )  # measured: 0.12
    settings = json.loads((quantized / "spanqa.json").read_text("utf-8"))
    assert settings["quantization"]["ffn_outputs"] == "int8"
    assert settings["quantization"]["no_answer_threshold"] == reader.answers.no_answer_threshold
    assert reader.backend.dtype == "int8"


@needs_nncf
def test_the_floats_of_an_int8_copy_are_those_of_the_model(quantized: Path, mini: Reader) -> None:
    reader = Reader.load(quantized, dtype="fp32")
    uncalibrated = copy.copy(mini)
    uncalibrated.calibration = Calibration()
    ours, theirs = (each.ask("Who built the first pier?", HARBOUR, threshold=0.0) for each in (reader, uncalibrated))
    assert ours == theirs
    assert not reader.calibrated  # the copy's threshold is new, the calibration was fitted to other scores


@needs_nncf
def test_attention_of_an_int8_copy_is_looked_at_in_floats(quantized: Path, mini: Reader) -> None:
    from spanqa.batches import Capture, pack

    reader = Reader.load(quantized, dtype="int8")
    [[window]] = mini._cut("Who built the first pier?", [mini.prepare(HARBOUR)])
    attention = reader.backend.forward(pack([[window]]), capture=Capture((0,))).attention
    assert attention is not None
    assert attention[0].shape == (1, 12, len(window), len(window))


@needs_nncf
def test_a_copy_that_loses_too_much_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []

    def score(reader: Reader, examples: Sequence[Example]) -> Score:
        scored.append(reader.backend.dtype)
        return Score(90.0 if reader.backend.dtype == "fp32" else 80.0, 0.0)

    monkeypatch.setattr("spanqa.quantize.score", score)
    with pytest.raises(AccuracyLostError, match=r"int8 lowers F1 from 90.00 to 80.00.* At most 1 points may be lost"):
        quantize(
            "spanqa-mini",
            read_squad(EXAMPLES / "harbour.json"),
            tmp_path / "out",
            data_sha256="",
            calibration_questions=2,
        )
    assert scored == ["fp32", "int8", "int8"], "feed-forward outputs in floats were tried too"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_and_too_few_questions_are_errors(tmp_path: Path) -> None:
    examples = read_squad(EXAMPLES / "harbour.json")
    arguments = {"data_sha256": ""}
    with pytest.raises(InputError, match=r"already exists\. Choose a new path"):
        quantize("spanqa-mini", examples, tmp_path, **arguments)
    with pytest.raises(InputError, match=r"The data has 8 questions\. Expected at least 400"):
        quantize("spanqa-mini", examples, tmp_path / "out", **arguments)


def test_without_nncf_the_way_to_install_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"pip install 'spanqa\[quantize\]'"):
        quantize(
            "spanqa-mini",
            read_squad(EXAMPLES / "harbour.json"),
            tmp_path / "out",
            data_sha256="",
            calibration_questions=2,
        )


def test_a_model_without_an_int8_graph_says_how_to_make_one() -> None:
    with pytest.raises(BackendError, match=r"has no int8 graph \(openvino_int8.xml\)"):
        Reader.load(dtype="int8")


def test_a_damaged_int8_graph_is_told(tmp_path: Path, mini: Reader) -> None:
    folder = tmp_path / "model"
    shutil.copytree(mini.checkpoint.path, folder)
    (folder / "openvino_int8.xml").write_text("<net>")
    with pytest.raises(CheckpointError, match=r"(?s)openvino_int8.xml' cannot be read: .* Quantize the model again"):
        Reader.load(folder, dtype="int8")
