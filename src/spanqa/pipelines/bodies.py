"""The question-answering form of Hugging Face's endpoints, for a service that hands over the body of a request, already read.

    {"inputs": {"question": "...", "context": "..."}, "parameters": {...}}      one question
    {"inputs": [{"question": "...", "context": "..."}, ...]}                    several
    {"inputs": {"question": ["...", ...], "context": "..."}}                    several, of one context or of as many

One question gives an object, with `top_k` above 1 a list of objects; several give a list with one such item each. It needs no web
framework; `spanqa.serve` has the same form as a route, with limits. No message holds a word of the user: services write them to logs.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from spanqa.errors import InputError
from spanqa.pipelines.calls import CallSettings
from spanqa.pipelines.question_answering import QuestionAnsweringPipeline

_FLAGS = ("handle_impossible_answer", "align_to_words")


def answer_body(pipeline: QuestionAnsweringPipeline, body: Mapping[str, Any]) -> Any:
    """Answer the questions of a body; the result is what JSON can write.

    Raises:
        InputError: the body has another form, a text is empty, or a parameter is unknown or impossible.
    """
    if not isinstance(body, Mapping):
        raise InputError(f"The body is a {type(body).__name__}; expected an object with inputs.")
    pairs, several = _pairs(body.get("inputs"))
    given = _parameters(body.get("parameters"))
    settings = CallSettings(**given)
    examples = [{"question": question, "context": context} for question, context in pairs]
    found = pipeline(examples, **given)
    answers = [
        each if isinstance(each, list) else [each] for each in (found if len(pairs) > 1 else [found])
    ]  # a list in a list is the answers of one question, of which the pipeline gives a single one alone
    results = [each if settings.top_k > 1 else each[0] for each in answers]
    return results if several else results[0]


def _parameters(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"parameters is a {type(given).__name__}; expected an object.")
    known = [field.name for field in fields(CallSettings)]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise InputError(f"parameters has {unknown!r:.50}; expected some of {', '.join(known)}.")
    for name in _FLAGS:
        if not isinstance(given.get(name, True), bool | None):
            raise InputError(f"parameters.{name} is a {type(given[name]).__name__}; expected true or false.")
    return {name: value for name, value in given.items() if value is not None}


def _pairs(inputs: Any) -> tuple[list[tuple[str, str]], bool]:
    """Return the pairs of question and context, and whether they were given as a list."""
    if isinstance(inputs, list):
        if not inputs:
            raise InputError("inputs is an empty list; give at least one question.")
        return [_pair(each, f"inputs.{number}") for number, each in enumerate(inputs)], True
    if isinstance(inputs, dict) and isinstance(inputs.get("question"), list):
        questions, contexts = inputs["question"], inputs.get("context")
        contexts = contexts if isinstance(contexts, list) else [contexts] * len(questions)
        if len(contexts) != len(questions) or not questions:
            raise InputError(
                f"inputs has {len(questions)} questions and {len(contexts)} contexts; expected as many of both, at least one."
            )
        pairs = zip(questions, contexts, strict=True)
        return [_pair({"question": q, "context": c}, f"inputs.{n}") for n, (q, c) in enumerate(pairs)], True
    return [_pair(inputs, "inputs")], False


def _pair(example: Any, where: str) -> tuple[str, str]:
    if not isinstance(example, dict):
        raise InputError(f"{where} is a {type(example).__name__}; expected an object with question and context.")
    for name in ("question", "context"):
        text = example.get(name)
        if not isinstance(text, str):
            raise InputError(f"{where}.{name} is a {type(text).__name__}; expected a text.")
        if not text.strip():
            raise InputError(f"{where}.{name} is empty; expected a text.")
    return example["question"], example["context"]
