"""Tiny checkpoints, made from a seed: two layers of 32, and vocabularies trained on the sentences below.

`make("bert", folder)` writes what transformers itself saves: its own classes make the model and name its parameters.
Where transformers is not installed, the same numbers are written under the names of the encoder's own table, so that
all tests but those of torch run there too (`test_checkpoint.py` compares the two).
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

HAS_TRANSFORMERS = all(importlib.util.find_spec(package) for package in ("torch", "transformers"))

SENTENCES = """
The old lighthouse at Penmar was built by Anna Kestrel in 1891, after two ships were lost in one winter.
Who built the lighthouse? When did the lamp first burn? How tall is the tower, and what does it stand on?
Its lamp was lit with whale oil until 1923; then the keeper, Tomas Brandt, laid a cable from the village.
The tower is 41 metres tall and stands on a shelf of granite that the sea covers twice a day.
A ferry leaves the harbour at six o'clock. It carries mail, bread, and no more than thirty people.
Der Leuchtturm wurde von einer jungen Frau entworfen, die später Brücken über die Flüsse baute.
Qui a construit le phare ? Une ingénieure née à Besançon, élève de l'école des ponts, à côté du château.
¿Dónde está el faro? El niño señaló la montaña; mañana volverá con su abuelo.
灯台は海の近くに立っています。誰が灯台を建てましたか。古い灯台は白い。
Маяк стоит на скале. Кто построил маяк? Его построила Анна.
المنارة تقف على صخرة. من بنى المنارة؟
Prices rose by 3.5 % in March, fell by 0.2 % in April, and stayed at $1,250 (or €1,175) for the rest of the year.
The committee met on 4 May 2011 and on 12 June 2011; its chair, Dr. M. Osei, signed both reports.
Unbelievably, the unanswerable questions outnumbered the answerable ones by nearly two to one.
"""

_WORDS = [sentence for sentence in SENTENCES.splitlines() if sentence]
_BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_piece() -> tokenizers.Tokenizer:
    """BERT's: lower case without accents, words cut into pieces."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=_BERT_SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(_WORDS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_level() -> tokenizers.Tokenizer:
    """RoBERTa's: every byte has a token, the space before a word belongs to it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=_ROBERTA_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_WORDS, trainer)
    tokenizer.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    """XLM-R's, as SentencePiece has it: compatibility forms folded, spaces written as a letter."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=_ROBERTA_SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_WORDS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_BERT = {**_SIZES, "max_position_embeddings": 64, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 0}
_ROBERTA = {
    **_SIZES, "max_position_embeddings": 66, "type_vocab_size": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_DISTILBERT = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64, "activation": "gelu",
    "pad_token_id": 0,
}  # fmt: skip

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (word_piece, _BERT),
    "roberta": (byte_level, _ROBERTA),
    "xlm-roberta": (unigram, _ROBERTA),
    "camembert": (unigram, _ROBERTA),
    "electra": (word_piece, {**_BERT, "embedding_size": 16}),
    "distilbert": (word_piece, _DISTILBERT),
}
"""model_type -> its kind of tokenizer, and the numbers of its config.json."""

MAX_SEQ_LENGTH = 64
"""Tokens of the longest window of all of them."""


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters large enough for sharp attention and logits that spread over several units."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        values = generator.standard_normal(shape, np.float32)
        is_scale = name.lower().endswith("norm.weight")
        weights[name] = 1 + 0.2 * values if is_scale else 0.3 * values
    return weights


def make(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint of the family; `changes` are to its config.json."""
    tokenizer_of, numbers = FAMILIES[family]
    tokenizer = tokenizer_of()
    config = {"model_type": family, "vocab_size": tokenizer.get_vocab_size(), **numbers, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    if HAS_TRANSFORMERS:
        save_with_transformers(config, folder, seed)
    else:
        save_with_numpy(config, folder, seed)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def save_with_transformers(config: dict[str, Any], folder: Path, seed: int = 0, **options: Any) -> None:
    """Let transformers make the model, fill it with our numbers, and let it save itself."""
    import torch
    import transformers

    settings = {name: value for name, value in config.items() if name != "model_type"}
    config_object = transformers.AutoConfig.for_model(config["model_type"], **settings)
    model = transformers.AutoModelForQuestionAnswering.from_config(config_object)
    fill(model, seed)
    transformers.utils.logging.disable_progress_bar()
    model.to(options.pop("dtype", torch.float32)).save_pretrained(folder, **options)


def fill(model: Any, seed: int = 0) -> None:
    """Set the parameters of a torch model to our random numbers."""
    import torch

    state = model.state_dict()
    weights = random_weights({name: tuple(tensor.shape) for name, tensor in state.items()}, seed)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})


def save_with_numpy(config: dict[str, Any], folder: Path, seed: int = 0) -> None:
    """Write config.json and model.safetensors under the names of the encoder's own table."""
    from spanqa.encoder import weight_shapes
    from spanqa.families import FAMILIES as RECORDS
    from spanqa.families import encoder_config

    shapes = {
        RECORDS[config["model_type"]].stored_name(name): shape
        for name, shape in weight_shapes(encoder_config(config)).items()
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights(shapes, seed), folder / "model.safetensors")
