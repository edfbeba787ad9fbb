"""Adapting an encoder to plain text: what is read, what is learned, what is written, and what survives an interruption."""

import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("datasets")

import numpy as np
import pyarrow
import pyarrow.parquet
import transformers
from safetensors.numpy import load_file, save_file

import tiny as tiny_checkpoints
from spanqa.backends import torch_attention
from spanqa.backends.torch_networks import build_masked_lm
from spanqa.checkpoint import open_checkpoint, read_settings, write_settings
from spanqa.cli.adapt import _print_result as print_result
from spanqa.errors import CheckpointError, DatasetError, InputError, InterruptedTrainingError, NotInstalledError
from spanqa.reader import Reader
from spanqa.train import corpus as corpora
from spanqa.train.adapt import Adapted, adapt
from spanqa.train.corpus import Corpus, CorpusReport, CorpusSettings, held_out, read_texts, text_files, write_corpus
from spanqa.train.masked_lm import MaskedWords, Predictions, measure, predict_only_chosen
from spanqa.train.masking import NO_WORD, mask_tokens, words_of
from spanqa.train.objective import InputFormat
from spanqa.train.settings import AdaptSettings, adapt_preset

BUILT = [
    "tower was built by Anna Kestrel in 1891",
    "lamp was lost by Tomas Brandt in 1923",
    "ferry was laid by the keeper in 2011",
]


def text(number: int) -> str:
    """Sentences in which words follow from others; no two texts are the same."""
    draw = random.Random(number)
    return f"{number}. " + " ".join(f"The {draw.choice(BUILT)}." for _ in range(6))


TEXTS = [text(number) for number in range(60)]
QUICK: dict[str, Any] = {
    "max_steps": 12, "batch_size": 8, "learning_rate": 3e-3, "dtype": "fp32", "device": "cpu", "save_steps": 4, "evaluations": 2,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def write_vocabulary(folder: Path) -> None:
    """Give the tokenizer pieces that are the same in every run, which a trained vocabulary is not; long words are two pieces."""
    words = sorted({word for each in TEXTS for word in re.findall("[a-z]+", each.lower())})
    letters = sorted(set(string.ascii_lowercase + string.digits + string.punctuation))
    pieces = [piece for word in words for piece in ([word] if len(word) < 6 else [word[:4], f"##{word[4:]}"])]
    vocabulary = [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *letters,
        *(f"##{each}" for each in letters),
        *pieces,
    ]
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))}
    file.write_text(json.dumps(content))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(content["model"]["vocab"])}))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder as transformers makes it, which can learn, with a head that answers questions."""
    folder = tmp_path_factory.mktemp("base") / "bert"
    tiny_checkpoints.make("bert", folder)
    write_vocabulary(folder)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.hidden_dropout_prob = 0.1
    transformers.AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder)
    write_settings(
        folder,
        {
            "answers": {"max_answer_tokens": 7, "no_answer_threshold": 0.5},
            "calibration": {"a": 1.0, "b": 2.0, "temperature": 1.0},
        },
    )
    return folder


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": each}) for each in TEXTS))
    return path


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


# --- what is read


def read(names: list[Path], column: str = "text") -> tuple[list[str], CorpusReport]:
    report = CorpusReport()
    return list(read_texts(text_files(map(str, names)), column, report)), report


def test_files_and_folders_of_every_kind_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_text("plain")
    (folder / "below" / "b.md").write_text("# marked")
    (folder / "c.html").write_text("<p>a <b>page</b>")
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n\n{"text": "two", "more": 1}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["three", None]}), folder / "e.parquet")
    (folder / "f.png").write_bytes(b"\x89PNG\r\n")
    (folder / "g.json").write_text("{}")
    (folder / ".hidden.txt").write_text("hidden")
    texts, report = read([folder])
    assert texts == ["plain", "# marked", "a page\n", "one", "two", "three", ""]
    assert [Path(name).name for name in report.skipped] == ["f.png", "g.json"]
    assert str(CorpusReport(2, 1, 3, 4000, skipped=["x"] * 7)) == (
        "2 texts, 3 windows, 4,000 tokens; 1 texts hold nothing to learn from; no text in x, x, x, x, x and 2 other files"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a.txt' is not UTF-8: found byte 0xe9 at position 3"),
        ("a.csv", b"text\nx", r"a.csv' holds a table. Expected text, Markdown, or JSON Lines or Parquet"),
        ("a.pdf", b"%PDF-1", r"a.pdf' is a PDF file"),
        ("a.txt.gz", b"\x1f\x8b\x08nothing", r"a.txt.gz' is a damaged gzip file"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "x"}',
            r"a.jsonl', line 2 lacks 'text'; it has body. Name it with --text-column",
        ),
        ("a.jsonl", b"[1]", r"a.jsonl', line 1 lacks 'text'; it has \[1\]"),
        ("a.jsonl", b'{"text": 7}', r"a.jsonl', line 1: 'text' is 7; expected a text"),
        ("a.jsonl", b'{"text": "x"\n', r"a.jsonl', line 1 is not JSON in UTF-8"),
        ("a.parquet", b"PAR1", r"a.parquet' cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read([tmp_path / name])


def test_other_columns_are_named_and_missing_files_too(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    assert read([tmp_path / "a.parquet"], "body")[0] == ["x"]
    with pytest.raises(DatasetError, match=r"lacks the column 'text'; it has body. Name it with --text-column"):
        read([tmp_path / "a.parquet"])
    with pytest.raises(DatasetError, match=r"none.txt' does not exist"):
        read([tmp_path / "none.txt"])


def test_long_texts_are_read_in_parts_that_end_with_a_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "PART", 100)
    whole = "\n\n".join(f"{number} " + "word " * 8 for number in range(200))
    for name, data in (("a.txt", whole.encode()), ("b.txt.gz", gzip.compress(b"\xef\xbb\xbf" + whole.encode()))):
        (tmp_path / name).write_bytes(data)
        for large in (64 << 20, 500):
            monkeypatch.setattr(corpora, "LARGE", large)
            parts, _ = read([tmp_path / name])
            assert "".join(parts) == whole
            assert all(len(part) <= 100 for part in parts)
            assert all(part.endswith("\n\n") for part in parts[:-1])
    (tmp_path / "c.txt").write_bytes(b"x" * 1000 + b"\xe9" + b"x" * 1000)
    with pytest.raises(DatasetError, match=r"c.txt' is not UTF-8. Convert it first"):
        read([tmp_path / "c.txt"])
    (tmp_path / "d.txt").write_bytes(b"x" * 1000)  # nowhere to cut
    assert [len(part) for part in read([tmp_path / "d.txt"])[0]] == [100] * 10


def made(tmp_path: Path, base: Path, texts: list[str], room: int = 30) -> Corpus:
    path = tmp_path / "made.jsonl"
    path.write_text("\n".join(json.dumps({"text": each}) for each in texts))
    write_corpus(
        text_files([str(path)]), open_checkpoint(base).tokenizer, CorpusSettings(room, "text"), tmp_path / "corpus"
    )
    return Corpus(tmp_path / "corpus")


def test_windows_hold_the_tokens_of_the_texts_and_cut_no_word(tmp_path: Path, base: Path) -> None:
    texts = [*TEXTS[:5], "", "  \n", "ꙮ", TEXTS[0]]
    corpus = made(tmp_path, base, texts)
    assert (corpus.report.texts, corpus.report.empty) == (6, 3)
    tokenizer = open_checkpoint(base).tokenizer
    ids = np.concatenate([corpus[number].ids for number in range(len(corpus))])
    assert ids.tolist() == [
        each for each in tokenizer.encode_many([*TEXTS[:5], TEXTS[0]]) for each in each.ids.tolist()
    ]
    assert (corpus.report.tokens, corpus.report.unknown_tokens) == (
        len(ids) + 1,
        1,
    )  # that of a text in no window counts
    assert corpus.report.windows == len(corpus)
    for number in range(len(corpus)):
        window = corpus[number]
        assert 0 < len(window.ids) == len(window.words) <= 30
        assert window.number == number
    words = words_of(TEXTS[0], tokenizer.encode(TEXTS[0]))
    assert corpus[0].words.tolist() == words[: len(corpus[0].words)].tolist()
    assert words[len(corpus[0].words)] != words[len(corpus[0].words) - 1]


def test_whole_texts_are_held_out_with_all_their_copies(tmp_path: Path) -> None:
    base = tiny_checkpoints.make("roberta", tmp_path / "roberta")  # it has tokens for all numbers
    texts = [each.replace("The", f"The {number}") for number, each in enumerate(TEXTS)]  # no two windows are the same
    corpus = made(tmp_path, base, texts * 2)
    train, measured = corpus.split()
    assert len(measured) == held_out(len(corpus))
    assert not set(train) & set(measured)
    of_text = corpus._texts.to_numpy()
    assert not set(of_text[train]) & set(of_text[measured])
    other = tmp_path / "other"
    other.mkdir()
    again = made(other, base, texts[::-1])
    first, second = set(of_text[measured]), set(again._texts.to_numpy()[again.split()[1]])
    assert first <= second or second <= first  # the same texts first, in another order of files too
    assert corpus.sha256 != again.sha256


def test_of_few_texts_the_last_windows_are_held_out(tmp_path: Path, base: Path) -> None:
    corpus = made(tmp_path, base, [" ".join(TEXTS)])
    train, measured = corpus.split()
    assert [*train, *measured] == list(range(len(corpus)))
    assert len(measured) == held_out(len(corpus)) == len(corpus) // 10


def test_something_is_left_to_train_on_where_one_text_is_nearly_all(tmp_path: Path, base: Path) -> None:
    def mark(text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)

    small = [
        f"The {name}."
        for name in ("tower", "lamp", "ferry", "keeper", "cable", "shelf", "sea", "mail", "bread", "young")
    ]
    variants = (" ".join([*TEXTS, *["The"] * times]) for times in range(999))
    book = next(text for text in variants if mark(text) > max(map(mark, small)))  # it would be held out last
    corpus = made(tmp_path, base, [*small, book])
    train, measured = corpus.split()
    assert len(train) > 50 and len(measured) == 10 < held_out(len(corpus))


def test_one_window_is_too_little(tmp_path: Path, base: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(
        InputError, match=r"make 0 windows; .* Of 900 tokens, 900 are unknown to the model's tokenizer\."
    ):
        made(foreign, base, ["ꙮ " * 900]).split()
    with pytest.raises(InputError, match=r"The texts make 1 window; expected at least two"):
        made(tmp_path, base, ["Anna."]).split()


# --- the objective


@pytest.mark.parametrize("layout", ["padded", "packed", "flat"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_masks_touch_no_special_token_no_padding_and_no_other_window(tmp_path: Path, family: str, layout: Any) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints.make(family, tmp_path / family))
    corpus = made(tmp_path, checkpoint.path, tiny_checkpoints._WORDS, room=40)
    template, tokens = checkpoint.tokenizer.text_template, mask_tokens(checkpoint.tokenizer, family)
    windows = [corpus[number] for number in range(len(corpus))]
    objective = MaskedWords(InputFormat(layout, cols=100 if layout == "packed" else None), template, tokens)
    batch = objective.collate(windows)
    places, labels = batch["inputs"]["predicted"], batch["targets"]["labels"]
    read = batch["inputs"]["input_ids"].flatten()
    assert len(places) == len(labels) == len(set(places.tolist())) > 50
    before, _, after = (ids.tolist() for ids in template.special_ids)
    original = read.clone()
    original[places] = labels
    found, at, seen = [], 0, 0
    flat = original.tolist()
    whole = [[*before, *window.ids.tolist(), *after] for window in windows]
    while at < len(flat):  # every window is there, whole, between its special tokens
        number = next((n for n, ids in enumerate(whole) if flat[at : at + len(ids)] == ids), None)
        if number is None:  # padding
            at += 1
            continue
        match, seen = windows[number], seen + 1
        first = at + len(before)
        chosen = [int(place) - first for place in places if first <= place < first + len(match.ids)]
        words = match.words[chosen]
        assert (words != NO_WORD).all()
        assert all((match.words == word).sum() == (words == word).sum() for word in words)
        found += [first + place for place in chosen]
        at += len(before) + len(match.ids) + len(after)
    assert sorted(found) == sorted(places.tolist())
    assert seen == len(windows)


def objective_of(base: Path, corpus: Corpus, **options: Any) -> MaskedWords:
    tokenizer = open_checkpoint(base).tokenizer
    return MaskedWords(InputFormat("padded"), tokenizer.text_template, mask_tokens(tokenizer, "tiny"), **options)


def test_masks_depend_on_seed_epoch_and_window_alone(tmp_path: Path, base: Path) -> None:
    corpus = made(tmp_path, base, TEXTS)
    objective = objective_of(base, corpus)

    def read(numbers: list[int], **options: int) -> Any:
        for name, value in options.items():
            setattr(objective, name, value)
        return {number: objective.collate([corpus[number]])["inputs"]["input_ids"].tolist() for number in numbers}

    first = read([3, 1, 2], epoch=0, seed=0)
    assert read([1, 2, 3], epoch=0, seed=0) == first
    assert read([1, 2, 3], epoch=1, seed=0) != first
    assert read([1, 2, 3], epoch=0, seed=1) != first


@pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)
def test_logits_of_chosen_tokens_alone_are_those_of_all(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints.make(family, tmp_path / family))
    corpus = made(tmp_path, checkpoint.path, TEXTS[:4], room=40)
    template, tokens = checkpoint.tokenizer.text_template, mask_tokens(checkpoint.tokenizer, family)
    windows = [corpus[number] for number in range(4)]
    network, has_head = build_masked_lm(checkpoint, torch.float32)
    assert not has_head
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    network.eval()
    objective = MaskedWords(InputFormat.of(network, checkpoint, "padded"), template, tokens)
    batch = objective.collate(windows)
    options = dict(batch["inputs"])
    places = options.pop("predicted")
    with torch.no_grad():
        expected = network(**options).logits.flatten(0, 1)[places]
        predict_only_chosen(network)
        found = network(**batch["inputs"]).logits[0]
        flat = MaskedWords(InputFormat.of(network, checkpoint, "flat"), template, tokens).collate(windows)
        network.set_attn_implementation(torch_attention.FLAT)
        of_flat = objective.loss(network(**flat["inputs"]), flat)
    torch.testing.assert_close(found, expected)
    by_hand = -expected.log_softmax(-1).gather(1, batch["targets"]["labels"][:, None]).mean()
    assert of_flat.item() == pytest.approx(by_hand.item(), abs=1e-4)


def test_a_new_head_is_tied_where_the_config_says_untied(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoints.make("bert", tmp_path / "bert", tie_word_embeddings=False))
    network, has_head = build_masked_lm(checkpoint, torch.float32)
    assert not has_head
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    own = transformers.BertForMaskedLM(transformers.AutoConfig.from_pretrained(checkpoint.path))
    own.save_pretrained(tmp_path / "bert")
    kept, has_head = build_masked_lm(open_checkpoint(tmp_path / "bert"), torch.float32)
    assert has_head
    assert torch.equal(kept.get_output_embeddings().weight, own.get_output_embeddings().weight)
    assert not torch.equal(kept.get_output_embeddings().weight, kept.get_input_embeddings().weight)


def test_a_batch_in_which_nothing_is_chosen_has_no_loss(base: Path, tmp_path: Path) -> None:
    corpus = made(tmp_path, base, TEXTS)
    window = corpus[0]
    nothing = type(window)(0, window.ids, np.zeros_like(window.words))  # one word, longer than what is wanted
    checkpoint = open_checkpoint(base)
    network, _ = build_masked_lm(checkpoint, torch.float32)
    predict_only_chosen(network)
    batch = objective_of(base, corpus).collate([nothing])
    assert objective_of(base, corpus).loss(network(**batch["inputs"]), batch).item() == 0
    found = measure(network, InputFormat("padded"), checkpoint.tokenizer.text_template, 4, [nothing])
    assert (found.words, found.tokens, found.loss) == (0, 0, 0)


class _Knows(torch.nn.Module):
    """A network that answers with the tokens that it is told, right or wrong."""

    def __init__(self, answers: dict[int, int], wrong: set[int]) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.answers, self.wrong = answers, wrong

    def forward(self, input_ids: Any, predicted: Any, **_: Any) -> Any:
        logits = torch.zeros(1, len(predicted), 500)
        for i, place in enumerate(predicted.tolist()):
            assert input_ids.flatten()[place] == 4
            logits[0, i, self.answers[place] + (place in self.wrong)] = 50.0
        return transformers.modeling_outputs.MaskedLMOutput(logits=logits)


def test_a_word_counts_as_predicted_if_all_its_tokens_are(base: Path, tmp_path: Path) -> None:
    corpus = made(tmp_path, base, TEXTS)
    template = open_checkpoint(base).tokenizer.text_template
    window = max((corpus[n] for n in range(20)), key=lambda each: len(each.ids))
    words = np.repeat(np.arange(len(window.ids) // 2, dtype=np.int32), 2)
    window = type(window)(0, window.ids[: len(words)], words)  # words of two tokens, of which a word or two are hidden
    answers = {place + 1: int(token) for place, token in enumerate(window.ids)}
    for wrong, expected in (
        (set(), (100, 100)),
        ({place for place in answers if place % 2}, (0, 50)),
        (set(answers), (0, 0)),
    ):
        network = _Knows(answers, wrong)
        found = measure(network, InputFormat("padded"), template, 4, [window])
        assert (found.words, found.tokens) == expected


# --- a run


@pytest.fixture(scope="module")
def adapted(
    one_thread: None, base: Path, lines: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Adapted, list[str], list[tuple[int, int, str]]]:
    """A model that has learned, and what was said meanwhile."""
    out = tmp_path_factory.mktemp("adapted") / "out"
    notes: list[str] = []
    seen: list[tuple[int, int, str]] = []
    done = adapt(
        lines, out, model=base, notify=notes.append, progress=lambda done, total, note="": seen.append((done, total, note)),
        **{**QUICK, "max_steps": 150, "batch_size": 16, "learning_rate": 1e-2, "save_steps": 500},
    )  # fmt: skip
    assert done is not None
    return done, notes, seen


def test_a_model_learns_to_predict_hidden_words_and_is_delivered_whole(adapted: Any, base: Path) -> None:
    done, notes, seen = adapted
    out = done.out
    assert done.before is None  # the head was new
    assert done.after.words > 50 and done.after.loss < 1.5  # measured: 72 % and 0.65; a new head finds none
    found = {int(step): each for step, each in done.training["found"].items()}
    assert sorted(found) == [75, 150]
    assert found[150]["loss"] < found[75]["loss"]
    assert not out.with_name("out.training").exists()
    log = json.loads((out / "training" / "log.json").read_text())
    assert [entry["step"] for entry in log if "accuracy" in entry] == [75, 150]
    assert re.fullmatch(r"loss [\d.e-]+, Accuracy [\d.]+", seen[-1][2]) and seen[-1][:2] == (150, 150)
    assert re.match(r"60 texts, \d+ windows, [\d,]+ tokens; held out to measure on: \d+ windows", notes[0])
    assert "gets a new one that shares its token embeddings" in notes[1]
    assert "the head that answers questions is kept as it is" in notes[2]
    card = (out / "README.md").read_text()
    assert f"| {done.after.words:.1f} % |" in card and "| masking | whole words |" in card
    assert read_settings(out)["answers"] == {"max_answer_tokens": 7, "no_answer_threshold": 0.5}
    assert read_settings(out)["calibration"] is None
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]


def test_the_result_still_answers_on_every_backend_and_can_be_adapted_again(
    adapted: Any, base: Path, lines: Path, tmp_path: Path
) -> None:
    done, _, _ = adapted
    one, other = weights(base), weights(done.out)
    assert all((one[name] == other[name]).all() for name in one if name.startswith("qa_outputs"))
    assert not (one["bert.embeddings.word_embeddings.weight"] == other["bert.embeddings.word_embeddings.weight"]).all()
    for backend in ("numpy", "torch"):
        with Reader.load(done.out, backend=backend) as reader:
            assert reader.ask("Who built the tower?", TEXTS[0], threshold=-1e9).text in TEXTS[0]
    again = adapt(
        lines, tmp_path / "again", model=done.out, **{**QUICK, "max_steps": 1, "learning_rate": 1e-9, "evaluations": 1}
    )
    assert again is not None and again.before is not None
    assert again.before.words == pytest.approx(done.after.words, abs=0.01)
    assert again.before.loss == pytest.approx(done.after.loss, abs=1e-4)
    assert again.training["new_head"] is False


def test_a_base_without_a_head_gets_none_that_answers(base: Path, lines: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (encoder / name).write_bytes((base / name).read_bytes())
    kept = {name: array for name, array in weights(base).items() if not name.startswith("qa_outputs")}
    save_file(kept, encoder / "model.safetensors", {"format": "pt"})
    notes: list[str] = []
    adapt(lines, tmp_path / "out", model=encoder, notify=notes.append, **{**QUICK, "max_steps": 1, "evaluations": 1})
    assert not any(name.startswith("qa_outputs") for name in weights(tmp_path / "out"))
    assert not any("answers questions" in note for note in notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    broken = {name: array for name, array in kept.items() if "layer.1.output.dense.weight" not in name}
    save_file(broken, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 parameters or has them in another shape: bert.encoder"):
        adapt(lines, tmp_path / "other", model=encoder, **QUICK)


def stop_at(step: int, number: int) -> Any:
    def progress(done: int, total: int, note: str = "") -> None:
        if done == step and not note:
            os.kill(os.getpid(), number)

    return progress


def test_a_run_that_is_stopped_and_resumed_gives_the_same_weights(base: Path, lines: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "batch_size": 16}  # the second epoch begins at the eighth step, and has other masks
    whole = adapt(lines, tmp_path / "whole", model=base, **settings)
    with pytest.raises(InterruptedTrainingError, match=r"Stopped after step 9."):
        adapt(lines, tmp_path / "out", model=base, progress=stop_at(9, signal.SIGTERM), **settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        InputError, match=r"are not those of the run in '.*out.training'. Give the same ones to resume it"
    ):
        adapt(lines, tmp_path / "out", model=base, resume=True, **{**settings, "max_seq_length": 32})
    done = adapt(lines, tmp_path / "out", model=base, resume=True, **settings)
    assert same(tmp_path / "whole", tmp_path / "out")
    assert done is not None and whole is not None
    assert done.training["found"] == whole.training["found"]
    assert not same(tmp_path / "whole", base)


def test_epochs_have_other_masks(base: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    usual = MaskedWords.collate

    def collate(self: MaskedWords, windows: Any) -> Any:
        epochs.append(self.epoch)
        return usual(self, windows)

    monkeypatch.setattr(MaskedWords, "collate", collate)
    adapt(lines, tmp_path / "out", model=base, **{**QUICK, "max_steps": 8, "batch_size": 64, "evaluations": 1})
    assert epochs == sorted(epochs) and set(epochs) > {0, 1, 2}


def test_a_run_that_was_stopped_after_its_last_step_is_delivered(
    base: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adapt(lines, tmp_path / "whole", model=base, **QUICK)

    def fail(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(sys.modules["spanqa.train.adapt"], "deliver", fail)
    with pytest.raises(OSError, match="no space left"):
        adapt(lines, tmp_path / "out", model=base, **QUICK)
    monkeypatch.undo()
    done = adapt(lines, tmp_path / "out", model=base, resume=True, **QUICK)
    assert done is not None and whole is not None
    assert same(tmp_path / "whole", tmp_path / "out")
    assert (done.training["steps"], done.training["windows_per_s"]) == (12, 0.0)


KILLED = """
import os, signal, sys
from spanqa.train import corpus
usual = corpus.words_of
times = 0
def die(*arguments):
    global times
    times += 1
    if times == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(*arguments)
corpus.words_of = die
from spanqa.train.adapt import adapt
adapt({lines!r}, {out!r}, model={base!r}, device="cpu", max_steps=2)
"""


def test_a_kill_while_texts_are_read_leaves_nothing_half(base: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = KILLED.format(lines=str(lines), out=str(out), base=str(base))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    work = tmp_path / "out.training"
    assert not (work / "corpus").exists() and any(work.iterdir())
    settings = {**QUICK, "max_steps": 2, "evaluations": 1}
    adapt(lines, out, model=base, resume=True, **settings)
    adapt(lines, tmp_path / "whole", model=base, **settings)
    assert same(out, tmp_path / "whole")
    assert not work.exists()


def test_what_cannot_work_is_reported_before_training_starts(base: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"already exists. Choose a new path"):
        adapt(lines, tmp_path, model=base)
    with pytest.raises(InputError, match=r"There is nothing to resume"):
        adapt(lines, tmp_path / "out", model=base, resume=True)
    with pytest.raises(InputError, match=r"There is no setting 'epoch' of adapting. Expected one of epochs, "):
        adapt(lines, tmp_path / "out", model=base, epoch=3)
    with pytest.raises(InputError, match=r"max_seq_length is 65, but this model reads at most 64 tokens"):
        adapt(lines, tmp_path / "out", model=base, max_seq_length=65)
    with pytest.raises(InputError, match=r"masking is 'span'; expected word or token"):
        AdaptSettings(masking="span")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"max_seq_length is 4; expected a whole number, at least 8"):
        AdaptSettings(max_seq_length=4)
    assert not (tmp_path / "out").exists()
    assert adapt_preset(768).learning_rate == pytest.approx(1e-4)
    assert adapt_preset(384).learning_rate == pytest.approx(2e-4)


def test_texts_that_this_model_cannot_learn_from_are_reported(base: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join([*TEXTS, *(["ꙮꙮ unbelievably" * 3] * 200)]))
    notes: list[str] = []
    adapt(
        tmp_path / "a.txt",
        tmp_path / "out",
        model=base,
        notify=notes.append,
        **{**QUICK, "max_steps": 1, "evaluations": 1},
    )
    assert any(re.match(r"\d+ % of the tokens are unknown to this model's tokenizer", note) for note in notes)
    (tmp_path / "b.txt").write_text(" ".join([*TEXTS, *(["unbelievably" * 3] * 200)]))
    adapt(
        tmp_path / "b.txt",
        tmp_path / "other",
        model=base,
        notify=notes.append,
        **{**QUICK, "max_steps": 1, "evaluations": 1},
    )
    assert any(
        re.match(r"\d+ % of the tokens belong to words of more than 9 tokens, which are never", note) for note in notes
    )


# --- the command

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_two_processes_train_as_one_does(base: Path, lines: Path, tmp_path: Path, command: Command) -> None:
    still = tmp_path / "still"  # without dropout, of which each process has its own
    shutil.copytree(base, still)
    config = json.loads((base / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    common = [
        "adapt", lines, "--model", still, "--max-steps", 10, "--learning-rate", "0.003", "--dtype", "fp32", "--device", "cpu",
        "--max-seq-length", 32,
    ]  # fmt: skip
    one = command(*common, "--batch-size", 16, "--out", tmp_path / "one", "--json")
    assert one.returncode == 0, one.stderr
    found = json.loads(one.stdout)
    assert found["before"] is None and set(found["after"]) == {"words", "tokens", "loss"}
    assert found["training"]["settings"]["max_seq_length"] == 32
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        "29508",
    ]
    arguments = [sys.executable, *launcher, "-m", "spanqa", *common, "--batch-size", 8, "--out", tmp_path / "two"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    two = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, env=environment)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("masked-word accuracy") == 1
    logs = [json.loads((tmp_path / name / "training" / "log.json").read_text()) for name in ("one", "two")]
    curves = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert len(curves[0]) == 1
    assert curves[0] == pytest.approx(
        curves[1], abs=0.02
    )  # means over tokens, of which a window has one or two more or less


def test_the_command_adapts_and_reports(adapted: Any, lines: Path, tmp_path: Path, command: Command) -> None:
    done = command(
        "adapt", lines, "--model", adapted[0].out, "--out", tmp_path / "out", "--max-steps", 2, "--masking", "token", "--device",
        "cpu", "--text-column", "text", "--accumulation", 2, "--batch-size", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"out: masked-word accuracy \d+\.\d % before, \d+\.\d % after\n", done.stdout)
    assert re.search(r"2 steps, at [\d.]+ windows/s; fine-tune it with: spanqa train ... --model", done.stdout)
    ours = ("step ", "60 texts", "the head that answers")
    assert [line for line in done.stderr.splitlines() if not line.startswith(ours)] == []  # and no library's
    assert "| masking | single tokens |" in (tmp_path / "out" / "README.md").read_text()


def test_a_model_that_is_no_better_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = Predictions(40, 50, 2), Predictions(39, 51, 2)
    print_result(Adapted(tmp_path, before, after, {"steps": 4, "windows_per_s": 0.0}), as_json=False)
    shown = capsys.readouterr().out
    assert "masked-word accuracy 40.0 % before, 39.0 % after" in shown
    assert "The texts did not make it better" in shown and "\n4 steps; fine-tune" in shown


def test_without_its_packages_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from spanqa.cli.adapt import adapt as adapt_command

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        NotInstalledError, match=r"Adapting to texts needs torch, .* and pyarrow.*pip install 'spanqa\[train\]'"
    ):
        adapt_command(["x.txt"], tmp_path / "out")


def test_errors_of_the_command(base: Path, tmp_path: Path, command: Command) -> None:
    done = command("adapt", tmp_path / "none.txt", "--model", base, "--out", tmp_path / "other")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"spanqa: File {str(tmp_path / 'none.txt')!r} does not exist. Check the name, or give the full path.\n"
    )
    assert not (tmp_path / "other").exists()
