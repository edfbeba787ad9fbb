"""Questions of seven domains, one in three without an answer, and what the model says of them: for `probabilities.py`.

So that neither always answering nor always abstaining wins, a question without an answer is asked of another passage of the same
document, or of the nearest other document where a document has one passage, and never of a passage that holds the words of
an answer, or of which the file asks the same question. SQuAD and TimeQA have such questions of their own. Each domain has two parts of
different documents, one to fit on and one to measure on. SQuAD's part to fit on are the articles that spanqa-mini was not trained on;
its part to measure on is the development set.

The model reads each question once; its logits are kept in a folder, so that a run that was stopped goes on.
"""

import math
import os
import pickle
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from spanqa import Reader, read_squad
from spanqa.batches import WindowLogits
from spanqa.evaluate.scoring import answer_words
from spanqa.squad import Example
from spanqa.train.recipe import read_questions

DATA = Path(os.environ.get("SPANQA_DATA", "data"))
SQUAD = "squad-v2.0"
DOMAINS = {
    SQUAD: (),
    "squadshifts-new-wiki": ("squadshifts-new-wiki",),
    "squadshifts-reddit": ("squadshifts-reddit",),
    "qed-nq": ("qed-nq",),
    "policyqa": ("policyqa-dev-test",),
    "fairytaleqa": ("fairytaleqa-train", "fairytaleqa-valid", "fairytaleqa-test"),
    "timeqa-human": ("timeqa-human",),
}
PARTS = ("fit", "measure")
Part = tuple[str, str]
Chunk = tuple[Part, list[tuple[Example, Sequence[WindowLogits]]]]
"""Questions of a part, each with the logits of its windows."""
DRAWN = {(SQUAD, "measure"): 3000, ("timeqa-human", "fit"): 200, ("timeqa-human", "measure"): 200}
EACH = 900
"""Questions drawn for a part."""
READ = {(SQUAD, "measure"): 3000, ("timeqa-human", "fit"): 200, ("timeqa-human", "measure"): 200}
READ_OF_EACH = 600
"""Of these, so many are read, from the first on."""
LONGEST = 1200
"""Longer passages, in words, are left out, to save time."""
CHUNK = 100


@cache
def build(domain: str, part: str) -> list[Example]:
    """The questions of a part in random order, always the same."""
    generator = random.Random(f"{domain} {part}")
    count = DRAWN.get((domain, part), EACH)
    if domain == SQUAD:
        squad = read_squad(DATA / "squad-v2.0-dev.json.gz") if part == "measure" else held_out()
        return generator.sample(squad, count)
    examples = [each for name in DOMAINS[domain] for each in read_squad(DATA / f"{name}.json.gz")]
    examples = [each for each in examples if len(each.passage.split()) <= LONGEST]
    titles = {each.title for each in examples}
    document = (lambda each: each.title) if len(titles) > 1 else (lambda each: each.passage)
    names = sorted({document(each) for each in examples})
    random.Random(domain).shuffle(names)
    chosen = set(names[PARTS.index(part) :: 2])
    examples = [each for each in examples if document(each) in chosen]
    generator.shuffle(examples)
    without = [each for each in examples if not each.answers]
    answered = [each for each in examples if each.answers]
    if not without:
        passages: dict[str, list[str]] = defaultdict(list)
        for each in examples:
            if each.passage not in passages[document(each)]:
                passages[document(each)].append(each.passage)
        asked = {(each.question.casefold(), each.passage) for each in examples}
        nearest = Nearest([passage for several in passages.values() for passage in several])
        while len(without) < count // 3:
            example = answered.pop()
            others = [passage for passage in passages[document(example)] if passage != example.passage]
            others = generator.sample(others, len(others)) or nearest(example.passage)
            others = [other for other in others if (example.question.casefold(), other) not in asked]
            passage = next((other for other in others if not holds(other, example)), None)
            if passage is not None:
                without.append(replace(example, id=f"{example.id}-elsewhere", passage=passage, answers=()))
    examples = answered[: count - count // 3] + without[: count // 3]
    generator.shuffle(examples)
    return examples


def holds(passage: str, example: Example) -> bool:
    """Whether a passage holds the words of an answer of the question."""
    words = f" {' '.join(answer_words(passage))} "
    return any(f" {' '.join(answer_words(answer.text))} " in words for answer in example.answers)


class Nearest:
    """Passages by how many words, weighted by how rare they are, they share with another."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.words = {passage: frozenset(answer_words(passage)) for passage in passages}
        counts = Counter(word for words in self.words.values() for word in words)
        self.weights = {word: math.log(len(passages) / count) for word, count in counts.items()}

    def __call__(self, passage: str) -> list[str]:
        mine = self.words[passage]

        def similarity(other: str) -> float:
            return math.fsum(self.weights[word] for word in mine & self.words[other]) / math.sqrt(
                len(self.words[other]) + 1
            )

        return sorted((other for other in self.words if other != passage), key=similarity, reverse=True)[:20]


def held_out() -> list[Example]:
    """SQuAD's articles that spanqa-mini was not trained on."""
    return list(read_questions(DATA / "squad-v2.0-train-rebuilt.json.gz").dev)


def read(reader: Reader, folder: Path, *, few: bool = False) -> Iterator[Chunk]:
    """Yield the questions of all parts in chunks; `few`: one chunk of each but TimeQA's, which are long. A folder keeps what was read."""
    folder.mkdir(parents=True, exist_ok=True)
    for chunk in range(max(READ.values()) // CHUNK):
        for part in ((domain, part) for domain in DOMAINS for part in PARTS):
            if chunk * CHUNK >= (READ.get(part, READ_OF_EACH) if not few else CHUNK * (part[0] != "timeqa-human")):
                continue
            path = folder / f"{'.'.join(part)}.{chunk}.pickle"
            if not path.exists():
                taken = build(*part)[chunk * CHUNK : (chunk + 1) * CHUNK]
                readings = reader.forward((each.question, [each.passage]) for each in taken)
                found = [(example, reading.logits[0]) for example, reading in zip(taken, readings, strict=True)]
                path.with_suffix(".part").write_bytes(zlib.compress(pickle.dumps(found)))
                path.with_suffix(".part").rename(path)
            yield part, pickle.loads(zlib.decompress(path.read_bytes()))
