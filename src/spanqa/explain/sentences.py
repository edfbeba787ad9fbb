"""An explanation in words: the sentences that the terminal, the page and the figures share."""

from spanqa.explain.explanation import Explanation, Flip, Side


def what_is_weighed(found: Explanation) -> str:
    """Say what the scores of the words mean."""
    if not found.signed:
        return "How much each word has to do with the decision (no direction)"
    return f"What each word adds for {name_of(found.chosen)} against {name_of(found.other)}, in logits ({found.value:+.1f} in all)"


def what_changes(found: Explanation) -> str:
    """Say which words change the answer when they are hidden, and to what."""
    if found.trust is None:
        return ""
    flip = found.trust.flip
    if flip is None:
        return found.trust.flip_note
    becomes = f'the answer becomes "{_short(flip.answer.text)}"' if flip.answer else "there is no answer any more"
    if flip.answer and not found.answer:
        becomes = f'the answer is "{_short(flip.answer.text)}"'
    least = "" if len(flip.words) == 1 or flip.minimal else " (perhaps fewer words are enough)"
    return f"Without {_words(found, flip)}, {becomes}{least}."


def why_this_verdict(found: Explanation) -> str:
    """Say what the verdict rests on."""
    trust = found.trust
    if trust is None:
        return ""
    hidden, kept = (
        sum(getattr(point, f"random_{name}") for point in trust.curve) / len(trust.curve)
        for name in ("comprehensiveness", "sufficiency")
    )
    return (
        f"with the top words hidden the probability falls by {_plus(trust.comprehensiveness)} (random words: {_plus(hidden)}), with only "
        f"them left by {_plus(trust.sufficiency)} (random words: {_plus(kept)})."
    )


def name_of(side: Side) -> str:
    """Name one side of a decision: its text in quotation marks, or "no answer"."""
    return "no answer" if side.start is None else f'"{_short(side.text)}"'


def _words(found: Explanation, flip: Flip) -> str:
    """Name words, those of the question first, in the order of the text: "first" in the question and "pier"."""
    named = []
    for i in sorted(flip.words):
        word = found.words[i]
        named.append(f'"{_short(word.text)}"' + (" in the question" if word.part == "question" else ""))
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def headline(found: Explanation) -> str:
    """Say what was answered."""
    return found.answer.text if found.answer else "Not in this text"


def how_probable(found: Explanation) -> str:
    """Say how confident the reader is, and what it thinks of the alternative."""
    answer = found.answer
    if answer:
        return (
            f"The probability that the answer lies here is {answer.probability:.2f}; that there is none, "
            f"{answer.no_answer_probability:.2f}."
        )
    said = f"The probability that there is no answer is {answer.no_answer_probability:.2f}."
    if answer.closest is not None:
        said += f' The closest span, "{_short(answer.closest.text)}", has {answer.closest.probability:.2f}.'
    return said


def whether_it_adds_up(found: Explanation) -> str:
    """Say whether integrated gradients add up; "" for other methods."""
    gap = found.convergence
    if gap is None:
        return ""
    if gap.converged:
        return f"The scores add up within {gap.relative_gap:.1%}, after {gap.steps} steps."
    return f"The scores do not add up: {gap.relative_gap:.0%} are missing after {gap.steps} steps. Do not trust single scores."


def how_it_was_made(found: Explanation) -> str:
    """Say by which method, and at what cost."""
    name = found.method.replace("_", " ")
    return f"{name.capitalize()}: {found.passes:,} windows read in {found.seconds:.1f} s."


_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
_REORDERING = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0x241A)


def visible(text: str) -> str:
    r"""Return a text with characters that cannot be seen, or that reorder what is around them, shown as symbols.

    Each becomes one character, so that offsets stay as they are. page.js does the same.

    >>> visible("a\x00b")
    'a␀b'
    """
    return text.translate(_CONTROLS | _REORDERING)


def _plus(number: float) -> str:
    """Return a number with two digits, and no minus before zero."""
    return f"{round(number, 2) + 0.0:.2f}"
