"""What every backend must do; `numpy` is the reference.

Every backend runs every shape of batch on BERT. What differs between families is in `spanqa.families`, which all backends but
torch share, so that other families meet every backend once (`test_every_shape_of_batch`, and against transformers' own models
`test_encoder.py`); everywhere else they run on `OWN_CODE` alone.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spanqa.backends import registry
from spanqa.backends.base import Backend, Graphs, cpu_has_int8
from spanqa.backends.registry import BACKENDS, choose_backend, load_backend
from spanqa.batches import PADDING, Batch, Capture, SpanLogits, pack, pad, split_logits
from spanqa.checkpoint import Checkpoint, find, open_checkpoint
from spanqa.errors import BackendError, InputError, NotInstalledError
from spanqa.extras import NEEDS
from spanqa.reader import Reader
from spanqa.spans import passage_band
from spanqa.windows import Window, WindowSettings, make_windows
from tiny import FAMILIES, MAX_SEQ_LENGTH, SENTENCES

PASSAGE = SENTENCES[:600]
FP32 = 2e-5  # logits; measured over all families and shapes: at most 8e-6
every_backend = pytest.mark.parametrize("name", BACKENDS)
OWN_CODE = ("openvino", "torch")
"""The default, and the one that runs transformers' models, each with code of its own for masks and positions."""
every_family = pytest.mark.parametrize("family", FAMILIES)
each_backend_and_family = pytest.mark.parametrize(
    ("name", "family"),
    [(name, family) for name in BACKENDS for family in FAMILIES if family == "bert" or name in OWN_CODE],
)
PRECISIONS = [
    (name, dtype)
    for name, info in BACKENDS.items()
    for dtype in info.dtypes
    if dtype != "int8" and (name, dtype) not in (("torch", "fp16"), ("onnx", "fp16"))
]
"""int8 needs a file of its own, and torch and onnx do not compute fp16 on the CPU."""


def windows_of(folder: Path, question: str = "Who built the lighthouse?", passage: str = SENTENCES) -> list[Window]:
    tokenizer = open_checkpoint(folder).tokenizer
    settings = WindowSettings(MAX_SEQ_LENGTH)
    return make_windows(tokenizer.encode(question), tokenizer.encode(passage), tokenizer.template, settings)


@pytest.fixture(scope="session")
def sample(tiny: Callable[..., Path]) -> Callable[[str], list[Window]]:
    """Windows of very different lengths: two full ones, one of a short passage, one of a single token."""
    made: dict[str, list[Window]] = {}

    def windows(family: str) -> list[Window]:
        if family not in made:
            folder = tiny(family)
            long = windows_of(folder)
            assert len(long[0]) == len(long[1]) == MAX_SEQ_LENGTH
            short = windows_of(folder, "When?", "The lamp was lit in 1891.")
            made[family] = [long[0], short[0], long[1], windows_of(folder, "Why?", "x")[0]]
        return made[family]

    return windows


def single(backend: Backend, window: Window) -> tuple[Any, Any]:
    logits = backend.forward(pad([window]))
    return logits.start[0], logits.end[0]


def assert_window_by_window(
    logits: SpanLogits, rows: Sequence[Sequence[Window]], expected: Callable[[Window], tuple[Any, Any]], atol: float
) -> None:
    for r, row in enumerate(rows):
        at = 0
        for window in row:
            start, end = expected(window)
            np.testing.assert_allclose(logits.start[r, at : at + len(window)], start, rtol=0, atol=atol)
            np.testing.assert_allclose(logits.end[r, at : at + len(window)], end, rtol=0, atol=atol)
            at += len(window)


def shapes_of(windows: list[Window]) -> dict[str, list[list[Window]]]:
    long, short, other, least = windows
    return {
        "one window": [[short]],
        "one token": [[least]],
        "full length": [[long]],
        "padded": [[window] for window in windows],
        "packed in one row": [windows],
        "packed in rows": [[long, short], [least, other, short], [short]],
    }


SHAPES = tuple(shapes_of([None] * 4))  # type: ignore[list-item]


@every_backend
@pytest.mark.parametrize(
    ("family", "shape"),
    [*(("bert", shape) for shape in SHAPES), *((family, "packed in rows") for family in FAMILIES if family != "bert")],
)
def test_every_shape_of_batch_gives_the_logits_of_the_reference(
    name: str, family: str, shape: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    rows = shapes_of(sample(family))[shape]
    reference = backend_of("numpy", family)
    logits = backend_of(name, family).forward(pack(rows))
    assert logits.attention is None
    for array in (logits.start, logits.end):
        assert array.dtype == np.float32
        assert array.shape == pack(rows).shape
    assert_window_by_window(logits, rows, lambda window: single(reference, window), FP32)


@each_backend_and_family
def test_a_batch_gives_the_logits_of_its_windows_alone(
    name: str, family: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    backend, windows = backend_of(name, family), sample(family)
    for rows in ([[window] for window in windows], [windows]):
        # measured: 4e-6 with torch, whose products change with the shape; 0 with numpy and openvino
        assert_window_by_window(backend.forward(pack(rows)), rows, lambda window: single(backend, window), FP32)


@every_family
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_padded_batches_of_openvino_give_the_very_bits_of_single_windows(
    family: str, dtype: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    need_dtype("openvino", dtype)
    backend, windows = backend_of("openvino", family, dtype), sample(family)
    assert_window_by_window(
        backend.forward(pad(windows)), [[window] for window in windows], lambda window: single(backend, window), atol=0
    )


def test_padded_batches_of_the_bundled_model_give_the_very_bits_of_single_windows(load: Callable[..., Backend]) -> None:
    folder = find("spanqa-mini")
    passages = ["x", "The lamp was lit in 1891.", PASSAGE]
    windows = [windows_of(folder, passage=passage)[0] for passage in passages]
    for dtype in ("fp32", "bf16", "fp16"):
        need_dtype("openvino", dtype)
        backend = load("openvino", folder, dtype)
        rows = [[window] for window in windows]
        assert_window_by_window(
            backend.forward(pad(windows)), rows, lambda window, backend=backend: single(backend, window), atol=0
        )


def need_dtype(name: str, dtype: str) -> None:
    if name == "openvino":
        import openvino

        if dtype.upper() not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip(f"this processor has no {dtype}")


@pytest.mark.parametrize(
    ("name", "dtype", "family"),
    [
        (name, dtype, family)
        for name, dtype in PRECISIONS
        for family in FAMILIES
        if family == "bert" or (name in OWN_CODE and dtype == "fp32")
    ],
)
def test_a_neighbour_in_the_same_row_changed_at_will_does_not_move_a_window(
    name: str, dtype: str, family: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    """Row: neighbour, window, neighbour, padding. Whatever stands around it, the window keeps its very bits."""
    need_dtype(name, dtype)
    backend = backend_of(name, family, dtype)
    long, short, other, _ = sample(family)
    batch = pack([[other, short, long]], cols=len(other) + len(short) + len(long) + 7)
    own = batch.window_index[0] == 1
    before = backend.forward(
        batch,
        capture=Capture((0, 1)),
    )
    generator = np.random.default_rng(0)
    for _ in range(3):
        words = int(batch.input_ids.max())
        ids = np.where(own, batch.input_ids, generator.integers(5, words, batch.shape)).astype(np.int32)
        positions = np.where(own, batch.position_ids, generator.permuted(batch.position_ids, axis=1)).astype(np.int32)
        after = backend.forward(
            Batch(ids, batch.token_type_ids, positions, batch.window_index),
            capture=Capture((0, 1)),
        )
        for one, two in ((before.start, after.start), (before.end, after.end)):
            np.testing.assert_array_equal(one[0, own], two[0, own])
            assert np.abs(one[0, ~own] - two[0, ~own]).max() > 0.01  # the neighbours did change
        for layer in (0, 1):
            np.testing.assert_array_equal(before.attention[layer][1], after.attention[layer][1])


@each_backend_and_family
@pytest.mark.parametrize("shape", ["padded", "packed in rows"])
def test_attention_is_that_of_the_reference_sums_to_one_and_leaves_the_logits_alone(
    name: str, family: str, shape: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    rows = shapes_of(sample(family))[shape]
    batch, windows = pack(rows), [window for row in rows for window in row]
    reference = backend_of("numpy", family).forward(batch, capture=Capture((1, 0)))
    found = backend_of(name, family).forward(batch, capture=Capture((1, 0)))
    without = backend_of(name, family).forward(batch)
    assert found.attention is not None and reference.attention is not None
    assert list(found.attention) == [0, 1]
    for layer, arrays in found.attention.items():
        for window, array, expected in zip(windows, arrays, reference.attention[layer], strict=True):
            assert (array.dtype, array.shape) == (np.float32, (4, len(window), len(window)))
            np.testing.assert_allclose(array.sum(-1), 1, rtol=0, atol=1e-5)  # measured: 4e-7
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5)  # measured: 2e-6
    real = batch.window_index != PADDING
    np.testing.assert_allclose(found.start[real], without.start[real], rtol=0, atol=FP32)
    np.testing.assert_allclose(found.end[real], reference.end[real], rtol=0, atol=FP32)


@each_backend_and_family
@pytest.mark.parametrize("shape", ["padded", "packed in rows"])
def test_captured_queries_are_those_rows_of_the_whole_attention(
    name: str, family: str, shape: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    rows = shapes_of(sample(family))[shape]
    batch, windows = pack(rows), [window for row in rows for window in row]
    queries = tuple((0, len(window) - 1, 2)[: 1 + number % 3] for number, window in enumerate(windows))
    backend = backend_of(name, family)
    whole, found = backend.forward(batch, capture=Capture((1,))), backend.forward(batch, capture=Capture((1,), queries))
    assert whole.attention is not None and found.attention is not None
    for every, some, wanted in zip(whole.attention[1], found.attention[1], queries, strict=True):
        np.testing.assert_allclose(some, every[:, list(wanted)], rtol=0, atol=1e-6)  # measured: 1e-7


@every_backend
@pytest.mark.parametrize("layers", [None, (), (1,), (0, 1), (1, 0)])
def test_the_attention_of_just_the_layers_asked_for_is_given(
    name: str,
    layers: tuple[int, ...] | None,
    backend_of: Callable[..., Backend],
    sample: Callable[[str], list[Window]],
) -> None:
    capture = None if layers is None else Capture(layers)
    found = backend_of(name).forward(pad(sample("bert")), capture=capture).attention
    assert found is None if layers is None else found is not None and list(found) == sorted(layers)


@every_backend
@pytest.mark.parametrize("layers", [(2,), (0, 7), (-1,)])
def test_a_layer_that_the_model_does_not_have_is_refused(
    name: str, layers: tuple[int, ...], backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    with pytest.raises(InputError, match=rf"has no layer {layers[-1]}\. Expected a number from 0 to 1"):
        backend_of(name).forward(pad(sample("bert")), capture=Capture(layers))


@every_backend
def test_queries_that_are_not_there_are_refused(
    name: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    batch = pad(sample("bert")[:2])
    with pytest.raises(InputError, match="The capture has queries for 1 windows, but the batch has 2"):
        backend_of(name).forward(batch, capture=Capture((0,), ((0,),)))
    with pytest.raises(InputError, match=r"Window 1 has no token 999\. Expected a number from 0 to \d+"):
        backend_of(name).forward(batch, capture=Capture((0,), ((0,), (999,))))


@every_backend
def test_a_batch_is_left_as_it_was(
    name: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    batch, same = pad(sample("bert")), pad(sample("bert"))
    for capture in (None, Capture((0,))):
        backend_of(name).forward(batch, capture=capture)
    for field in Batch.__slots__:
        np.testing.assert_array_equal(getattr(batch, field), getattr(same, field))


@every_backend
def test_logits_once_given_are_not_written_over_by_the_next_batch(
    name: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    windows = sample("bert")
    first = backend_of(name).forward(pad(windows[:1]), capture=Capture((0,)))
    kept = first.start.copy(), first.end.copy(), first.attention[0][0].copy()
    backend_of(name).forward(pad(windows[2:3]), capture=Capture((0,)))
    for before, after in zip(kept, (first.start, first.end, first.attention[0][0]), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.fixture(scope="session")
def probabilities(backend_of: Callable[..., Backend], tiny: Callable[..., Path]) -> Callable[..., Any]:
    """`probabilities("numpy", "bert", "fp32")`: that of every place of a passage, by start and length; last, of none."""

    @cache
    def of(name: str, family: str, dtype: str) -> Any:
        windows = windows_of(tiny(family), passage=PASSAGE)
        batch = pad(windows)
        logits = list(split_logits(windows, batch, backend_of(name, family, dtype).forward(batch)))
        margins = passage_band(logits, len(windows[0].passage), 30).astype(np.float64).ravel()
        no_answer = 1 / (1 + np.exp(margins.max()))
        weights = np.exp(margins - margins.max())
        return np.append((1 - no_answer) * weights / weights.sum(), no_answer)

    return of


@pytest.mark.parametrize(
    ("name", "dtype", "family"),
    [
        (name, dtype, family)
        for name, dtype in PRECISIONS
        for family in (*FAMILIES, "spanqa-mini")
        if family in ("bert", "spanqa-mini") or name in OWN_CODE
    ],
)
def test_probabilities_are_those_of_the_reference(
    name: str, dtype: str, family: str, probabilities: Callable[..., Any]
) -> None:
    need_dtype(name, dtype)
    tolerance = 1e-5 if dtype == "fp32" else 0.02  # measured: 3e-7, and 0.005 in bf16
    expected = probabilities("numpy", family, "fp32")
    assert expected.sum() == pytest.approx(1)
    np.testing.assert_allclose(probabilities(name, family, dtype), expected, rtol=0, atol=tolerance)


@every_backend
def test_a_backend_says_what_it_is(name: str, backend_of: Callable[..., Backend]) -> None:
    backend = backend_of(name)
    assert (backend.name, backend.device, backend.dtype) == (name, "cpu", "fp32")


@every_backend
def test_auto_dtype_is_settled_and_told(
    name: str, tiny: Callable[..., Path], backend_of: Callable[..., Backend]
) -> None:
    backend_of(name)
    backend, reason = load_backend(name, open_checkpoint(tiny("bert")), device="cpu")
    assert backend.dtype in BACKENDS[name].dtypes
    assert reason == "it was asked for"


# --- the choice


@pytest.fixture
def checkpoint(tiny: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(tiny("bert"))


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in packages else find(name))


def test_auto_takes_openvino_on_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_torch_sees_gpu", lambda: False)
    assert choose_backend("bert") == ("openvino", "it is installed with spanqa and is the fastest on CPUs")


def test_auto_takes_torch_where_it_sees_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.BackendInfo, "installed", True)
    monkeypatch.setattr(registry, "_torch_sees_gpu", lambda: True)
    assert choose_backend("bert") == ("torch", "torch is installed and sees a GPU")


def test_auto_takes_torch_for_what_only_torch_can_run() -> None:
    assert choose_backend("deberta-v2") == ("torch", "only torch runs the architecture 'deberta-v2'")


def test_auto_takes_what_else_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *(package for name in BACKENDS for package in NEEDS[name].packages))
    assert choose_backend("bert") == ("numpy", "openvino is not installed")


@pytest.mark.parametrize(
    ("features", "machine", "expected"),
    [
        ({"avx2", "avx512_vnni"}, "x86_64", True), ({"avx2", "avx_vnni"}, "AMD64", True), ({"amx_int8"}, "x86_64", True),
        ({"avx2", "avx512f", "avx512_bf16"}, "x86_64", False), ({"asimddp"}, "aarch64", None), (None, "x86_64", None),
    ],
)  # fmt: skip
def test_int8_pays_on_processors_that_multiply_it(
    features: set[str] | None, machine: str, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanqa.backends.base._cpu_features", lambda: features)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert cpu_has_int8() is expected


def test_a_backend_that_does_not_exist_is_met_with_the_closest_name(checkpoint: Checkpoint) -> None:
    with pytest.raises(
        BackendError,
        match=r"Unknown backend 'openvin'. Did you mean 'openvino'. Choose auto or one of openvino, torch",
    ):
        load_backend("openvin", checkpoint)
    with pytest.raises(BackendError, match=r"Unknown backend 'tpu'. Choose auto"):
        load_backend("tpu", checkpoint)


def test_a_backend_that_is_not_installed_says_how_to_install_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "torch", "transformers")
    with pytest.raises(
        NotInstalledError,
        match=r"'torch' needs torch and transformers, which are not installed. Install with: pip install 'spanqa\[torch\]'",
    ) as caught:
        load_backend("torch", checkpoint)
    assert isinstance(caught.value, ImportError)


def test_a_base_dependency_that_is_missing_says_how_to_install_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "openvino")
    with pytest.raises(NotInstalledError, match=r"openvino, which is not installed. .* pip install 'spanqa'"):
        load_backend("openvino", checkpoint)


def test_a_dtype_that_does_not_exist_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match=r"Unknown dtype 'float32'. Choose one of auto, fp32, bf16, fp16, int8"):
        load_backend("numpy", checkpoint, dtype="float32")


def test_a_dtype_that_the_backend_does_not_have_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match=r"Backend 'numpy' does not support dtype 'bf16'. Choose one of auto, fp32"):
        load_backend("numpy", checkpoint, dtype="bf16")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "two", True])
def test_threads_that_are_no_count_are_refused(checkpoint: Checkpoint, threads: Any) -> None:
    with pytest.raises(BackendError, match=rf"threads is {threads!r}\. Expected a whole number, at least 1"):
        load_backend("openvino", checkpoint, threads=threads)


def test_numpy_leaves_threads_to_its_blas(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match=r"takes its threads from its BLAS\. Set OMP_NUM_THREADS"):
        load_backend("numpy", checkpoint, threads=1)


def compiled_by(backend: Any, layers: tuple[int, ...] = ()) -> Any:
    """The compiled model of an openvino backend, which knows the properties it runs with."""
    requests = backend._requests.of(Capture(layers) if layers else None, backend._compile)
    request = requests.get()
    requests.put(request)
    return request.get_compiled_model()


def test_openvino_runs_with_the_threads_it_is_given(
    checkpoint: Checkpoint, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    with Reader.load(checkpoint.path, backend="openvino", dtype="fp32", threads=1) as reader:
        for layers in ((), (1,)):
            assert compiled_by(reader.backend, layers).get_property("INFERENCE_NUM_THREADS") == 1
        batch = pad(sample("bert")[:1])
        found, expected = reader.backend.forward(batch), backend_of("openvino").forward(batch)
        np.testing.assert_allclose(found.start, expected.start, rtol=0, atol=FP32)


def test_torch_takes_the_threads_it_is_given(checkpoint: Checkpoint, transformers: Any) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            load_backend("torch", checkpoint, device="cpu", threads=threads)
            assert torch.get_num_threads() == threads
        load_backend("torch", checkpoint, device="cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@pytest.mark.parametrize("dtype", PRECISION_HINTS)
def test_openvino_computes_in_the_precision_that_it_is_asked_for(
    dtype: str, backend_of: Callable[..., Backend]
) -> None:
    """Read back from the compiled model: the numbers of a tiny model alone would not show it."""
    need_dtype("openvino", dtype)
    for layers in ((), (0,)):
        hint = compiled_by(backend_of("openvino", "bert", dtype), layers).get_property("INFERENCE_PRECISION_HINT")
        assert hint.get_type_name() == PRECISION_HINTS[dtype]


@pytest.mark.parametrize(
    ("capabilities", "dtype", "expected"),
    [
        (["FP32", "BF16", "FP16", "INT8"], "fp32", "f32"),
        (["FP32", "BF16", "FP16", "INT8"], "bf16", "bf16"),
        (["FP32", "BF16", "FP16", "INT8"], "fp16", "f16"),
        (["FP32", "BF16", "FP16", "INT8"], "int8", "bf16"),
        (["FP32", "BF16", "FP16", "INT8"], "auto", "bf16"),
        (["FP32", "INT8"], "int8", "f32"),
        (["FP32", "INT8"], "auto", "f32"),
    ],
)
def test_openvino_is_told_the_precision_on_every_processor(
    capabilities: list[str], dtype: str, expected: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on a processor that this one is not: a core that says what it can, and keeps what it was told."""
    from spanqa.backends import openvino as module

    told: dict[str, Any] = {}

    class OtherProcessor:
        available_devices = ("CPU",)

        def get_property(self, device: str, name: str) -> list[str]:
            return capabilities

        def compile_model(self, graph: Any, device: str, settings: dict[str, Any]) -> Any:
            told.update(settings)
            return SimpleNamespace(create_infer_request=type("Request", (), {}))

    monkeypatch.setattr(module, "_core", OtherProcessor)
    monkeypatch.setattr(module, "_read_int8", lambda checkpoint: None)
    backend, _ = load_backend("openvino", checkpoint, dtype=dtype, threads=3)
    assert (told["INFERENCE_PRECISION_HINT"], told["INFERENCE_NUM_THREADS"]) == (expected, 3)
    assert dtype in ("auto", backend.dtype)
    assert told["CPU_RUNTIME_CACHE_CAPACITY"] == "128"  # not 5,000: see benchmarks/openvino_memory.py


def test_jax_leaves_threads_to_xla(checkpoint: Checkpoint, need: Callable[[str], None]) -> None:
    need("jax")
    with pytest.raises(BackendError, match=r"takes its threads from XLA.* Start the process on fewer cores"):
        load_backend("jax", checkpoint, threads=1)


def test_jax_compiles_once_for_all_batches_of_a_bucket(
    load: Callable[..., Backend], tiny: Callable[..., Path], sample: Callable[[str], list[Window]]
) -> None:
    backend: Any = load("jax", tiny("bert"))
    long, short, other, least = sample("bert")
    for rows in ([long], [other], [long, short], [other, least], [long, long]):
        backend.forward(pad(rows))
    assert backend._run._cache_size() == 2  # one row, two rows


def test_tensorflow_keeps_the_threads_it_has_started_with(
    checkpoint: Checkpoint, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    backend_of("tensorflow").forward(pad(sample("bert")[:1]))
    with pytest.raises(BackendError, match="threads is 3, but TensorFlow has already computed in this process"):
        load_backend("tensorflow", checkpoint, threads=3)


def test_tensorflow_takes_threads_where_nothing_has_used_it_and_writes_nothing(
    checkpoint: Checkpoint, need: Callable[[str], None]
) -> None:
    need("tensorflow")
    code = (
        "import os, sys\n"
        "from spanqa import Reader\n"
        "reader = Reader.load(sys.argv[1], backend='tensorflow', dtype='fp32', threads=1)\n"
        "reader.ask('Who built it?', 'Anna did.')\n"
        "reader = Reader.load(sys.argv[1], backend='tensorflow', dtype='fp32', threads=1)\n"
        "import tensorflow\n"
        "print(tensorflow.config.threading.get_intra_op_parallelism_threads(), 'TF_CPP_MIN_LOG_LEVEL' in os.environ)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint.path)], capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1 False\n", "", 0)


@every_backend
@pytest.mark.parametrize("device", ["gpu:7", "cuda:99", "nowhere"])
def test_a_device_that_is_not_there_is_refused(
    name: str, device: str, checkpoint: Checkpoint, backend_of: Callable[..., Backend]
) -> None:
    backend_of(name)
    with pytest.raises(BackendError, match=rf"Backend '{name}' (has no|does not see) device '{device}'.*cpu"):
        load_backend(name, checkpoint, device=device)


def test_torch_does_not_emulate_fp16_on_the_cpu(checkpoint: Checkpoint, transformers: Any) -> None:
    with pytest.raises(BackendError, match=r"computes fp16 on cpu only by emulation.*Use dtype 'bf16' or 'fp32'"):
        load_backend("torch", checkpoint, device="cpu", dtype="fp16")


def test_openvino_refuses_a_dtype_that_the_processor_lacks(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spanqa.backends import openvino as module

    class OldProcessor:
        available_devices = ("CPU",)

        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(module, "_core", OldProcessor)
    with pytest.raises(
        BackendError, match=r"Device 'cpu' of backend 'openvino' does not support dtype 'bf16'. Choose one of: fp32"
    ):
        load_backend("openvino", checkpoint, dtype="bf16")


@every_backend
def test_showing_attention_changes_nothing_afterwards(
    name: str, backend_of: Callable[..., Backend], sample: Callable[[str], list[Window]]
) -> None:
    backend, batch = backend_of(name), pad(sample("bert"))
    before = backend.forward(batch)
    assert (
        backend.forward(
            batch,
            capture=Capture((0, 1)),
        ).attention
        is not None
    )
    after = backend.forward(batch)
    np.testing.assert_array_equal(after.start, before.start)
    np.testing.assert_array_equal(after.end, before.end)


def test_a_signal_after_openvino_has_run_is_handled() -> None:
    """It was fatal on processors with AMX: OpenVINO left a signal stack that it had unmapped."""
    program = (
        "import os, signal\n"
        "from spanqa import Reader\n"
        "Reader.load(backend='openvino').ask('Who?', 'It was Anna.')\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n")


def test_openvino_captures_attention_with_the_graph_that_answers(
    load: Callable[..., Backend], tiny: Callable[..., Path], sample: Callable[[str], list[Window]], monkeypatch: Any
) -> None:
    backend: Any = load("openvino", tiny("bert"))
    monkeypatch.setattr(backend, "_compile", None)  # a second graph would hold all weights again
    batch = pad(sample("bert"))
    expected, found = backend.forward(batch), backend.forward(batch, capture=Capture((1,)))
    np.testing.assert_array_equal(found.start, expected.start)
    np.testing.assert_array_equal(found.end, expected.end)
    assert list(found.attention) == [1]


@pytest.mark.parametrize("name", ["onnx", "tensorflow"])
def test_making_a_graph_with_attention_delays_no_answer_and_happens_once(
    name: str, load: Callable[..., Backend], tiny: Callable[..., Path], sample: Callable[[str], list[Window]]
) -> None:
    backend: Any = load(name, tiny("bert"))
    method = {"onnx": "_make_session", "tensorflow": "_trace"}[name]
    make, go, made = getattr(backend, method), Event(), []

    def slow(layers: tuple[int, ...]) -> Any:
        made.append(layers)
        assert go.wait(30)
        return make(layers)

    batch = pad(sample("bert")[:1])
    expected = backend.forward(batch)
    setattr(backend, method, slow)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(backend.forward, batch, capture=Capture((1,))) for _ in range(3)]
        try:
            np.testing.assert_array_equal(backend.forward(batch).start, expected.start)  # while the graph is being made
            assert not any(each.done() for each in waiting)
        finally:
            go.set()
        found = [each.result(60).attention[1][0] for each in waiting]
    assert made == [(1,)]
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], rtol=0, atol=1e-6)


def test_a_graph_whose_making_was_interrupted_is_made_by_the_next_who_waits() -> None:
    graphs: Graphs[str] = Graphs()
    began, go = Event(), Event()

    def interrupted(layers: tuple[int, ...]) -> str:
        began.set()
        assert go.wait(30)
        raise KeyboardInterrupt

    def first() -> None:
        with suppress(KeyboardInterrupt):
            graphs.of(None, interrupted)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert began.wait(30)
        two = pool.submit(graphs.of, None, lambda layers: "made")
        go.set()
        one.result(30)
        assert two.result(30) == "made"
    with pytest.raises(ValueError, match="no memory"):
        graphs.of(Capture((0,)), lambda layers: (_ for _ in ()).throw(ValueError("no memory")))
    assert graphs.of(Capture((0,)), lambda layers: "at last") == "at last"


def test_processes_that_share_a_machine_do_not_pin_their_threads_to_the_same_cores(
    need: Callable[[str], None], tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino")
    from spanqa.backends import openvino as backend

    compiled: list[Any] = []
    core = backend._core()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def compile_model(self, *arguments: Any) -> Any:
            compiled.append(core.compile_model(*arguments))
            return compiled[-1]

    monkeypatch.setattr(backend, "_core", Watched)
    backend.load(open_checkpoint(tiny("bert")), device="cpu", dtype="fp32", threads=1)
    assert [each.get_property("ENABLE_CPU_PINNING") for each in compiled] == [False]
