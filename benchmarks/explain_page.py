"""The page of an explanation with all heads of BERT-large at 512 tokens: size, first picture, head switch; with BertViz beside it.

    python benchmarks/explain_page.py --out benchmarks/results/explain-page.json

Attention is made by a seed: neither page cares whose it is. Both open in the same Chromium, BertViz 1.4.1 from `scripts/make_bertviz_env`
with its libraries on disk. Its page is measured at sizes that it can show, and where it fails, that is the result.

answer          from the start of the navigation until the first text is painted: answer, words and verdict
first picture   from the call to open the file until the frame after the load event, with all heads and one of them in full; for
                BertViz until the frame after its lines are drawn
head switch     from a click on another head until the frame after it; BertViz: from the choice of another layer
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from side_by_side import processor

from spanqa import Reader, __version__
from spanqa.explain.attention import attentions
from spanqa.explain.attribute import attribute
from spanqa.explain.maps import WindowMaps, window_maps
from spanqa.explain.page import write_page
from spanqa.windows import WindowSettings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import PROGRAM, Browser, Tab  # noqa: E402 - the browser of the tests

LAYERS, HEADS, TOKENS = 24, 16, 512
FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"

BERTVIZ = """
import sys

import torch
from bertviz import head_view

tokens, pair, target, cdn = int(sys.argv[1]), sys.argv[2] == "pair", sys.argv[3], sys.argv[4]
torch.manual_seed(0)
attention = [torch.rand(1, 16, tokens, tokens).softmax(-1) for _ in range(24)]
words = ["[CLS]"] + [f"w{i}" for i in range(tokens - 2)] + ["[SEP]"]
html = head_view(attention, words, sentence_b_start=12 if pair else None, html_action="return").data
for name, file in (
    ("require.js/2.3.6/require.min.js", "requirejs-2.3.6/require.js"),
    ("d3/5.7.0/d3.min", "d3-5.7.0/dist/d3.min"),
    ("jquery/2.0.0/jquery.min", "jquery-2.1.0/dist/jquery.min"),
):
    html = html.replace(f"https://cdnjs.cloudflare.com/ajax/libs/{name}", f"file://{cdn}/{file}")
with open(target, "w", encoding="utf-8") as file:
    file.write(f"<!doctype html><meta charset=utf-8><body>{html}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--bertviz", default="64:single,64:pair,128:single,128:pair", help="tokens:single or pair, or none"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    assert PROGRAM is not None, "no Chromium is installed"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: dict[str, Any] = {}
        for maps in ("full", "rows"):
            rows[f"spanqa {maps}"] = ours(folder, maps, arguments.rounds)
            print(f"spanqa {maps}: {rows[f'spanqa {maps}']}", file=sys.stderr)
        for each in filter(None, arguments.bertviz.replace("none", "").split(",")):
            tokens, _, kind = each.partition(":")
            rows[f"BertViz {tokens} tokens, {kind}"] = bertviz(folder, int(tokens), kind)
            print(f"BertViz {each}: {rows[f'BertViz {tokens} tokens, {kind}']}", file=sys.stderr)
    version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    record = {
        "command": shlex.join(["python", "benchmarks/explain_page.py", *sys.argv[1:]]),
        "shape": {"layers": LAYERS, "heads": HEADS, "tokens": TOKENS},
        "processor": processor(),
        "load": os.getloadavg()[0],
        "versions": {"spanqa": __version__, "chromium": version, "bertviz": "1.4.1"},
        "rows": rows,
    }
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def ours(folder: Path, maps: str, rounds: int) -> dict[str, Any]:
    path = folder / "page.html"
    started = time.monotonic()
    write_page(path, *explained(), maps=maps)  # type: ignore[arg-type]
    written = time.monotonic() - started
    first, answer, same, other, elements = [], [], [], [], 0
    for number in range(rounds):
        (folder / str(number)).mkdir(exist_ok=True)
        with Browser(folder / str(number)) as browser:
            started = time.monotonic()
            with browser.open(path) as tab:
                tab.run(FRAME)
                first.append(time.monotonic() - started)
                answer.append(tab.run("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"))
                assert tab.messages == [] and len(tab.requests) == 1
                elements = tab.run("document.querySelectorAll('*').length")
                order = np.random.default_rng(number).permutation(LAYERS)[:10].tolist()
                for layer in order:
                    other.append(click(tab, layer * HEADS))
                    same.append(click(tab, layer * HEADS + 7))
    return {
        "megabytes": path.stat().st_size / 1e6,
        "written_s": written,
        "first_picture_s": summary(first),
        "answer_s": summary(answer),
        "other_layer_ms": summary(other),
        "same_layer_ms": summary(same),
        "elements": elements,
    }


def explained() -> tuple[Any, WindowMaps]:
    """An answer of spanqa-mini in a window of 512 tokens, with attention of BERT-large's shape."""
    reader = Reader.load("spanqa-mini").with_settings(windows=WindowSettings(max_seq_length=TOKENS))
    first, *others = (ROOT / "examples" / "harbour.txt").read_text("utf-8").split("\n\n")
    passage = "\n\n".join([first, *others * 6])  # the answer is in the first window, which is full
    question = "Who built the first pier?"
    found = attribute(reader, question, passage, method="hierarchical_occlusion", budget_s=20)
    window = window_maps(attentions(reader, question, passage, layers=[0]), [])
    assert len(window.tokens) == TOKENS
    return found, WindowMaps(
        LAYERS,
        HEADS,
        window.tokens,
        window.offsets,
        window.parts,
        window.answer_rows,
        window.number,
        window.windows,
        made_up(),
    )


def made_up() -> Iterator[tuple[int, NDArray[np.float32]]]:
    draw = np.random.default_rng(0)
    for layer in range(LAYERS):
        weights = draw.random((HEADS, TOKENS, TOKENS), np.float32) ** 8
        yield layer, weights / weights.sum(axis=2, keepdims=True)


def click(tab: Tab, option: int) -> float:
    """Return the milliseconds from a click on a head to the frame after it is drawn."""
    return tab.run(
        f"(async () => {{ const start = performance.now(); document.querySelectorAll('[role=option]')[{option}].click();"
        f" await {FRAME}; return performance.now() - start }})()"
    )


def bertviz(folder: Path, tokens: int, kind: str, limit: float = 300) -> dict[str, Any]:
    environment = subprocess.run(
        [ROOT / "scripts" / "make_bertviz_env", "--find"], capture_output=True, text=True, check=True
    )
    home = environment.stdout.strip()
    path = folder / "bertviz.html"
    started = time.monotonic()
    subprocess.run([f"{home}/bin/python", "-c", BERTVIZ, str(tokens), kind, path, f"{home}/cdn"], check=True)
    found: dict[str, Any] = {"megabytes": path.stat().st_size / 1e6, "written_s": time.monotonic() - started}
    profile = folder / f"bertviz-{tokens}-{kind}"
    profile.mkdir()
    with Browser(profile) as browser:
        started = time.monotonic()
        try:
            with browser.open(path) as tab:
                while not tab.run("document.querySelectorAll('svg line').length"):
                    if time.monotonic() - started > limit:
                        raise TimeoutError(f"nothing drawn after {limit:.0f} s")
                    time.sleep(0.05)
                tab.run(FRAME)
                found["first_picture_s"] = time.monotonic() - started
                found["elements"] = tab.run("document.querySelectorAll('*').length")
                found["other_layer_ms"] = tab.run(
                    "(async () => { const at = document.querySelector('#layer'); const start = performance.now(); at.value = 11;"
                    f" at.dispatchEvent(new Event('change')); await {FRAME}; return performance.now() - start }})()"
                )
        except (RuntimeError, TimeoutError, OSError) as error:
            found["failed"] = f"{error} ({time.monotonic() - started:.0f} s)"
    return found


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "worst": max(values), "n": len(values)}


if __name__ == "__main__":
    main()
