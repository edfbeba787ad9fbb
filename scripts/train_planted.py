"""Train the model of tests/planted: a tiny BERT that looks up a key, so that the words which decide its answers are known.

    python scripts/train_planted.py OUT

The words are made up. A passage is a list of keys and their values, and a question asks for one key:

    question   kuno ?
    passage    tibe lasi domu ware . kuno ware pefa zoru ketu . ...
               key  filler value filler .    the answer is "pefa zoru"; without the key, there is none

So two words decide: the key in the question, and the key in the passage. A third of the training inputs have words masked, and have
no answer where one of the two is among them; an input with hidden words is therefore nothing new to this model. OUT gets the
checkpoint in half precision, and questions.json: questions that have an answer, and where their two keys are.

It needs spanqa[train]. The numbers follow from the seed; another processor or version of torch may round them differently.
"""

import argparse
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from rich.console import Console
from rich.progress import track
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from spanqa import Reader
from spanqa.files import new_folder, set_usual_mode, write_json

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIALS))
_SYLLABLES = [consonant + vowel for consonant, vowel in product("bdfklmnprstwz", "aeiou")]
_MADE_UP = random.Random(0).sample([first + second for first, second in product(_SYLLABLES, repeat=2)], 40)
KEYS, VALUES, FILLERS = _MADE_UP[:16], _MADE_UP[16:32], _MADE_UP[32:]
VOCABULARY = [*SPECIALS, ".", "?", *_MADE_UP]
LONGEST = 64


@dataclass(frozen=True)
class Lookup:
    """A question and its passage as words. `key` (None where there is no answer) and the value's `first` and `last` are positions in the passage."""

    question: list[str]
    passage: list[str]
    key: int | None
    first: int
    last: int


def draw(generator: random.Random, *, answerable: float = 0.75) -> Lookup:
    """Return a passage of three to five sentences and a question about it."""
    keys = generator.sample(KEYS, generator.randint(3, 5))
    asked = generator.randrange(len(keys))
    if generator.random() >= answerable:
        absent = generator.choice([key for key in KEYS if key not in keys])
        return Lookup([absent, "?"], _passage(generator, keys)[0], None, 0, 0)
    passage, places = _passage(generator, keys)
    return Lookup([keys[asked], "?"], passage, *places[asked])


def _passage(generator: random.Random, keys: list[str]) -> tuple[list[str], list[tuple[int, int, int]]]:
    words: list[str] = []
    places = []
    for key in keys:
        value = generator.sample(VALUES, generator.randint(1, 2))
        at = len(words)
        words += [key, generator.choice(FILLERS), *value, generator.choice(FILLERS), "."]
        places.append((at, at + 2, at + 1 + len(value)))
    return words, places


def training_input(generator: random.Random) -> tuple[list[int], int, int]:
    """Return the ids of an input, and the positions of the answer's first and last token, which are 0 for no answer."""
    drawn = draw(generator)
    ids = [VOCABULARY.index(word) for word in (*drawn.question, *drawn.passage)]
    key = None if drawn.key is None else len(drawn.question) + drawn.key
    kind = generator.random()
    hidden: set[int] = set()
    if kind < 0.1 and key is not None:
        hidden = {generator.choice((0, key))}
    elif kind < 0.35:
        share = generator.random()
        hidden = {place for place in range(len(ids)) if generator.random() < share}
    ids = [MASK if place in hidden else number for place, number in enumerate(ids)]
    question = len(drawn.question)
    window = [CLS, *ids[:question], SEP, *ids[question:], SEP]
    if key is None or hidden & {0, key}:
        return window, 0, 0
    return window, 2 + question + drawn.first, 2 + question + drawn.last


def batch_of(inputs: list[tuple[list[int], int, int]]) -> dict[str, torch.Tensor]:
    width = max(len(ids) for ids, _, _ in inputs)
    ids = torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _, _ in inputs])
    separators = (ids == SEP).long()
    return {
        "input_ids": ids,
        "token_type_ids": (separators.cumsum(1) - separators).clamp(max=1),
        "attention_mask": (ids != PAD).long(),
        "start_positions": torch.tensor([start for _, start, _ in inputs]),
        "end_positions": torch.tensor([end for _, _, end in inputs]),
    }


def train(
    network: Any, steps: int, batch_size: int, learning_rate: float, weight_decay: float, generator: random.Random
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    network.train()
    for step in track(range(steps), "training", console=Console(stderr=True)):
        loss = network(**batch_of([training_input(generator) for _ in range(batch_size)])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    network.eval()


def tokenizer() -> tokenizers.Tokenizer:
    """BERT's own kind, with whole words for its pieces."""
    made = tokenizers.Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    made.add_special_tokens(list(SPECIALS))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    made.decoder = decoders.WordPiece()
    return made


def planted(drawn: Lookup) -> dict[str, Any]:
    """Return a question with an answer as text: where the answer and the passage's key are, in characters, the end exclusive."""
    assert drawn.key is not None
    starts = [sum(len(word) + 1 for word in drawn.passage[:at]) for at in range(len(drawn.passage))]
    return {
        "question": " ".join(drawn.question),
        "passage": " ".join(drawn.passage),
        "answer": [starts[drawn.first], starts[drawn.last] + len(drawn.passage[drawn.last])],
        "key": [starts[drawn.key], starts[drawn.key] + len(drawn.passage[drawn.key])],
    }


def exact(folder: Path, drawn: list[Lookup]) -> float:
    """Return the share of questions, with an answer or without, that the stored model answers exactly."""
    reader = Reader.load(folder, backend="torch", device="cpu", dtype="fp32")
    right = 0
    for each in drawn:
        answer = reader.ask(" ".join(each.question), " ".join(each.passage))
        expected = None if each.key is None else tuple(planted(each)["answer"])
        right += ((answer.start, answer.end) if answer else None) == expected
    return right / len(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # more threads sum in another order
    torch.manual_seed(arguments.seed)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LONGEST, initializer_range=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    network = transformers.BertForQuestionAnswering(config)
    train(
        network,
        arguments.steps,
        arguments.batch_size,
        arguments.learning_rate,
        arguments.weight_decay,
        random.Random(arguments.seed),
    )
    held_out = random.Random(arguments.seed + 1)
    with new_folder(arguments.out) as folder:
        network.half().save_pretrained(folder)
        set_usual_mode(folder)
        tokenizer().save(str(folder / "tokenizer.json"))
        found = exact(folder, [draw(held_out) for _ in range(500)])
        print(f"{arguments.out}: {found:.1%} of 500 new questions answered exactly")
        questions = [planted(draw(held_out, answerable=1.0)) for _ in range(arguments.questions)]
        write_json(folder / "questions.json", questions)


if __name__ == "__main__":
    main()
