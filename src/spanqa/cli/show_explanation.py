"""An explanation as a person reads it on a terminal."""

from typing import TYPE_CHECKING

from spanqa.cli import options
from spanqa.cli.show import percent, plain
from spanqa.explain.sentences import what_changes, what_is_weighed, whether_it_adds_up, why_this_verdict

if TYPE_CHECKING:
    from rich.console import Console

    from spanqa.documents import Document
    from spanqa.explain.explanation import Explanation

WORDS = 8
"""Words in the table."""

_BAR = 24  # characters of the longest bar
_SHADES = ((0.6, "white on rgb(18,84,158)"), (0.3, "black on rgb(122,172,226)"), (0.1, "black on rgb(205,225,245)"))
_AGAINST = ((0.6, "white on rgb(158,70,10)"), (0.3, "black on rgb(240,160,95)"), (0.1, "black on rgb(250,220,190)"))
_VERDICTS = {"reliable": "bold green", "weak": "bold yellow", "no better than chance": "bold red"}


def show_explanation(found: "Explanation", document: "Document", calibrated: bool) -> None:
    """Print the answer, its sentence with the words that matter, the strongest words, what changes the answer, and the verdict."""
    console = options.output()
    kind = "" if calibrated else ", uncalibrated"
    answer = found.answer
    console.print(_coloured(found, "question", 0, len(found.question)))
    if answer:
        console.print(f"[bold green]{plain(answer.text)}[/]  ({percent(answer.probability)}{kind})")
    else:
        console.print(f"[bold]Not in this text[/]  ({percent(answer.no_answer_probability)}{kind})")
    shown = answer if answer else answer.closest
    if shown is not None and shown.sentence_start is not None:
        if not answer:
            console.print(f"Closest: {plain(shown.text)}  ({percent(shown.probability)})")
        start = shown.sentence_start
        console.print("   " + _coloured(found, "passage", start, start + len(shown.sentence)))
        line = document.text.count("\n", 0, shown.start or 0) + 1
        console.print(f"   [dim]{plain(document.source)}, line {line}, characters {shown.start}-{shown.end}[/]")
    console.print()
    _show_words(console, found)
    console.print()
    console.print(what_changes(found), markup=False)
    trust = found.trust
    if trust is not None:
        console.print(f"[{_VERDICTS[trust.verdict]}]{trust.verdict.capitalize()}[/]: {why_this_verdict(found)}")
    for note in (found.note, whether_it_adds_up(found)):
        if note:
            console.print(f"[dim]{note}[/]")


def _show_words(console: "Console", found: "Explanation") -> None:
    rows = [i for i in found.strongest() if not found.is_protected(found.words[i]) and found.scores[i]][:WORDS]
    most = max((abs(found.scores[i]) for i in rows), default=1.0)
    width = min(24, max((len(found.words[i].text) for i in rows), default=0))
    console.print(f"[dim]{what_is_weighed(found)}[/]")
    for i in rows:
        word, score = found.words[i], found.scores[i]
        number = f"{score:+.2f}" if found.signed else f"{score:.3g}"
        bar = "█" * max(1, round(_BAR * abs(score) / most))
        colour = "rgb(18,110,200)" if score >= 0 else "rgb(215,110,30)"
        console.print(f"  {plain(word.text[:24]):{width}}  [dim]{word.part:8}[/]  {number:>8}  [{colour}]{bar}[/]")


def _coloured(found: "Explanation", part: str, start: int, end: int) -> str:
    """Return `[start:end]` of a part with the words that matter coloured or, where there is no colour, with their scores."""
    text = found.question if part == "question" else found.passage
    terminal = options.output().is_terminal
    most = max((abs(score) for score in found.scores), default=0.0) or 1.0
    marks = [(*span, "bold underline", "\\[", "]") for span in _spans(found, part, start, end)]
    for word, score in zip(found.words, found.scores, strict=True):
        inside = word.part == part and start <= word.start and word.end <= end
        style = next((style for least, style in (_SHADES if score > 0 else _AGAINST) if abs(score) >= least * most), "")
        if inside and style and not found.is_protected(word):
            marks.append((word.start, word.end, style, "", f" ({score:+.1f})" if found.signed else f" ({score:.2g})"))
    pieces, at = [], start
    for left, right, style, before, after in sorted(marks):
        inner = plain(text[left:right])
        pieces += [plain(text[at:left]), f"[{style}]{inner}[/]" if terminal else f"{before}{inner}{after}"]
        at = right
    return "".join([*pieces, plain(text[at:end])])


def _spans(found: "Explanation", part: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return where the spans that are explained lie in `[start:end]` of the passage; the second one only where it is apart."""
    sides = [(side.start, side.end) for side in (found.chosen, found.other)]
    spans = sorted((left, right) for left, right in sides if left is not None and right is not None)
    inside = [(left, right) for left, right in spans if part == "passage" and start <= left and right <= end]
    return inside if len(inside) < 2 or inside[0][1] <= inside[1][0] else inside[:1]
