"""Put transformers' whole-word masking to the checks that ours passes, and print what it does wrong.

    python scripts/check_masking.py

The collator is `DataCollatorForLanguageModeling(whole_word_mask=True)`, the tokenizers are those of the tests (WordPiece, byte-level
BPE, Unigram) and spanqa-mini's. It exits with 1 if the collator breaks a property, and that is what transformers 5 does.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import transformers
from rich.console import Console
from rich.table import Table

import masks
import test_masking
import tiny
from masks import Encoded, Masked
from spanqa.train.masking import mask_tokens

ORIGINAL = {"WordPiece": tiny.word_piece, "byte-level BPE": tiny.byte_level, "Unigram": tiny.unigram}
"""Tokenizers as transformers has them: ours gives special tokens of a Unigram model other names."""


def theirs(tokenizer: transformers.PreTrainedTokenizerFast) -> masks.Collate:
    """transformers' collator."""

    def collate(windows: Sequence[Encoded], seed: int) -> list[Masked]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it does not replace tokens by random ones
            collator = transformers.DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True, seed=seed)
        made = []
        for window in windows:
            features = encode(tokenizer, window.text)
            assert features["input_ids"] == window.ids.tolist(), "the tokenizers differ"
            batch = collator([features])
            made.append(Masked(batch["input_ids"][0].numpy(), batch["labels"][0].numpy() != -100))
        return made

    return collate


def encode(tokenizer: transformers.PreTrainedTokenizerFast, text: str) -> dict:
    return dict(tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True))


def refusal(tokenizer: transformers.PreTrainedTokenizerFast, texts: Sequence[str]) -> str:
    """Return what the collator says of texts of different lengths; "" where it takes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True)
    try:
        collator([encode(tokenizer, text) for text in texts])
    except ValueError as error:
        return f"ValueError: {str(error).partition('.')[0]:.70}"
    return ""


def main() -> None:
    table = Table("", "what it does not hold to", "what was seen", box=None, padding=(0, 2))
    failures = 0
    for kind, tokenizer in test_masking.TOKENIZERS.items():
        windows = [test_masking.encoded(text, tokenizer) for text in test_masking.long_texts(tokenizer, 100_000)]
        tokens = mask_tokens(tokenizer, kind)
        names = {"mask_token": tokenizer.token_of(tokens.mask), "pad_token": tokenizer.token_of(int(windows[0].ids[0]))}
        original = ORIGINAL[kind]() if kind in ORIGINAL else tokenizer._tokenizer
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=original, **names)
        found = masks.broken(theirs(fast), windows, mask_id=tokens.mask, vocabulary=len(tokens.ordinary))
        if said := refusal(fast, ["one", "one two three"]):
            found["texts of different lengths make a batch"] = said
        failures += len(found)
        for name, seen in found.items():
            table.add_row(kind, name, seen)
    Console(width=200).print(f"transformers {transformers.__version__}", table)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
