"""`attribute`: a question and a passage to an explanation of what the reader decided, by any method."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spanqa.bounds import Bound
from spanqa.errors import BackendError, InputError
from spanqa.evaluate.record import describe_reader, describe_run, reader_packages
from spanqa.explain import occlusion
from spanqa.explain.decision import Against, Decision, decide
from spanqa.explain.explanation import Convergence, Explanation, Side
from spanqa.explain.occlusion import Occluder
from spanqa.explain.trust import measure_trust
from spanqa.explain.words import Word, add_pieces, mask_of, words_of
from spanqa.extras import require
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.tokens import Passage


@dataclass(frozen=True, slots=True)
class Scores:
    """What a method gives: a score for each word, which were measured by themselves, and the windows read for it."""

    scores: Sequence[float]
    refined: Sequence[bool]
    passes: int = 0
    convergence: Convergence | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """`signed`: its scores have a direction. `needs` names the extra that it needs, "" for none (`spanqa.extras`)."""

    what: str
    signed: bool
    needs: str
    run: Callable[["_Work"], Scores]


@dataclass(frozen=True, slots=True)
class _Work:
    reader: Reader
    decision: Decision
    words: Sequence[Word]
    occluder: Occluder
    progress: Progress


def _occlusion(work: _Work) -> Scores:
    return Scores(*occlusion.occlusion(work.occluder, work.words, work.progress))


def _hierarchical(work: _Work) -> Scores:
    return Scores(*occlusion.hierarchical_occlusion(work.occluder, work.words, work.progress))


def _rollout(work: _Work) -> Scores:
    from spanqa.explain import rollout

    tokens, passes = rollout.token_scores(work.reader, work.decision, progress=work.progress)
    windows = [work.decision.windows[number] for number in work.decision.deciding]
    return Scores(add_pieces(work.words, windows, tokens).tolist(), [True] * len(work.words), passes)


def _by_gradients(name: str) -> Callable[[_Work], Scores]:
    def run(work: _Work) -> Scores:
        backend: Any = work.reader.backend
        if not hasattr(backend, "network") and backend.name == "torch":
            raise BackendError(
                f"Replicas of a model on several devices ({backend.device!r}) compute no gradients, which {name!r} needs. Load it on "
                "one device, or choose the method 'occlusion'."
            )
        if not hasattr(backend, "network"):
            raise BackendError(
                f"Backend {backend.name!r} computes no gradients, which {name!r} needs. Choose backend 'torch', or the method "
                "'occlusion'."
            )
        require("gradients")
        from spanqa.explain import gradients

        objective = work.decision.objective()
        tokens, convergence, passes = gradients.token_scores(
            backend, objective, work.occluder.mask, name, deadline=work.occluder.deadline, progress=work.progress
        )
        scores = add_pieces(work.words, objective.windows, tokens)
        return Scores(scores.tolist(), [True] * len(work.words), passes, convergence)

    return run


METHODS: Mapping[str, Method] = {
    "occlusion": Method("hide each word, and read again", True, "", _occlusion),
    "hierarchical_occlusion": Method("hide sentences, then the words of those that matter", True, "", _hierarchical),
    "integrated_gradients": Method(
        "gradients on the way from a masked text", True, "gradients", _by_gradients("integrated_gradients")
    ),
    "gradient_x_input": Method("gradient times embedding", True, "gradients", _by_gradients("gradient_x_input")),
    "gradient": Method("length of the gradient", False, "gradients", _by_gradients("gradient")),
    "gae": Method("attention weighted by its gradient, positive part", False, "gradients", _by_gradients("gae")),
    "gae_abs": Method("attention weighted by its gradient, absolute", False, "gradients", _by_gradients("gae_abs")),
    "rollout": Method("attention followed through all layers", False, "", _rollout),
}
"""Every method, by its name."""

_BUDGET = Bound(0, math.inf, whole=False)

FLAT_WORDS = 400
"""By default, more words than these are explained by hierarchical occlusion, fewer by occlusion."""


def attribute(
    reader: Reader,
    question: str,
    passage: str | Passage,
    *,
    method: str | None = None,
    against: Against = "no answer",
    threshold: float | None = None,
    budget_s: float | None = None,
    trust: bool = True,
    progress: Progress = silent,
) -> Explanation:
    """Explain what the reader answers: a score for every word, and how far the scores can be trusted.

    An answer is explained against "no answer", an abstention against the best span; `against` asks for the runner-up or a given
    span (characters start to end, the end excluded). `method` is one of `METHODS`; None is occlusion, hierarchical where there are
    more than `FLAT_WORDS` words. `threshold` is the reader's own when None. `budget_s` are seconds after which no new round of work
    begins; the explanation says what was left out. Without `trust` it is not measured how faithful the scores are. `progress` counts the steps of each stage.

        explanation = attribute(reader, "Who built the pier?", "The pier was built by Anna Kestrel.")
        explanation.trust.verdict              # 'reliable', 'weak' or 'no better than chance'
        [explanation.words[i].text for i in explanation.order()[:3]]

    Raises:
        InputError: there is nothing to explain, no such method or span, or the budget is no positive number.
        BackendError: the method needs gradients, and this backend has none.
        NotInstalledError: the method needs torch.
        QuestionTooLongError: the question leaves no room for the passage.
    """
    started = time.monotonic()
    _check(method, budget_s)
    decision = decide(reader, question, passage, against=against, threshold=threshold, progress=progress)
    words = _words(decision)
    name = method or ("occlusion" if len(words) <= FLAT_WORDS else "hierarchical_occlusion")
    occluder = Occluder(reader, decision, mask_of(reader.checkpoint.tokenizer))
    if budget_s is not None:
        occluder.deadline = started + budget_s * 2 / 3  # the rest is for measuring how faithful the scores are
    found = METHODS[name].run(_Work(reader, decision, words, occluder, progress))
    if budget_s is not None:
        occluder.deadline = started + budget_s
    sides = [_side(decision, span) for span in (decision.chosen, decision.other)]
    spans = [decision.characters(span) for span in decision.spans]
    protected = [
        word.part == "passage" and any(word.start < end and start < word.end for start, end in spans) for word in words
    ]
    measured = measure_trust(occluder, words, found.scores, protected, progress=progress) if trust else None
    return Explanation(
        question=question,
        passage=decision.passage.text,
        source=decision.passage.source,
        answer=decision.answer,
        chosen=sides[0],
        other=sides[1],
        value=decision.value(decision.logits),
        method=name,
        signed=METHODS[name].signed,
        words=tuple(words),
        scores=tuple(float(score) for score in found.scores),
        refined=tuple(found.refined),
        mask=occluder.mask.token,
        passes=occluder.passes + found.passes,
        seconds=time.monotonic() - started,
        note=_note(name, found, trust and measured is None, budget_s),
        convergence=found.convergence,
        trust=measured,
        made_with=made_with(reader),
    )


def made_with(reader: Reader) -> dict[str, Any]:
    """Return the model and the versions that an explanation was made with."""
    return {**describe_reader(reader), "versions": describe_run(reader_packages(reader))["versions"]}


def _check(method: Any, budget_s: Any) -> None:
    if method is not None and not (isinstance(method, str) and method in METHODS):
        raise InputError(f"There is no method {method!r}. Choose one of {', '.join(METHODS)}.")
    if budget_s is not None and not (_BUDGET.holds(budget_s) and budget_s > 0):
        raise InputError(f"budget_s is {budget_s!r:.60}; expected a number of seconds above 0.")


def _words(decision: Decision) -> list[Word]:
    """Return the words of the question and of the windows in play, in order."""
    words = words_of("question", decision.question, decision.question_tokens)
    ranges: list[list[int]] = []
    for number in decision.in_play:
        window = decision.windows[number]
        if ranges and window.first <= ranges[-1][1]:
            ranges[-1][1] = max(ranges[-1][1], window.stop)
        else:
            ranges.append([window.first, window.stop])
    for first, stop in ranges:
        words += words_of("passage", decision.passage.text, decision.passage.tokens, first, stop)
    return words


def _side(decision: Decision, span: tuple[int, int] | None) -> Side:
    if span is None:
        return Side("", None, None, 0.0)
    start, end = decision.characters(span)
    return Side(decision.passage.text[start:end], start, end, decision.margin(span, decision.logits))


def _note(name: str, found: Scores, untrusted: bool, budget_s: float | None) -> str:
    notes = []
    left = found.refined.count(False) if isinstance(found.refined, list) else 0
    if left and name == "hierarchical_occlusion":
        notes.append(f"{left:,} of {len(found.refined):,} words have a share of the score of their sentence.")
    elif left:
        notes.append(f"{left:,} of {len(found.refined):,} words were not measured in {budget_s:g} seconds.")
    if untrusted and budget_s is not None:
        notes.append(f"How faithful the scores are could not be measured in {budget_s:g} seconds.")
    elif untrusted:
        notes.append(
            "There are no words to hide beside the answer, so it cannot be measured how faithful the scores are."
        )
    return " ".join(notes)
