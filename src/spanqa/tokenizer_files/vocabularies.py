"""Tokenizers from the vocabulary files of the families, for folders that have no tokenizer.json.

    vocab.txt                   WordPiece            BERT, DistilBERT, ELECTRA and their relatives; MPNet
    vocab.json, merges.txt      byte-level BPE       RoBERTa and its relatives
    sentencepiece.bpe.model     Unigram              XLM-R, CamemBERT ("bpe" is a part of the name only)
    spm.model                   Unigram              DeBERTa v2 and v3, mDeBERTa
    spiece.model                Unigram              ALBERT and its relatives

Each function is given the folder and the options of its tokenizer files (`read_options`), and returns the tokenizer that transformers
makes of them. Which function reads a folder is decided in `spanqa.tokenizer_files`.

For DeBERTa and ALBERT these are the rules of the tokenizer.json on the hub, which transformers 4 made. Version 5 leaves out DeBERTa's table of
compatibility forms, and the scores by which ALBERT cuts a comma off a number. Symbols that the trainer was told to keep (ALBERT's brackets)
are pieces like any other here, as SentencePiece has them; since 4.43, transformers gives the text behind one a space of its own.

Source: transformers, the tokenization files of bert, mpnet, roberta, xlm_roberta, camembert, deberta_v2 and albert;
convert_slow_tokenizer.py.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from spanqa.errors import CheckpointError
from spanqa.files import read_object
from spanqa.tokenizer_files.sentencepiece import CONTROL, UNIGRAM, UNKNOWN, Piece, read_sentencepiece
from spanqa.tokenizer_setup import refusing_damage, unwritable

_LOG = logging.getLogger(__name__)

OPTION_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""The files that say how a vocabulary is used."""

XLM_ROBERTA_FILE, DEBERTA_FILE, ALBERT_FILE = "sentencepiece.bpe.model", "spm.model", "spiece.model"
"""The names that a SentencePiece model has in the folders of the families."""

_ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_CASED_SHARE = (
    0.01  # of the words; an uncased vocabulary has none, but users put words of their own into its unused places
)


def read_options(path: Path) -> dict[str, Any]:
    """Return what tokenizer_config.json and special_tokens_map.json say, special tokens as their text.

    "added_tokens" has the tokens beside the vocabulary as id -> `AddedToken`.

    Raises:
        CheckpointError: a file is no JSON object, or describes an added token in another form.
    """
    config, special, added = (read_object(path / name) if (path / name).exists() else {} for name in OPTION_FILES)
    options = {**config, **special}
    for name, value in options.items():
        if name.endswith("_token") and isinstance(value, dict):
            options[name] = value = value.get("content")
        if name.endswith("_token") and not isinstance(value, str | bool | None):  # add_bos_token and its like are flags
            raise CheckpointError(
                f"{str(path)!r}: {name} is {value!r:.60} in the tokenizer's files; expected a text. Download the model again."
            )
    known = {value for name, value in options.items() if name.endswith("_token") and isinstance(value, str)}
    try:
        options["added_tokens"] = {
            int(i): AddedToken(**{name: value for name, value in token.items() if name != "__type"})
            for i, token in config.get("added_tokens_decoder", {}).items()
        } or {
            int(i): AddedToken(word, normalized=word not in known, special=word in known) for word, i in added.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"The added tokens of {str(path)!r} cannot be read: {error}.") from None
    return options


def word_piece(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read vocab.txt. Case and accents are as `do_lower_case` says or, where nothing says it, as the vocabulary has them.

    Raises:
        CheckpointError: the file cannot be read, or lacks one of [UNK], [CLS] and [SEP].
    """
    tokenizer, cls, sep = _word_piece(path, options, "BERT", ("[UNK]", "[CLS]", "[SEP]"), ("[PAD]", "[MASK]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return tokenizer


def mpnet(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read vocab.txt as MPNet has it: BERT's words, RoBERTa's special tokens.

    Raises:
        CheckpointError: the file cannot be read, or lacks one of [UNK], <s> and </s>.
    """
    tokenizer, cls, sep = _word_piece(path, options, "MPNet", ("[UNK]", "<s>", "</s>"), ("<pad>", "<unk>", "<mask>"))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _word_piece(
    path: Path, options: Mapping[str, Any], family: str, names: tuple[str, str, str], others: Sequence[str]
) -> tuple[tokenizers.Tokenizer, tuple[str, int], tuple[str, int]]:
    """Return the tokenizer but for its template, and the first and the last token of a text with their ids.

    `names` are what the unknown, the first and the last token are called where the options name none.
    """
    file = path / "vocab.txt"
    try:
        vocabulary = file.read_text("utf-8").removesuffix("\n").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {error}.") from None
    ids = {word: i for i, word in enumerate(vocabulary)}
    unknown, cls, sep = (
        options.get(f"{role}_token") or name for role, name in zip(("unk", "cls", "sep"), names, strict=True)
    )
    _require(file, ids, (unknown, cls, sep), f"it is not a vocabulary of {family}")
    lower_case = options.get("do_lower_case")
    if lower_case is None:
        lower_case = not _is_cased(vocabulary)
        _LOG.info("%s: nothing says whether it is cased; read as %s", file, "uncased" if lower_case else "cased")
    accents = options.get("strip_accents")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(lower_case),
        strip_accents=None if accents is None else bool(accents),
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([word for word in (unknown, cls, sep, *others) if word in ids])
    _add_tokens(tokenizer, options, path)
    return tokenizer, (cls, ids[cls]), (sep, ids[sep])


def byte_level(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read vocab.json and merges.txt.

    Raises:
        CheckpointError: a file cannot be read, they do not fit, or the vocabulary lacks <s> or </s>.
    """
    vocabulary, merges = path / "vocab.json", path / "merges.txt"
    ids = read_object(vocabulary)
    if not merges.exists():
        raise CheckpointError(f"{str(path)!r} has no merges.txt, which belongs to its vocab.json.")
    cls, sep = options.get("cls_token") or "<s>", options.get("sep_token") or "</s>"
    _require(vocabulary, ids, (cls, sep), "it is not a vocabulary of RoBERTa")
    spaced = bool(options.get("add_prefix_space", False))
    with refusing_damage(f"{str(vocabulary)!r} and {merges.name} cannot be read"):
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
        tokenizer.post_processor = processors.RobertaProcessing(
            (sep, ids[sep]), (cls, ids[cls]), trim_offsets=True, add_prefix_space=spaced
        )
    names = ("bos", "pad", "eos", "unk", "mask")
    standard = [options.get(f"{name}_token") or word for name, word in zip(names, _ROBERTA_TOKENS, strict=True)]
    tokenizer.add_special_tokens([word for word in (*standard, cls, sep) if word in ids])
    _add_tokens(tokenizer, options, path)
    return tokenizer


def xlm_roberta(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read sentencepiece.bpe.model as XLM-R numbers it: every piece one higher, after <s>, <pad>, </s> and <unk>; <mask> last.

    Raises:
        CheckpointError: the file cannot be read, or is a model of another algorithm.
    """
    file = path / XLM_ROBERTA_FILE
    pieces, table = _pieces(file)
    start, pad, end, unknown, mask = ((unwritable(token), 0.0) for token in _ROBERTA_TOKENS)
    words = [start, pad, end, unknown, *map(_word, pieces[3:]), mask]
    return _roberta_unigram(file, words, table, options, start=0, end=2)


def camembert(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read sentencepiece.bpe.model as CamemBERT numbers it: every piece four higher, after five more; <mask> last.

    Raises:
        CheckpointError: the file cannot be read, or is a model of another algorithm.
    """
    file = path / XLM_ROBERTA_FILE
    pieces, table = _pieces(file)
    unused = [unwritable(f"{token}NOTUSED") for token in ("<s>", "</s>", "<unk>")]
    _, pad, _, unknown, mask = ((unwritable(token), 0.0) for token in _ROBERTA_TOKENS)
    words = [(unused[0], 0.0), pad, (unused[1], 0.0), unknown, (unused[2], -100.0), *map(_word, pieces[1:]), mask]
    ids = {piece.text: i for i, piece in enumerate(pieces, 4)}
    _require(file, ids, ("<s>", "</s>"), "it is not a vocabulary of CamemBERT")
    return _roberta_unigram(file, words, table, options, start=ids["<s>"], end=ids["</s>"])


def deberta_v2(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read spm.model, whose pieces have the ids of the model; [MASK] is behind them.

    Raises:
        CheckpointError: the file cannot be read, is a model of another algorithm, or lacks [CLS], [SEP] or an unknown piece.
    """
    file = path / DEBERTA_FILE
    pieces, table = _pieces(file)
    tokenizer, cls, sep = _bert_unigram(file, pieces, options, "DeBERTa")
    case = [normalizers.Lowercase()] if options.get("do_lower_case", False) else []
    tokenizer.normalizer = normalizers.Sequence(
        [*case, normalizers.Strip(), *table, normalizers.Replace(Regex(" {2,}"), " ")]
    )
    marks = [pre_tokenizers.Punctuation("isolated")] if options.get("split_by_punct", False) else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*marks, _metaspace(options)])
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    _add_tokens(tokenizer, options, path)
    mask = options.get("mask_token") or "[MASK]"
    if not any(piece.text == mask for piece in pieces):
        tokenizer.add_special_tokens([mask])  # also where it was added as a word, since added_tokens.json says no more
    return tokenizer


def albert(path: Path, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Read spiece.model, whose pieces have the ids of the model. Text is lowercased and loses its accents if the options are silent.

    Raises:
        CheckpointError: the file cannot be read, is a model of another algorithm, or lacks [CLS], [SEP] or an unknown piece.
    """
    file = path / ALBERT_FILE
    pieces, table = _pieces(file)
    # ALBERT's own code cuts the comma off a piece such as "10,": here such pieces lose against their parts.
    pieces = [p._replace(score=p.score - 100) if re.search(r"\d,$", p.text) else p for p in pieces]
    tokenizer, cls, sep = _bert_unigram(file, pieces, options, "ALBERT")
    accents = [] if options.get("keep_accents", False) else [normalizers.NFKD(), normalizers.StripAccents()]
    case = [normalizers.Lowercase()] if options.get("do_lower_case", True) else []
    quotes = [normalizers.Replace(mark, '"') for mark in ("``", "''")]
    tokenizer.normalizer = normalizers.Sequence([*quotes, *accents, *case, *table])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _metaspace(options)])
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    _add_tokens(tokenizer, options, path)
    return tokenizer


def _pieces(file: Path) -> tuple[Sequence[Piece], list[normalizers.Normalizer]]:
    """Return the pieces of a SentencePiece file, and the step that replaces compatibility forms, where the file has a table of them."""
    model = read_sentencepiece(file)
    if model.algorithm != UNIGRAM:
        raise CheckpointError(
            f"{str(file)!r} is a SentencePiece model of algorithm {model.algorithm}. Expected {UNIGRAM} (Unigram)."
        )
    with refusing_damage(f"{str(file)!r} cannot be read"):
        return model.pieces, [normalizers.Precompiled(model.charsmap)] if model.charsmap else []


def _word(piece: Piece) -> tuple[str, float]:
    return unwritable(piece.text) if piece.kind in (CONTROL, UNKNOWN) else piece.text, piece.score


def _unigram(file: Path, words: list[tuple[str, float]], unknown: int) -> tokenizers.Tokenizer:
    with refusing_damage(f"{str(file)!r} cannot be read"):
        return tokenizers.Tokenizer(models.Unigram(words, unk_id=unknown, byte_fallback=False))


def _roberta_unigram(
    file: Path,
    words: list[tuple[str, float]],
    table: list[normalizers.Normalizer],
    options: Mapping[str, Any],
    *,
    start: int,
    end: int,
) -> tokenizers.Tokenizer:
    """Return XLM-R's tokenizer: the unknown word is 3, and `start` and `end` are the ids of <s> and </s>."""
    tokenizer = _unigram(file, words, unknown=3)
    if table:
        tokenizer.normalizer = table[0]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _metaspace(options)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    _add_tokens(tokenizer, options, file.parent)
    return tokenizer


def _bert_unigram(
    file: Path, pieces: Sequence[Piece], options: Mapping[str, Any], family: str
) -> tuple[tokenizers.Tokenizer, tuple[str, int], tuple[str, int]]:
    """Return a tokenizer of these pieces, and the first and the last token of a text with their ids."""
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    cls, sep = options.get("cls_token") or "[CLS]", options.get("sep_token") or "[SEP]"
    _require(file, ids, (cls, sep), f"it is not a vocabulary of {family}")
    unknown = next((i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)
    if unknown is None:
        raise CheckpointError(f"{str(file)!r} has no piece for unknown characters. Fetch or copy it again.")
    return _unigram(file, list(map(_word, pieces)), unknown), (cls, ids[cls]), (sep, ids[sep])


def _metaspace(options: Mapping[str, Any]) -> pre_tokenizers.Metaspace:
    return pre_tokenizers.Metaspace(prepend_scheme="always" if options.get("add_prefix_space", True) else "never")


def _add_tokens(tokenizer: tokenizers.Tokenizer, options: Mapping[str, Any], path: Path) -> None:
    """Add the tokens beside the vocabulary, which must get the ids that the files name."""
    for i, token in sorted(options["added_tokens"].items()):
        with refusing_damage(f"The added tokens of {str(path)!r} cannot be read"):
            if tokenizer.id_to_token(i) == unwritable(token.content):
                continue
            tokenizer.add_tokens([token])
            found = tokenizer.token_to_id(token.content)
        if found != i:
            raise CheckpointError(
                f"The added token {token.content!r} of {str(path)!r} should have the id {i}, but its place in the vocabulary is {found}. "
                "Vocabulary and added tokens do not belong together."
            )


def _is_cased(vocabulary: Sequence[str]) -> bool:
    """Whether words of a vocabulary have upper-case letters; [CLS] and its like do not count."""
    words = [word for word in vocabulary if not re.fullmatch(r"\[.*\]", word)]
    return sum(word != word.lower() for word in words) > _CASED_SHARE * len(words)


def _require(file: Path, ids: Mapping[str, Any], words: Sequence[str], so: str) -> None:
    missing = [word for word in words if word not in ids]
    if missing:
        raise CheckpointError(f"{str(file)!r} lacks {', '.join(missing)}: {so}.")
