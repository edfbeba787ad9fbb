r"""An explanation as one HTML file that opens offline: the answer, its words, and where every head looked.

    page.html, page.css, page.js   the page itself, without a build step
    write_page                     fills in what it shows: JSON, and one block of quantized weights for each layer

The file asks for nothing outside itself, and its content security policy forbids it to. Texts of the user are in JSON, in which "<"
is written \u003c, and the script shows them as text only.

    block   holds                                                     written
    T07     thumbnails of layer 7, at most 48 x 48 for each head      always
    L07     all heads of layer 7                                      maps="full"
    R07     the rows of the answer, [CLS] and the question            maps="rows"
    H07-3   head 3 of layer 7, one of the most relevant               maps="rows"

A block is base64 of bytes (`spanqa.explain.maps.quantize`), decoded when it is looked at. Python counts code points and JavaScript
UTF-16 units: places in the file are in UTF-16 units.
"""

import base64
import hashlib
import heapq
import json
import os
import re
from collections.abc import Iterator
from importlib import resources
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import InputError
from spanqa.explain import sentences
from spanqa.explain.explanation import Explanation
from spanqa.explain.maps import MEASURES, WindowMaps, kinds, measure, quantize, thumbnails, token_words, wanted
from spanqa.files import replacing
from spanqa.progress import Progress, silent

Maps = Literal["auto", "rows", "full"]
"""How much attention a page holds: the rows of the answer and a few heads, all of it, or all where that keeps the page small."""

MOST_BYTES = 20_000_000
"""A page is at most this large, unless all maps are asked for."""

_FULL_HEADS = 16
_LONGEST_BLOCK = 500_000_000  # a string of JavaScript has fewer than 2**29 characters
_CONTEXT = 200_000  # code points of the passage before and behind the words


def write_page(
    path: str | os.PathLike[str],
    explanation: Explanation,
    window: WindowMaps | None = None,
    *,
    maps: Maps = "auto",
    progress: Progress = silent,
) -> None:
    """Write an explanation as one HTML file; without `window`, it says nothing about attention.

    Layers are taken from the window one at a time, and no more than one is in memory. A page of all 24 x 16 heads at 512 tokens
    has 136 MB. A passage longer than 200,000 code points on either side of the words is cut there, and the page says so.

    Raises:
        InputError: the file cannot be written, there is no such `maps`, the maps of a layer have not the shape of the window, or
            one layer is too large for a page.
    """
    if maps not in get_args(Maps):
        raise InputError(f"maps is {maps!r}; expected one of {', '.join(get_args(Maps))}.")
    try:
        with replacing(path) as file:
            for part, text in _shell():
                file.write(text)
                if part == "explanation":
                    file.write(_json(_content(explanation)))
                elif part == "attention" and window is not None:
                    _write_attention(file, explanation, window, maps, progress)
    except OSError as error:
        raise InputError(
            f"The page cannot be written to {str(path)!r}: {error.strerror}. Name a file in a folder that can be written to."
        ) from error


def _shell() -> Iterator[tuple[str, str]]:
    """Yield the text of the page up to each place that is to be filled, with the name of the place; "" at the end."""
    files = resources.files("spanqa.explain")
    template, style, script = (files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    policy = (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    known = {"policy": policy, "style": style, "script": script}
    text = ""
    for number, piece in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
        if number % 2 == 0:
            text += piece
        elif piece in known:
            text += known[piece]
        else:
            yield piece, text
            text = ""
    yield "", text


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _json(value: Any) -> str:
    """Return JSON that no HTML parser can mistake for markup: ASCII, and no "<"."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


# --- the explanation


def _content(explanation: Explanation) -> dict[str, Any]:
    """Return what the answer view and the words view show."""
    trust = explanation.trust
    first, last = extent(explanation)
    cut = max(0, first - _CONTEXT)
    passage = explanation.passage[cut : last + _CONTEXT]
    to_question, to_passage = _utf16(explanation.question), _utf16(passage)

    def place(start: int, end: int) -> list[int]:
        return [int(to_passage[start - cut]), int(to_passage[end - cut])]

    words = []
    for word, score, refined in zip(explanation.words, explanation.scores, explanation.refined, strict=True):
        in_question = word.part == "question"
        at = [int(to_question[word.start]), int(to_question[word.end])] if in_question else place(word.start, word.end)
        marks = (in_question, refined, explanation.is_protected(word))
        words.append([*at, float(f"{score:.5g}"), *map(int, marks), word.start, word.end])
    sides = [
        None if side.start is None or side.end is None else place(side.start, side.end)
        for side in (explanation.chosen, explanation.other)
    ]
    return {
        "format": "spanqa.page/1",
        "question": explanation.question,
        "passage": passage,
        "left_out": [cut, len(explanation.passage) - cut - len(passage)],
        "source": explanation.source,
        "answered": bool(explanation.answer),
        "chosen": sides[0],
        "other": sides[1],
        "signed": explanation.signed,
        "words": words,
        "curve": [] if trust is None else [_point(point) for point in trust.curve],
        "says": {name: sentences.visible(text) for name, text in _says(explanation).items()},
        "made_with": [["mask token", explanation.mask], *_flat(explanation.made_with)],
    }


def _says(explanation: Explanation) -> dict[str, str]:
    """Return the sentences of the page, by the place where they stand."""
    trust = explanation.trust
    weighed, evidence = sentences.what_is_weighed(explanation), sentences.why_this_verdict(explanation)
    return {
        "answer": sentences.headline(explanation),
        "probability": sentences.how_probable(explanation),
        "target": f"{weighed}.",
        "chosen": sentences.name_of(explanation.chosen),
        "other": sentences.name_of(explanation.other),
        "verdict": "not measured" if trust is None else trust.verdict,
        "evidence": evidence[:1].upper() + evidence[1:],
        "flip": sentences.what_changes(explanation),
        "convergence": sentences.whether_it_adds_up(explanation),
        "method": sentences.how_it_was_made(explanation),
        "note": explanation.note,
    }


def extent(explanation: Explanation) -> tuple[int, int]:
    """Return where the part of the passage that the explanation speaks of starts and ends, in code points."""
    places = [(word.start, word.end) for word in explanation.words if word.part == "passage"]
    for side in (explanation.chosen, explanation.other):
        if side.start is not None and side.end is not None:
            places.append((side.start, side.end))
    if not places:
        return 0, 0
    return min(start for start, _ in places), max(end for _, end in places)


def _utf16(text: str) -> NDArray[np.int64]:
    """Return for each place between code points of a text the place in UTF-16 units."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    places: NDArray[np.int64] = np.concatenate([[0], np.cumsum(1 + (codes > 0xFFFF))])
    return places


def _point(point: Any) -> list[float]:
    names = ("share", "words", "comprehensiveness", "sufficiency", "random_comprehensiveness", "random_sufficiency")
    return [round(float(getattr(point, name)), 5) for name in names]


def _flat(values: Any, name: str = "") -> list[list[str]]:
    """Return nested names and values as lines of text."""
    if isinstance(values, dict) or hasattr(values, "items"):
        return [line for key, value in values.items() for line in _flat(value, f"{name} {key}".strip())]
    return [[name, values if isinstance(values, str) else json.dumps(values, default=str)]]


# --- attention


def _write_attention(
    file: IO[str], explanation: Explanation, window: WindowMaps, maps: Maps, progress: Progress
) -> None:
    size = len(window.tokens)
    base64_bytes = 4 / 3
    a_layer = window.heads * size**2 * base64_bytes
    room = MOST_BYTES - file.tell()
    full = maps == "full" or (maps == "auto" and window.layers * a_layer < room - 2_000_000)
    if full and a_layer > _LONGEST_BLOCK:
        raise InputError(
            f"Layer 0 of this window has {window.heads} heads of {size:,} x {size:,} tokens, which no browser can read from a page. "
            "Write the page with maps='rows'."
        )
    kind, words = kinds(explanation, window), token_words(explanation, window)
    weights = wanted(explanation, words)
    rows = _rows(window, int(0.55 * room / (window.layers * window.heads * size * base64_bytes)))
    most_heads = 0 if full else min(_FULL_HEADS, int(0.35 * room / (size**2 * base64_bytes)))
    best: list[tuple[float, int, int, bytes]] = []  # a heap of the most relevant heads, the least of them first
    numbers, profile = {}, {}
    for done, (layer, layer_maps) in enumerate(window.maps):
        if layer_maps.shape != (window.heads, size, size):
            raise InputError(
                f"The attention of layer {layer} has shape {list(layer_maps.shape)}; expected {[window.heads, size, size]}: heads, "
                "queries and keys of the whole window. Capture all of its queries."
            )
        progress(done, window.layers, f"layer {layer}")
        measured, profile[layer] = measure(layer_maps, window.answer_rows, kind, weights)
        numbers[layer] = measured
        quantized = quantize(layer_maps)
        _write_block(file, f"T{layer:02}", quantize(thumbnails(layer_maps)).tobytes())
        if full:
            _write_block(file, f"L{layer:02}", quantized.tobytes())
        else:
            _write_block(file, f"R{layer:02}", quantized[:, rows].tobytes())
            for head, relevance in enumerate(measured[:, 0].tolist()):
                if len(best) < most_heads:
                    heapq.heappush(best, (relevance, -layer, -head, quantized[head].tobytes()))
                elif best and relevance > best[0][0]:
                    heapq.heapreplace(best, (relevance, -layer, -head, quantized[head].tobytes()))
    for _, layer, head, data in sorted(best, reverse=True):
        _write_block(file, f"H{-layer:02}-{-head}", data)
    progress(window.layers, window.layers, "")
    about = {
        "layers": sorted(numbers),
        "heads": window.heads,
        "full": full,
        "rows": list(range(size)) if full else rows,
        "answer_rows": list(window.answer_rows),
        "window": [window.number, window.windows],
        "kinds": kind.tolist(),
        "words": words.tolist(),
        "tokens": _tokens(explanation, window),
        "measures": MEASURES,
        "numbers": {layer: np.round(found, 4).tolist() for layer, found in numbers.items()},
        "profile": {layer: np.round(shares, 4).tolist() for layer, shares in profile.items()},
    }
    file.write(f'<script type="application/json" id="attention">{_json(about)}</script>\n')


def _rows(window: WindowMaps, most: int) -> list[int]:
    """Return the rows to keep of every head, at most `most`: the answer's, then the first special token's, then the question's."""
    question = np.flatnonzero(window.parts == 0).tolist()
    return sorted(list(dict.fromkeys([*window.answer_rows, 0, *question]))[: max(1, most)])


def _tokens(explanation: Explanation, window: WindowMaps) -> list[str]:
    """Return the text that each token stands for; a special token is its own."""
    texts = (explanation.question, explanation.passage)
    found = []
    for token, part, (start, end) in zip(window.tokens, window.parts.tolist(), window.offsets.tolist(), strict=True):
        found.append(token if part < 0 or start == end else texts[part][start:end])
    return found


def _write_block(file: IO[str], name: str, data: bytes) -> None:
    file.write(f'<script type="text/plain" id="{name}">{base64.b64encode(data).decode("ascii")}</script>\n')
