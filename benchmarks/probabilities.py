"""Which form of the probabilities holds on texts unlike those that it was fitted on: each domain is left out in turn.

    SPANQA_DATA=... python benchmarks/probabilities.py --cache /tmp/domains --out benchmarks/results/domains.json

The domains are those of `domains.py`. One that is left out is measured on both of its parts, since nothing was fitted on it; of SQuAD,
only the development set is measured, and nothing is fitted on that.

A form says how likely it is that there is an answer, logistic in M* and perhaps in more, and at what temperature the spans share that
probability; the temperature may depend on the same. It is fitted to several domains with equal weight, and so is the threshold, for the
best F1. What it depends on is known when a question is answered, and depends on neither `top_k` nor the batch. "Own domain" is
fitted on the part to fit on of the domain on which it is measured. scipy is needed, and torch for the passes with dropout.
"""

import argparse
import json
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from domains import DATA, DOMAINS, PARTS, SQUAD, Chunk, Part, read
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import minimize
from side_by_side import processor

from spanqa import Reader, __version__
from spanqa.answers import margins
from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits, WindowLogits
from spanqa.calibration import log_sum_exp
from spanqa.checkpoint import Checkpoint
from spanqa.evaluate.curves import expected_calibration_error, risk_coverage_of
from spanqa.evaluate.outcomes import RIGHT
from spanqa.evaluate.scoring import question_scores
from spanqa.evaluate.tune import TEMPERATURES
from spanqa.files import describe
from spanqa.spans import distinct_spans
from spanqa.squad import Example


class Dropout:
    """A backend: the model with the dropout of its training left on, so that each pass gives other logits."""

    name, device, dtype, batch_tokens, batches_at_once = "torch with dropout", "cpu", "fp32", 4096, 1
    layouts: tuple[BatchLayout, ...] = ("padded",)

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch

        from spanqa.backends.torch_networks import build_network

        self.network = build_network(checkpoint, torch.float32)[0].train()

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        import torch

        inputs = {
            "input_ids": batch.input_ids,
            "token_type_ids": batch.token_type_ids,
            "attention_mask": batch.window_index >= 0,
        }
        with torch.inference_mode():
            found = self.network(**{name: torch.tensor(each, dtype=torch.long) for name, each in inputs.items()})
        return SpanLogits(found.start_logits.numpy(), found.end_logits.numpy())


def mean_of(first: WindowLogits, second: WindowLogits) -> WindowLogits:
    """The mean logits of two passes."""
    null = (first.null_start + second.null_start) / 2, (first.null_end + second.null_end) / 2
    return WindowLogits(first.first, (first.start + second.start) / 2, (first.end + second.end) / 2, *null)


STEP = 4
LOGS = np.log(TEMPERATURES[::STEP])
FEATURES = {
    "lengths": ("passage tokens", "question tokens", "answer tokens", "windows"),
    "shape of the margins": ("gap to the second answer", "mass at T=1", "mass at T=4", "entropy of starts", "entropy of ends"),
    "agreement of windows": ("gap to the second window", "windows"),
    "logits of the best window": ("null score", "start logit", "spread of starts", "spread of ends"),
    "shared words": ("question in passage", "question near the answer"),
    "rare words": ("rarity in passage", "rarity in question", "pieces in passage", "pieces in question"),
}  # fmt: skip
"""What a form may depend on, beside M*."""


def look(reader: Reader, example: Example, windows: Sequence[WindowLogits]) -> dict[str, object] | None:
    """What is known of a question: M*, the share of the best span by temperature, how good it is, and the features."""
    passage, question = reader.prepare(example.passage), reader.checkpoint.tokenizer.encode(example.question)
    band = margins(passage, windows, reader.answers.max_answer_tokens)
    spans = list(distinct_spans(band, passage.tokens.offsets, 2))
    if not spans:
        return None
    (best, rows, mask), legal = spans[0], band[np.isfinite(band)].astype(np.float64)
    taken = band[rows][mask]
    bests = sorted(float(margins(passage, [window], reader.answers.max_answer_tokens).max()) for window in windows)
    window = max(windows, key=lambda each: span_in(each, best.start_token, best.end_token))
    offsets, ids, words = passage.tokens.offsets, passage.tokens.ids, passage.tokens.words
    text = example.passage[offsets[best.start_token, 0] : offsets[best.end_token, 1]]
    asked = np.unique(question.ids)
    near = ids[max(0, best.start_token - 25) : best.end_token + 26]
    weights = np.log1p(asked)  # rare words of BERT's vocabulary come last
    return {
        "score": best.score,
        "share": [log_sum_exp(taken, t) - log_sum_exp(legal, t) for t in TEMPERATURES[::STEP]],
        "answerable": bool(example.answers),
        "f1": question_scores(example, text)[1] if example.answers else 0.0,
        "passage tokens": math.log(len(ids)),
        "question tokens": math.log(len(question.ids)),
        "answer tokens": math.log(best.end_token - best.start_token + 1),
        "windows": math.log(len(windows)),
        "gap to the second answer": math.log1p(best.score - spans[1][0].score) if len(spans) > 1 else 3.0,
        "gap to the second window": bests[-1] - bests[-2] if len(bests) > 1 else 0.0,
        "mass at T=1": log_sum_exp(legal) - best.score,
        "mass at T=4": log_sum_exp(legal, 4.0) - best.score / 4,
        "entropy of starts": entropy(window.start),
        "entropy of ends": entropy(window.end),
        "null score": window.null_score,
        "start logit": float(window.start.max()),
        "spread of starts": float(window.start.std()),
        "spread of ends": float(window.end.std()),
        "question in passage": float(weights[np.isin(asked, ids)].sum() / weights.sum()),
        "question near the answer": float(weights[np.isin(asked, near)].sum() / weights.sum()),
        "rarity in passage": float(np.log1p(ids).mean()),
        "rarity in question": float(np.log1p(question.ids).mean()),
        "pieces in passage": float((np.diff(words, prepend=-1) == 0).mean()),
        "pieces in question": float((np.diff(question.words, prepend=-1) == 0).mean()),
    }


def span_in(window: WindowLogits, first: int, last: int) -> float:
    inside = window.first <= first and last < window.first + len(window.start)
    return (
        float(window.start[first - window.first] + window.end[last - window.first] - window.null_score)
        if inside
        else -math.inf
    )


def entropy(logits: NDArray[np.float32]) -> float:
    shares = np.exp(logits - log_sum_exp(logits))
    return -float((shares * np.log(shares + 1e-12)).sum())


Columns = dict[str, NDArray]


def columns(rows: Sequence[dict]) -> Columns:
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return found | {"right": found["answerable"] & (found["f1"] >= RIGHT)}


def join(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def some(part: Columns, chosen: NDArray) -> Columns:
    return {name: values[chosen] for name, values in part.items()}


@dataclass(frozen=True)
class Form:
    """Probabilities: 1 / (1 + exp(a - b M* - w z)) that there is an answer, and exp(t + v z) the temperature of its share.

    `depends` names z; each of z has mean 0 and spread 1 where it was fitted. `without` is the weight of a question without an answer.
    `penalty` is that on the squares of w and v, per question. The threshold is on the first of the two probabilities, where none is
    fixed on M*. `fit` returns the form with the rest: `p` is (a, log b, w), `t` is (t, v).
    """

    depends: tuple[str, ...] = ()
    without: float = 1.0
    penalty: float = 0.01
    fixed: float | None = None
    p: NDArray = field(default_factory=lambda: np.zeros(2))
    t: NDArray = field(default_factory=lambda: np.zeros(1))
    mean: NDArray = field(default_factory=lambda: np.zeros(0))
    spread: NDArray = field(default_factory=lambda: np.zeros(0))
    cut: float = 0.0

    def fit(self, parts: Sequence[Columns]) -> "Form":
        data = join(parts)
        plain = np.concatenate([np.full(len(part["score"]), 1 / len(part["score"]) / len(parts)) for part in parts])
        answerable = data["answerable"]
        weights = np.where(answerable, plain, plain * self.without)
        weights /= weights.sum()
        raw = self.raw(data)
        form = replace(self, mean=raw.mean(0), spread=raw.std(0) + 1e-9)
        z, scores = form.z(data), data["score"]

        def loss(p: NDArray) -> tuple[float, NDArray]:
            x = math.exp(p[1]) * scores - p[0] + z @ p[2:]
            off = weights * (sigmoid(x) - answerable)
            value = weights @ (np.logaddexp(0, x) - answerable * x) + self.penalty * (p[2:] @ p[2:])
            return value, np.r_[-off.sum(), math.exp(p[1]) * (off @ scores), off @ z + 2 * self.penalty * p[2:]]

        there, z_there = some(data, answerable), z[answerable]
        of_there = weights[answerable] / weights[answerable].sum()

        def loss_of_share(t: NDArray) -> tuple[float, NDArray]:
            share, slope = log_share(there, t[0] + z_there @ t[1:])
            wrong = np.log(-np.expm1(share))
            value = -(of_there @ np.where(there["right"], share, wrong)) + self.penalty * (t[1:] @ t[1:])
            change = -of_there * slope * np.where(there["right"], 1.0, -np.exp(share - wrong))
            return value, np.r_[change.sum(), change @ z_there + 2 * self.penalty * t[1:]]

        count = len(self.depends)
        p = minimize(loss, np.zeros(2 + count), jac=True, method="L-BFGS-B").x
        t = minimize(loss_of_share, np.zeros(1 + count), jac=True, method="L-BFGS-B").x
        form = replace(form, p=p, t=t)
        if self.fixed is not None:
            return replace(form, cut=self.fixed)
        x = form.logit(data)
        order = np.argsort(-x)
        total = np.cumsum((plain * np.where(answerable, data["f1"], -1.0))[order])
        return replace(form, cut=float(x[order][total.argmax()]))

    def raw(self, data: Columns) -> NDArray:
        return np.stack([data[name] for name in self.depends], 1) if self.depends else np.zeros((len(data["score"]), 0))

    def z(self, data: Columns) -> NDArray:
        return np.clip((self.raw(data) - self.mean) / self.spread, -3, 3)

    def logit(self, data: Columns) -> NDArray:
        return math.exp(self.p[1]) * data["score"] - self.p[0] + self.z(data) @ self.p[2:]

    def result(self, data: Columns) -> "Result":
        """The probability of what is returned, whether that is right, and its F1."""
        x, missing = self.logit(data), ~data["answerable"]
        given = (x if self.fixed is None else data["score"]) >= self.cut
        share, _ = log_share(data, self.t[0] + self.z(data) @ self.t[1:])
        probability = sigmoid(np.where(given, x, -x)) * np.exp(np.where(given, share, 0.0))
        return probability, np.where(given, data["right"], missing), np.where(given, data["f1"], missing)


def stored(reader: Reader) -> Form:
    """The form as the model's spanqa.json has it."""
    kept, cut = reader.calibration, reader.answers.no_answer_threshold
    return Form(fixed=cut, cut=cut, p=np.array([kept.a, math.log(kept.b)]), t=np.array([math.log(kept.temperature)]))


def sigmoid(x: NDArray) -> NDArray:
    return np.exp(-np.logaddexp(0, -x))


def log_share(data: Columns, logs: NDArray) -> tuple[NDArray, NDArray]:
    """The log of the share of each question's best answer at its own temperature, and its slope; `logs` is that of the temperature."""
    step = LOGS[1] - LOGS[0]
    place = np.clip((logs - LOGS[0]) / step, 0, len(LOGS) - 1.001)
    left, rows = place.astype(int), np.arange(len(place))
    low, high = data["share"][rows, left], data["share"][rows, left + 1]
    return np.minimum(low + (place - left) * (high - low), -1e-9), (high - low) / step


Result = tuple[NDArray, NDArray, NDArray]


def describe_result(result: Result, data: Columns) -> dict[str, float]:
    """ECE and the area under risk over coverage, with questions without an answer and on the others alone, and F1."""
    found, generator = {}, np.random.default_rng(0)
    for name, chosen in (("with", np.full(len(result[0]), True)), ("answerable", data["answerable"])):
        probabilities, right = result[0][chosen], result[1][chosen]
        found[f"ece_{name}"] = expected_calibration_error(probabilities, right)
        draws = [generator.random(len(right)) < probabilities for _ in range(20)]
        found[f"floor_{name}"] = float(np.mean([expected_calibration_error(probabilities, draw) for draw in draws]))
        found[f"area_{name}"] = risk_coverage_of(probabilities, right)[2]
    return found | {"f1": 100 * float(result[2].mean()), "right": float(result[1].mean())}


def beside(ours: dict[str, Result], todays: dict[str, Result]) -> dict[str, list[float]]:
    """95 % intervals of the difference from today's form, paired: the mean area, F1 on SQuAD, and the mean F1 on the others."""
    areas, f1 = [], {}
    for domain, mine in ours.items():
        generator = np.random.default_rng(0)
        sample = [generator.integers(0, len(mine[0]), len(mine[0])) for _ in range(DRAWS)]
        theirs = todays[domain]
        areas.append([area(mine, drawn) - area(theirs, drawn) for drawn in sample])
        change = mine[2].astype(float) - theirs[2].astype(float)
        f1[domain] = np.array([100 * change[drawn].mean() for drawn in sample])
    found = {"area": np.mean(areas, axis=0), "f1_squad": f1.pop(SQUAD), "f1_others": np.mean(list(f1.values()), axis=0)}
    return {name: np.quantile(values, [0.025, 0.975]).tolist() for name, values in found.items()}


def area(result: Result, drawn: NDArray) -> float:
    return risk_coverage_of(result[0][drawn], result[1][drawn])[2]


def leave_out(form: Form, data: dict[Part, Columns]) -> tuple[dict[str, Form], dict[str, Columns]]:
    """The form as fitted on all domains but one, for each, and the questions of that one."""
    names = list(dict.fromkeys(domain for domain, _ in data))
    whole = {domain: join([data[domain, part] for part in PARTS]) for domain in names}
    known = {**whole, SQUAD: data[SQUAD, "fit"]}
    forms = {domain: form.fit([part for other, part in known.items() if other != domain]) for domain in names}
    return forms, {**whole, SQUAD: data[SQUAD, "measure"]}


def compare(data: dict[Part, Columns], todays: Form) -> dict[str, dict]:
    """Every form, on every domain: fitted on the other domains, on all, or on the domain itself."""
    measured = {domain: data[domain, "measure"] for domain in DOMAINS}
    everything = tuple(dict.fromkeys(name for names in FEATURES.values() for name in names))
    kinds = {
        "M* alone": Form(),
        "M* alone, today's threshold": Form(fixed=todays.cut),
        "M* alone, half weight without an answer": Form(without=0.5),
        **{f"M* and {name}": Form(names) for name, names in FEATURES.items()},
        "M* and all of these": Form(everything),
    }
    found = {"today's": row(dict.fromkeys(DOMAINS, todays), leave_out(Form(), data)[1], todays)}
    for name, form in track(kinds.items(), "forms", console=Console(stderr=True)):
        found[f"{name}; other domains"] = row(*leave_out(form, data), todays)
    found["today's, on the parts to measure on"] = row(dict.fromkeys(DOMAINS, todays), measured, todays)
    for name, form in track(kinds.items(), "forms", console=Console(stderr=True)):
        pooled = form.fit([data[domain, "fit"] for domain in DOMAINS])
        found[f"{name}; all domains"] = row(dict.fromkeys(DOMAINS, pooled), measured, todays)
    for name in ("M* alone", "M* and all of these"):
        own = {domain: kinds[name].fit([data[domain, "fit"]]) for domain in DOMAINS}
        found[f"{name}; own domain"] = row(own, measured, todays)
    few = {domain: Form().fit([some(data[domain, "fit"], np.arange(FEW))]) for domain in DOMAINS}
    found[f"M* alone; {FEW} questions of the own domain"] = row(few, measured, todays)
    best = {domain: least_error(measured[domain]) for domain in DOMAINS}
    found["M* alone; the very questions, threshold for the least ECE"] = row(best, measured, todays)
    return found


def compare_passes(one: dict[Part, Columns], two: dict[Part, Columns]) -> dict[str, dict]:
    """One pass and the mean of two passes with dropout, both fitted on the other domains; area and F1 beside those of one pass."""
    forms, on = leave_out(Form(), one)
    twice, on_twice = leave_out(Form(), two)
    results = {domain: forms[domain].result(data) for domain, data in on.items()}
    return {
        "one pass": summary(results, results, on),
        "two passes with dropout": summary(
            {domain: twice[domain].result(data) for domain, data in on_twice.items()}, results, on
        ),
    }


def row(forms: dict[str, Form], on: dict[str, Columns], todays: Form) -> dict[str, dict]:
    results = {domain: forms[domain].result(data) for domain, data in on.items()}
    return summary(results, {domain: todays.result(data) for domain, data in on.items()}, on)


def summary(results: dict[str, Result], base: dict[str, Result], on: dict[str, Columns]) -> dict[str, dict]:
    rows = {domain: describe_result(result, on[domain]) for domain, result in results.items()}
    means = {key: float(np.mean([each[key] for each in rows.values()])) for key in rows[SQUAD]}
    means["f1_others"] = float(np.mean([each["f1"] for domain, each in rows.items() if domain != SQUAD]))
    return {"mean": means, "beside_todays": beside(results, base), "domains": rows}


def least_error(data: Columns) -> Form:
    """Fitted to the questions that it is measured on, with the weight and threshold that make both calibration errors least."""
    best: tuple[float, Form] | None = None
    for without in (1.0, 0.5, 0.25, 0.1):
        form = Form(without=without).fit([data])
        for cut in np.quantile(data["score"], np.linspace(0, 0.95, 20)):
            tried = replace(form, fixed=float(cut), cut=float(cut))
            probabilities, right, _ = tried.result(data)
            chosen = data["answerable"]
            errors = (
                expected_calibration_error(probabilities, right),
                expected_calibration_error(probabilities[chosen], right[chosen]),
            )
            if best is None or sum(errors) < best[0]:
                best = sum(errors), tried
    assert best is not None
    return best[1]


FEW, DRAWS = 100, 300


def show(found: dict[str, dict]) -> None:
    heads = ("ECE", "floor", "ECE, answerable", "floor", "area", "area - today's", "F1 SQuAD", "F1 others")
    table = Table("", *heads, box=None, padding=(0, 2))
    for name, row in found.items():
        mean, (low, high) = row["mean"], row["beside_todays"]["area"]
        cells = [
            f"{mean[key]:.3f}" for key in ("ece_with", "floor_with", "ece_answerable", "floor_answerable", "area_with")
        ]
        table.add_row(
            name, *cells, f"{low:+.4f} to {high:+.4f}", f"{row['domains'][SQUAD]['f1']:.2f}", f"{mean['f1_others']:.2f}"
        )
    Console(width=170).print(table)
    for key in ("ece_with", "ece_answerable", "area_with", "f1"):
        table = Table(key, *next(iter(found.values()))["domains"], box=None, padding=(0, 2))
        for name, row in found.items():
            table.add_row(name, *(f"{each[key]:.3f}" for each in row["domains"].values()))
        Console(width=190).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spanqa-mini")
    parser.add_argument("--cache", type=Path, required=True, help="a folder for the logits")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with Reader.load(arguments.model, dtype="fp32") as reader:
        data = table_of(reader, read(reader, arguments.cache))
        forms = compare(data, stored(reader))
        passes = compare_passes(*few_questions(reader, arguments.cache, data))
        show(forms)
        show(passes)
        if arguments.out:
            files = [f"{name}.json.gz" for names in DOMAINS.values() for name in names]
            files += ["squad-v2.0-train-rebuilt.json.gz", "squad-v2.0-dev.json.gz"]
            record = {
                "command": shlex.join(["python", "benchmarks/probabilities.py", *sys.argv[1:]]),
                "model": {"name": reader.checkpoint.path.name, "sha256": reader.checkpoint.weights.sha256},
                "backend": f"{reader.backend.name} {reader.backend.dtype}",
                "processor": processor(),
                "versions": {"spanqa": __version__},
                "data": [describe(DATA / name, (DATA / name).read_bytes()) for name in files],
                "questions": {f"{domain}, {part}": sizes(data[domain, part]) for domain in DOMAINS for part in PARTS},
                "forms": forms,
                "passes": passes,
            }
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def table_of(reader: Reader, chunks: Iterable[Chunk]) -> dict[Part, Columns]:
    rows: dict[Part, list[dict]] = defaultdict(list)
    for part, found in chunks:
        seen = (look(reader, example, windows) for example, windows in found)
        rows[part] += [each for each in seen if each is not None]
    return {part: columns(of_part) for part, of_part in rows.items()}


def few_questions(
    reader: Reader, cache: Path, data: dict[Part, Columns]
) -> tuple[dict[Part, Columns], dict[Part, Columns]]:
    """The first questions of each part but TimeQA's, which are long: read once, and as the mean of two passes with dropout."""
    import torch

    chunks = []
    for number in range(2):
        torch.manual_seed(number)
        with Reader(reader.checkpoint, Dropout(reader.checkpoint)) as other:
            chunks.append(list(read(other, cache / f"dropout-{number}", few=True)))
    both = [
        (part, [(example, list(map(mean_of, a, b))) for (example, a), (_, b) in zip(first, second, strict=True)])
        for (part, first), (_, second) in zip(*chunks, strict=True)
    ]
    two = table_of(reader, both)
    return {part: some(data[part], np.arange(len(two[part]["score"]))) for part in two}, two


def sizes(part: Columns) -> dict[str, int | float]:
    with_answer = part["answerable"]
    return {
        "answerable": int(with_answer.sum()),
        "unanswerable": int((~with_answer).sum()),
        "right_if_always_answered": float(part["right"][with_answer].mean()),
    }


if __name__ == "__main__":
    main()
