"""Extractive question answering.

spanqa finds the answer to a question in a text, shows where it is and how confident the model is, and says when the text
has no answer.

     Example ──► Window ──► Batch ──► SpanLogits ──► Span ──► Answer
     squad.py   windows.py  batches.py   backends/    spans.py   answers.py
                tokens.py   └────────── engine.py ──────────┘
     └──────────────────────────── reader.py ────────────────────────────┘
         used by:  pipelines/   evaluate/   train/   explain/   serve/   scale/   deploy/   quantize.py   retrieval.py   cli/

Importing spanqa loads no framework: each name is imported when it is first used.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spanqa.answers import Answer, Ranking
    from spanqa.client import Client
    from spanqa.errors import SpanQAError
    from spanqa.reader import Reader
    from spanqa.squad import Example, read_squad
    from spanqa.tokens import Passage

logging.getLogger("spanqa").addHandler(logging.NullHandler())

_HOMES = {
    "Answer": "spanqa.answers",
    "Client": "spanqa.client",
    "Example": "spanqa.squad",
    "Passage": "spanqa.tokens",
    "Ranking": "spanqa.answers",
    "Reader": "spanqa.reader",
    "SpanQAError": "spanqa.errors",
    "pipeline": "spanqa.pipelines",
    "read_squad": "spanqa.squad",
    "revive_transformers_pipeline": "spanqa.pipelines",
}

__all__ = [
    "Answer",
    "Client",
    "Example",
    "Passage",
    "Ranking",
    "Reader",
    "SpanQAError",
    "pipeline",
    "read_squad",
    "revive_transformers_pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spanqa' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
