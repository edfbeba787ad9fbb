"""Files that people have: encodings, kinds of file, web pages, folders."""

import codecs
import gzip
import io
import os
import random
import zipfile
from pathlib import Path

import pytest

from spanqa.decoding import decode_text
from spanqa.documents import files_below, page_text, read_document, read_documents
from spanqa.errors import DatasetError, InputError, SpanQAError

TEXT = "Das Schloß in Zürich — 東京 🗼\r\nZeile zwei.\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_text_with_a_mark_is_read_as_it_is(encoding: str, pack: type, tmp_path: Path) -> None:
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}
    (tmp_path / "a.txt").write_bytes(pack(mark.get(encoding, b"") + TEXT.encode(encoding)))
    assert read_document(str(tmp_path / "a.txt")).text == TEXT


@pytest.mark.parametrize("encoding", ["cp1252", "shift_jis", "gb18030", "utf-16-le", "UTF8", "koi8-r"])
def test_a_text_is_read_in_the_encoding_that_is_given(encoding: str) -> None:
    text = {"shift_jis": "東京", "gb18030": "北京", "koi8-r": "Москва"}.get(encoding, "Zürich")
    assert read_document("a.txt", text.encode(encoding), encoding).text == text


def zipped(name: str, content: str = "", *, stored: str | None = None) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        if stored is not None:
            archive.writestr("mimetype", stored, zipfile.ZIP_STORED)
        archive.writestr(name, content)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "is a PDF file. Expected plain text; .* pdftotext -layout FILE"),
        (zipped("word/document.xml", "<w/>"), "is a Word document. .* pandoc"),
        (zipped("xl/workbook.xml"), "is an Excel workbook. .* CSV"),
        (zipped("ppt/presentation.xml"), "is a PowerPoint file. .* soffice"),
        (zipped("a.txt", "text"), "is a ZIP archive. .* unpack it first"),
        (zipped("a.xhtml", stored="application/epub+zip"), "is an EPUB book"),
        (zipped("content.xml", stored="application/vnd.oasis.opendocument.text"), "is an OpenDocument file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", "is an old Microsoft Office file"),
        (rb"{\rtf1\ansi Anna}", "is an RTF file"),
        (b"\x89PNG\r\n\x1a\n\x00", "is an image. .* tesseract"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is an image"),
        (b"BZh91AY", "is a compressed file"),
        (b"PAR1\x15\x04", "is a Parquet file"),
        (b"SQLite format 3\x00", "is a SQLite database"),
        ("Zürich".encode("utf-16-le"), "may be utf-16-le without a byte order mark"),
        ("Zürich".encode("utf-16-be"), "may be utf-16-be without a byte order mark"),
        (b"a\x00\x01\x02\x00bcd", "is a binary file"),
        (
            "Zürich".encode("latin1"),
            "is not UTF-8: found byte 0xfc at position 1. Give its encoding, .* --encoding cp1252",
        ),
        (codecs.BOM_UTF16_LE + b"a\x00b", "is not UTF-16"),
        (b'<html><meta charset="x-none">', "There is no text encoding 'x-none'"),
    ],
)
def test_the_error_names_the_kind_of_file_and_the_way_out(data: bytes, message: str) -> None:
    with pytest.raises(SpanQAError, match=message):
        read_document("a.txt", data)


def test_an_encoding_that_does_not_exist_or_is_none_of_texts_is_refused() -> None:
    for name in ("utf-9", "base64", "hex", "", "a b", "\x00"):
        with pytest.raises(InputError, match="There is no text encoding"):
            decode_text(b"a", "x", name)


def test_bytes_of_any_kind_are_a_text_or_an_error() -> None:
    """1,000 files: beginnings of known kinds, cut and mixed."""
    draw = random.Random(0)
    starts = [
        b"%PDF-",
        b"PK\x03\x04",
        b"\xff\xfe",
        b"\xfe\xff",
        b"\xef\xbb\xbf",
        b"<html",
        b"<!DOCTYPE html>",
        b"<![x",
        b"<a b='",
        b"\x1f\x8b",
        b"",
    ]
    tails = [
        b"",
        b"\x00",
        "ü".encode(),
        "ü".encode("latin1"),
        b"<p>x",
        b"<![CDATA[",
        b"<!--",
        b"&#xffffffff;&#0;",
        b"</svg></pre>",
        b"<svg><pre>",
    ]
    read = 0
    for _ in range(1000):
        data = draw.choice(starts) + b"".join(draw.choices(tails, k=draw.randrange(6)))
        try:
            document = read_document("a.txt", data)
        except DatasetError:
            continue
        assert document.text.encode("utf-8").decode("utf-8") == document.text
        read += 1
    assert 200 < read < 800


def test_a_url_keeps_its_slashes() -> None:
    for name in ("https://example.org/a.html", "s3://bucket/a.txt"):
        with pytest.raises(InputError, match=f"'{name}' is a URL, and spanqa reads files. Fetch it first, .* curl -L"):
            read_document(name)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Folder '.*gone' cannot be read: No such file or directory"):
        list(files_below(tmp_path / "gone"))


# --- web pages


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<title>The pier</title><body><p>Built in\n <b>1873</b>.<p>Granite.", "The pier\n\nBuilt in 1873.\n\nGranite.\n"),
        ("a<br>b<br/>c", "a\nb\nc\n"),
        ("<div>a<div>b</div>c</div>", "a\nb\nc\n"),
        ("<table><tr><th>year<td>1873</tr> <tr><td>made <td> of</table>", "year\t1873\nmade\tof\n"),
        ("<ul><li>one<li>two</ul>", "- one\n- two\n"),
        ("<script>if (a<b) '<p>'</script>x<style>p{}</style>", "x\n"),
        ("<svg><text>no</text></svg>yes<svg/> and this", "yes and this\n"),
        ("<pre>  a\n\n   b</pre>c", "  a\n\n   b\n\nc\n"),
        ("Anna&nbsp;K &amp; &eacute; &#x6771; &unknown;", "Anna\xa0K & é 東 &unknown;\n"),
        ("<p>Anna<!-- not\nthis --> <i>Kes</i>trel</p>", "Anna Kestrel\n"),
        ("", "\n"),
    ],
)  # fmt: skip
def test_the_text_of_a_page_is_what_a_reader_sees(html: str, text: str) -> None:
    assert page_text(html) == text


def test_a_page_is_known_by_its_content_or_its_name_and_read_in_the_encoding_it_declares() -> None:
    page = '<?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE HTML><html><meta http-equiv="a" content="text/html; charset=cp1252"><p>Zürich'
    document = read_document("saved", page.encode("cp1252"))
    assert (document.text, document.is_page) == ("Zürich\n", True)
    assert read_document("saved", page.encode("utf-8"), "utf-8").text == "Zürich\n"
    assert read_document("A.HTM.gz", gzip.compress(b"<p>x")).text == "x\n"
    assert read_document("a.txt", b"A page begins with <html>.") == read_document("b.txt", b"A page begins with <html>.").__class__(
        "a.txt", "A page begins with <html>."
    )  # fmt: skip


# --- folders


def test_a_folder_stands_for_its_files_by_name_without_hidden_and_binary_ones(tmp_path: Path) -> None:
    (tmp_path / "b" / ".git").mkdir(parents=True)
    for name, data in {
        "b/2.txt": b"two",
        "b/10.md": b"ten",
        "a.txt": b"a",
        ".x": b"x",
        "b/.git/c": b"c",
        "z.png": b"\x89PNG",
    }.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "latin1.txt").write_bytes("ü".encode("latin1"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    documents, skipped = read_documents([str(tmp_path)])
    assert [Path(document.source).name for document in documents] == ["a.txt", "10.md", "2.txt", "link"]
    assert [Path(name).name for name in skipped] == ["latin1.txt", "z.png"]
    with pytest.raises(DatasetError, match="is an image"):
        read_documents([str(tmp_path / "z.png")])
