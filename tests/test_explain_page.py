"""Explanations to look at: the page in a real browser, the notebook, the figures."""

import base64
import json
import re
import subprocess
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import browser as chromium
from spanqa.answers import Answer
from spanqa.errors import InputError
from spanqa.explain import figures, notebook, page
from spanqa.explain.attention import attentions, stream_layers
from spanqa.explain.attribute import attribute
from spanqa.explain.explanation import Convergence, CurvePoint, Explanation, Flip, Side, Trust
from spanqa.explain.maps import WindowMaps, kinds, measure, quantize, thumbnails, token_words, wanted, window_maps
from spanqa.explain.page import write_page
from spanqa.explain.words import Word
from spanqa.reader import Reader

AXE = Path(__file__).parents[1] / "scripts" / "get_axe"
QUESTION = "Who built the first pier?"
PASSAGE = (
    "Its first pier was built in 1873 by the engineer Anna Kestrel, who had learned her trade on the railways. " * 3
)
HOSTILE = (
    "</script><script>alert(1)</script> <img src=x onerror=alert(2)> ]]> \u202eevil\u202c nul\x00here \U0001f6a2\U0001f469\u200d\U0001f680 "
    "e\u0301\u0301 line\u2028end <!-- {{script}} {{attention}} \ud83d Anna \U0001f985 Kestrel &amp; \"quoted\" 'single' اللغة"
)


def words_in(part: str, text: str) -> list[Word]:
    """Words by hand: no model is needed to draw an explanation."""
    found = re.finditer(r"\w+|[^\w\s]", text)
    return [
        Word(part, match[0], match.start(), match.end(), i, i + 1)  # type: ignore[arg-type]
        for i, match in enumerate(found)
    ]


def explained(
    question: str = QUESTION, passage: str = PASSAGE, answer: str = "Anna Kestrel", **changes: Any
) -> Explanation:
    words = (*words_in("question", question), *words_in("passage", passage))
    scores = np.random.default_rng(len(words)).normal(0, 1, len(words)) ** 3
    start = passage.index(answer) if answer else None
    end = None if start is None else start + len(answer)
    closest = Answer("first pier", 4, 14, -1.5, 0.2, 0.7, 0)
    side = Side(answer, start, end, 4.0 if answer else 0.0)
    against = Side("", None, None, 0.0) if answer else Side("first pier", 4, 14, -1.5)
    points = [CurvePoint(x, int(100 * x), 0.9 * x**0.3, 0.4 - 0.5 * x, x, 0.9 - x) for x in (0.01, 0.05, 0.1, 0.2, 0.5)]
    free = [i for i, word in enumerate(words) if word.part == "question"]
    flip = Flip((free[0], free[-1]), closest if answer else Answer("Anna", 5, 9, 1.0, 0.5, 0.3, 0), True)
    made = Explanation(
        question=question,
        passage=passage,
        source="harbour.txt",
        answer=Answer(answer, start, end, 4.0, 0.8, 0.1, 0)
        if answer
        else replace(closest, text="", start=None, closest=closest),
        chosen=side,
        other=against,
        value=4.0,
        method="occlusion",
        signed=True,
        words=words,
        scores=tuple(scores.tolist()),
        refined=tuple(i % 5 != 0 for i in range(len(words))),
        mask="[MASK]",
        passes=200,
        seconds=1.5,
        note="",
        convergence=None,
        trust=Trust(tuple(points), 0.5, 0.2, 0.4, 3.0, 10, "reliable", flip, ""),
        made_with={"model": {"name": "spanqa-mini"}, "versions": {"spanqa": "1"}},
    )
    return replace(made, **changes)


def looks(layers: int, heads: int, size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Layers of attention, made by a seed: a diagonal, and much on the first token."""
    draw = np.random.default_rng(size)
    raw = draw.random((heads, size, size), np.float32) ** 4
    raw += np.eye(size, dtype=np.float32) * np.arange(heads, dtype=np.float32)[:, None, None]
    raw[:, :, 0] += 1
    first = raw / raw.sum(axis=2, keepdims=True)
    for layer in range(layers):
        yield layer, np.roll(first, layer, axis=0)


def window_of(explanation: Explanation, layers: int = 2, heads: int = 3, size: int | None = None) -> WindowMaps:
    """A window with one token for each word, filled up with the passage's first token."""
    question = [word for word in explanation.words if word.part == "question"]
    passage = [word for word in explanation.words if word.part == "passage"]
    size = size or len(question) + len(passage) + 3
    passage = (passage * (1 + size // max(1, len(passage))))[: size - len(question) - 3]
    tokens = ["[CLS]", *(w.text for w in question), "[SEP]", *(w.text for w in passage), "[SEP]"]
    parts = [-1, *[0] * len(question), -1, *[1] * len(passage), -1]
    offsets = [(0, 0), *((w.start, w.end) for w in question), (0, 0), *((w.start, w.end) for w in passage), (0, 0)]
    span = explanation.chosen if explanation.chosen.start is not None else explanation.other
    rows = [
        i
        for i, (part, at) in enumerate(zip(parts, offsets, strict=True))
        if part == 1 and span.start <= at[0] < span.end
    ]  # type: ignore[operator]
    maps = looks(layers, heads, size)
    return WindowMaps(layers, heads, tokens, np.array(offsets), np.array(parts), rows[:2] or [0], 0, 1, maps)


@pytest.fixture
def opened(browser: chromium.Browser, tmp_path: Path) -> Callable[..., chromium.Tab]:
    """`opened(explanation, window, dark=True)` writes a page and opens it."""

    def open_page(
        explanation: Explanation, window: WindowMaps | None = None, maps: str = "auto", **how: Any
    ) -> chromium.Tab:
        path = tmp_path / "page.html"
        write_page(path, explanation, window, maps=maps)  # type: ignore[arg-type]
        return browser.open(path, **how)

    return open_page


def readout(tab: chromium.Tab) -> tuple[float, int, int]:
    """The weight that the page says, and its query and key."""
    said = tab.run("document.getElementById('readout').textContent")
    found = re.search(r"weight ([\d.]+); from token (\d+) .* to token (\d+)", said)
    assert found, said
    return float(found[1]), int(found[2]), int(found[3])


# --- the page in a browser


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 390)])
@pytest.mark.parametrize("answer", ["Anna Kestrel", ""])
def test_a_page_asks_for_nothing_complains_of_nothing_and_fits(
    opened: Callable[..., chromium.Tab], answer: str, dark: bool, width: int
) -> None:
    found = explained(answer=answer)
    with opened(found, window_of(found), dark=dark, width=width) as tab:
        assert [each.rpartition("/")[2] for each in tab.requests] == ["page.html"]
        assert tab.messages == []
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.run("document.getElementById('answer').textContent") == (answer or "Not in this text")
        assert tab.run("document.getElementById('flip').textContent").startswith('Without "Who" in the question')
        assert tab.run("document.getElementById('verdict').textContent") == "Reliable"


def test_its_policy_lets_no_other_script_run_and_nothing_be_asked_for(opened: Callable[..., chromium.Tab]) -> None:
    with opened(explained()) as tab:
        tab.run(
            "document.head.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}));"
            "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))"
        )
        tab.run("new Promise((done) => setTimeout(done, 50))")
        assert tab.run("window.ran") is None
        assert any("Content Security Policy" in message for message in tab.messages)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("answer", ["Anna Kestrel", ""])
def test_axe_finds_no_barrier(opened: Callable[..., chromium.Tab], answer: str, dark: bool) -> None:
    found = subprocess.run([AXE, "--find"], capture_output=True, text=True) if AXE.exists() else None
    if found is None or found.returncode:
        pytest.skip("axe-core is not here (scripts/get_axe fetches it)")
    explanation = explained(answer=answer)
    with opened(explanation, window_of(explanation), dark=dark) as tab:
        tab.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        tab.run(Path(found.stdout.strip()).read_text("utf-8") + ";0")
        checked = tab.run(
            "axe.run({resultTypes: ['violations', 'incomplete']}).then(({violations, incomplete}) => ({violations, incomplete}))"
        )
    problems = {each["id"]: [node["html"][:200] for node in each["nodes"]] for each in checked["violations"]}
    assert problems == {}
    unsure = [
        node["html"] for each in checked["incomplete"] if each["id"] == "color-contrast" for node in each["nodes"]
    ]
    assert [html for html in unsure if 'class="w ' in html] == []


def test_hostile_text_is_shown_as_text_and_marked_where_it_is(opened: Callable[..., chromium.Tab]) -> None:
    found = explained(
        HOSTILE, HOSTILE, "Anna \U0001f985 Kestrel", source=HOSTILE, note=HOSTILE, made_with={HOSTILE: HOSTILE}
    )
    with opened(found, window_of(found)) as tab:
        assert len(tab.requests) == 1
        assert tab.messages == []
        symbols = str.maketrans({"\x00": "\u2400", "\u202e": "\u241a", "\u202c": "\u241a", "\ud83d": "\ufffd"})
        shown = HOSTILE.translate(symbols)
        for name in ("question", "question-text"):
            assert tab.run(f"document.getElementById('{name}').textContent.toWellFormed()") == shown
        text = tab.run("document.getElementById('passage-text').textContent.toWellFormed()")
        assert text.replace("answer: ", "") == shown
        marked = tab.run(
            "[...document.querySelectorAll('#passage-text mark')].map((each) => each.textContent).join('')"
        )
        assert marked == "answer: Anna \U0001f985 Kestrel"
        spans = tab.run(
            "[...document.querySelectorAll('#passage-text .w')].map((each) => each.textContent.toWellFormed())"
        )
        most = max(map(abs, found.scores))
        by_hand = [
            word.text.translate(symbols)
            for word, score in zip(found.words, found.scores, strict=True)
            if word.part == "passage" and abs(score) > 0.05 * most
        ]
        assert spans == by_hand
        assert tab.run("document.querySelectorAll('img, script:not([type])').length") == 1
        assert not tab.run("document.getElementById('symbols').hidden")


def test_the_keyboard_reaches_everything(opened: Callable[..., chromium.Tab]) -> None:
    found = explained()
    with opened(found, window_of(found)) as tab:
        reached = []
        for _ in range(60):
            tab.press("Tab")
            name = tab.run(
                "(() => { const at = document.activeElement; return at === document.body ? '' : at.id || at.getAttribute('role') ||"
                " at.name || at.textContent })()"
            )
            if not name:
                break
            reached.append(name)
        assert not any(each.startswith("option") for each in reached)  # all heads are one stop
        for name in (
            "These curves as a table",
            "save-words",
            "All ",
            "order",
            "listbox",
            "map",
            "zoom-in",
            "zoom-out",
            "save-map",
        ):
            assert any(each.startswith(name) for each in reached), (name, reached)

        tab.run("document.querySelector('#all-words summary').focus()")
        tab.press("Enter")
        tab.wait(f"document.querySelectorAll('#all-words tbody tr').length === {len(found.words)}")
        tab.run("document.querySelector('[role=listbox]').focus()")
        tab.press("Home")
        assert tab.run("document.getElementById('head-title').textContent") == "Layer 0, head 0"
        tab.press("ArrowDown")
        tab.press("ArrowRight")
        assert tab.run("document.getElementById('head-title').textContent") == "Layer 1, head 1"
        tab.press("End")
        assert tab.run("document.getElementById('head-title').textContent") == "Layer 1, head 2"
        active = (
            "document.getElementById(document.querySelector('[role=listbox]').getAttribute('aria-activedescendant'))"
        )
        assert tab.run(f"{active}.getAttribute('aria-selected')") == "true"
        assert tab.run(f"{active}.getAttribute('aria-label')").startswith("Layer 1, head 2, relevance 0.")
        tab.run("document.querySelector('#orders input').focus()")
        tab.press("ArrowRight")
        order = tab.run(
            "[...document.querySelectorAll('[role=option]')].map((each) => each.getAttribute('aria-label'))"
        )
        relevances = [float(each.rpartition(" ")[2]) for each in order]
        assert relevances == sorted(relevances, reverse=True)
        assert len(set(relevances)) > 1


@pytest.mark.parametrize("maps", ["full", "rows"])
def test_the_weights_shown_are_those_of_the_model(opened: Callable[..., chromium.Tab], maps: str) -> None:
    found = explained()
    window = window_of(found, layers=7, heads=5)
    layers = dict(looks(7, 5, len(window.tokens)))
    with opened(found, window, maps) as tab:
        about = tab.run("JSON.parse(document.getElementById('attention').textContent)")
        held = tab.run("[...document.querySelectorAll('script[id^=H]')].map((each) => each.id)")
        assert len(held) == (16 if maps == "rows" else 0)
        relevance = {(layer, head): about["numbers"][str(layer)][head][0] for layer in range(7) for head in range(5)}
        best = sorted(relevance, key=lambda each: -relevance[each])[:16]
        if maps == "rows":
            assert min(relevance[int(name[1:3]), int(name[4:])] for name in held) >= relevance[best[-1]] - 1e-4
        for layer, head in ((0, 0), best[0], min(relevance, key=lambda each: relevance[each])):
            tab.run(f"document.querySelectorAll('[role=option]')[{layer * 5 + head}].click()")
            assert tab.run("document.getElementById('head-title').textContent") == f"Layer {layer}, head {head}"
            tab.run("document.getElementById('map').focus()")
            for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"):
                tab.press(key)
                value, row, column = readout(tab)
                assert value == pytest.approx(
                    layers[layer][head, row, column], abs=0.0045
                )  # the quantization: at most 0.004
            tab.press("ArrowLeft", shift=True)
            assert readout(tab)[2] == max(0, column - 10)
            tab.press("+")
            assert readout(tab)[2] == max(0, column - 10)
        whole = tab.run("document.getElementById('head-text').textContent")
        assert ("the most relevant heads are held in full" in whole) == (maps == "rows")


def test_its_elements_do_not_grow_with_tokens(opened: Callable[..., chromium.Tab]) -> None:
    counts = []
    for size in (48, 128):
        found = explained()
        with opened(found, window_of(found, 24, 16, size), "full") as tab:
            counts.append(tab.run("document.querySelectorAll('*').length"))
    assert counts[0] == counts[1] < 2_000  # 24 x 16 heads are 384 of them


def test_a_long_passage_has_elements_for_explained_words_only(opened: Callable[..., chromium.Tab]) -> None:
    found = explained()
    before, behind = "A quiet week by the sea. " * 4_000, "The end came late. " * 1_000
    moved = [
        replace(word, start=word.start + 100_000, end=word.end + 100_000) if word.part == "passage" else word
        for word in found.words
    ]
    side = replace(found.chosen, start=found.chosen.start + 100_000, end=found.chosen.end + 100_000)  # type: ignore[operator]
    long = replace(found, passage=before + PASSAGE + behind, words=tuple(moved), chosen=side)
    with opened(long) as tab:
        assert tab.messages == []
        assert tab.run("document.querySelectorAll('*').length") < 500
        folds = tab.run("[...document.querySelectorAll('#passage-text summary')].map((each) => each.textContent)")
        assert folds == ["Show the 24,000 words before", "Show the 4,000 words behind"]
        assert tab.run("document.querySelector('#passage-text mark').textContent") == "answer: Anna"
        assert tab.run("performance.getEntriesByName('answered')[0].startTime") < 3_000


# --- the file


@pytest.mark.parametrize("question", ["Who built the first pier?", "Who painted the lighthouse?"])
def test_the_page_of_a_real_answer_has_its_window(tmp_path: Path, mini: Reader, question: str) -> None:
    passage = PASSAGE[:106]
    found = attribute(mini, question, passage, method="hierarchical_occlusion")
    tokens = attentions(mini, question, passage, layers=range(6))
    window = window_maps(tokens, stream_layers(mini, question, passage, queries="all"))
    assert list(window.answer_rows) == list(tokens.queries)
    write_page(tmp_path / "page.html", found, window)
    written = (tmp_path / "page.html").read_text("utf-8")
    about = json.loads(re.search(r'id="attention">(.*?)</script>', written)[1])  # type: ignore[index]
    assert about["layers"] == [0, 1, 2, 3, 4, 5]
    assert about["kinds"].count(4) == 3  # Anna, Ke, ##strel
    size = len(about["tokens"])
    block = base64.b64decode(re.search(r'id="L03">(.*?)</script>', written)[1])  # type: ignore[index]
    held = (np.frombuffer(block, np.uint8).reshape(12, size, size) / 255.0) ** 2
    expected = attentions(mini, question, passage, layers=[3], queries="all").layer(3)
    np.testing.assert_allclose(held, expected, atol=0.004)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of BERT-large's shape: all maps of 24 x 16 heads at 512 tokens."""
    path = tmp_path_factory.mktemp("large") / "page.html"
    found = explained()
    write_page(path, found, window_of(found, 24, 16, 512), maps="full")
    return path


def test_all_heads_of_bert_large_fit_into_140_mb(large: Path) -> None:
    assert 130e6 < large.stat().st_size <= 140e6


def test_all_heads_of_bert_large_open(large: Path, browser: chromium.Browser) -> None:
    with browser.open(large) as tab:
        assert tab.messages == []
        assert tab.run("document.querySelectorAll('[role=option]').length") == 384
        tab.run("document.querySelectorAll('[role=option]')[383].click()")
        assert tab.run("document.getElementById('head-title').textContent") == "Layer 23, head 15"
        expected = dict(looks(24, 16, 512))[23][15]
        value, row, column = readout(tab)
        assert value == pytest.approx(expected[row, column], abs=0.0045)


def test_the_default_page_of_bert_large_has_at_most_20_mb(tmp_path: Path) -> None:
    found = explained("Who? " * 60, PASSAGE * 20)  # a long question: not all of its rows have room
    write_page(tmp_path / "page.html", found, window_of(found, 24, 16, 512))
    size = (tmp_path / "page.html").stat().st_size
    assert 10e6 < size <= 20e6


def test_the_default_page_of_a_small_model_holds_all_heads(tmp_path: Path) -> None:
    found = explained()
    write_page(tmp_path / "page.html", found, window_of(found, 6, 12, 256))
    assert '"full":true' in (tmp_path / "page.html").read_text("utf-8")


def test_the_writer_holds_one_layer_at_a_time(tmp_path: Path) -> None:
    found = explained()
    alive: list[weakref.ref[Any]] = []
    most = 0

    def maps() -> Iterator[tuple[int, NDArray[np.float32]]]:
        nonlocal most
        for layer, weights in looks(8, 3, len(window.tokens)):
            own = weights.copy()
            alive.append(weakref.ref(own))
            most = max(most, sum(each() is not None for each in alive))
            yield layer, own
            del own

    window = window_of(found, 8)
    write_page(tmp_path / "page.html", found, replace(window, maps=maps()), maps="rows")
    assert most <= 2  # the one that is made, and the one before


def test_a_page_that_fails_half_way_leaves_no_file(tmp_path: Path) -> None:
    found = explained()
    window = window_of(found)

    def maps() -> Iterator[tuple[int, NDArray[np.float32]]]:
        yield from looks(1, 3, len(window.tokens))
        raise RuntimeError("out of memory")

    (tmp_path / "page.html").write_text("before")
    with pytest.raises(RuntimeError, match="out of memory"):
        write_page(tmp_path / "page.html", found, replace(window, maps=maps()))
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "before"


def test_texts_are_nowhere_in_the_markup(tmp_path: Path) -> None:
    found = explained(HOSTILE, HOSTILE, "Anna \U0001f985 Kestrel", source=HOSTILE)
    write_page(tmp_path / "page.html", found, window_of(found))
    written = (tmp_path / "page.html").read_text("utf-8")
    assert written.count("<script>") == 1
    assert "onerror" not in re.sub(r'<script type="application/json".*?</script>', "", written, flags=re.DOTALL)
    content = json.loads(re.search(r'id="explanation">(.*?)</script>', written)[1])  # type: ignore[index]
    assert content["question"] == HOSTILE


@given(st.text(max_size=20))
def test_places_in_the_page_are_utf16_units(text: str) -> None:
    places = page._utf16(text)
    assert places.tolist() == [len(text[:i].encode("utf-16-le", "surrogatepass")) // 2 for i in range(len(text) + 1)]


# --- what is said about heads


def test_the_numbers_of_a_head_are_those_of_a_plain_loop() -> None:
    size, heads = 9, 2
    [(_, maps)] = looks(1, heads, size)
    kind = np.array([0, 2, 2, 1, 3, 4, 4, 3, 1])
    sought = np.array([0, 1, 0.5, 0, 0.2, 0, 0, 0, 0], np.float32)
    rows = [5, 6]
    numbers, shares = measure(maps, rows, kind, sought)
    for head in range(heads):
        a = maps[head].astype(np.float64)
        relevance = np.mean([sum(a[row, key] * sought[key] for key in range(size)) for row in rows])
        entropy = np.mean(
            [-sum(a[q, k] * np.log2(a[q, k]) for k in range(size) if a[q, k] > 0) for q in range(size)]
        ) / np.log2(size)
        first = np.mean([a[q, 0] for q in range(size)])
        other = np.mean([a[q, 3] + a[q, 8] for q in range(size)])
        near = sum(a[q, k] for q in range(size) for k in range(size) if abs(q - k) <= 1) / size
        np.testing.assert_allclose(numbers[head], [relevance, entropy, first, other, near], atol=1e-6)
    by_kind = [np.mean([maps[h][row][kind == each].sum() for h in range(heads) for row in rows]) for each in range(5)]
    np.testing.assert_allclose(shares, by_kind, atol=1e-6)
    np.testing.assert_allclose(shares.sum(), 1, atol=1e-6)


def test_tokens_have_their_kind_and_the_score_of_their_word() -> None:
    found = explained()
    window = window_of(found)
    kind, words = kinds(found, window), token_words(found, window)
    assert [window.tokens[i] for i in np.flatnonzero(kind == 4)][:2] == ["Anna", "Kestrel"]
    assert kind.tolist()[:8] == [0, *[2] * 6, 1]
    assert kind[-1] == 1
    for token, word in enumerate(words.tolist()):
        assert word == -1 if kind[token] < 2 else found.words[word].text == window.tokens[token]
    sought = wanted(found, words)
    assert sought.max() == 1
    assert (sought[kind == 4] == 0).all()
    assert (sought[[found.scores[word] < 0 for word in words]] == 0).all()


@pytest.mark.parametrize("size", [3, 48, 100, 511])
def test_thumbnails_keep_the_largest_weight_of_each_block(size: int) -> None:
    [(_, maps)] = looks(1, 2, size)
    small = thumbnails(maps)
    assert small.shape == (2, min(48, size), min(48, size))
    starts = [int(i * size / min(48, size)) for i in range(min(48, size))] + [size]
    for row, column in ((0, 0), (1, 2), (len(starts) - 2, 0)):
        block = maps[1, starts[row] : starts[row + 1], starts[column] : starts[column + 1]]
        assert small[1, row, column] == block.max()


def test_quantized_weights_are_at_most_0_004_off() -> None:
    weights = np.linspace(0, 1, 100_001, dtype=np.float32)
    off = np.abs((quantize(weights) / 255.0) ** 2 - weights)
    assert off.max() < 0.004
    assert off[weights < 0.01].max() < 0.0004


# --- the notebook


def test_a_notebook_gets_at_most_300_kb_of_plain_html() -> None:
    found = explained(passage=PASSAGE * 350)
    assert len(found.passage.split()) > 20_000
    quotes = explained(passage='"' * 50_000 + "Anna Kestrel")  # six bytes for each character
    for each in (found, quotes, explained(HOSTILE * 200, HOSTILE * 500, "Anna \U0001f985 Kestrel"), explained()):
        html = each._repr_html_()
        assert len(html.encode("utf-8")) <= notebook.MOST_BYTES
        assert "<script" not in html
        assert "<img" not in html
        assert re.search(r'<mark class="chosen">.*Anna', html)
    assert "Characters of the passage that are not shown" in found._repr_html_()


def test_a_notebook_shows_words_by_their_sign_and_the_verdict() -> None:
    found = explained(scores=(5.0, *[0.0] * 5, -3.0, *[0.0] * (len(explained().scores) - 7)))
    html = found._repr_html_()
    assert '<i class="for much">Who</i>' in html
    assert '<i class="against much">Its</i>' in html
    assert html.count("<i class") == 2
    assert "<b>Reliable</b>" in html
    assert "Not in this text" in explained(answer="")._repr_html_()
    gap = Convergence(256, 0.4, 0.12, False)
    assert "do not add up: 12% are missing after 256 steps" in explained(convergence=gap)._repr_html_()


# --- figures


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[[Explanation, str], bytes]:
    pytest.importorskip("matplotlib")

    def draw(explanation: Explanation, name: str) -> bytes:
        figures.draw(explanation, tmp_path / name)
        return (tmp_path / name).read_bytes()

    return draw


@pytest.mark.parametrize(("name", "mark"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
def test_figures_are_of_the_kind_of_their_ending_and_always_the_same(
    drawn: Callable[[Explanation, str], bytes], name: str, mark: bytes
) -> None:
    found = explained(passage=PASSAGE[:80])
    first = drawn(found, name)
    assert first.startswith(mark)
    assert first == drawn(found, name)


@pytest.mark.parametrize(("score", "colour", "other"), [(2.0, b"#0059b3", b"#b24d00"), (-2.0, b"#b24d00", b"#0059b3")])
def test_a_figure_shows_the_scores_by_their_sign(
    drawn: Callable[[Explanation, str], bytes], score: float, colour: bytes, other: bytes
) -> None:
    found = explained(passage=PASSAGE[:80], trust=None)
    picture = drawn(replace(found, scores=(score,) * len(found.scores)), "a.svg")
    assert colour in picture
    assert other not in picture


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_a_figure_leaves_the_settings_of_the_caller_alone_and_they_it(
    drawn: Callable[[Explanation, str], bytes], name: str
) -> None:
    import matplotlib

    plain, backend = drawn(explained(), name), matplotlib.get_backend()
    try:
        matplotlib.use("svg")
        with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "text.usetex": True}):
            assert drawn(explained(), name) == plain
            assert (matplotlib.get_backend(), matplotlib.rcParams["text.usetex"]) == ("svg", True)
    finally:
        matplotlib.use(backend)


def test_an_answer_of_several_lines_is_drawn_on_one(drawn: Callable[[Explanation, str], bytes]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = drawn(
            explained(passage="Anna\r\nKestrel built it.", answer="Anna\r\nKestrel", words=(), scores=()), "a.svg"
        )
    assert lines == drawn(
        explained(passage="Anna Kestrel built it.", answer="Anna Kestrel", words=(), scores=()), "a.svg"
    )


@pytest.mark.parametrize("fonts", ["all", "none"])
def test_texts_that_no_font_has_are_drawn_without_a_warning(
    drawn: Callable[[Explanation, str], bytes], fonts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fonts == "none":
        monkeypatch.setattr(figures, "_fonts_for", lambda text: [])
    text = "日本語 \U0001f6a2 $x^2$ \x00 \u202e Anna Kestrel ናይ \U00012000"
    assert drawn(explained(text, text), "a.png")
    assert drawn(explained(trust=None, words=(), scores=(), refined=()), "a.svg")


def test_a_figure_of_a_long_passage_shows_what_is_around_the_answer() -> None:
    pytest.importorskip("matplotlib")
    words = " ".join(f"w{i}" for i in range(500))
    found = explained(passage=f"{words} Anna Kestrel {words}")
    shown = "".join(text for line in figures._lines(found) for text, _, _ in line)
    assert "Anna Kestrel" in shown
    assert "… w468 w469" in shown
    assert "w30 w31 …" in shown
    assert len(shown.split()) < 90
    boxed = "".join(text for line in figures._lines(found) for text, _, marked in line if marked)
    assert boxed == "Anna Kestrel"


# --- errors


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    found = explained()
    window = window_of(found)
    with pytest.raises(InputError, match=r"maps is 'some'; expected one of auto, rows, full"):
        write_page(tmp_path / "a.html", found, maps="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"The page cannot be written to .*none.*Name a file in a folder"):
        write_page(tmp_path / "none" / "a.html", found)
    few = [(0, np.zeros((3, 2, len(window.tokens)), np.float32))]
    with pytest.raises(
        InputError, match=r"layer 0 has shape \[3, 2, 75\]; expected \[3, 75, 75\].*Capture all of its queries"
    ):
        write_page(tmp_path / "a.html", found, replace(window, maps=few))
    tokens = ["x"] * 8192
    far = WindowMaps(1, 16, tokens, np.zeros((8192, 2), int), np.ones(8192, int), [0], 0, 1, [])
    with pytest.raises(InputError, match=r"16 heads of 8,192 x 8,192 tokens, which no browser can read.*maps='rows'"):
        write_page(tmp_path / "a.html", found, far, maps="full")
    assert list(tmp_path.iterdir()) == []


def test_figures_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an ending of \.png, \.svg, \.pdf"):
        figures.draw(explained(), tmp_path / "a.jpg")
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match=r"The figure cannot be written to .*none.*Name a file in a folder"):
        figures.draw(explained(), tmp_path / "none" / "a.png")
