"""An explanation as a figure for a paper: PNG, SVG or PDF.

    the question and the passage, words coloured by their scores
    the largest scores as bars      |     how faithful they are, against random orders

It needs matplotlib: pip install 'spanqa[explain]'. The same explanation gives the same bytes.
"""

import io
import os
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from spanqa.errors import InputError
from spanqa.explain import sentences
from spanqa.explain.explanation import Explanation
from spanqa.extras import require
from spanqa.files import write_bytes

KINDS = (".png", ".svg", ".pdf")

MOST_WORDS = 64
"""A passage of more words is cropped to the answer and half as many words on each side of it."""

_AROUND = MOST_WORDS // 2
_TOP_WORDS = 10
_WIDTH = 7.0  # inches: the text width of a page with two columns
_SIZE = 9.0  # points
_PAD = 0.035  # inches between a span and its box
_INK, _SOFT, _FOR, _AGAINST = "#1b1f23", "#5f6870", "#0059b3", "#b24d00"
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

Run = tuple[str, float, bool]
"""A piece of text, its score as a share of the largest, and whether it belongs to one of the two spans."""


def draw(explanation: Explanation, path: str | os.PathLike[str]) -> None:
    """Draw an explanation; the ending of the file says in which format.

    Raises:
        InputError: the ending is not .png, .svg or .pdf, or the file cannot be written.
        NotInstalledError: matplotlib is not installed.
    """
    kind = Path(path).suffix.lower()
    if kind not in KINDS:
        raise InputError(f"A figure cannot be written to {str(path)!r}: expected an ending of {', '.join(KINDS)}.")
    require("figures")
    import matplotlib

    settings = {
        "font.family": ["DejaVu Sans", *_fonts_for(explanation.question + explanation.passage)],
        "font.size": _SIZE,
        "svg.hashsalt": "spanqa",
        "pdf.fonttype": 42,
        "text.parse_math": False,
    }
    file = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the caller's own settings change no figure
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", "(?s)Glyph .* missing from")  # no installed font has it: a box stands for it
        figure = _figure(explanation)
        figure.savefig(file, format=kind[1:], dpi=200, metadata=_METADATA[kind])
    try:
        write_bytes(path, file.getvalue())
    except OSError as error:
        raise InputError(
            f"The figure cannot be written to {str(path)!r}: {error.strerror}. Name a file in a folder that can be written to."
        ) from error


def _figure(explanation: Explanation) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = _lines(explanation)
    line = 2.1 * _SIZE / 72  # inches
    text_high = (len(lines) + 0.4) * line
    has_curve = explanation.trust is not None and len(explanation.trust.curve) > 1
    count = min(_TOP_WORDS, len(explanation.words))
    below = max(1.9 if has_curve else 0.0, 0.4 + 0.19 * count)
    figure = Figure(figsize=(_WIDTH, text_high + below + 0.82))
    FigureCanvasAgg(figure)
    high = figure.get_figheight()
    for number, runs in enumerate(lines):
        _draw_line(figure, runs, high - 0.12 - (number + 0.5) * line)
    top = high - text_high - 0.42
    left = figure.add_axes((0.16, 0.45 / high, 0.36 if has_curve else 0.8, (top - 0.45) / high))
    _draw_bars(left, explanation, count)
    if has_curve:
        _draw_curve(figure.add_axes((0.63, 0.45 / high, 0.35, (top - 0.45) / high)), explanation)
    return figure


# --- text


def _lines(explanation: Explanation) -> list[list[Run]]:
    """Return the lines of the figure: question, answer, passage."""
    most = max(map(abs, explanation.scores), default=0.0) or 1.0
    verdict = "" if explanation.trust is None else f"   ({explanation.trust.verdict})"
    headline = " ".join(_drawn(sentences.headline(explanation)).split())
    answer: Run = (f"→ {headline}{verdict}", 0.0, False)
    passage = _runs(explanation, "passage", most)
    return [
        *_wrapped(_runs(explanation, "question", most)),
        *_wrapped([answer]),
        *_wrapped(passage),
    ]


def _runs(explanation: Explanation, part: str, most: float) -> list[Run]:
    """Return a part as runs; of a long passage, what is around the answer."""
    text = explanation.question if part == "question" else explanation.passage
    words = [
        (word, score) for word, score in zip(explanation.words, explanation.scores, strict=True) if word.part == part
    ]
    if not words:
        return [(" ".join(_drawn(text[:400]).split()), 0.0, False)] if part == "question" else []
    before = after = ""
    if part == "passage" and len(words) > MOST_WORDS:
        spans = [i for i, (word, _) in enumerate(words) if explanation.is_protected(word)]
        low = max(0, (spans[0] if spans else 0) - _AROUND)
        high = min(
            len(words), (spans[-1] if spans and spans[-1] - spans[0] < MOST_WORDS else low + _AROUND) + _AROUND + 1
        )
        before, after = "… " if words[low][0].start else "", " …" if words[high - 1][0].end < len(text.rstrip()) else ""
        words = words[low:high]
    runs: list[Run] = [(before, 0.0, False)] if before else []
    for number, (word, score) in enumerate(words):
        gap = _drawn(text[words[number - 1][0].end : word.start]) if number else ""
        if gap:
            inside = number > 0 and all(explanation.is_protected(each) for each in (words[number - 1][0], word))
            runs.append((" " if not gap.strip() else f" {' '.join(gap.split())} ", 0.0, inside))
        runs.append((" ".join(_drawn(word.text).split()), score / most, explanation.is_protected(word)))
    return [*runs, (after, 0.0, False)] if after else runs


def _wrapped(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs as lines that fit the width; a run that is too long is cut into pieces."""
    room = (_WIDTH - 0.3) * 72
    lines: list[list[Run]] = [[]]
    used = 0.0
    for text, score, marked in runs:
        pieces = [text[i : i + 60] for i in range(0, len(text), 60)]
        for piece in pieces:
            wide = _wide(piece, marked)
            if used + wide > room and lines[-1]:
                lines.append([])
                used = 0.0
                if not piece.strip():
                    continue
            lines[-1].append((piece, score, marked))
            used += wide
    return [line for line in lines if line]


def _wide(text: str, bold: bool) -> float:
    """Return the width of a text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=_SIZE, weight="bold" if bold else "normal")
    wide, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(wide)


def _draw_line(figure: Any, runs: Sequence[Run], y: float) -> None:
    """Draw one line of runs, its middle `y` inches above the bottom."""
    from matplotlib.patches import Rectangle

    high = figure.get_figheight()
    x = 0.15
    edges = [False, *(marked for _, _, marked in runs), False]
    for (text, score, marked), (before, _), (_, after) in zip(
        runs, pairwise(edges[:-1]), pairwise(edges[1:]), strict=True
    ):
        x += _PAD * (marked and not before)
        wide = _wide(text, marked) / 72
        color = _FOR if score > 0 else _AGAINST
        place = (x / _WIDTH, (y - 0.09) / high)
        if abs(score) > 0.05:
            figure.add_artist(
                Rectangle(
                    place, wide / _WIDTH, 0.18 / high, facecolor=color, alpha=0.06 + 0.36 * abs(score), linewidth=0
                )
            )
            thick = 0.006 + 0.026 * abs(score)
            dashes = {"linestyle": "solid"} if score > 0 else {"linestyle": (0, (2, 1))}
            figure.add_artist(
                _rule(figure, x, x + wide, y - 0.1 - thick / 2, color=color, linewidth=72 * thick, **dashes)
            )
        if marked:
            for side in (y - 0.135, y + 0.11):
                ends = (x - _PAD * (not before), x + wide + _PAD * (not after))
                figure.add_artist(_rule(figure, *ends, side, color=_INK, linewidth=0.8))
            for at, other in ((x - _PAD, before), (x + wide + _PAD, after)):
                if not other:
                    figure.add_artist(_rule(figure, at, at, y - 0.135, y + 0.11, color=_INK, linewidth=0.8))
        figure.text(
            x / _WIDTH, (y - 0.045) / high, text, color=_INK, fontweight="bold" if marked else "normal", va="baseline"
        )
        x += wide + _PAD * (marked and not after)


def _rule(figure: Any, x0: float, x1: float, y0: float, y1: float | None = None, **style: Any) -> Any:
    """Return a straight line, in inches."""
    from matplotlib.lines import Line2D

    high = figure.get_figheight()
    ends = (y0 / high, (y0 if y1 is None else y1) / high)
    return Line2D((x0 / _WIDTH, x1 / _WIDTH), ends, transform=figure.transFigure, solid_capstyle="butt", **style)


# --- charts


def _draw_bars(axes: Any, explanation: Explanation, count: int) -> None:
    order = explanation.strongest()[:count]
    places = range(count, 0, -1)
    values = [explanation.scores[i] for i in order]
    bars = axes.barh(places, values, height=0.68, color=[_FOR if value > 0 else _AGAINST for value in values])
    for bar, value in zip(bars, values, strict=True):
        if value < 0:
            bar.set(hatch="////", edgecolor="white", linewidth=0)
    names = []
    for i in order:
        word = explanation.words[i]
        name = " ".join(_drawn(word.text).split())
        names.append((name if len(name) <= 14 else name[:13] + "…") + (" (q)" if word.part == "question" else ""))
    axes.set_yticks(list(places), names)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=_SOFT, linewidth=0.8)
    number = "+.2f" if explanation.signed else ".2g"
    axes.bar_label(
        bars, [format(value, number).replace("-", "−") for value in values], padding=3, fontsize=7.5, color=_SOFT
    )
    axes.margins(x=0.2, y=0.02)
    axes.set_xlabel("score of the word, in logits" if explanation.signed else "score of the word (no direction)")
    _plain(axes, "left")


def _draw_curve(axes: Any, explanation: Explanation) -> None:
    assert explanation.trust is not None
    curve = explanation.trust.curve
    shares = [100 * point.share for point in curve]
    for ours, color, name in (
        ("comprehensiveness", _FOR, "hidden"),
        ("sufficiency", _AGAINST, "kept"),
    ):
        values = [getattr(point, ours) for point in curve]
        chance = [getattr(point, f"random_{ours}") for point in curve]
        axes.plot(shares, values, color=color, marker="o", markersize=3, linewidth=1.6, label=f"top words {name}")
        axes.plot(shares, chance, color=color, linestyle=(0, (2, 2)), linewidth=1.1, label=f"random words {name}")
        axes.fill_between(shares, values, chance, color=color, alpha=0.07, linewidth=0)
    axes.axhline(0, color=_SOFT, linewidth=0.6)
    axes.set(xlabel="words, % of all", ylabel="drop of the probability")
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(-0.1, 1.0), handlelength=1.8)
    _plain(axes)


def _plain(axes: Any, *also: str) -> None:
    axes.spines[["top", "right", *also]].set_visible(False)


def _drawn(text: str) -> str:
    """Return a text as it can be drawn: matplotlib stumbles over some characters that have no glyph, such as U+FEFF."""
    seen = sentences.visible(text)
    return "".join(letter for letter in seen if unicodedata.category(letter) != "Cf" or letter == "\u200d")


# --- fonts


def _fonts_for(text: str) -> list[str]:
    """Return installed fonts, by name, for the characters that matplotlib's own font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    own = get_font(findfont(FontProperties(family="DejaVu Sans")))
    lacking = {code for code in map(ord, set(text)) if code > 32 and not own.get_char_index(code)}
    found: list[str] = []
    for entry in sorted(fontManager.ttflist, key=lambda each: (each.weight != 400, each.style != "normal", each.name)):
        if not lacking:
            break
        if entry.name in found:
            continue
        try:
            font = get_font(entry.fname)
            has = {code for code in lacking if font.scalable and font.get_char_index(code)}
        except (OSError, RuntimeError):  # a font that cannot be read
            continue
        if has:
            found.append(entry.name)
            lacking -= has
    return found
