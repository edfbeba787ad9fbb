"""`spanqa explain`: which words carried an answer, and whether that can be trusted."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spanqa.cli import options

if TYPE_CHECKING:
    from spanqa.documents import Document
    from spanqa.explain.decision import Against, Decision
    from spanqa.explain.explanation import Explanation
    from spanqa.reader import Reader
    from spanqa.tokens import Passage

CPU_SECONDS = 120.0
"""The time budget on a CPU, where none is given."""


def explain(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The text file or web page to read. Without FILE, or with -, standard input."
        ),
    ] = "-",
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Write a page (.html), a figure (.png, .svg, .pdf) or data (.json, .safetensors: attention); may be given several times.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="occlusion, hierarchical_occlusion, integrated_gradients, gradient_x_input, gradient, gae, gae_abs or rollout. "
            "Default: occlusion, by sentences first in a long text.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="What the answer is set against: no-answer, runner-up, or a span of the text as START-END.",
        ),
    ] = "no-answer",
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help=f"Begin no new round of work after this many seconds. Default: {CPU_SECONDS:.0f} on a CPU, none elsewhere.",
            show_default=False,
        ),
    ] = None,
    all_heads: Annotated[
        bool,
        typer.Option("--all-heads", help="Put every head of every layer in full into the page or the .safetensors."),
    ] = False,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Keep question and text in .json, .safetensors and --json.")
    ] = True,
    threshold: options.Threshold = None,
    encoding: options.Encoding = None,
    as_json: options.Json = False,
    model: options.Model = "spanqa-mini",
    revision: options.Revision = None,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="fp32, bf16, fp16, int8 or auto; the scores are small differences.")
    ] = "fp32",
    threads: options.Threads = None,
    max_seq_length: options.MaxSeqLength = None,
    overlap: options.Overlap = None,
    max_answer_tokens: options.MaxAnswerTokens = None,
) -> None:
    """Explain an answer, or a "not in this text": the words that carried it, and how far that can be trusted.

    Prints the sentence with its important words, what changes the answer, and a verdict.
    """
    from spanqa.explain.attribute import METHODS, explain_decision
    from spanqa.explain.decision import decide

    targets = _targets(out or [], file, text)
    span = _against(against)
    if method is not None and method not in METHODS:
        raise typer.BadParameter(f"{method!r}: choose one of {', '.join(METHODS)}", param_hint="--method")
    if budget is not None and not budget > 0:
        raise typer.BadParameter(f"{budget:g} is not a number of seconds above 0", param_hint="--budget")
    document = _read(file, encoding)
    if backend == "auto" and method is not None and METHODS[method].needs:
        backend = "torch"
    reader = options.load_reader(
        model=model,
        revision=revision,
        backend=backend,
        device=device,
        dtype=dtype,
        threads=threads,
        max_seq_length=max_seq_length,
        overlap=overlap,
        max_answer_tokens=max_answer_tokens,
    )
    passage = _passage(reader, question, document)
    if budget is None and reader.backend.device.lower().startswith("cpu"):
        budget = CPU_SECONDS
    with options.progress_bar("steps") as progress:
        decision = decide(reader, question, passage, against=span, threshold=threshold, progress=progress)
        found = explain_decision(reader, decision, method=method, budget_s=budget, progress=progress)
    for path in targets:
        _write(path, reader, decision, found, all_heads, text)
    if as_json:
        typer.echo(options.json_line(found.as_json(text=text)))
    else:
        from spanqa.cli.show_explanation import show_explanation

        show_explanation(found, document, reader.calibrated)
    for path in targets:
        typer.echo(f"spanqa: {path} was written", err=True)


def _targets(paths: list[Path], source: str, text: bool) -> list[Path]:
    """Return the files to write, after checking what can be known before the work is done."""
    from spanqa.errors import InputError
    from spanqa.explain import figures
    from spanqa.extras import require
    from spanqa.files import check_keeps

    endings = (".html", ".json", ".safetensors", *figures.KINDS)
    for path in paths:
        if path.suffix.lower() not in endings:
            raise typer.BadParameter(f"{str(path)!r}: expected an ending of {', '.join(endings)}", param_hint="--out")
        if not text and path.suffix.lower() not in (".json", ".safetensors"):
            raise typer.BadParameter(
                f"{str(path)!r} would show the text; it goes with .json and .safetensors", param_hint="--no-text"
            )
        if path.suffix.lower() in figures.KINDS:
            require("figures")
        problem = "it is a folder" if path.is_dir() else "" if path.parent.is_dir() else "there is no such folder"
        if problem:
            raise InputError(f"{str(path)!r} cannot be written: {problem}. Choose another file.")
        check_keeps([None if source == "-" else Path(source)], path.parent, [path.name])
    return paths


def _against(given: str) -> "Against":
    if given == "no-answer":
        return "no answer"
    if given == "runner-up":
        return "runner-up"
    span = re.fullmatch(r"(\d{1,18})-(\d{1,18})", given)
    if span is None:
        raise typer.BadParameter(
            f"{given!r:.60}: choose no-answer, runner-up, or two positions such as 141-153", param_hint="--against"
        )
    return int(span[1]), int(span[2])


def _read(name: str, encoding: str | None) -> "Document":
    from spanqa.documents import read_document
    from spanqa.errors import InputError
    from spanqa.files import read_standard_input

    if name != "-":
        document = read_document(name, None, encoding)
    elif sys.stdin is not None and sys.stdin.isatty():
        raise typer.BadParameter("give a file to read, or pipe text to standard input", param_hint="FILE")
    else:
        document = read_document("standard input", read_standard_input(), encoding)
    if not document.text.strip():
        raise InputError(f"There is no text to read: {document.source} is empty. Give a text.")
    return document


def _passage(reader: "Reader", question: str, document: "Document") -> "Passage":
    """Return what is read of the text: all of it, or, of a very long one, what `spanqa ask` reads."""
    from spanqa.cli.show import say_choice
    from spanqa.retrieval import TextIndex

    choice = TextIndex(reader, [document.text], [document.source]).choose(question)
    say_choice(choice, ways=False)
    return choice.passages[0]


def _write(
    path: Path,
    reader: "Reader",
    decision: "Decision",
    found: "Explanation",
    all_heads: bool,
    text: bool,
) -> None:
    kind = path.suffix.lower()
    if kind == ".json":
        from spanqa.files import write_json

        write_json(path, found.as_json(text=text))
    elif kind == ".safetensors":
        from spanqa.explain.attention import attention_of
        from spanqa.explain.storage import save

        with options.progress_bar("passes") as progress:
            weights = attention_of(reader, decision, queries="all" if all_heads else "answer", progress=progress)
        save(weights, path, text=text)
    elif kind == ".html":
        _write_page(path, reader, decision, found, all_heads)
    else:
        from spanqa.explain.figures import draw

        draw(found, path)


def _write_page(path: Path, reader: "Reader", decision: "Decision", found: "Explanation", all_heads: bool) -> None:
    """Write the page; that of a model which hides its attention has none, and the reason is said."""
    from spanqa.errors import UnsupportedModelError
    from spanqa.explain.attention import attention_of, read_layers
    from spanqa.explain.maps import window_maps
    from spanqa.explain.page import write_page

    window = None
    try:
        weights = attention_of(reader, decision)
        shown = decision.windows[weights.window]
        window = window_maps(weights, read_layers(reader, shown, weights.layers, range(len(shown))))
    except UnsupportedModelError as error:
        typer.echo(f"spanqa: the page shows no heads: {error}", err=True)
    with options.progress_bar("layers") as progress:
        write_page(path, found, window, maps="full" if all_heads else "auto", progress=progress)
