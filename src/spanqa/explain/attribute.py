"""`attribute`: a question and a passage to an explanation of what the reader decided, by any method."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spanqa.bounds import Bound
from spanqa.errors import BackendError, InputError
from spanqa.explain import occlusion
from spanqa.explain.decision import Against, Decision, decide, made_with, words_in_play
from spanqa.explain.explanation import Convergence, Explanation, Side
from spanqa.explain.occlusion import Occluder
from spanqa.explain.trust import measure_trust
from spanqa.explain.words import Word, add_pieces, lies_in, mask_of
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


Run = Callable[[Occluder, Sequence[Word], Progress], Scores]
"""Gives the scores of the words of a decision, those in play. The decision, its reader and the mask are the occluder's."""


@dataclass(frozen=True, slots=True)
class Method:
    """`signed`: its scores have a direction. `needs` names the extra that it needs, "" for none (`spanqa.extras`)."""

    signed: bool
    needs: str
    run: Run


def _occlusion(occluder: Occluder, words: Sequence[Word], progress: Progress) -> Scores:
    return Scores(*occlusion.occlusion(occluder, words, progress))


def _hierarchical(occluder: Occluder, words: Sequence[Word], progress: Progress) -> Scores:
    return Scores(*occlusion.hierarchical_occlusion(occluder, words, progress))


def _rollout(occluder: Occluder, words: Sequence[Word], progress: Progress) -> Scores:
    from spanqa.explain import rollout

    decision = occluder.decision
    tokens, passes = rollout.token_scores(occluder.reader, decision, progress=progress)
    windows = [decision.windows[number] for number in decision.deciding]
    return Scores(add_pieces(words, windows, tokens).tolist(), [True] * len(words), passes)


def _by_gradients(name: str) -> Run:
    def run(occluder: Occluder, words: Sequence[Word], progress: Progress) -> Scores:
        backend: Any = occluder.reader.backend
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

        objective = occluder.decision.objective()
        tokens, convergence, passes = gradients.token_scores(
            backend, objective, occluder.mask, name, deadline=occluder.deadline, progress=progress
        )
        scores = add_pieces(words, objective.windows, tokens)
        return Scores(scores.tolist(), [True] * len(words), passes, convergence)

    return run


METHODS: Mapping[str, Method] = {
    "occlusion": Method(True, "", _occlusion),
    "hierarchical_occlusion": Method(True, "", _hierarchical),
    "integrated_gradients": Method(True, "gradients", _by_gradients("integrated_gradients")),
    "gradient_x_input": Method(True, "gradients", _by_gradients("gradient_x_input")),
    "gradient": Method(False, "gradients", _by_gradients("gradient")),
    "gae": Method(False, "gradients", _by_gradients("gae")),
    "gae_abs": Method(False, "gradients", _by_gradients("gae_abs")),
    "rollout": Method(False, "", _rollout),
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

    `against` and `threshold` are those of `decide`, and the rest is as in `explain_decision`.

        explanation = attribute(reader, "Who built the pier?", "The pier was built by Anna Kestrel.")
        explanation.trust.verdict              # 'reliable', 'weak' or 'no better than chance'
        [explanation.words[i].text for i in explanation.order()[:3]]

    Raises:
        InputError: there is nothing to explain, no such method or span, or the budget is no positive number.
        BackendError: the method needs gradients, and this backend has none.
        NotInstalledError: the method needs torch.
        QuestionTooLongError: the question leaves no room for the passage.
    """
    _check(method, budget_s)
    decision = decide(reader, question, passage, against=against, threshold=threshold, progress=progress)
    return explain_decision(reader, decision, method=method, budget_s=budget_s, trust=trust, progress=progress)


def explain_decision(
    reader: Reader,
    decision: Decision,
    *,
    method: str | None = None,
    budget_s: float | None = None,
    trust: bool = True,
    progress: Progress = silent,
) -> Explanation:
    """Explain what this reader decided: a score for every word, and how far the scores can be trusted.

    `method` is one of `METHODS`; None is occlusion, hierarchical where there are more than `FLAT_WORDS` words. `budget_s` are
    seconds after which no new round of work begins; the explanation says what was left out. Without `trust` it is not measured how
    faithful the scores are. `progress` counts the steps of each stage.

    Raises:
        InputError: there is no such method, the budget is no positive number, or the model has no token that hides words.
        BackendError, NotInstalledError: as `attribute`.
    """
    started = time.monotonic()
    _check(method, budget_s)
    words = words_in_play(decision)
    name = method or ("occlusion" if len(words) <= FLAT_WORDS else "hierarchical_occlusion")
    occluder = Occluder(reader, decision, mask_of(reader.checkpoint.tokenizer))
    if budget_s is not None:
        occluder.deadline = started + budget_s * 2 / 3  # the rest is for measuring how faithful the scores are
    found = METHODS[name].run(occluder, words, progress)
    late = occluder.late
    if budget_s is not None:
        occluder.deadline = started + budget_s
    sides = [_side(decision, span) for span in (decision.chosen, decision.other)]
    spans = [decision.characters(span) for span in decision.spans]
    protected = [lies_in(word, spans) for word in words]
    measured = measure_trust(occluder, words, found.scores, protected, progress=progress) if trust else None
    return Explanation(
        question=decision.question,
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
        note=_note(name, found, late, trust and measured is None, budget_s),
        convergence=found.convergence,
        trust=measured,
        made_with=made_with(reader),
    )


def _check(method: Any, budget_s: Any) -> None:
    if method is not None and not (isinstance(method, str) and method in METHODS):
        raise InputError(f"There is no method {method!r}. Choose one of {', '.join(METHODS)}.")
    if budget_s is not None and not (_BUDGET.holds(budget_s) and budget_s > 0):
        raise InputError(f"budget_s is {budget_s!r:.60}; expected a number of seconds above 0.")


def _side(decision: Decision, span: tuple[int, int] | None) -> Side:
    if span is None:
        return Side("", None, None, 0.0)
    start, end = decision.characters(span)
    return Side(decision.passage.text[start:end], start, end, decision.margin(span, decision.logits))


def _note(name: str, found: Scores, late: bool, untrusted: bool, budget_s: float | None) -> str:
    notes = []
    left = found.refined.count(False) if isinstance(found.refined, list) else 0
    if left and name == "hierarchical_occlusion":
        none = f", or 0 where {budget_s:g} seconds were too short" if late else ""
        notes.append(f"{left:,} of {len(found.refined):,} words have a share of the score of their sentence{none}.")
    elif left:
        notes.append(f"{left:,} of {len(found.refined):,} words were not measured in {budget_s:g} seconds.")
    if untrusted:  # the question always has words to hide, so only time can have been short
        notes.append(f"How faithful the scores are could not be measured in {budget_s:g} seconds.")
    return " ".join(notes)
