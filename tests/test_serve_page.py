"""The page of the server in a real browser, asking a real server with the bundled model."""

import base64
import hashlib
import json
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("swagger_ui_bundle")

from starlette.applications import Starlette
from starlette.routing import Mount

import browser as chromium
from spanqa.explain.attribute import attribute
from spanqa.explain.explanation import Explanation
from spanqa.explain.sentences import visible
from spanqa.reader import Reader
from spanqa.serve import ServeSettings, Service, make_app

pytestmark = pytest.mark.enable_socket

AXE = Path(__file__).parents[1] / "scripts" / "get_axe"
PIER = "The first pier was built in 1873 by the engineer Anna Kestrel. It burned in 1902."
HOSTILE = (
    "\U0001f6a2\U0001f469\u200d\U0001f680 <script>window.ran = 1</script><img src=x onerror='window.ran = 2'> \u202eevil\u202c\n\n"
    "الميناء القديم في المدينة.\n\nThe first pier \U0001f985 was built by Anna Kestrel. \U0001f6a2 Some say that it was built by Tom Reed. &amp; <b>"
)


@dataclass(slots=True)
class Served:
    """A running server."""

    service: Service
    address: str
    stop: Callable[[], None]


def explain(reader: Reader, question: str, passage: Any, **options: Any) -> Explanation:
    return attribute(reader, question, passage, **options)


@contextmanager
def serving(reader: Reader | None, *, explain: Any = explain, under: str = "", **settings: Any) -> Iterator[Served]:
    """Serve on a free port of this machine; without a reader, the server goes on loading until `service.start`."""
    service = Service(ServeSettings(**settings), explain=explain)
    if reader is not None:
        service.start(reader)
    app: Any = make_app(service)
    if under:
        app = Starlette(routes=[Mount(under, app)])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join()
        listener.close()

    try:
        yield Served(service, f"http://127.0.0.1:{listener.getsockname()[1]}{under}/", stop)
    finally:
        stop()
        if service.state != "loading":
            service.queue.close()


@pytest.fixture(scope="module")
def served(mini: Reader) -> Iterator[Served]:
    with serving(mini) as found:
        yield found


@pytest.fixture
def page(browser: chromium.Browser, served: Served) -> Iterator[chromium.Tab]:
    """The page, with nothing to complain of and nothing asked of others when the test ends."""
    with browser.open(served.address) as tab:
        tab.wait("document.getElementById('model').textContent === 'spanqa-mini'")
        yield tab
        assert tab.messages == []
        assert [each for each in tab.requests if not each.startswith(served.address)] == []


def put(tab: chromium.Tab, text: str | None, question: str) -> None:
    """Give a text, None to leave it as it is, and a question, as a user's input would."""
    if text is not None:
        tab.run("document.getElementById('text').hidden && document.getElementById('edit').click()")
        tab.run(f"document.getElementById('text').value = {json.dumps(text)}")
        tab.run("document.getElementById('text').dispatchEvent(new Event('input'))")
    tab.run(f"document.getElementById('question').value = {json.dumps(question)}")


def ask(tab: chromium.Tab, text: str | None, question: str) -> None:
    put(tab, text, question)
    tab.run("document.getElementById('announcement').textContent = ''")
    tab.run("document.querySelector('#ask button').click()")
    tab.wait("document.getElementById('announcement').textContent || !document.getElementById('problem').hidden")


def open_file(tab: chromium.Tab, path: Path, content: bytes) -> None:
    """Choose a file with this content, as a user would in the browser's own window."""
    path.write_bytes(content)
    found = tab.ask("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
    tab.run("document.getElementById('size').textContent = ''; document.getElementById('problem').hidden = true")
    tab.ask("DOM.setFileInputFiles", files=[str(path)], objectId=found)
    tab.wait("document.getElementById('size').textContent || !document.getElementById('problem').hidden")


def text_of(tab: chromium.Tab, place: str) -> Any:
    return tab.run(f"document.querySelector({place!r}).textContent")


def marks(tab: chromium.Tab) -> list[list[Any]]:
    """The marks: their kind, where they start in the text in UTF-16 units, and their own text."""
    return tab.run(  # type: ignore[no-any-return]
        """(() => {
          const found = [];
          let place = 0;
          const walk = (node) => {
            if (node.className === "hidden") return;
            if (node.nodeType === 3) place += node.length;
            if (node.tagName === "MARK") found.push([node.classList[0], place, [...node.childNodes].filter((each) => each.className !== "hidden")
              .map((each) => each.textContent).join("")]);
            node.childNodes.forEach(walk);
          };
          walk(document.getElementById("reading"));
          return found;
        })()"""
    )


def axe(tab: chromium.Tab) -> dict[str, list[str]]:
    """The barriers that axe finds, with the elements that have them."""
    found = subprocess.run([AXE, "--find"], capture_output=True, text=True) if AXE.exists() else None
    if found is None or found.returncode:
        pytest.skip("axe-core is not here (scripts/get_axe fetches it)")
    tab.run(Path(found.stdout.strip()).read_text("utf-8") + ";0")
    checked = tab.run("axe.run({resultTypes: ['violations']}).then(({violations}) => violations)")
    return {each["id"]: [node["html"][:200] for node in each["nodes"]] for each in checked}


# --- answers


def test_the_first_click_answers(page: chromium.Tab) -> None:
    page.run("document.querySelector('#examples button').click()")
    page.wait("!document.getElementById('result').hidden")
    assert text_of(page, "#answer") == "Tomas Vik"
    assert [each[2] for each in marks(page) if each[0] == "chosen"] == ["Tomas Vik"]


def test_hostile_text_is_text_and_the_right_characters_are_marked(page: chromium.Tab, mini: Reader) -> None:
    question = "Who built the first pier?"
    ranking = mini.ranking(question, HOSTILE, top_k=5)
    ask(page, HOSTILE, question)
    assert text_of(page, "#answer") == ranking.answers[0].text == "Anna Kestrel"
    likely = [each for i, each in enumerate(ranking.answers) if i == 0 or each.probability >= 0.02]
    assert len(likely) > 1
    expected = sorted(
        [len(HOSTILE[: each.start].encode("utf-16-le")) // 2, each.text, "chosen" if i == 0 else "other"]
        for i, each in enumerate(likely)
    )
    assert [[start, text, kind] for kind, start, text in marks(page)] == expected
    assert page.run("[...document.querySelectorAll('#places .place')].map((each) => each.textContent)") == [
        each.text for each in likely
    ]
    assert page.run("window.ran") is None
    shown = text_of(page, "#reading")
    assert re.sub("(answer|place \\d): ", "", shown) == HOSTILE.translate({0x202E: "\u241a", 0x202C: "\u241a"})


def test_the_bar_adds_up_and_says_what_the_model_says(page: chromium.Tab, mini: Reader) -> None:
    question = "Who built the first pier?"
    best = mini.ranking(question, PIER, top_k=1).answers[0]
    ask(page, PIER, question)
    said = page.run("[...document.querySelectorAll('#shares li')].map((each) => each.textContent)")
    numbers = [int(each.split()[0]) for each in said]
    exact = [best.probability, 1 - best.probability - best.no_answer_probability, best.no_answer_probability]
    assert sum(numbers) == 100
    assert numbers == pytest.approx([100 * each for each in exact], abs=1)
    assert [each.partition("% ")[2] for each in said] == ["This answer", "Elsewhere in the text", "Not in the text"]
    widths = page.run("[...document.querySelectorAll('#bar span')].map((each) => getComputedStyle(each).flexGrow)")
    assert list(map(float, widths)) == pytest.approx(exact, abs=1e-3)


def test_another_place_is_one_click_or_key_away(page: chromium.Tab) -> None:
    ask(page, HOSTILE, "Who built the first pier?")
    places = page.run("[...document.querySelectorAll('#places .place')].map((each) => each.textContent)")

    def chosen() -> list[str]:
        return [each[2] for each in marks(page) if each[0] == "chosen"]

    page.run("document.querySelectorAll('#places input')[1].click()")
    assert [text_of(page, "#answer"), chosen()] == [places[1], [places[1]]]
    page.run("document.querySelector('#reading mark.other').click()")
    assert chosen() != [places[1]]
    page.run("document.getElementById('question').focus()")
    page.press("ArrowDown")
    page.press("ArrowUp")
    page.run("document.querySelectorAll('#places input')[0].click()")
    page.run("document.getElementById('question').focus()")
    page.press("ArrowDown")
    assert chosen() == [places[1]]
    assert text_of(page, "#announcement").startswith(f"Place 2 of {len(places)}: {places[1]}.")
    page.press("ArrowUp")
    assert chosen() == [places[0]]


def test_no_answer_shows_the_closest_place_as_none(page: chromium.Tab, mini: Reader) -> None:
    question = "Who was the mayor of Rome?"
    found = mini.ask(question, PIER)
    assert not found
    assert found.closest
    ask(page, PIER, question)
    assert text_of(page, "#answer") == "Not in this text"
    assert [each[0] for each in marks(page) if each[2] == found.closest.text] == ["closest"]
    assert not [each for each in marks(page) if each[0] == "chosen"]
    assert "it is not an answer" in text_of(page, "#says")
    assert "not answers" in text_of(page, "#places legend")
    assert text_of(page, "#announcement").startswith("Not in this text. Closest, but not an answer: ")


def test_questions_to_one_text_are_kept_until_it_changes(page: chromium.Tab) -> None:
    ask(page, PIER, "Who built the first pier?")
    ask(page, None, "When did it burn?")
    assert page.run("[...document.querySelectorAll('#history li')].map((each) => each.innerText.split('\\n'))") == [
        ["When did it burn?", "1902"],
        ["Who built the first pier?", "Anna Kestrel"],
    ]
    page.run("document.querySelector('#history li:last-child button').click()")
    assert text_of(page, "#answer") == "Anna Kestrel"
    assert page.run("document.getElementById('question').value") == "Who built the first pier?"
    put(page, f"{PIER} Or so they say.", "When did it burn?")
    assert page.run("document.getElementById('history').hidden && document.getElementById('result').hidden")
    put(page, PIER, "When did it burn?")
    assert not page.run("document.getElementById('history').hidden || document.getElementById('result').hidden")


def test_a_long_text_is_marked_without_being_built_again(page: chromium.Tab, tmp_path: Path) -> None:
    quiet = "A quiet week by the sea, with nothing to tell of it. \U0001f30a\n"
    long = quiet * 40 + PIER + "\n" + quiet * 40
    open_file(page, tmp_path / "long.txt", (quiet * 18_000).encode())  # a megabyte
    assert page.run("document.querySelectorAll('#reading *').length") < 1_000
    assert page.run("document.getElementById('edit').hidden")
    page.run("document.getElementById('clear').click()")
    ask(page, long, "Who built the first pier?")
    page.run("window.first = document.querySelector('#reading div').firstChild; 0")
    ask(page, None, "When did it burn?")
    assert ["chosen", len((quiet * 40 + PIER).encode("utf-16-le")) // 2 - 5, "1902"] in marks(page)
    assert page.run("window.first === document.querySelector('#reading div').firstChild")
    page.wait(
        "(() => { const [a, b] = [document.querySelector('mark.chosen'), document.getElementById('reading')].map((e) => "
        "e.getBoundingClientRect()); return a.top >= b.top && a.bottom <= b.bottom })()"
    )


def test_plain_text_files_are_opened_and_others_are_not(page: chromium.Tab, tmp_path: Path) -> None:
    for content in (b"One\r\ntwo \xc3\xa9", "\ufeffOne\ntwo é".encode(), "\ufeffOne\rtwo é".encode("utf-16-le")):
        open_file(page, tmp_path / "good.txt", content)
        assert text_of(page, "#reading") == "One\ntwo é"
    for name, content in (
        ("bad.txt", b"caf\xe9"),
        ("zero.txt", b"a\x00b"),
        ("paper.pdf", b"%PDF"),
        ("page.html", b"<p>"),
    ):
        open_file(page, tmp_path / name, content)
        assert name in text_of(page, "#problem p")
        assert text_of(page, "#reading") == "One\ntwo é"


# --- why


def test_why_colours_the_words_by_their_scores(browser: chromium.Browser, tiny_reader: Callable[..., Reader]) -> None:
    reader, question, text = tiny_reader(), "Who built it?", "\U0001f985 Anna \u202ebuilt <b>it</b>."
    found = attribute(reader, question, text)
    most = max(abs(word) for word in found.scores)
    strong = [(word, score) for word, score in zip(found.words, found.scores, strict=True) if abs(score) > 0.05 * most]
    with serving(reader) as served, browser.open(served.address) as tab:
        ask(tab, text, question)
        tab.run("document.getElementById('tab-why').click()")
        tab.wait("document.querySelector('#panel-why .verdict') !== null")
        for place, part, whole in (("#reading", "passage", text), (".why-question", "question", question)):
            words = tab.run(
                f"[...document.querySelectorAll('{place} .w')].map((each) => [each.textContent, each.classList[1], each.style.cssText])"
            )
            for word, score in ((word, score) for word, score in strong if word.part == part):
                shown, wanted = "", visible(whole[word.start : word.end])
                while shown != wanted:  # where the mark of an answer begins or ends in a word, it is shown in pieces
                    piece, kind, style = words.pop(0)
                    shown += piece
                    assert wanted.startswith(shown)
                    assert kind == ("for" if score > 0 else "against")
                    assert float(re.sub("[^0-9.]", "", style)) == pytest.approx(abs(score) / most, abs=1e-3)
            assert words == []
        verdicts = {"reliable": "can be trusted", "weak": "with care", "no better than chance": "Do not rely"}
        assert found.trust is not None
        assert verdicts[found.trust.verdict] in text_of(tab, "#panel-why .verdict")
        assert tab.run("[...document.querySelectorAll('#panel-why tbody th')].map((each) => each.textContent)") == [
            visible(found.words[i].text) for i in found.strongest()[:8]
        ]
        assert axe(tab) == {}
        tab.run("document.getElementById('tab-answer').click()")
        assert tab.run("document.querySelectorAll('#reading .w').length") == 0
        assert tab.messages == []


def test_an_explanation_that_is_cancelled_costs_nothing_more(browser: chromium.Browser, mini: Reader) -> None:
    began, stopped = threading.Event(), threading.Event()

    def endless(*_: Any, progress: Any, **options: Any) -> Any:
        began.set()
        try:
            while True:
                progress(0, 1, "")
                time.sleep(0.01)
        finally:
            stopped.set()

    with serving(mini, explain=endless) as served, browser.open(served.address) as tab:
        ask(tab, PIER, "Who built the first pier?")
        tab.run("document.getElementById('tab-why').click()")
        assert began.wait(10)
        assert "0 s" in text_of(tab, "#panel-why .working")
        tab.run("document.querySelector('#panel-why button').click()")
        assert stopped.wait(10)
        assert tab.run("document.getElementById('panel-why').hidden")
        assert text_of(tab, "#answer") == "Anna Kestrel"
        assert tab.messages == []


def test_a_server_that_explains_nothing_has_no_such_tab_and_a_path_before_it(
    browser: chromium.Browser, mini: Reader
) -> None:
    with serving(mini, explain=None, under="/some/path") as served, browser.open(served.address) as tab:
        ask(tab, PIER, "Who built the first pier?")
        assert text_of(tab, "#answer") == "Anna Kestrel"
        assert tab.run("document.getElementById('tabs').hidden")
        assert tab.messages == []
        assert {each.removeprefix(served.address) for each in tab.requests} >= {
            "",
            "info",
            "v1/answers",
            "assets/app.js",
        }


# --- what is kept to itself


def test_a_link_carries_the_text_and_the_address_bar_does_not(
    browser: chromium.Browser, page: chromium.Tab, served: Served
) -> None:
    browser.ask("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    ask(page, HOSTILE, "Who built the first pier?")
    page.ask("Page.bringToFront")
    page.run("document.getElementById('link').click()")
    page.wait("document.getElementById('link-says').textContent")
    assert text_of(page, "#link-says").startswith("Copied")
    link = page.run("navigator.clipboard.readText()")
    assert link.startswith(f"{served.address}#z=")
    kept = "[location.href, document.cookie, localStorage.length, sessionStorage.length, history.state]"
    assert page.run(kept) == [served.address, "", 0, 0, None]

    with browser.open(link) as tab:
        tab.wait("document.getElementById('question').value")
        assert tab.run(kept) == [served.address, "", 0, 0, None]
        assert text_of(tab, "#reading") == HOSTILE.translate({0x202E: "\u241a", 0x202C: "\u241a"})
        assert "v1/answers" not in "".join(tab.requests)  # it asks when its user does
        tab.run("document.querySelector('#ask button').click()")
        tab.wait("!document.getElementById('result').hidden")
        assert text_of(tab, "#answer") == "Anna Kestrel"
        tab.run(f"location.hash = 'p=' + btoa({json.dumps(json.dumps({'question': 'Why?', 'text': 'Because.'}))})")
        tab.wait("document.getElementById('question').value === 'Why?'")
        assert [text_of(tab, "#reading"), tab.run("location.href")] == ["Because.", served.address]
        for bad in ("z=abc", "q", "p=bnVsbA", "p=eyJxdWVzdGlvbiI6MX0"):
            tab.run("document.getElementById('problem').hidden = true")
            tab.run(f"location.hash = {bad!r}")
            tab.wait("!document.getElementById('problem').hidden")
            assert "cannot be read" in text_of(tab, "#problem p")
            assert [text_of(tab, "#reading"), tab.run("location.href")] == ["Because.", served.address]

    noise = base64.urlsafe_b64encode(random.Random(0).randbytes(30_000)).decode().translate({45: "x", 95: "y"})
    ask(page, f"{noise} {PIER}", "Who built the first pier?")  # one word that cannot be made shorter
    page.run("document.getElementById('link').click()")
    page.wait("document.getElementById('link-says').textContent")
    assert "too long for a link" in text_of(page, "#link-says")


def test_no_other_script_runs_and_nobody_else_is_asked(browser: chromium.Browser, served: Served) -> None:
    with browser.open(served.address) as tab:
        for path in ("", "assets/app.js", "assets/app.css", "assets/icon.svg", "docs", "assets/swagger-ui.css"):
            found = tab.run(f"fetch({path!r}, {{cache: 'reload'}}).then((each) => [each.status, [...each.headers]])")
            headers = dict(found[1])
            assert found[0] == 200
            assert "default-src 'none'; script-src 'self';" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
        for part in ("bytes=0-10", "bytes=0-1,5-6", "bytes=99999999-", "bytes=x"):
            asked = f"fetch('docs', {{cache: 'no-store', headers: {{range: {part!r}}}}}).then((each) => [each.status, each.headers.get('content-type')])"
            assert tab.run(asked) == [200, "text/html; charset=utf-8"]
        for path in ("assets/index.html", "assets/nothing.js", "assets/..%2fapp.css", "assets/%2e%2e/app.py"):
            assert tab.run(f"fetch({path!r}).then((each) => each.status)") == 404
        assert all("Failed to load resource" in each for each in tab.messages)
        tab.run(
            "document.body.append(Object.assign(document.createElement('div'), {onclick: null}));"
            "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}));"
            "fetch('http://127.0.0.1:9/').catch(() => { window.refused = true })"
        )
        for script in ("document.body.innerHTML = '<b>x</b>'", "document.createElement('script').text = 'x'"):
            with pytest.raises(RuntimeError, match="requires 'Trusted"):
                tab.run(script)
        tab.wait("window.refused")
        assert sum("Content Security Policy" in each for each in tab.messages) >= 2


def test_the_documentation_of_the_api_needs_nobody_else(browser: chromium.Browser, served: Served) -> None:
    with browser.open(f"{served.address}docs") as tab:
        tab.wait("document.querySelectorAll('.opblock').length > 5")
        assert "/v1/answers" in text_of(tab, "#swagger")
        assert [each for each in tab.requests if not each.startswith((served.address, "data:"))] == []
        assert tab.messages == []


# --- what goes wrong


def test_a_busy_server_is_asked_again_after_a_while(browser: chromium.Browser, mini: Reader) -> None:
    with serving(mini, max_requests=1) as served, browser.open(served.address) as tab:
        with served.service.queue.admitted(1):
            ask(tab, PIER, "Who built the first pier?")
            assert text_of(tab, "#problem p") == "The server is busy."
            assert re.fullmatch(r"Ask again in \d s", text_of(tab, "#problem button"))
        tab.wait("!document.querySelector('#problem button').disabled")
        tab.run("document.querySelector('#problem button').click()")
        tab.wait("!document.getElementById('result').hidden")
        assert text_of(tab, "#answer") == "Anna Kestrel"
        assert tab.run("document.getElementById('problem').hidden")


def test_a_question_waits_for_the_model_and_a_lost_server_is_named(browser: chromium.Browser, mini: Reader) -> None:
    with serving(None) as served, browser.open(served.address) as tab:
        ask(tab, PIER, "Who built the first pier?")
        assert "still being loaded" in text_of(tab, "#problem p")
        served.service.start(mini)
        tab.wait("!document.getElementById('result').hidden")
        assert text_of(tab, "#answer") == "Anna Kestrel"
        served.stop()
        ask(tab, None, "When did it burn?")
        assert "cannot be reached" in text_of(tab, "#problem p")
        assert text_of(tab, "#problem button") == "Ask again"


def test_refusals_are_said_in_plain_words(browser: chromium.Browser, mini: Reader) -> None:
    with serving(mini, max_passage=200, deadline=0.001) as served, browser.open(served.address) as tab:
        tab.wait("document.getElementById('model').textContent")
        ask(tab, "", "Who?")
        assert "no text yet" in text_of(tab, "#problem p")
        ask(tab, PIER, " ")
        assert "Write a question" in text_of(tab, "#problem p")
        ask(tab, PIER * 3, "Who built the first pier?")
        assert "at most 200 are allowed" in text_of(tab, "#problem p")
        assert "at most 200 can be read" in text_of(tab, "#size")
        tab.run("document.getElementById('problem').hidden = true")
        ask(tab, PIER, "Who built the first pier?")
        assert "in the time that it allows" in text_of(tab, "#problem p")


def test_a_key_is_asked_for_and_kept_in_memory_only(browser: chromium.Browser, mini: Reader) -> None:
    right = "an-api-key-of-the-test"
    with (
        serving(mini, keys=(hashlib.sha256(right.encode()).hexdigest(),)) as served,
        browser.open(served.address) as tab,
    ):
        for said, given in (("asks for a key", "a-wrong-key-of-the-test"), ("does not know this key", right)):
            title = "document.getElementById('key-title').textContent"
            tab.wait(f"document.getElementById('key').open && {title}.includes({said!r})")
            assert tab.run("[document.activeElement.id, document.activeElement.type]") == ["key-text", "password"]
            assert axe(tab) == {}
            tab.type(given)
            tab.press("Enter")
        tab.wait("document.getElementById('model').textContent === 'spanqa-mini'")
        ask(tab, PIER, "Who built the first pier?")
        assert text_of(tab, "#answer") == "Anna Kestrel"
        assert tab.run("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
        assert right not in tab.run("document.documentElement.outerHTML + document.getElementById('key-text').value")
        tab.ask("Page.reload")
        tab.wait("document.getElementById('key')?.open")


# --- for everybody


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 320)])
def test_axe_finds_no_barrier(browser: chromium.Browser, served: Served, dark: bool, width: int) -> None:
    with browser.open(served.address, dark=dark, width=width) as tab:
        tab.wait("document.getElementById('model').textContent")
        assert axe(tab) == {}
        ask(tab, PIER, "Who was the mayor of Rome?")
        assert axe(tab) == {}
        ask(tab, None, "Who built the first pier?")
        assert axe(tab) == {}
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.messages == []


def test_the_keyboard_is_enough(page: chromium.Tab) -> None:
    assert page.run("document.activeElement.id") == "text"
    page.type(HOSTILE)
    page.press("Tab")
    page.press("Tab") if page.run("document.activeElement.id") != "question" else None
    for _ in range(4):
        if page.run("document.activeElement.id") == "question":
            break
        page.press("Tab")
    page.type("Who built the first pier?")
    page.press("Enter")
    page.wait("!document.getElementById('result').hidden")
    assert page.run("document.activeElement.id") == "question"
    reached = []
    for _ in range(20):
        page.press("Tab")
        at = "document.activeElement"
        name = page.run(f"{at} === document.body ? '' : {at}.id || {at}.name || {at}.textContent")
        if not name:
            break
        outline = page.run(f"getComputedStyle({at}).outlineStyle")
        assert outline != "none", name
        reached.append(name)
    assert [each for each in reached if each in ("tab-answer", "place", "link")] == ["tab-answer", "place", "link"]
    page.run("document.querySelector('#places input').focus()")
    page.press("ArrowDown")
    assert page.run("document.querySelectorAll('#places input')[1].checked")
    page.ask("Input.dispatchKeyEvent", type="keyDown", key="k", code="KeyK", windowsVirtualKeyCode=75, modifiers=2)
    assert page.run("document.activeElement.id") == "question"
    page.type("When did it burn?")  # replaces the question, which is selected
    page.press("Enter")
    page.wait("document.getElementById('asked-question').textContent === 'When did it burn?'")
