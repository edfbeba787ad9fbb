"""Every number of a model folder is checked: a damaged field is one error, or changes nothing that breaks an answer."""

import json
import math
import os
import random
import socket
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spanqa import bounds
from spanqa.checkpoint import find, open_checkpoint
from spanqa.errors import CheckpointError, SpanQAError
from spanqa.reader import Reader
from tiny import FAMILIES, save_with_transformers, word_piece

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 5, 33, 10**6, 10**9, 2**63, 10**400, -(10**400), 16.9, 32.0, 1e-40, 1e-3, 1e30, -1e30,
    math.nan, math.inf, -math.inf, "", "64", "gelu", "relative_key", "\x1b[31mred\x07\n", [], [64], {}, {"a": [[]]}, [[[1]]],
]  # fmt: skip
MISSING = object()
GOOD = {
    "format": "spanqa/1",
    "windows": {"max_seq_length": 48, "overlap": None, "max_question_tokens": 20},
    "answers": {"max_answer_tokens": 10, "no_answer_threshold": -1.0},
    "calibration": {"a": 0.5, "b": 0.5, "temperature": 2.0, "data_sha256": None},
    "training": {},
    "quantization": {},
}


def damaged(generator: random.Random, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json and spanqa.json with one or two fields changed, removed or nested in each other."""
    files = json.loads(json.dumps([config, GOOD]))
    for _ in range(generator.choice([1, 1, 2])):
        place = files[0] if generator.random() < 0.6 else files[1]
        inner = [value for value in place.values() if isinstance(value, dict) and value]
        if inner and generator.random() < 0.7:
            place = generator.choice(inner)
        name = generator.choice(sorted(place))
        value = generator.choice([MISSING, files[1], *VALUES])
        if value is MISSING:
            del place[name]
        else:
            place[name] = json.loads(json.dumps(value))
        if generator.random() < 0.05:
            place["".join(generator.choices(string.printable, k=5))] = generator.choice(VALUES)
    return files[0], files[1]


def test_a_damaged_number_is_one_error_or_does_no_harm(tiny_copy: Callable[..., Path]) -> None:
    """1,000 folders with damaged fields. None hangs, takes memory without end, or gives what is no probability."""
    generator = random.Random(0)
    folders = {family: tiny_copy(family) for family in FAMILIES}
    configs = {family: json.loads((folder / "config.json").read_text()) for family, folder in folders.items()}
    refused = 0
    for number in range(1000):
        family = generator.choice(list(FAMILIES))
        config, settings = damaged(generator, configs[family])
        (folders[family] / "config.json").write_text(json.dumps(config))
        (folders[family] / "spanqa.json").write_text(json.dumps(settings))
        try:
            reader = Reader.load(folders[family], backend="numpy")
            answers = reader.rank("Who?", "It was Anna.", 3, no_answer="off")
        except SpanQAError as error:
            assert str(error).isprintable(), (number, str(error))
            assert len(str(error)) < 1500
            refused += 1
            continue
        for answer in answers:
            for value in (answer.probability, answer.no_answer_probability):
                assert 0 <= value <= 1, (number, config, settings)  # so it is not NaN
    assert 400 < refused < 900, refused


def test_a_damaged_number_of_an_architecture_that_only_torch_runs_is_one_error_or_does_no_harm(
    tmp_path: Path, transformers: Any
) -> None:
    """100 folders, as above."""
    generator = random.Random(0)
    tokenizer = word_piece()
    config = {"model_type": "mpnet", "vocab_size": tokenizer.get_vocab_size(), **FAMILIES["roberta"][1]}
    save_with_transformers(config, tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    refused = 0
    for _ in range(100):
        changed, settings = damaged(generator, config)
        (tmp_path / "config.json").write_text(json.dumps(changed))
        (tmp_path / "spanqa.json").write_text(json.dumps(settings))
        try:
            answers = Reader.load(tmp_path, backend="torch", dtype="fp32").rank("Who?", "It was Anna.", no_answer="off")
        except SpanQAError as error:
            assert str(error).isprintable()
            refused += 1
            continue
        assert all(0 <= answer.probability <= 1 for answer in answers)
    assert 30 < refused < 90, refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 999}, "has 999 layers by config.json, but only 39 parameters are stored"),
        ({"vocab_size": 9_000_000}, "has 288,[0-9,]+ numbers by config.json, but only [0-9,]+ are stored"),
    ],
)
def test_a_model_far_larger_than_its_weights_is_refused_before_memory_is_taken(
    changes: dict[str, Any], message: str, tmp_path: Path, transformers: Any
) -> None:
    tokenizer = word_piece()
    config = {"model_type": "mpnet", "vocab_size": tokenizer.get_vocab_size(), **FAMILIES["roberta"][1]}
    save_with_transformers(config, tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        Reader.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 1_000_000), ("num_hidden_layers", 2.0), ("hidden_size", 0), ("hidden_size", 16.9),
        ("hidden_size", "wide"), ("vocab_size", True), ("type_vocab_size", "two"), ("max_position_embeddings", -64),
        ("layer_norm_eps", math.nan), ("layer_norm_eps", -1), ("layer_norm_eps", 1e30), ("layer_norm_eps", 0),
        ("intermediate_size", 10**400), ("num_attention_heads", [4]), ("num_hidden_layers", math.inf), ("pad_token_id", "\x1b"),
    ],
)  # fmt: skip
def test_a_number_of_the_config_out_of_its_range_is_refused(
    field: str, value: Any, tiny_copy: Callable[..., Path]
) -> None:
    path = tiny_copy("bert") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(
        CheckpointError, match=rf"config.json': {field} is .{{1,63}}; expected a (whole )?number from"
    ) as found:
        open_checkpoint(path.parent)
    assert str(found.value).isprintable()


def test_a_number_that_python_does_not_write_is_shown_all_the_same() -> None:
    assert bounds.show(10**5000) == "a number of thousands of digits"
    assert bounds.show("\x1b" * 90) == repr("\x1b" * 90)[:60] + "..."


# --- files that are no files, names that are no names


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("make", [fifo, device, listening])
@pytest.mark.parametrize("name", ["config.json", "spanqa.json", "tokenizer.json", "vocab.txt", "model.safetensors"])
def test_what_would_be_read_for_ever_is_refused(
    name: str, make: Callable[[Path], None], tiny_copy: Callable[..., Path]
) -> None:
    folder = tiny_copy("bert")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name}' is a FIFO, a socket or a device; expected a regular file"):
        open_checkpoint(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_shard_of_any_name_that_would_be_read_for_ever_is_refused(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy("bert")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard"}}))
    os.mkfifo(folder / "shard")
    with pytest.raises(CheckpointError, match=r"shard' is not a regular file. Expected a safetensors file"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("~nosuchuser", "'~nosuchuser' names the home folder of a user that does not exist"),
        ("~nosuchuser/model", "names the home folder of a user that does not exist"),
        ("a\0b", r"'a\\x00b' "),
        ("/tmp/\x1b[31mred\n", r"There is no folder '/tmp/\\x1b\[31mred\\n'"),
        ("red\x1b[31m", r"'red\\x1b\[31m' is neither a folder nor a valid hub id"),
        ("/tmp/\udcff", r"There is no folder '/tmp/\\udcff'"),
        ("\udcff", r"'\\udcff' is neither a folder nor a valid hub id"),
    ],
)
def test_a_name_that_is_no_name_is_refused_and_shown_escaped(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as found:
        find(name)
    assert str(found.value).isprintable()


def test_the_names_of_parameters_are_shown_escaped(tiny_copy: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_copy("bert")
    weights = load_file(folder / "model.safetensors")
    weights["red\x1b[31m\n"] = weights.pop("qa_outputs.bias")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has unexpectedly 1 parameter: 'red\\x1b\[31m\\n'") as found:
        Reader.load(folder, backend="numpy")
    assert str(found.value).isprintable()
