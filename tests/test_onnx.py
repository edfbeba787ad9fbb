"""What the ONNX Runtime backend does beyond the contract that `test_backends.py` holds it to."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spanqa.backends.base import Backend
from spanqa.backends.registry import load_backend
from spanqa.batches import Batch, Capture, pad
from spanqa.checkpoint import Checkpoint, find, open_checkpoint
from spanqa.errors import BackendError
from spanqa.windows import WindowSettings, make_windows
from tiny import SENTENCES


@pytest.fixture
def module(need: Callable[[str], None]) -> Any:
    need("onnx")
    from spanqa.backends import onnx

    return onnx


@pytest.fixture
def mini() -> Checkpoint:
    return open_checkpoint(find("spanqa-mini"))


@pytest.fixture
def batch(mini: Checkpoint) -> Batch:
    """Eight rows or more, the last of them shorter."""
    tokenizer = mini.tokenizer
    windows = make_windows(
        tokenizer.encode("Who?"), tokenizer.encode(SENTENCES), tokenizer.template, WindowSettings(64, 16)
    )
    assert len(windows) > 8 and len(windows[-1]) < len(windows[0])
    return pad(windows)


@pytest.mark.parametrize("tokens", [1, 130])
def test_rows_computed_a_few_at_a_time_give_what_they_give_at_once(
    tokens: int, module: Any, mini: Checkpoint, batch: Batch
) -> None:
    backend = module.OnnxBackend(mini, "cpu", "fp32", 1)
    found = []
    for backend._tokens_at_once in (sys.maxsize, tokens):
        found.append(
            backend.forward(
                batch,
                capture=Capture((2, 5)),
            )
        )
    once, parts = found
    real = batch.window_index >= 0
    # measured: 3e-6 and 2e-7
    np.testing.assert_allclose(parts.start[real], once.start[real], rtol=0, atol=2e-5)
    np.testing.assert_allclose(parts.end[real], once.end[real], rtol=0, atol=2e-5)
    assert list(parts.attention) == [2, 5]
    for layer in (2, 5):
        for part, whole in zip(parts.attention[layer], once.attention[layer], strict=True):
            np.testing.assert_allclose(part, whole, rtol=0, atol=1e-5)


def test_the_graph_in_half_precision_is_the_same_graph(
    module: Any, mini: Checkpoint, batch: Batch, load: Callable[..., Backend]
) -> None:
    """Meant for CUDA; here its operations convert to float32 and back, so that only what lies between them is rounded."""
    reference = load("numpy", find("spanqa-mini")).forward(batch, capture=Capture((0,)))
    found = module.OnnxBackend(mini, "cpu", "fp16", None).forward(batch, capture=Capture((0,)))
    real = batch.window_index >= 0
    assert found.start.dtype == found.attention[0][0].dtype == np.float32
    # measured: 0.005, of logits up to 8, and 2e-4
    np.testing.assert_allclose(found.start[real], reference.start[real], rtol=0, atol=0.03)
    for half, whole in zip(found.attention[0], reference.attention[0], strict=True):
        np.testing.assert_allclose(half, whole, rtol=0, atol=2e-3)


def test_the_weights_are_not_in_the_graph(module: Any, mini: Checkpoint) -> None:
    weights = mini.encoder_weights()
    assert sum(array.nbytes for array in weights.values()) > 40_000_000
    assert len(module.build_graph(mini, weights)) < 50_000


def test_a_session_outlives_the_arrays_it_was_made_from(
    module: Any, mini: Checkpoint, batch: Batch, load: Callable[..., Backend]
) -> None:
    backend = module.OnnxBackend(mini, "cpu", "fp32", None)
    litter = [np.full(array.shape, 7, np.float32) for array in mini.encoder_weights().values() for _ in range(3)]
    found, reference = backend.forward(batch), load("numpy", find("spanqa-mini")).forward(batch)
    real = batch.window_index >= 0
    np.testing.assert_allclose(found.start[real], reference.start[real], rtol=0, atol=2e-5)
    assert litter[0].flat[0] == 7


def test_it_computes_with_the_threads_it_is_given(module: Any, tiny: Callable[..., Path]) -> None:
    for threads in (1, 3):  # at least one of them is not what it takes by itself
        backend: Any = load_backend("onnx", open_checkpoint(tiny("bert")), threads=threads)[0]
        for capture in (None, Capture((1,))):
            assert (
                backend._sessions.of(capture, backend._make_session).get_session_options().intra_op_num_threads
                == threads
            )
    backend = load_backend("onnx", open_checkpoint(tiny("bert")))[0]
    assert backend._sessions.of(None, backend._make_session).get_session_options().intra_op_num_threads >= 1


def test_one_session_with_attention_is_kept(module: Any, mini: Checkpoint, batch: Batch) -> None:
    backend = module.OnnxBackend(mini, "cpu", "fp32", None)
    for capture in (Capture((0,)), Capture((0,)), Capture((1, 2)), None):
        backend.forward(batch, capture=capture)
    assert list(backend._sessions._made) == [(), (1, 2)]


def test_fp16_on_the_cpu_is_refused(module: Any, tiny: Callable[..., Path]) -> None:
    with pytest.raises(BackendError, match=r"computes fp16 on cpu only by converting it to fp32\. Use dtype 'fp32'"):
        load_backend("onnx", open_checkpoint(tiny("bert")), dtype="fp16")


@pytest.fixture
def promised_cuda(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that says it has CUDA, and has not."""
    if "CUDAExecutionProvider" in module.onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(module.onnxruntime, "get_available_providers", lambda: providers)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_that_does_not_start_is_an_error_and_not_the_cpu(
    device: str, promised_cuda: None, tiny: Callable[..., Path]
) -> None:
    with pytest.raises(
        BackendError, match=rf"onnxruntime .* cannot run the model on {device}: .*Check that it is the newest"
    ):
        load_backend("onnx", open_checkpoint(tiny("bert")), device=device)


@pytest.mark.parametrize("device", ["cpu:0", "cuda:", "cuda:one", "gpu", "mps"])
def test_a_device_that_does_not_exist_is_refused(device: str, promised_cuda: None, tiny: Callable[..., Path]) -> None:
    with pytest.raises(
        BackendError,
        match=rf"Backend 'onnx' does not see device '{device}' on this machine. Choose one of: cpu, cuda\.",
    ):
        load_backend("onnx", open_checkpoint(tiny("bert")), device=device)


def test_loading_it_says_nothing_and_needs_no_torch(module: Any) -> None:
    program = (
        "import sys, spanqa\n"
        "print(spanqa.Reader.load(backend='onnx').ask('Who built it?', 'Anna built it.').text)\n"
        "print(sorted({'torch', 'transformers', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("Anna\n[]\n", "")
