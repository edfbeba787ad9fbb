"""Messages of errors that no other test reads.

`test_house.py` fails when an error of the core has a message that no test matches.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spanqa import weights
from spanqa.backends.registry import choose_backend
from spanqa.checkpoint import open_checkpoint
from spanqa.engine import Engine
from spanqa.errors import BackendError, CheckpointError, InputError
from spanqa.pipelines import loading, pipeline, revive_transformers_pipeline
from spanqa.reader import Reader


def test_a_forked_process_that_cannot_load_again_is_told(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(mini.backend)
    monkeypatch.setattr(engine, "_forked", True)
    with pytest.raises(
        BackendError, match="This process was forked after the model was loaded, and backend 'openvino' does"
    ):
        engine.submit([])


# --- checkpoints, backends, readers


def test_a_model_in_memory_has_no_weight_files(tiny: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"is a module in memory and has no weight files. Save it"):
        _ = replace(open_checkpoint(tiny("bert")), files=None).weights


def test_weights_replaced_while_they_are_opened_are_refused(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(9))
    monkeypatch.setattr(weights, "_identity", lambda status: (0, next(numbers), 0, 0))
    with pytest.raises(CheckpointError, match=r"was replaced while it was being opened. Load the model again"):
        open_checkpoint(tiny("bert"))


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("tpu:0", "int8", "No installed backend supports device 'tpu:0' and dtype 'int8'. No backend of spanqa does"),
        ("quantum", "auto", "No installed backend supports device 'quantum'. No backend of spanqa does"),
    ],
)
def test_what_no_backend_can_do_is_refused(device: str, dtype: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        choose_backend("bert", device, dtype)


# --- pipeline

CALLS = {
    "in two ways": ((["Who?"],), {"question": "Who?", "context": "Anna."}, "Examples were given in two ways"),
    "nothing": ((), {}, "Give question= and context="),
    "no examples": ((7,), {}, "Expected examples, got int: 7"),
    "other numbers": ((), {"question": ["a"], "context": ["b", "c"]}, "There are 1 questions and 2 contexts"),
    "other kinds": ((), {"question": "a", "context": ["b"]}, "question is str and context is list"),
    "no context": (({"question": "a"},), {}, "An example .* 'context'"),
    "no example": (([3],), {}, "a dict with question and context, got int: 3"),
    "no text": (({"question": 3, "context": "a"},), {}, "question .* got int: 3"),
    "empty": ((), {"question": "Who?", "context": " "}, "context is empty"),
    "no number": ((), {"question": "Who?", "context": "Anna.", "top_k": 0}, "top_k is 0.*a whole number, at least 1"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_of_a_pipeline_that_is_wrong_says_how(case: str, mini: Reader) -> None:
    args, named, message = CALLS[case]
    with pytest.raises(InputError, match=message):
        pipeline(model=mini)(*args, **named)


def test_a_model_in_memory_runs_on_torch_alone_and_with_a_fast_tokenizer(tiny: Callable[..., Path]) -> None:
    module = SimpleNamespace(config=SimpleNamespace(to_dict=dict), name_or_path="")
    with pytest.raises(BackendError, match="backend is 'numpy', but a transformers model in memory runs on 'torch'"):
        pipeline(model=module, tokenizer=object(), backend="numpy")
    with pytest.raises(CheckpointError, match="int is not a fast tokenizer"):
        loading._tokenizer(7, {})


def test_a_transformers_that_still_has_the_pipeline_needs_no_revival(
    transformers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = transformers.pipelines.PIPELINE_REGISTRY.supported_tasks
    monkeypatch.setitem(tasks, "question-answering", {"impl": object})
    with pytest.raises(InputError, match="still has its own 'question-answering' pipeline"):
        revive_transformers_pipeline()
