"""Bytes to text: encodings, byte order marks, and the kinds of file that hold no plain text."""

import codecs
import re

from spanqa.errors import DatasetError, InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PANDOC = "extract its text first, for example: pandoc -t plain -o TEXT.txt FILE"
_UNPACK = "unpack it first"
_OCR = "recognise its text first, for example: tesseract FILE TEXT"
_OFFICE = "save it as text first, for example: soffice --headless --convert-to txt:Text FILE"
_KINDS = (
    (rb"%PDF-", "a PDF file", "extract its text first, for example: pdftotext -layout FILE TEXT.txt"),
    (rb"PK\x03\x04(?s:.*)word/document\.xml", "a Word document", _PANDOC),
    (rb"PK\x03\x04(?s:.*)xl/workbook\.xml", "an Excel workbook", "save it as CSV first"),
    (rb"PK\x03\x04(?s:.*)ppt/presentation\.xml", "a PowerPoint file", _OFFICE),
    (rb"PK\x03\x04.{26}mimetypeapplication/epub\+zip", "an EPUB book", _PANDOC),
    (rb"PK\x03\x04.{26}mimetypeapplication/vnd\.oasis\.opendocument", "an OpenDocument file", _PANDOC),
    (rb"PK\x03\x04", "a ZIP archive", _UNPACK),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office file", _OFFICE),
    (rb"\{\\rtf", "an RTF file", _PANDOC),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|II\*\x00|MM\x00\*|RIFF....WEBP", "an image", _OCR),
    (rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!", "a compressed file", _UNPACK),
    (rb"PAR1", "a Parquet file", "write its texts to text files first"),
    (rb"SQLite format 3", "a SQLite database", "write its texts to text files first"),
)
"""How a file of each kind begins, what it is, and the way to its text."""


def decode_text(data: bytes, name: str, encoding: str | None = None, *, way_out: str = "") -> str:
    """Return the text of bytes, by their byte order mark, or in `encoding` (UTF-8 if None). The mark is dropped.

    `name` and `way_out` are used in error messages; `way_out` is what to do about another encoding.

    Raises:
        DatasetError: the bytes are a known kind of file without plain text, are binary, or are not in this encoding.
        InputError: there is no such encoding of texts.
    """
    for start, kind, way in _KINDS:
        if re.match(start, data, re.DOTALL):
            raise DatasetError(f"{name} is {kind}. Expected plain text; {way}")
    marked = next((by for mark, by in _MARKS if data.startswith(mark)), None)
    chosen = marked or (text_encoding(encoding) if encoding is not None else "utf-8")
    if b"\x00" in data and marked is None and encoding is None:
        raise DatasetError(f"{name} is a binary file. Expected plain UTF-8 text; {_about_zeros(data)}.")
    try:
        return data.decode(chosen)
    except UnicodeDecodeError as error:
        found = f"found byte 0x{data[error.start]:02x} at position {error.start}"
        way = way_out or "Convert it first, for example: iconv -f cp1252 -t utf-8 OLD > NEW"
        raise DatasetError(f"{name} is not {chosen.removesuffix('-sig').upper()}: {found}. {way}") from None


def text_encoding(name: str) -> str:
    """Return Python's name of an encoding of texts.

    Raises:
        InputError: there is none of this name.
    """
    try:
        "".encode(name).decode(name)  # codecs such as base64 are not for texts
        return codecs.lookup(name).name
    except (LookupError, ValueError, UnicodeError):
        raise InputError(
            f"There is no text encoding {name!r}. Expected one such as utf-8, cp1252, shift_jis, gb18030 or utf-16-le."
        ) from None


def _about_zeros(data: bytes) -> str:
    """Say what zero bytes mean: UTF-16 without a mark has one in every second place of Western text."""
    head = data[:2000]
    for places, encoding in ((head[1::2], "utf-16-le"), (head[::2], "utf-16-be")):
        if places and places.count(0) > 0.8 * len(places):
            return f"it may be {encoding} without a byte order mark: convert it first, for example: iconv -f {encoding} -t utf-8 OLD > NEW"
    return "extract the text from it first"
