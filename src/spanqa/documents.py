"""Files that people have to texts that can be read: plain text, web pages, and folders of them.

The text of a web page is what a reader sees: each block on lines of its own, cells apart by tabs, without scripts and styles.
Positions of answers are positions in that text.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from spanqa.decoding import decode_text
from spanqa.errors import DatasetError, InputError
from spanqa.files import read_bytes, unzip

_PAGE_NAMES = (".html", ".htm", ".xhtml")
_PAGE = re.compile(rb"(?:\s|<\?xml[^>]*>|<!--.*?-->)*<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the name of the file that it comes from; `is_page`: it is the text of a web page."""

    source: str
    text: str
    is_page: bool = False


def read_document(source: str, data: bytes | None = None, encoding: str | None = None) -> Document:
    """Return the text of a file, or of bytes that were read from `source`; both may be gzip'd.

    `encoding` holds where no byte order mark says otherwise; if it is None, that of a web page is what the page declares, and
    UTF-8 otherwise.

    Raises:
        DatasetError: the file cannot be read, has another encoding, or is of a kind that holds no plain text.
        InputError: `source` is a URL, or there is no such encoding.
    """
    if data is None:
        if _URL.match(source):
            raise InputError(
                f"{source!r} is a URL, and spanqa reads files. Fetch it first, for example: curl -L -o page.html {source!r}"
            )
        data = read_bytes(source)
    name = repr(source) if source != "standard input" else source
    data = unzip(data, source)
    is_page = source.removesuffix(".gz").lower().endswith(_PAGE_NAMES) or _PAGE.match(data[:4096]) is not None
    declared = _CHARSET.search(data[:4096]) if is_page and encoding is None else None
    if declared is not None:
        encoding = declared[1].decode("ascii")
    text = decode_text(data, name, encoding, way_out="Give its encoding, for example: --encoding cp1252")
    return Document(source, page_text(text) if is_page else text, is_page)


def read_documents(names: Iterable[str], encoding: str | None = None) -> tuple[list[Document], list[str]]:
    """Return the documents of files and folders, and the names of files in the folders that hold no text.

    A folder stands for all files in it and below it, by name; hidden files are left out, and links to folders are not followed.

    Raises:
        DatasetError: a file that was named, or the folder, cannot be read.
        InputError: a name is a URL, or there is no such encoding.
    """
    documents: list[Document] = []
    skipped: list[str] = []
    for name in names:
        if not Path(name).is_dir():
            documents.append(read_document(name, encoding=encoding))
            continue
        for path in files_below(Path(name)):
            try:
                documents.append(read_document(str(path), encoding=encoding))
            except DatasetError:
                skipped.append(str(path))
    return documents, skipped


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of the folders in it, by name, without hidden ones.

    Raises:
        DatasetError: the folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DatasetError(f"Folder {str(folder)!r} cannot be read: {error.strerror}.") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            kind = entry.lstat().st_mode
            if stat.S_ISLNK(kind) and not entry.is_dir():
                kind = entry.stat().st_mode
        except OSError:  # a link that leads nowhere
            continue
        if stat.S_ISDIR(kind):
            if os.access(entry, os.R_OK | os.X_OK):
                yield from files_below(entry)
        elif stat.S_ISREG(kind):
            yield entry


def page_text(html: str) -> str:
    r"""Return the text of a web page.

    >>> page_text("<title>The pier</title><p>Built in <b>1873</b>.<ul><li>granite<li>240&nbsp;m</ul>")
    'The pier\n\nBuilt in 1873.\n\n- granite\n- 240\xa0m\n'
    """
    page = _Page()
    try:
        page.feed(html)
        page.close()
    except AssertionError:  # a declaration that no HTML has, such as "<![x"; browsers show it, or skip it
        page = _Page()
        page.feed(html.replace("<![", "&lt;!["))
        page.close()
    return page.text()


_SKIPPED = {"script", "style", "template", "noscript", "svg"}
_APART = {
    "article", "aside", "blockquote", "body", "details", "dl", "fieldset", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5",
    "h6", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table", "title", "ul",
}  # fmt: skip
"""Blocks with an empty line before and after."""
_LINES = {"address", "br", "caption", "dd", "div", "dt", "figcaption", "legend", "li", "option", "summary", "tr"}
"""Blocks that begin and end a line."""


class _Page(HTMLParser):
    """Collects the text of a page: finished lines, and the pieces of the line that is being written."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._lines: list[str] = []
        self._line: list[str] = []
        self._skipping: list[str] = []
        self._preformatted = 0

    def text(self) -> str:
        self._break()
        return "\n".join(self._lines).strip("\n") + "\n"

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _SKIPPED:
            self._skipping.append(tag)
        elif tag in ("td", "th"):
            self._next_cell()
        else:
            self._edge(tag)
            if tag == "li":
                self._line.append("- ")
            self._preformatted += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        if tag not in _SKIPPED:  # <svg/> holds nothing
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipping:
            del self._skipping[self._skipping.index(tag) :]
        elif tag not in _SKIPPED:
            self._edge(tag)
            self._preformatted -= tag == "pre" and self._preformatted > 0

    def handle_data(self, data: str) -> None:
        if self._skipping:
            return
        if self._preformatted:
            first, *others = data.split("\n")
            self._line.append(first)
            for line in others:
                self._break(keep_empty=True)
                self._line = [line]
            return
        words = re.sub(r"[ \t\n\r\f]+", " ", data)
        begins = not self._line or self._line[-1][-1:] in (" ", "\t")
        if piece := words.removeprefix(" ") if begins else words:
            self._line.append(piece)

    def _next_cell(self) -> None:
        if self._line:
            self._line[-1] = self._line[-1].rstrip(" ")
            self._line.append("\t")

    def _edge(self, tag: str) -> None:
        if tag in _APART or tag in _LINES:
            self._break()
        if tag in _APART and self._lines and self._lines[-1]:
            self._lines.append("")

    def _break(self, *, keep_empty: bool = False) -> None:
        line = "".join(self._line).rstrip()
        if line or keep_empty:
            self._lines.append(line)
        self._line = []
