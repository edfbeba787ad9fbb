"""An explanation in words: the sentences that the terminal, the page and the figures share."""

from spanqa.explain.explanation import Explanation, Flip, Side


def what_is_weighed(found: Explanation) -> str:
    """Say what the scores of the words mean."""
    if not found.signed:
        return f"How much each word has to do with {_name(found.chosen)} (no direction)"
    return f"What each word adds for {_name(found.chosen)} against {_name(found.other)}, in logits ({found.value:+.1f} in all)"


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
    return (
        f"hiding the top words changes the probability by {trust.comprehensiveness:.2f}, keeping only them by {trust.sufficiency:.2f}; "
        f"together {trust.advantage:+.2f} against words drawn at random ({trust.deviations:+.1f} standard deviations)."
    )


def _name(side: Side) -> str:
    return "no answer" if side.start is None else f'"{_short(side.text)}"'


def _words(found: Explanation, flip: Flip) -> str:
    """Name words, in the order of the text: "pier" and "first" (question)."""
    named = []
    for i in sorted(flip.words):
        word = found.words[i]
        named.append(f'"{_short(word.text)}"' + (" in the question" if word.part == "question" else ""))
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
