"""An explanation in a notebook: plain HTML without scripts, of at most 300 KB. It holds the answer and the words, not attention.

Colours are translucent and text keeps the notebook's own, so that it can be read on light and on dark.
"""

from itertools import pairwise

from spanqa.explain import sentences
from spanqa.explain.explanation import Explanation
from spanqa.html import escape, table

MOST_BYTES = 300_000

_AROUND = 300  # code points of the passage before and behind the words
_TOP_WORDS = 10
_LEAST = 0.05  # of the largest score: below it, a word is not coloured

_STYLE = """
.spanqa-explanation { max-width: 50rem; line-height: 1.6 }
.spanqa-explanation .answer { margin: .2em 0; font-size: 1.6em; font-weight: 600; line-height: 1.3 }
.spanqa-explanation .text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; text-align: start }
.spanqa-explanation mark { color: inherit; background: none; font-weight: 600; padding: .2em 0; border-block: 1.5px solid }
.spanqa-explanation mark.other { font-weight: inherit; border-block-style: dashed }
.spanqa-explanation i.for { font-style: normal; border-bottom: 2px solid #3c86d8; background: rgba(52, 128, 224, .12) }
.spanqa-explanation i.for.much { border-bottom-width: 4px; background: rgba(52, 128, 224, .4) }
.spanqa-explanation i.against { font-style: normal; border-bottom: 2px dashed #d9731a; background: rgba(224, 112, 20, .12) }
.spanqa-explanation i.against.much { border-bottom-width: 4px; background: rgba(224, 112, 20, .4) }
.spanqa-explanation p, .spanqa-explanation div { margin: .5em 0 }
"""


def repr_html(explanation: Explanation) -> str:
    """Return the explanation as HTML of at most 300 KB (UTF-8). A longer text is cut around the answer, and a line says so."""
    length = 60_000
    while True:
        found = _html(explanation, length)
        if len(found.encode("utf-8", "surrogatepass")) <= MOST_BYTES:
            return found.encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be sent to a notebook
        length //= 2


def _html(explanation: Explanation, length: int) -> str:
    trust = explanation.trust
    spans = {
        name: (side.start, side.end)
        for name, side in (("other", explanation.other), ("chosen", explanation.chosen))
        if side.start is not None and side.end is not None
    }
    start, end = _shown(explanation, spans, length)
    total = len(explanation.passage)
    left_out = [f"{count:,} {where}" for count, where in ((start, "before"), (total - end, "behind")) if count]
    verdict = "" if trust is None else f"<b>{escape(trust.verdict.capitalize())}</b>: "
    lines = [
        sentences.how_probable(explanation),
        sentences.what_changes(explanation),
        sentences.whether_it_adds_up(explanation),
        explanation.note,
    ]
    return "".join(
        [
            f'<div class="spanqa-explanation"><style>{_STYLE}</style>',
            f'<div class="text" dir="auto">{_text(explanation, "question", 0, min(len(explanation.question), length), {})}</div>',
            f'<div class="answer" dir="auto">{_cut(sentences.headline(explanation), length)}</div>',
            *(f"<p>{_escape(line)}</p>" for line in lines if line),
            f"<p>{verdict}{_escape(sentences.why_this_verdict(explanation))}</p>" if trust else "",
            f'<div class="text" dir="auto">{_text(explanation, "passage", start, end, spans)}</div>',
            f"<p><small>Characters of the passage that are not shown: {' and '.join(left_out)}.</small></p>"
            if left_out
            else "",
            f"<p>{_escape(sentences.what_is_weighed(explanation))}:</p>",
            _top_words(explanation),
            "</div>",
        ]
    )


def _escape(text: str) -> str:
    return escape(sentences.visible(text))


def _cut(text: str, length: int) -> str:
    return _escape(text if len(text) <= length else text[:length] + " …")


def _shown(explanation: Explanation, spans: dict[str, tuple[int, int]], length: int) -> tuple[int, int]:
    """Return the bounds of the part of the passage that is shown: the words and what is around them, at most `length`."""
    total = len(explanation.passage)
    places = [(word.start, word.end) for word in explanation.words if word.part == "passage"] + list(spans.values())
    start = max(0, min((left for left, _ in places), default=0) - _AROUND)
    end = min(total, max((right for _, right in places), default=0) + _AROUND)
    if end - start > length:
        middle = spans.get("chosen", spans.get("other", (start, start)))[0]
        start = max(start, middle - length // 2)
        end = min(end, start + length)
    return start, end


def _text(explanation: Explanation, part: str, start: int, end: int, spans: dict[str, tuple[int, int]]) -> str:
    """Return `[start:end]` of a part with its words coloured and the spans marked."""
    text = explanation.question if part == "question" else explanation.passage
    most = max(map(abs, explanation.scores), default=0.0) or 1.0
    kinds: dict[int, str] = {}
    bounds = {start, end, *(bound for span in spans.values() for bound in span)}
    for word, score in zip(explanation.words, explanation.scores, strict=True):
        if word.part == part and abs(score) > _LEAST * most:
            bounds |= {word.start, word.end}
            much = " much" if abs(score) > 0.4 * most else ""
            kinds.update(dict.fromkeys(range(word.start, word.end), ("for" if score > 0 else "against") + much))
    pieces = []
    for left, right in pairwise(sorted(bound for bound in bounds if start <= bound <= end)):
        piece = _escape(text[left:right])
        if left in kinds:
            piece = f'<i class="{kinds[left]}">{piece}</i>'
        for name, span in spans.items():
            if span[0] <= left and right <= span[1]:
                piece = f'<mark class="{name}">{piece}</mark>'
        pieces.append(piece)
    return "".join(pieces)


def _top_words(explanation: Explanation) -> str:
    order = explanation.strongest()[:_TOP_WORDS]
    number = "+.2f" if explanation.signed else ".3g"
    rows = [
        (
            sentences.visible(explanation.words[i].text[:60]),
            explanation.words[i].part,
            format(explanation.scores[i], number),
        )
        for i in order
    ]
    return table(("word", "in the", "score"), rows)
