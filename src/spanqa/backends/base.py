"""The contract of a backend: a batch of NumPy arrays in, logits as NumPy arrays out.

Each backend manages its own device, precision, compilation and shape buckets. `spanqa.backends.registry` lists the backends and
chooses one.
"""

import platform
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits, window_places
from spanqa.errors import InputError

BATCH_TOKENS = 4096
"""Tokens of a batch, padding counted: large enough for efficient matrix products, small enough for a processor's caches."""


Graph = TypeVar("Graph")


class Backend(Protocol):
    """Turns a batch into logits. It opens no file after it was loaded.

    `device` and `dtype` say where and in which precision it computes, after "auto" has been resolved. `layouts` are the batch
    layouts that it reads, preferred one first. `batch_tokens` is the batch size that suits it, in tokens with padding.
    `batches_at_once` is the number of threads from which it is worth calling it.
    """

    name: str
    device: str
    dtype: str
    layouts: tuple[BatchLayout, ...]
    batch_tokens: int
    batches_at_once: int

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        """Return the logits of a batch and the attention that `capture` requests, whose queries are per window, row by row.

        Raises:
            InputError: the capture names a layer, a window or a token that does not exist.
        """


def capture_positions(batch: Batch, capture: Capture, layers: int) -> NDArray[np.int32]:
    """Return the captured query tokens as columns of the batch: int32 `[rows, query]`, padded with column 0.

    A row contains the queries of its windows, one window after the other. `layers` is the number of layers of the model.

    Raises:
        InputError: the capture names a layer, a window or a token that does not exist.
    """
    for layer in capture.layers:
        if layer not in range(layers):
            raise InputError(f"The model has no layer {layer!r}. Expected a number from 0 to {layers - 1}.")
    places = window_places(batch)
    if capture.queries is not None and len(capture.queries) != len(places):
        raise InputError(
            f"The capture has queries for {len(capture.queries)} windows, but the batch has {len(places)}. Give one entry per window."
        )
    rows: list[list[int]] = [[] for _ in range(batch.shape[0])]
    for number, (row, start, stop) in enumerate(places):
        queries = range(stop - start) if capture.queries is None else capture.queries[number]
        for query in queries:
            if query not in range(stop - start):
                raise InputError(
                    f"Window {number} has no token {query!r}. Expected a number from 0 to {stop - start - 1}."
                )
            rows[row].append(start + query)
    width = max(map(len, rows), default=0)
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)


def split_attention(
    batch: Batch, capture: Capture, arrays: Mapping[int, NDArray[Any]]
) -> dict[int, list[NDArray[np.float32]]]:
    """Return captured attention per window, from arrays `[rows, head, query, cols]` with the queries of `capture_positions`."""
    places = window_places(batch)
    found: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in sorted(arrays)}
    row_before, at = -1, 0
    for number, (row, start, stop) in enumerate(places):
        at = 0 if row != row_before else at
        count = stop - start if capture.queries is None else len(capture.queries[number])
        for layer, windows in found.items():
            windows.append(np.array(arrays[layer][row, :, at : at + count, start:stop], np.float32))
        row_before, at = row, at + count
    return found


class Graphs(Generic[Graph]):
    """Graphs, by the layers whose attention they return. Each is made once, and only the threads that need it wait for it.

    The graph without attention is always kept. Of the graphs with attention, only the newest is kept.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._made: dict[tuple[int, ...], Future[Graph]] = {}

    def of(self, capture: Capture | None, make: Callable[[tuple[int, ...]], Graph]) -> Graph:
        """Return the graph for a capture, which `make` makes from the layers where there is none yet."""
        layers = tuple(sorted(set(capture.layers))) if capture is not None else ()
        while True:
            with self._lock:
                made = self._made.get(layers)
                if made is None:
                    future: Future[Graph] = Future()
                    self._made = {key: kept for key, kept in self._made.items() if not key} | {layers: future}
            if made is None:
                return self._make(layers, future, make)
            with suppress(CancelledError):  # the thread that was making it was interrupted
                return made.result()

    def _make(
        self, layers: tuple[int, ...], future: "Future[Graph]", make: Callable[[tuple[int, ...]], Graph]
    ) -> Graph:
        try:
            future.set_result(make(layers))
        except BaseException as error:
            with self._lock:
                self._made.pop(layers, None)
            if isinstance(error, Exception):
                future.set_exception(error)
            else:
                future.cancel()
            raise
        return future.result()


def bucket_shape(rows: int, cols: int) -> tuple[int, int]:
    """Return the shape to pad a batch to, for backends that compile each shape: few shapes, little padding.

    Columns are rounded up to a multiple of 32, rows to three binary digits and zeros: 1 to 8, 10, 12, 14, 16, 20, ... Measured
    on 2,000 SQuAD questions in batches of 4,096 tokens: 18 shapes, and 87 % of what is computed was in the batches.

    >>> bucket_shape(27, 150)
    (28, 160)
    """
    step = 1 << max(0, rows.bit_length() - 3)
    return -(-rows // step) * step, -(-cols // 32) * 32


def cpu_has_bf16() -> bool:
    """Return whether this processor multiplies bfloat16 natively. This is known on x86 Linux only; elsewhere it returns False."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_features() or ())


def cpu_has_int8() -> bool | None:
    """Return whether this processor multiplies 8-bit integers natively: VNNI or AMX. None where that is not known, as on ARM."""
    features = _cpu_features()
    if features is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(features)


def _cpu_features() -> set[str] | None:
    """Return what Linux calls the features of the processor. None on other systems."""
    described = Path("/proc/cpuinfo")
    return set(described.read_text().split()) if described.exists() else None
