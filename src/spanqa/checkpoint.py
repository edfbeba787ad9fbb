"""Name, folder or hub id to config, tokenizer and verified weights.

A checkpoint is the ecosystem's own folder: `config.json`, `model.safetensors` (or its shards), `tokenizer.json` (or
`vocab.txt`), and, where spanqa made it, `spanqa.json` with window and answer settings. Names and shapes of all
parameters are compared with what the config asks for before anything is computed. Pickled weights are never read.

It does not build models: backends do, from `load_weights`.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from spanqa.encoder import FAMILIES, EncoderConfig, encoder_config, stored_name, weight_shapes
from spanqa.errors import CheckpointError, UnsupportedModelError
from spanqa.tokens import Layout, Tokenizer

BUNDLED = ("spanqa-mini",)
FORMAT = "spanqa/1"
_SECTIONS = ("format", "windows", "answers", "calibration", "training", "quantization")
_HUB_FILES = (
    "config.json", "spanqa.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors",
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "README.md", "model.sig", "openvino_int8.xml", "openvino_int8.bin",
)  # fmt: skip
_PICKLED = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.ckpt.index",
)
_EXPECTED = (
    f"Expected a folder, a hub id such as 'deepset/bert-large-uncased-whole-word-masking-squad2', or {BUNDLED[0]!r}."
)
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Heads and buffers that checkpoints carry beside the question-answering model; they are left out, and listed.
_IGNORED = ("cls.", "lm_head.", "vocab_", "discriminator_predictions.", "generator_predictions.", "generator_lm_head.")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model folder that has been read and understood, except for the weights themselves.

    `config` is config.json as it is; `settings` is spanqa.json, or {} where there is none.
    """

    path: Path
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    tokenizer: Tokenizer

    @property
    def model_type(self) -> str:
        """The architecture's name in config.json, such as "bert"."""
        return str(self.config["model_type"])

    @property
    def max_seq_length(self) -> int:
        """The longest window that the model can read, special tokens counted."""
        if self.model_type in FAMILIES:
            return self.encoder.max_seq_length
        longest = self.config.get("max_position_embeddings")
        return longest if isinstance(longest, int) and longest > 0 else 512

    @cached_property
    def encoder(self) -> EncoderConfig:
        """The numbers of our own encoder.

        Raises:
            UnsupportedModelError: the architecture, or a setting of it, is not one that `spanqa.encoder` has.
        """
        if self.model_type not in FAMILIES:
            raise UnsupportedModelError(
                f"{_show(self.path)} is a {self.model_type!r} model; this backend runs {', '.join(FAMILIES)}. "
                "Use backend='torch' (pip install 'spanqa[torch]'), which runs every question-answering model of transformers."
            )
        try:
            return encoder_config(self.config)
        except KeyError as error:
            raise CheckpointError(f"{_show(self.path / 'config.json')} lacks {error.args[0]!r}.") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise UnsupportedModelError(
                f"{_show(self.path / 'config.json')}: {error}, which spanqa does not run."
            ) from None

    @cached_property
    def sha256(self) -> str:
        """The hash of the weights, shards in order."""
        digest = hashlib.sha256()
        for path in weight_files(self.path):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def find(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return the folder of a model: a bundled name, a folder, or a Hugging Face hub id (fetched, or from its cache).

    Raises:
        CheckpointError: there is no such model, or it is not in the cache and the hub is out of reach.
    """
    name = os.fspath(model)
    if not name.strip():
        raise CheckpointError(f"The model's name is empty. {_EXPECTED}")
    path = Path(__file__).parent / "models" / name if name in BUNDLED else Path(name).expanduser()
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:
        raise CheckpointError(f"{_show(path)} cannot be read: {error.strerror}.") from None
    if is_folder:
        if revision is not None:
            raise CheckpointError(
                f"revision={revision!r} was given, but {_show(path)} is a folder; only hub models have revisions."
            )
        return path
    if is_there:
        raise CheckpointError(
            f"{_show(path)} is a file; expected the folder that holds config.json and model.safetensors."
        )
    if name.count("/") > 1 or "\\" in name or name.startswith((".", "~", "/")):
        raise CheckpointError(f"There is no folder {_show(path)}. Check the name, or give the full path.")
    return _fetch(name, revision)


def _fetch(name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES)))
    except errors.HFValidationError:
        raise CheckpointError(f"{name!r} is neither a folder nor a valid hub id. {_EXPECTED}") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"The hub model {name!r} has no revision {revision!r}.") from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"The hub model {name!r} is gated: accept its terms on its page, then run `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"There is no folder and no hub model {name!r} (or it is private). {_EXPECTED}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{name!r} is no folder, is not in the hub cache, and the hub cannot be reached ({type(error).__name__}). {_EXPECTED} "
            f"To work offline, fetch it once with a network: hf download {name}"
        ) from error


def open_checkpoint(model: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Read a model folder: config, settings and tokenizer; the weights only as far as to know that they are there.

    Raises:
        CheckpointError: something is missing, damaged or contradictory; the message says what and where.
    """
    path = find(model, revision)
    config = _read_object(path / "config.json", "It tells the architecture; is this a model folder?")
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f'{_show(path / "config.json")} lacks "model_type", which names the architecture (such as "bert").'
        )
    weight_files(path)
    settings = _read_object(path / "spanqa.json") if (path / "spanqa.json").exists() else {}
    if settings and settings.get("format") != FORMAT:
        raise CheckpointError(
            f"{_show(path / 'spanqa.json')} has the format {settings.get('format')!r}; this version reads {FORMAT!r}. Upgrade spanqa."
        )
    unknown = sorted(set(settings) - set(_SECTIONS))
    if unknown:
        raise CheckpointError(
            f"{_show(path / 'spanqa.json')} has the unknown section {unknown[0]!r}; expected {', '.join(_SECTIONS)}."
        )
    tokenizer = read_tokenizer(path, config)
    return Checkpoint(path, config, settings, tokenizer)


def _show(path: Path) -> str:
    return repr(str(path))


def _read_object(path: Path, hint: str = "") -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{_show(path.parent)} holds no {path.name}. {hint}".strip()) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or numbers or nesting beyond Python's limits
        raise CheckpointError(f"{_show(path)} is not JSON: {error}.") from None
    except OSError as error:
        raise CheckpointError(f"{_show(path)} cannot be read: {error.strerror}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{_show(path)} should hold a JSON object.")
    return value


def read_tokenizer(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Read tokenizer.json, or vocab.txt where there is none, and see that it fits the model's config.

    Raises:
        CheckpointError: there is neither, the file is damaged, or it has more tokens than the model.
    """
    if (path / "tokenizer.json").exists():
        try:
            raw = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception for whatever is wrong with the file
            raise CheckpointError(f"{_show(path / 'tokenizer.json')} cannot be read: {error}.") from error
    elif (path / "vocab.txt").exists():
        raw = _word_piece(path)
    else:
        raise CheckpointError(f"{_show(path)} holds no tokenizer: expected tokenizer.json or vocab.txt.")
    return fit_tokenizer(raw, config, _show(path))


def fit_tokenizer(raw: tokenizers.Tokenizer, config: Mapping[str, Any], name: str) -> Tokenizer:
    """Return the tokenizer as the model of this config wants it; `name` is for the message.

    Raises:
        CheckpointError: it has more tokens than the model has embeddings, or no template with [CLS].
    """
    tokenizer = Tokenizer(raw)
    words = config.get("vocab_size")
    if isinstance(words, int) and tokenizer.vocabulary_size > words:
        raise CheckpointError(
            f"The tokenizer of {name} has {tokenizer.vocabulary_size} tokens, but the model has embeddings for only "
            f"{words}. Tokenizer and model do not belong together."
        )
    if config.get("type_vocab_size", 2) in (0, 1, None):
        tokenizer.layout = _without_types(tokenizer.layout)
    return tokenizer


def _without_types(layout: Layout) -> Layout:
    pieces = {name: tuple((token, 0) for token, _ in getattr(layout, name)) for name in ("before", "between", "after")}
    return replace(layout, **pieces, question_type=0, passage_type=0)


def _word_piece(path: Path) -> tokenizers.Tokenizer:
    """BERT's tokenizer from a bare vocab.txt; case and accents as tokenizer_config.json says, uncased where it is silent."""
    options = _read_object(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
    try:
        vocabulary = (path / "vocab.txt").read_text("utf-8").removesuffix("\n").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{_show(path / 'vocab.txt')} cannot be read: {error}.") from None
    ids = {word: i for i, word in enumerate(vocabulary)}
    missing = [word for word in ("[UNK]", "[CLS]", "[SEP]") if word not in ids]
    if missing:
        raise CheckpointError(f"{_show(path / 'vocab.txt')} lacks {', '.join(missing)}: it is not a BERT vocabulary.")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=bool(options.get("do_lower_case", True)),
        strip_accents=None if options.get("strip_accents") is None else bool(options["strip_accents"]),
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in ids])
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a model folder.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        places = _read_object(index).get("weight_map")
        names: list[Any] = list(places.values()) if isinstance(places, dict) else [None]
        if not all(isinstance(name, str) and name == Path(name).name for name in names):
            raise CheckpointError(f'{_show(index)} should hold a table "weight_map" of file names.')
        shards = sorted(set(names))
        missing = [shard for shard in shards if not (path / shard).exists()]
        if missing or not shards:
            raise CheckpointError(
                f"{_show(index)} names shards that are not there: {', '.join(missing) or 'none at all'}."
            )
        return [path / shard for shard in shards]
    pickled = [name for name in _PICKLED if (path / name).exists()]
    if pickled:
        raise CheckpointError(
            f"{_show(path)} holds its weights only as {pickled[0]}. spanqa reads safetensors, because pickled weights can run "
            "code. Convert them once, where you trust the file, with transformers: "
            'AutoModelForQuestionAnswering.from_pretrained("FOLDER").save_pretrained("NEW_FOLDER")'
        )
    raise CheckpointError(
        f"{_show(path)} holds no weights: expected model.safetensors (or model.safetensors.index.json)."
    )


def verify_weights(checkpoint: Checkpoint) -> tuple[dict[str, str], list[str]]:
    """Compare the stored parameters with what the config asks for, by name and shape, without reading their values.

    Returns our names -> stored names, and the stored names that are left out (pooler, position ids, other heads).

    Raises:
        CheckpointError: parameters are missing, unexpected, of another shape or not floats; all are listed.
    """
    config = checkpoint.encoder
    stored: dict[str, tuple[int, ...]] = {}
    strange: list[str] = []
    for path in weight_files(checkpoint.path):
        with open_weights(path) as file:
            for name in file.keys():
                piece = file.get_slice(name)
                stored[name] = tuple(piece.get_shape())
                if piece.get_dtype() not in _FLOATS and not name.endswith("position_ids"):
                    strange.append(f"{name} ({piece.get_dtype()})")
    current = {_modern(name): name for name in stored}
    wanted = {name: stored_name(config.model_type, name) for name in weight_shapes(config)}
    missing = [foreign for foreign in wanted.values() if foreign not in current]
    where = _show(checkpoint.path)
    if "qa_outputs.weight" in missing:
        raise CheckpointError(
            f"{where} has no question-answering head: it lacks qa_outputs.weight"
            f"{_others(len(missing) - 1)}. Choose a checkpoint that was fine-tuned for extractive question answering, such as "
            "deepset/bert-large-uncased-whole-word-masking-squad2."
        )
    expected = set(wanted.values())
    extra = [name for name in current if name not in expected]
    ignored = [name for name in extra if _is_ignored(name, FAMILIES[config.model_type][0])]
    unexpected = sorted(set(extra) - set(ignored))
    problems = [
        f"{label} {len(names)} parameter{'s' * (len(names) > 1)}: {_some(names)}"
        for label, names in (
            ("lacks", missing),
            ("has unexpectedly", unexpected),
            ("has, not in a float format,", strange),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{where} {' and '.join(problems)}. Weights and config.json do not fit together; was the model saved whole?"
        )
    shapes = weight_shapes(config)
    wrong = [
        f"{foreign} is {list(stored[current[foreign]])}, expected {list(shapes[name])}"
        for name, foreign in wanted.items()
        if stored[current[foreign]] != shapes[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{where} has parameters of another shape than config.json asks for: {_some(wrong, '; ')}."
        )
    return {name: current[foreign] for name, foreign in wanted.items()}, sorted(current[name] for name in ignored)


def load_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the encoder's parameters by our names, in the float type they are stored in (bfloat16 comes as float32).

    Raises:
        CheckpointError: as `verify_weights`, or a parameter holds NaN or infinity.
    """
    names, _ = verify_weights(checkpoint)
    ours = {foreign: name for name, foreign in names.items()}
    for path in weight_files(checkpoint.path):
        with open_weights(path) as file:
            for foreign in file.keys():
                if foreign in ours:
                    yield ours[foreign], _finite(_read(file, path, foreign), foreign, path)


def _finite(array: NDArray[Any], name: str, path: Path) -> NDArray[Any]:
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"{name} in {_show(path)} holds NaN or infinity. The training diverged or the file is damaged."
        )
    return array


def _read(file: Any, path: Path, name: str) -> NDArray[Any]:
    if file.get_slice(name).get_dtype() != "BF16":
        return file.get_tensor(name)  # type: ignore[no-any-return]
    with path.open("rb") as raw:  # NumPy has no bfloat16: read the upper halves of float32 ourselves
        (length,) = struct.unpack("<Q", raw.read(8))
        entry = json.loads(raw.read(length))[name]
        begin, end = entry["data_offsets"]
        raw.seek(8 + length + begin)
        halves = np.frombuffer(raw.read(end - begin), "<u2").reshape(entry["shape"])
    return (halves.astype(np.uint32) << 16).view(np.float32)


def open_weights(path: Path) -> Any:
    """Open one safetensors file.

    Raises:
        CheckpointError: it is not whole.
    """
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{_show(path)} is not a whole safetensors file: {error}. Fetch or copy it again."
        ) from error


def _modern(name: str) -> str:
    """Names as they are written today: TensorFlow-era checkpoints call a layer norm's weight and bias gamma and beta."""
    if name.endswith("LayerNorm.gamma"):
        return name.removesuffix("gamma") + "weight"
    if name.endswith("LayerNorm.beta"):
        return name.removesuffix("beta") + "bias"
    return name


def _is_ignored(name: str, prefix: str) -> bool:
    return name.startswith((*_IGNORED, f"{prefix}pooler.")) or name.endswith("embeddings.position_ids")


def _some(names: Iterable[str], separator: str = ", ", most: int = 6) -> str:
    names = list(names)
    rest = len(names) - most
    return separator.join(names[:most]) + (f"{separator}and {rest} more" if rest > 0 else "")


def _others(count: int) -> str:
    return f" (and {count} other parameters)" if count > 0 else ""
