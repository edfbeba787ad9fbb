"""The forms of a call: what transformers 4.57 took as examples and parameters, to pairs of question and context."""

import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from spanqa.errors import InputError, SpanQAWarning

_CALL_ONLY = (
    "batch_size",
    "num_workers",
    "padding",
)  # accepted because 4.57 accepted them; here batches are planned by tokens


@dataclass(frozen=True, slots=True)
class CallSettings:
    """The parameters of a call, with the names and defaults of transformers 4.57. Lengths are in tokens.

    `doc_stride` is an overlap; None means min(max_seq_len // 2, 128). `max_seq_len` None means min(384, the model's maximum).
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len"):
            value, least = getattr(self, name), 0 if name == "doc_stride" else 1
            if value is None and name in ("doc_stride", "max_seq_len"):
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} is {value!r}. Expected a whole number, at least {least}.")
            object.__setattr__(self, name, int(value))  # NumPy's numbers too


Item = tuple[str, str]


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call parameters that have a value; None means not given, as in 4.57."""
    given = {name: value for name, value in given.items() if value is not None and name not in _CALL_ONLY}
    if "topk" in given:
        warnings.warn("topk is the old name of top_k. Use top_k.", SpanQAWarning, stacklevel=3)
        given = {"top_k": given["topk"]} | {name: value for name, value in given.items() if name != "topk"}
    known = [field.name for field in fields(CallSettings)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"The pipeline has no parameter {unknown[0]!r}. Expected {', '.join(known)}.")
    return given


def inputs_of(args: Sequence[Any], texts: Mapping[str, Any]) -> Iterator[Any] | list[Any]:
    """Return the examples of a call, in any form that 4.57 accepted: an iterator for a generator or data set, else a list."""
    named = {name: value for name, value in texts.items() if value is not None}
    ways = [bool(args), "X" in named, "data" in named, "question" in named or "context" in named]
    if sum(ways) > 1:
        raise InputError("Examples were given in two ways. Give either question= and context=, or one list of both.")
    if len(args) == 2 and all(isinstance(arg, str) for arg in args):
        named = {"question": args[0], "context": args[1]}
    elif args:
        named = {"data": args[0] if len(args) == 1 else list(args)}
    if not named:
        raise InputError("No question was given. Give question= and context=.")
    if "data" in named or "X" in named:
        return _examples(named.get("data", named.get("X")))
    return _pairs(named.get("question"), named.get("context"))


def _examples(inputs: Any) -> Iterator[Any] | list[Any]:
    if isinstance(inputs, types.GeneratorType):
        return inputs
    if isinstance(inputs, dict) and isinstance(inputs.get("question"), list):
        return _pairs(inputs["question"], inputs.get("context"))
    if isinstance(inputs, dict) or hasattr(inputs, "question_text"):
        return [inputs]
    if isinstance(inputs, str) or not (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")):
        raise InputError(
            f"Expected examples, got {type(inputs).__name__}: {inputs!r:.60}. Give question= and context=."
        )
    if not isinstance(inputs, Iterable):  # a data set of torch: a length, and an item for each index
        return (inputs[i] for i in range(len(inputs)))
    if any(kind.__module__.startswith("torch.utils.data") for kind in type(inputs).__mro__):
        return iter(inputs)
    return list(inputs)


def _pairs(question: Any, context: Any) -> list[Any]:
    if isinstance(question, str) and isinstance(context, str):
        return [{"question": question, "context": context}]
    if isinstance(question, list) and isinstance(context, str):
        context = [context] * len(question)
    if isinstance(question, list) and isinstance(context, list):
        if len(question) != len(context):
            raise InputError(
                f"There are {len(question)} questions and {len(context)} contexts. Expected the same number of both."
            )
        return [{"question": q, "context": c} for q, c in zip(question, context, strict=True)]
    raise InputError(
        f"question is {type(question).__name__} and context is {type(context).__name__}. Expected two strings, two lists, "
        "or a list of questions and one context."
    )


def pair_of(example: Any) -> Item:
    """Return (question, context) of a dict, or of an object with transformers' old names (SquadExample)."""
    if isinstance(example, dict):
        missing = [name for name in ("question", "context") if name not in example]
        if missing:
            raise InputError(f"An example has no {missing[0]!r}: {example!r:.100}. Expected 'question' and 'context'.")
        question, context = example["question"], example["context"]
    elif hasattr(example, "question_text") and hasattr(example, "context_text"):
        question, context = example.question_text, example.context_text
    else:
        raise InputError(
            f"Expected an example as a dict with question and context, got {type(example).__name__}: {example!r:.60}."
        )
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            raise InputError(f"{name} must be a string (str), got {type(text).__name__}: {text!r:.60}.")
        if not text.strip():
            raise InputError(f"{name} is empty. Expected text.")
    return question, context
