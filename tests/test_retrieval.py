"""Which of many passages are selected to be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from spanqa.errors import InputError, NotInstalledError
from spanqa.extras import installed
from spanqa.retrieval import best_passages

OTHERS = [f"The weather in week {i} was fair, and nothing else is known of it." for i in range(40)]
PIER = "The pier was built by Anna Kestrel in 1891."

needs_bm25s = pytest.mark.skipif(not installed("search"), reason="bm25s is not installed")


@needs_bm25s
def test_the_passage_with_the_words_of_the_question_is_selected() -> None:
    passages = [*OTHERS[:30], PIER, *OTHERS[30:]]
    assert 30 in best_passages("Who built the pier?", passages, 3)
    assert best_passages("Who built the pier?", passages, 3) == sorted(
        best_passages("Who built the pier?", passages, 3)
    )
    assert len(best_passages("Who built the pier?", passages, 3)) == 3


@needs_bm25s
def test_a_question_without_known_words_still_selects_passages() -> None:
    assert len(best_passages("Xylophone?", OTHERS, 5)) == 5
    assert len(best_passages("?", OTHERS, 5)) == 5


def test_few_passages_are_all_selected_without_bm25s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert best_passages("Who?", OTHERS[:3], 3) == [0, 1, 2]
    with pytest.raises(NotInstalledError, match=r"pip install 'spanqa\[search\]'"):
        best_passages("Who?", OTHERS, 3)
    with pytest.raises(InputError, match=r"most is 0\. Expected a whole number of passages"):
        best_passages("Who?", OTHERS, 0)


@needs_bm25s
def test_the_command_reports_that_it_reads_only_some_texts(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(12)]
    for file, text in zip(files, [*OTHERS[:11], PIER], strict=True):
        file.write_text(text)
    command = [sys.executable, "-m", "spanqa", "ask", "Who built the pier?", *map(str, files)]
    done = subprocess.run([*command, "--candidates", "2"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Anna Kestrel")
    assert done.stderr == (
        "spanqa: reading 2 of 12 texts, those that share most words with the question (--candidates)\n"
    )
    everything = subprocess.run(command, capture_output=True, text=True, check=True)
    assert everything.stderr == ""
    assert everything.stdout.startswith("Anna Kestrel")
