"""An explanation in words: the sentences that the page, the notebook and the figures show, as plain text.

It draws nothing, and it says nothing that the numbers of the explanation do not say.
"""

from spanqa.answers import Answer
from spanqa.explain.explanation import Explanation, Side, Trust

NO_ANSWER = "Not in this text"

_VERDICTS = {
    "reliable": "Reliable",
    "weak": "Weak",
    "no better than chance": "No better than chance",
}

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"}
_CONTROLS[0x7F] = 0x2421
_REORDERING = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0x241A)


def visible(text: str) -> str:
    r"""Return the text with characters that would be invisible, or would reorder what is around them, shown as symbols.

    Each is replaced by one character, so that offsets stay as they are. page.js does the same.

    >>> visible("a\x00b")
    'a␀b'
    """
    return text.translate(_CONTROLS | _REORDERING)


def quoted(text: str) -> str:
    """Return the text in quotation marks."""
    return f"“{visible(text)}”"


def side(of: Side) -> str:
    """Return the name of one side of a decision: its text in quotation marks, or "no answer"."""
    return "no answer" if of.start is None else quoted(of.text)


def headline(explanation: Explanation) -> str:
    """Return what was answered."""
    return visible(explanation.answer.text) if explanation.answer else NO_ANSWER


def probability(answer: Answer) -> str:
    """Return how confident the reader is, and what it thinks of the alternative."""
    if answer:
        return (
            f"The probability that the answer lies here is {answer.probability:.2f}; that there is none, "
            f"{answer.no_answer_probability:.2f}."
        )
    sentence = f"The probability that there is no answer is {answer.no_answer_probability:.2f}."
    if answer.closest is not None:
        sentence += f" The closest span, {quoted(answer.closest.text)}, has {answer.closest.probability:.2f}."
    return sentence


def target(explanation: Explanation) -> str:
    """Return what the scores take apart."""
    chosen, other = side(explanation.chosen), side(explanation.other)
    if not explanation.signed:
        return f"Scores say how much a word matters to {chosen} against {other}; by this method they have no direction."
    return (
        f"Scores say how much a word speaks for {chosen} and against {other}. Together these two differ by "
        f"{signed(explanation.value)} logits."
    )


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign.

    >>> signed(-0.5), signed(0.001)
    ('−0.50', '0.00')
    """
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return ("−" if value < 0 else "+") + text


def verdict(trust: Trust | None) -> str:
    """Return the verdict in one or two words."""
    return "Not measured" if trust is None else _VERDICTS[trust.verdict]


def evidence(trust: Trust | None) -> str:
    """Return the sentences that the verdict rests on."""
    if trust is None:
        return "How faithful the scores are was not measured, so nothing says how far they can be trusted."
    points = max(1, len(trust.curve))
    random_hidden = sum(point.random_comprehensiveness for point in trust.curve) / points
    random_kept = sum(point.random_sufficiency for point in trust.curve) / points
    return (
        f"When the words with the highest scores are hidden, the probability of the decision falls by "
        f"{_drop(trust.comprehensiveness)} on average; with as many random words, by {_drop(random_hidden)}. When these words alone are "
        f"kept, it falls by {_drop(trust.sufficiency)}; with random words, by {_drop(random_kept)}. Together that is "
        f"{abs(trust.deviations):.1f} standard deviations {'above' if trust.deviations >= 0 else 'below'} "
        f"{trust.random_orders} random orders."
    )


def _drop(value: float) -> str:
    return signed(value).lstrip("+")


def flip(explanation: Explanation) -> str:
    """Return which words change the answer when they are hidden, and to what; or why none are known."""
    trust = explanation.trust
    if trust is None:
        return ""
    if trust.flip is None:
        return visible(trust.flip_note)
    names = [quoted(explanation.words[number].text) for number in trust.flip.words]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    becomes = quoted(trust.flip.answer.text) if trust.flip.answer else f"“{NO_ANSWER.lower()}”"
    if not trust.flip.minimal:
        ending = " Fewer words might do: the search for them was not finished."
    else:
        ending = "" if len(names) == 1 else " None of these words can be spared."
    return f"Without {listed} the answer becomes {becomes}.{ending}"


def convergence(explanation: Explanation) -> str:
    """Return whether integrated gradients add up; "" for other methods."""
    found = explanation.convergence
    if found is None:
        return ""
    if found.converged:
        return f"The scores add up to the whole within {found.relative_gap:.1%}, after {found.steps} steps."
    return (
        f"The scores do not add up: {found.relative_gap:.0%} of the whole is missing or too much after {found.steps} steps. "
        "Read them with care."
    )


def method(explanation: Explanation) -> str:
    """Return how the scores were made."""
    name = explanation.method.replace("_", " ")
    return f"{name[:1].upper()}{name[1:]}, {explanation.passes:,} windows read in {explanation.seconds:.1f} s."
