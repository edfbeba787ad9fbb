"""transformers' own models, run on their own, on pairs encoded without our code: what every backend must agree with."""

from pathlib import Path
from typing import Any

import numpy as np

from spanqa.backends.base import Backend
from spanqa.batches import Batch, pad
from spanqa.checkpoint import open_checkpoint
from spanqa.windows import WindowSettings, make_windows
from tiny import MAX_SEQ_LENGTH

PAIRS = [
    ("Who built the lighthouse?", "The old lighthouse at Penmar was built by Anna Kestrel in 1891."),
    ("Où est le phare ?", "Die Brücke & 灯台 👩‍👩‍👧: “élève”\r\n\tof Besançon…"),
    ("Why?", "x"),
    ("When did the lamp burn?", "sea " * 200),
]

# measured over all families, pairs and backends: at most 8e-6
TOLERANCE = 1e-4


class TransformersModel:
    """transformers' question-answering model and its fast tokenizer, read from a folder, in float32."""

    def __init__(self, transformers: Any, folder: Path) -> None:
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        self.model = transformers.AutoModelForQuestionAnswering.from_pretrained(
            folder, dtype="float32", attn_implementation="eager"
        ).eval()

    def __call__(self, question: str, passage: str) -> tuple[list[int], Any]:
        import torch

        inputs = self.tokenizer(
            question,
            passage,
            truncation="only_second",
            max_length=MAX_SEQ_LENGTH,
            return_token_type_ids=self.model.config.model_type != "distilbert",
            return_tensors="pt",
        )
        ids = inputs["input_ids"][0].tolist()
        with torch.no_grad():
            return ids, self.model(**inputs, output_attentions=True)


def first_window(folder: Path, question: str, passage: str) -> Batch:
    """The first window of a pair, alone in its batch, made by our code."""
    tokenizer = open_checkpoint(folder).tokenizer
    asked, read = tokenizer.encode(question), tokenizer.encode(passage)
    return pad(make_windows(asked, read, tokenizer.template, WindowSettings(MAX_SEQ_LENGTH))[:1])


def assert_gives_the_logits_of_transformers(backend: Backend, transformers: Any, folder: Path) -> None:
    reference = TransformersModel(transformers, folder)
    for question, passage in PAIRS:
        ids, expected = reference(question, passage)
        batch = first_window(folder, question, passage)
        assert batch.input_ids[0].tolist() == ids
        found = backend.forward(batch)
        np.testing.assert_allclose(found.start, expected.start_logits.numpy(), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found.end, expected.end_logits.numpy(), rtol=0, atol=TOLERANCE)
