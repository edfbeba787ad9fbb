"""HTML by hand: escaped text, tables, marked passages, and one page that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

__all__ = ["escape", "marked", "page", "picture", "table"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2126; background: #fff }
h1 { font-size: 1.7rem } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #dde2e7 }
table { border-collapse: collapse; margin: .6rem 0 } th, td { padding: .2rem .9rem .2rem 0; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 1px solid #9aa3ad; font-weight: 600 }
img { max-width: 100%; height: auto } .small { color: #5d666f; font-size: .9rem }
@media (prefers-color-scheme: dark) { body { color: #e3e6e9; background: #16191c } h2 { border-color: #3a4047 } .small { color: #aab2ba }
  mark { color: #16191c } img { background: #fff; border-radius: 4px } }
"""


def page(title: str, body: str, style: str = "") -> str:
    """Return a whole page; `body` is HTML, `title` is text, `style` is CSS added to the common one."""
    return (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def picture(png: bytes, words: str) -> str:
    """Return a figure that holds its picture, with words below it."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{data}">'
        f"<figcaption class=small>{escape(words)}</figcaption></figure>"
    )


def marked(text: str, spans: Mapping[str, tuple[int, int]], both: str = "both") -> str:
    """Return a text with spans marked, each with its name as class; where spans overlap, with the class `both`.

    >>> marked("a < b", {"gold": (4, 5)})
    'a &lt; <mark class=gold>b</mark>'
    """
    bounds = sorted({0, len(text), *(bound for span in spans.values() for bound in span)})
    parts = []
    for left, right in pairwise(bounds):
        kinds = [name for name, (start, end) in spans.items() if start <= left and right <= end]
        piece = escape(text[left:right])
        parts.append(f"<mark class={both if len(kinds) > 1 else kinds[0]}>{piece}</mark>" if kinds else piece)
    return "".join(parts)
