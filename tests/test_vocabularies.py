"""Tokenizers from vocabulary files, against those that transformers makes of the same files."""

import io
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import tiny as tiny_checkpoints
from spanqa.checkpoint import open_checkpoint
from spanqa.errors import CheckpointError
from spanqa.sentencepiece import read_sentencepiece
from spanqa.tokenizer_files import read_tokenizer
from spanqa.tokenizer_setup import unwritable
from spanqa.vocabularies import byte_level, camembert, read_options, word_piece, xlm_roberta
from strategies import seeded_texts

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="session")
def pieces() -> bytes:
    """A Unigram model of 300 pieces or so, as SentencePiece's own trainer writes it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_checkpoints.SENTENCES.splitlines()), model_writer=model, vocab_size=300,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def write_files(folder: Path, kind: str, pieces: bytes, **options: Any) -> Path:
    """Write the vocabulary files of a kind of model, and its tokenizer_config.json."""
    if kind in ("xlm-roberta", "camembert"):
        (folder / "sentencepiece.bpe.model").write_bytes(pieces)
    elif kind == "roberta":
        tiny_checkpoints.byte_level().model.save(str(folder))
    else:
        tiny_checkpoints.word_piece().model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


KINDS = [
    ("bert", word_piece, "BertTokenizer", {"do_lower_case": True}),
    ("bert", word_piece, "BertTokenizer", {"do_lower_case": False, "tokenize_chinese_chars": False}),
    ("roberta", byte_level, "RobertaTokenizer", {}),
    ("roberta", byte_level, "RobertaTokenizer", {"add_prefix_space": True}),
    ("xlm-roberta", xlm_roberta, "XLMRobertaTokenizer", {}),
    ("camembert", camembert, "CamembertTokenizer", {}),
]


@pytest.mark.parametrize(("kind", "read", "theirs", "options"), KINDS)
def test_ids_and_offsets_of_5000_texts_are_those_of_transformers(
    kind: str, read: Callable[..., Any], theirs: str, options: Any, pieces: bytes, tmp_path: Path, transformers: Any
) -> None:
    folder = write_files(tmp_path, kind, pieces, **options)
    ours = read(folder, read_options(folder))
    ours.encode_special_tokens = True
    reference = getattr(transformers, theirs).from_pretrained(folder, split_special_tokens=True).backend_tokenizer
    texts = seeded_texts(5000)
    if kind in ("xlm-roberta", "camembert"):  # where transformers takes special tokens for words of the vocabulary
        texts = [t for t in texts if not any(token in unicodedata.normalize("NFKC", t) for token in SPECIAL)]
    assert len(texts) > 3000
    found = ours.encode_batch(texts, add_special_tokens=False)
    expected = reference.encode_batch(texts, add_special_tokens=False)
    for text, one, other in zip(texts, found, expected, strict=True):
        assert (one.ids, one.offsets) == (other.ids, other.offsets), text
    for pair in zip(texts[::50], texts[1::50], strict=False):
        one, other = ours.encode(*pair), reference.encode(*pair)
        assert (one.ids, one.type_ids, one.sequence_ids) == (other.ids, other.type_ids, other.sequence_ids)


def test_xlm_roberta_numbers_pieces_one_higher_than_sentencepiece(pieces: bytes, tmp_path: Path) -> None:
    import sentencepiece

    folder = write_files(tmp_path, "xlm-roberta", pieces)
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    tokenizer = read_tokenizer(folder, {"model_type": "xlm-roberta", "type_vocab_size": 1})
    for text in tiny_checkpoints.SENTENCES.strip().splitlines():
        assert tokenizer.encode(text).ids.tolist() == [i + 1 for i in processor.encode(text)]
    assert tokenizer.highest_id == processor.get_piece_size() + 1  # <mask>
    assert tokenizer.template.before == ((0, 0),)
    assert tokenizer.template.between == ((2, 0), (2, 0))


def test_all_pieces_scores_and_kinds_are_those_that_sentencepiece_reads(pieces: bytes, tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "pieces.model").write_bytes(pieces)
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    model = read_sentencepiece(tmp_path / "pieces.model")
    numbers = range(processor.get_piece_size())
    assert [piece.text for piece in model.pieces] == [processor.id_to_piece(i) for i in numbers]
    assert [piece.score for piece in model.pieces] == [processor.get_score(i) for i in numbers]
    assert [piece.kind for piece in model.pieces[:4]] == [2, 3, 3, 1]
    assert len(model.charsmap) > 100_000


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert"])
@pytest.mark.parametrize("special", [*SPECIAL, "<s>NOTUSED", "<unk>NOTUSED", "＜mask＞"])
def test_special_tokens_typed_in_a_text_are_text_for_sentencepiece(
    kind: str, special: str, pieces: bytes, tmp_path: Path
) -> None:
    folder = write_files(tmp_path, kind, pieces)
    tokenizer = read_tokenizer(folder, {"model_type": kind, "type_vocab_size": 1})
    found = [tokenizer._tokenizer.id_to_token(i) for i in tokenizer.encode(f"a {special}b").ids]
    assert len(found) > 4
    # a piece for each known character, the unknown token for the others: none for the special token
    assert set(found) <= {*"<>/", *(p.text for p in read_sentencepiece(folder / "sentencepiece.bpe.model").pieces if p.kind == 1), unwritable("<unk>")}  # fmt: skip
    assert "".join(found).count("unk") <= special.count("<") + special.count(">") + special.count("/") + 8


def test_a_symbol_that_the_trainer_was_told_to_keep_is_one_token(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_checkpoints.SENTENCES.splitlines()), model_writer=model, vocab_size=300,
        hard_vocab_limit=False, minloglevel=2, user_defined_symbols=["[TABLE]"],
    )  # fmt: skip
    folder = write_files(tmp_path, "xlm-roberta", model.getvalue())
    tokenizer = read_tokenizer(folder, {"model_type": "xlm-roberta", "type_vocab_size": 1})
    assert tokenizer.encode("x [TABLE] y").ids.tolist().count(tokenizer.encode("[TABLE]").ids[-1]) == 1


# --- which file is read, and how


def test_the_kind_is_chosen_by_the_type_of_the_model_and_not_by_the_files_there(pieces: bytes, tmp_path: Path) -> None:
    for kind in ("bert", "roberta", "xlm-roberta"):
        write_files(tmp_path, kind, pieces)
    text = "Anna Kestrel"
    found = {
        kind: read_tokenizer(tmp_path, {"model_type": kind, "type_vocab_size": 1}).encode(text).ids.tolist()
        for kind in ("bert", "electra", "distilbert", "roberta", "longformer", "xlm-roberta", "camembert")
    }
    assert found["bert"] == found["electra"] == found["distilbert"]
    assert found["roberta"] == found["longformer"]
    assert len({tuple(ids) for ids in found.values()}) == 4


@pytest.mark.parametrize("stated", ["RobertaTokenizer", "RobertaTokenizerFast", "LongformerTokenizerFast"])
def test_a_tokenizer_that_the_files_name_is_used(stated: str, pieces: bytes, tmp_path: Path) -> None:
    folder = write_files(tmp_path, "roberta", pieces, tokenizer_class=stated)
    assert read_tokenizer(folder, {"model_type": "bert", "type_vocab_size": 1}).template.between == ((2, 0), (2, 0))


@pytest.mark.parametrize(
    ("kind", "file", "options", "message"),
    [
        ("deberta-v2", "spm.model", {}, "spanqa does not read the tokenizer of 'deberta-v2' models from other files"),
        ("albert", "spiece.model", {}, "spanqa does not read the tokenizer of 'albert' models from other files"),
        ("albert", "vocab.txt", {}, "spanqa does not read the tokenizer of 'albert' models"),  # a stray file
        ("bert", "vocab.txt", {"tokenizer_class": "BertJapaneseTokenizer"}, "does not read a BertJapaneseTokenizer, as 'bert'"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_not_read_is_refused_with_the_command_that_converts_it(
    kind: str, file: str, options: Any, message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text("")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match=message) as refused:
        read_tokenizer(tmp_path, {"model_type": kind})
    command = str(refused.value).partition("pip install 'transformers<5' sentencepiece protobuf && ")[2]
    assert command.startswith('python -c "from transformers import AutoTokenizer as A; A.from_pretrained(')
    compile(command.removeprefix('python -c "').removesuffix('"'), "command", "exec")
    assert str(tmp_path) in command


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("roberta", "vocab.txt", "expected tokenizer.json or, for 'roberta' models, vocab.json"),
        ("xlm-roberta", "vocab.txt", "expected tokenizer.json or, for 'xlm-roberta' models, sentencepiece.bpe.model"),
        ("bert", "vocab.json", "expected tokenizer.json or, for 'bert' models, vocab.txt. Copy it from the original"),
    ],
)
def test_files_of_another_kind_are_not_read(kind: str, file: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("")
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(tmp_path, {"model_type": kind})


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "anna", "über", "uber", "##s"]


@pytest.mark.parametrize(
    ("more", "options", "text", "tokens"),
    [
        ([], None, "Über Anna", ["uber", "anna"]),
        (["Anna", "Über"], None, "Über Anna", ["Über", "Anna"]),
        (["Anna", "Über"], {"model_max_length": 512}, "Über Anna", ["Über", "Anna"]),
        (["Anna", "Über"], {"do_lower_case": True}, "Über Anna", ["uber", "anna"]),
        ([f"word{n}" for n in range(300)] + ["Anna"], None, "Anna", ["anna"]),  # a word in an unused place
        (["[unused0]", "[Unused1]"], None, "Anna", ["anna"]),
    ],
)
def test_a_vocabulary_with_upper_case_words_is_not_lowercased_silently(
    more: list[str], options: Any, text: str, tokens: list[str], tmp_path: Path
) -> None:
    words = [*WORDS, *more]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    if options is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    ids = read_tokenizer(tmp_path, {"model_type": "bert"}).encode(text).ids
    assert [words[i] for i in ids] == tokens


def test_how_a_vocabulary_was_read_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "Anna"]), encoding="utf-8")
    with caplog.at_level("INFO", "spanqa"):
        read_tokenizer(tmp_path, {"model_type": "bert"})
    assert "nothing says whether it is cased; read as cased" in caplog.text


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens_are_words_of_the_text_and_special_ones_are_not(form: str, pieces: bytes, tmp_path: Path) -> None:
    folder = write_files(tmp_path, "roberta", pieces)
    size = len(json.loads((folder / "vocab.json").read_text()))
    if form == "added_tokens.json":
        (folder / form).write_text(json.dumps({"<table>": size, "<mask2>": size + 1}))
        (folder / "special_tokens_map.json").write_text(
            json.dumps({"mask_token": {"content": "<mask2>", "lstrip": True}})
        )
    else:
        added = {str(size): {"content": "<table>"}, str(size + 1): {"content": "<mask2>", "special": True, "__type": "AddedToken"}}  # fmt: skip
        (folder / form).write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = read_tokenizer(folder, {"model_type": "roberta", "type_vocab_size": 1, "vocab_size": size + 2})
    assert tokenizer.highest_id == size + 1
    assert tokenizer.encode("<table>").ids.tolist() == [size]
    assert size + 1 not in tokenizer.encode("a <mask2> b").ids
    text = "see <table> 4"
    (place,) = (tokenizer.encode(text).ids == size).nonzero()[0]
    assert text.__getitem__(slice(*tokenizer.encode(text).offsets[place])) == "<table>"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("added_tokens.json", '{"<x>": 7000}', "The added token '<x>' of .* should have the id 7000, but its place in the"),
        ("added_tokens.json", "[]", "added_tokens.json' does not contain a JSON object"),
        ("added_tokens.json", '{"<x>": "y"}', "The added tokens of .* cannot be read: invalid literal"),
        ("added_tokens.json", '{"<x>": -1}', "The added tokens of .* cannot be read: "),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}', "The added tokens of .* cannot be read"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "The added tokens of .* cannot be read"),
        ("merges.txt", "#version\na b c\n", "vocab.json' and merges.txt cannot be read: "),
        ("merges.txt", "#version\nq xxxx\n", "vocab.json' and merges.txt cannot be read: "),
        ("merges.txt", b"\xff\xfe", "vocab.json' and merges.txt cannot be read: "),
        ("merges.txt", None, "has no merges.txt, which belongs to its vocab.json"),
        ("vocab.json", "{", "vocab.json' is not JSON"),
        ("vocab.json", '{"a": 0}', "vocab.json' lacks <s>, </s>: it is not a RoBERTa vocabulary"),
        ("vocab.json", '{"<s>": 0, "</s>": "x"}', "vocab.json' and merges.txt cannot be read: "),
    ],
)  # fmt: skip
def test_damaged_files_of_roberta_are_refused(
    file: str, content: Any, message: str, pieces: bytes, tmp_path: Path
) -> None:
    folder = write_files(tmp_path, "roberta", pieces)
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(folder, {"model_type": "roberta", "type_vocab_size": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no pieces. Fetch or copy it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "sentencepiece.bpe.model' is not a whole SentencePiece model",
        ),
        (b"\x0a\x05\x0a\x03abc\x0a\x09\x0a", "is not a whole SentencePiece model: it ends 8 bytes early"),
        (b"\x0b", "byte 0 has the wire type 3"),
        (b"\x0a" + b"\xff" * 12, "of a number of more than 64 bits"),
        (b"\x08\x01", "a number is where a text should be"),
        (b"\x12\x03\x1a\x01a", "a text is where a number should be"),
        (b"\x0a\x05\x0a\x03abc\x12\x02\x18\x02", r"is a SentencePiece model of algorithm 2. Expected 1 \(Unigram\)"),
        (b"\x0a\x04\x0a\x02\xff\xfe", "'utf-8' codec can't decode"),
        (b"\x0a\x05\x0a\x03abc\x1a\x05\x12\x03abc", "sentencepiece.bpe.model' cannot be read"),  # no such table
    ],
)
def test_damaged_sentencepiece_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    folder = write_files(tmp_path, "xlm-roberta", content)
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(folder, {"model_type": "xlm-roberta", "type_vocab_size": 1})


def test_a_sentencepiece_file_that_is_not_there_for_camembert_or_lacks_its_marks_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "camembert", b"\x0a\x05\x0a\x03abc" * 3)
    with pytest.raises(CheckpointError, match="lacks <s>, </s>: it is not a CamemBERT vocabulary"):
        read_tokenizer(tmp_path, {"model_type": "camembert"})
    (tmp_path / "sentencepiece.bpe.model").unlink()
    (tmp_path / "sentencepiece.bpe.model").mkdir()
    with pytest.raises(CheckpointError, match=r"sentencepiece.bpe.model' cannot be read: Is a directory"):
        read_tokenizer(tmp_path, {"model_type": "camembert"})


def test_sentencepiece_files_cut_or_changed_anywhere_are_refused_or_read(pieces: bytes, tmp_path: Path) -> None:
    """Also where the library panics, as it does for most damage to the table of compatibility forms."""
    draw = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(pieces)
        if draw.random() < 0.5:
            del damaged[draw.choice([draw.randrange(3000), draw.randrange(len(pieces))]) :]
        else:
            damaged[draw.choice([draw.randrange(3000), draw.randrange(len(pieces))])] ^= 1 << draw.randrange(8)
        write_files(tmp_path, "xlm-roberta", bytes(damaged))
        try:
            tokenizer = read_tokenizer(tmp_path, {"model_type": "xlm-roberta", "type_vocab_size": 1})
            assert tokenizer.encode("the tower").offsets.max() <= 9
        except CheckpointError:
            refused += 1
    assert refused > 50


@pytest.mark.every_version
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_a_checkpoint_without_tokenizer_json_opens(
    kind: str, pieces: bytes, tiny_copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_copy(kind)
    (folder / "tokenizer.json").unlink()
    write_files(folder, kind, pieces)
    tokenizer = open_checkpoint(folder).tokenizer
    text = "Who built the lighthouse?"
    tokens = tokenizer.encode(text)
    assert (tokens.offsets[0, 0], tokens.offsets[-1, 1]) == (0, len(text))
    assert isinstance(tokenizer._tokenizer, tokenizers.Tokenizer)
