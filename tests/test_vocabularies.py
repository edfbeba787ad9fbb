"""Tokenizers from vocabulary files, against those that transformers makes of the same files."""

import io
import json
import random
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers

import tiny as tiny_checkpoints
from spanqa.checkpoint import open_checkpoint
from spanqa.errors import CheckpointError
from spanqa.tokenizer_files import read_tokenizer
from spanqa.tokenizer_files.sentencepiece import read_sentencepiece
from spanqa.tokenizer_files.vocabularies import (
    albert,
    byte_level,
    camembert,
    deberta_v2,
    mpnet,
    read_options,
    word_piece,
    xlm_roberta,
)
from spanqa.tokenizer_setup import unwritable
from strategies import seeded_texts

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

TRAINER: dict[str, dict[str, Any]] = {
    "xlm-roberta": {},
    "deberta-v2": {
        "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3,
        "pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]",
    },
    "albert": {
        "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
        "split_by_number": False, "split_by_unicode_script": False,
    },
}  # fmt: skip
"""How the makers of a family trained their SentencePiece model."""

COUNTED = ["Of 41, 41, 41, and 41, in 1891, 41, 41, 1891, 41, 1891, 41."] * 20


@cache
def trained(kind: str, **options: Any) -> bytes:
    """A Unigram model of 300 pieces or so, as SentencePiece's own trainer writes it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*tiny_checkpoints.SENTENCES.splitlines(), *(COUNTED if kind == "albert" else [])]),
        model_writer=model, vocab_size=300, hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
        **TRAINER[kind], **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="session")
def pieces() -> bytes:
    return trained("xlm-roberta")


FILES = {
    "xlm-roberta": "sentencepiece.bpe.model",
    "camembert": "sentencepiece.bpe.model",
    "deberta-v2": "spm.model",
    "albert": "spiece.model",
}


def write_files(folder: Path, kind: str, pieces: bytes | None = None, **options: Any) -> Path:
    """Write the vocabulary files of a kind of model, and its tokenizer_config.json."""
    if kind in FILES:
        (folder / FILES[kind]).write_bytes(
            trained(kind if kind in TRAINER else "xlm-roberta") if pieces is None else pieces
        )
    elif kind == "roberta":
        tiny_checkpoints.byte_level().model.save(str(folder))
    else:
        tiny_checkpoints.word_piece().model.save(str(folder))
    if kind == "mpnet":
        words = (folder / "vocab.txt").read_text("utf-8")
        (folder / "vocab.txt").write_text(f"<s>\n<pad>\n</s>\n<unk>\n{words}<mask>\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


KINDS = [
    ("bert", word_piece, {"do_lower_case": True}),
    ("bert", word_piece, {"do_lower_case": False, "tokenize_chinese_chars": False}),
    ("mpnet", mpnet, {"do_lower_case": True}),
    ("mpnet", mpnet, {"do_lower_case": False, "strip_accents": True}),
    ("roberta", byte_level, {}),
    ("roberta", byte_level, {"add_prefix_space": True}),
    ("xlm-roberta", xlm_roberta, {}),
    ("camembert", camembert, {}),
    ("deberta-v2", deberta_v2, {}),
    ("deberta-v2", deberta_v2, {"do_lower_case": True, "split_by_punct": True}),
    ("albert", albert, {}),
    ("albert", albert, {"do_lower_case": False, "keep_accents": True}),
]


@pytest.fixture(autouse=True)
def any_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sentencepiece's generated code run with the protobuf that other packages allow, which may be older."""
    monkeypatch.setenv("TEMPORARILY_DISABLE_PROTOBUF_VERSION_CHECK", "true")


def reference(kind: str, folder: Path, options: dict[str, Any], transformers: Any) -> tokenizers.Tokenizer:
    """The tokenizer that transformers makes of the same files.

    Its version 5 has left out the normalizer of DeBERTa and the scores of ALBERT, but still has the functions that made the published
    files of both; see `spanqa.tokenizer_files.vocabularies`.
    """
    if kind not in ("deberta-v2", "albert"):
        name = {
            "bert": "Bert",
            "mpnet": "MPNet",
            "roberta": "Roberta",
            "xlm-roberta": "XLMRoberta",
            "camembert": "Camembert",
        }[kind]
        made = getattr(transformers, f"{name}Tokenizer").from_pretrained(folder, split_special_tokens=True)
        return made.backend_tokenizer
    pytest.importorskip("google.protobuf")
    from transformers.convert_slow_tokenizer import AlbertConverter, DebertaV2Converter

    settings = {"do_lower_case": kind == "albert", "split_by_punct": False, "keep_accents": False, **options}
    model = read_sentencepiece(folder / FILES[kind])
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    source = SimpleNamespace(vocab_file=folder / FILES[kind], convert_tokens_to_ids=ids.__getitem__, **settings)
    if kind == "deberta-v2":
        converted = DebertaV2Converter(source).converted()
        converted.add_special_tokens([*BERT_SPECIAL])
    else:
        converter = AlbertConverter(source)
        made = transformers.AlbertTokenizer(
            vocab=converter.vocab(converter.proto), _spm_precompiled_charsmap=model.charsmap, **options
        )
        converted = made.backend_tokenizer
    converted.encode_special_tokens = True
    return converted


def differences(texts: list[str], ours: tokenizers.Tokenizer, theirs: tokenizers.Tokenizer) -> list[str]:
    """The texts whose ids or offsets differ."""
    encoded = (tokenizer.encode_batch(texts, add_special_tokens=False) for tokenizer in (ours, theirs))
    return [
        text
        for text, one, other in zip(texts, *encoded, strict=True)
        if (one.ids, one.offsets) != (other.ids, other.offsets)
    ]


@pytest.mark.parametrize(("kind", "read", "options"), KINDS)
def test_ids_and_offsets_of_5000_texts_are_those_of_transformers(
    kind: str, read: Callable[..., Any], options: Any, tmp_path: Path, transformers: Any
) -> None:
    folder = write_files(tmp_path, kind, **options)
    ours = read(folder, read_options(folder))
    ours.encode_special_tokens = True
    theirs = reference(kind, folder, options, transformers)
    texts = seeded_texts(5000)
    if kind in FILES:  # where transformers takes special tokens for words of the vocabulary
        special = [*SPECIAL, *BERT_SPECIAL]
        texts = [t for t in texts if not any(token in unicodedata.normalize("NFKC", t) for token in special)]
    assert len(texts) > 3000
    assert not differences(texts, ours, theirs)
    for pair in zip(texts[::50], texts[1::50], strict=False):
        one, other = ours.encode(*pair), theirs.encode(*pair)
        assert (one.ids, one.type_ids, one.sequence_ids) == (other.ids, other.type_ids, other.sequence_ids)


@pytest.mark.parametrize(("kind", "read", "options"), [case for case in KINDS if case[0] in ("mpnet", *TRAINER)])
def test_a_folder_gives_the_tokens_of_the_tokenizer_json_that_transformers_makes_of_it(
    kind: str, read: Callable[..., Any], options: Any, tmp_path: Path, transformers: Any
) -> None:
    config = {"model_type": kind, "type_vocab_size": 2 if kind in ("deberta-v2", "albert") else 1}
    folder = write_files(tmp_path, kind, **options)
    ours = read_tokenizer(folder, config)
    reference(kind, folder, options, transformers).save(str(folder / "tokenizer.json"))
    theirs = read_tokenizer(folder, config)
    assert ours.template == theirs.template
    for text in seeded_texts(400, seed=1):  # special tokens among them, which are text for both
        one, other = ours.encode(text), theirs.encode(text)
        for name in ("ids", "offsets", "words"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist(), (name, text)


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


@pytest.mark.parametrize("kind", TRAINER)
def test_symbols_that_the_trainer_was_told_to_keep_are_pieces_as_for_sentencepiece(kind: str, tmp_path: Path) -> None:
    """ALBERT's has eight. transformers since 4.43 gives the word behind them another piece, as if a space stood there."""
    import sentencepiece

    model = trained(kind, user_defined_symbols="[TABLE],-,(,)")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    folder = write_files(tmp_path, kind, model, do_lower_case=False, keep_accents=True)
    tokenizer = read_tokenizer(folder, {"model_type": kind})
    for text in ("Anna [TABLE] lighthouse", "x[TABLE]ferry", "a well-built (tall) tower", "(the)tower-(the)tower"):
        shift = kind == "xlm-roberta"
        assert tokenizer.encode(text).ids.tolist() == [i + shift for i in processor.encode(text)]


@pytest.mark.parametrize(
    ("kind", "options"), [("deberta-v2", {}), ("albert", {"do_lower_case": False, "keep_accents": True})]
)
def test_deberta_and_albert_number_pieces_as_sentencepiece(kind: str, options: Any, tmp_path: Path) -> None:
    import sentencepiece

    folder = write_files(tmp_path, kind, **options)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / FILES[kind]))
    tokenizer = read_tokenizer(folder, {"model_type": kind})
    for text in tiny_checkpoints.SENTENCES.strip().splitlines():
        if not re.search(r"\d,", text):
            assert tokenizer.encode(text).ids.tolist() == processor.encode(text), text
    cls, sep = processor.piece_to_id("[CLS]"), processor.piece_to_id("[SEP]")
    assert tokenizer.template.before == ((cls, 0),)
    assert tokenizer.template.between == ((sep, 0),)
    assert tokenizer.template.after == ((sep, 1),)
    assert tokenizer.encode("\u13a0").ids[-1] == processor.unk_id()


def test_albert_cuts_the_comma_off_a_number(tmp_path: Path) -> None:
    import sentencepiece

    folder = write_files(tmp_path, "albert")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    text = "rose to 41, and 1,250, in 1891,"
    assert len([piece for piece in processor.encode(text, out_type=str) if re.search(r"\d,$", piece)]) == 3
    ids = read_tokenizer(folder, {"model_type": "albert"}).encode(text).ids.tolist()
    found = [processor.id_to_piece(i) for i in ids]
    assert not [piece for piece in found if re.search(r"\d,$", piece)]
    assert found.count(",") == 4


@pytest.mark.parametrize(
    ("options", "text", "like"),
    [
        ({}, "ÉLÈVE ``Anna''", 'eleve "anna"'),
        ({"keep_accents": True}, "ÉLÈVE", "élève"),
        ({"do_lower_case": False}, "Éléve", "Eleve"),
        ({"do_lower_case": False, "keep_accents": True}, "Ｔhe  tower", "The tower"),
    ],
)
def test_albert_changes_case_and_accents_as_its_options_say(options: Any, text: str, like: str, tmp_path: Path) -> None:
    as_it_is = write_files(tmp_path, "albert", do_lower_case=False, keep_accents=True)
    expected = read_tokenizer(as_it_is, {"model_type": "albert"}).encode(like).ids.tolist()
    folder = write_files(tmp_path, "albert", **options)
    assert read_tokenizer(folder, {"model_type": "albert"}).encode(text).ids.tolist() == expected
    assert expected.count(1) < len(expected)  # unknown


@pytest.mark.parametrize("kind", ["deberta-v2", "albert", "mpnet"])
@pytest.mark.parametrize("special", [*BERT_SPECIAL, "<pad>", "<unk>", "<s>", "</s>", "<mask>", "［CLS］", "[cls]"])
def test_special_tokens_typed_in_a_text_are_text(kind: str, special: str, tmp_path: Path) -> None:
    folder = write_files(tmp_path, kind, do_lower_case=special != "[CLS]")
    (folder / "added_tokens.json").write_text("{}")
    tokenizer = read_tokenizer(folder, {"model_type": kind})
    names = [unwritable(""), "[PAD]", "[CLS]", "[SEP]", "[MASK]", "<pad>", "<s>", "</s>", "<mask>"]
    found = [tokenizer._tokenizer.id_to_token(i) for i in tokenizer.encode(f"a {special} b").ids]
    assert len(found) > 4
    unknown = {"[UNK]", unwritable("[UNK]"), unwritable("<unk>")}  # for characters that have no token
    assert not [word for word in found if word not in unknown and word.startswith(tuple(names))]
    assert tokenizer.encode(f"a {special} b").offsets[-1].tolist() == [len(special) + 3, len(special) + 4]


@pytest.mark.parametrize("added", [None, {"[MASK]": 0}, {"[MASK]": 0, "<table>": 1}, {"<table>": 0}])
def test_the_mask_of_deberta_follows_its_pieces_and_is_no_text(added: Any, tmp_path: Path) -> None:
    """microsoft/deberta-v3-base names it in added_tokens.json alone, which does not say that it is special."""
    folder = write_files(tmp_path, "deberta-v2", do_lower_case=False, vocab_type="spm")
    count = len(read_sentencepiece(folder / "spm.model").pieces)
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps({word: count + i for word, i in added.items()}))
    tokenizer = read_tokenizer(folder, {"model_type": "deberta-v2", "vocab_size": count + 2, "type_vocab_size": 0})
    assert tokenizer.id_of("[MASK]") == (count if added is None or "[MASK]" in added else count + 1)
    assert tokenizer.id_of("[MASK]") not in tokenizer.encode("a [MASK] b").ids
    if added and "<table>" in added:
        assert count + added["<table>"] in tokenizer.encode("see <table> 4").ids


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("deberta-v2", b"\x0a\x05\x0a\x03abc", r"spm.model' lacks \[CLS\], \[SEP\]: it is not a vocabulary of DeBERTa"),
        ("albert", b"\x0a\x05\x0a\x03abc", r"spiece.model' lacks \[CLS\], \[SEP\]: it is not a vocabulary of ALBERT"),
        ("albert", b"\x0a\x07\x0a\x05[CLS]\x0a\x07\x0a\x05[SEP]", "spiece.model' has no piece for unknown characters. Fetch or"),
        ("deberta-v2", b"\x0a\x05\x0a\x03abc\x12\x02\x18\x02", "spm.model' is a SentencePiece model of algorithm 2"),
        ("albert", b"\x0a\x05\x0a\x03abc\x1a\x05\x12\x03abc", "spiece.model' cannot be read"),  # no such table
    ],
)  # fmt: skip
def test_files_that_are_no_vocabulary_of_the_family_are_refused(
    kind: str, content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(write_files(tmp_path, kind, content), {"model_type": kind})


def test_a_vocabulary_of_bert_is_none_of_mpnet(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vocab.txt' lacks <s>, </s>: it is not a vocabulary of MPNet"):
        read_tokenizer(write_files(tmp_path, "bert"), {"model_type": "mpnet"})


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
        ("big_bird", "spiece.model", {}, "spanqa does not read the tokenizer of 'big_bird' models from other files"),
        ("modernbert", "vocab.txt", {}, "spanqa does not read the tokenizer of 'modernbert' models"),  # a stray file
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
        ("mpnet", "vocab.json", "expected tokenizer.json or, for 'mpnet' models, vocab.txt"),
        ("deberta-v2", "spiece.model", "expected tokenizer.json or, for 'deberta-v2' models, spm.model"),
        ("albert", "vocab.txt", "expected tokenizer.json or, for 'albert' models, spiece.model"),
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
        ("vocab.json", '{"a": 0}', "vocab.json' lacks <s>, </s>: it is not a vocabulary of RoBERTa"),
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
    with pytest.raises(CheckpointError, match="lacks <s>, </s>: it is not a vocabulary of CamemBERT"):
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


@pytest.mark.parametrize("value", [["x"], 5, {"content": 7}])
def test_special_tokens_that_are_no_text_are_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"cls_token": value}))
    with pytest.raises(CheckpointError, match=r"cls_token is .* in the tokenizer's files; expected a text"):
        read_options(tmp_path)
