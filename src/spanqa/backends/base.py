"""The contract of a backend: a batch of NumPy arrays in, logits as NumPy arrays out.

Device, precision, compilation and shape buckets are the backend's own business. Which backends exist, and which one is
chosen, is the business of `spanqa.backends.registry`.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from spanqa.batches import Batch, BatchLayout, Capture, SpanLogits, window_places
from spanqa.errors import InputError

BATCH_TOKENS = 4096
"""Tokens of a batch, padding counted: enough to keep matrix products busy, little enough to fit a processor's caches."""


Graph = TypeVar("Graph")


class Backend(Protocol):
    """Something that turns a batch into logits. It opens no file after it was loaded.

    `device` and `dtype` say where and in what precision it computes, after "auto" has been settled. `layouts` are the batch
    layouts that it reads, the preferred one first; `batch_tokens` is the size of a batch that suits it, in tokens with padding;
    `batches_at_once` says from how many threads it is worth calling it.
    """

    name: str
    device: str
    dtype: str
    layouts: tuple[BatchLayout, ...]
    batch_tokens: int
    batches_at_once: int

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        """Return the logits of a batch, and the attention that `capture` asks for; its queries are by window, row by row.

        Raises:
            InputError: the capture names a layer, a window or a token that is not there.
        """


def capture_positions(batch: Batch, capture: Capture, layers: int) -> NDArray[np.int32]:
    """Return the captured query tokens as columns of the batch: int32 `[rows, query]`, filled up with column 0.

    A row holds the queries of its windows one behind the other. `layers` is the number that the model has.

    Raises:
        InputError: the capture names a layer, a window or a token that is not there.
    """
    for layer in capture.layers:
        if layer not in range(layers):
            raise InputError(f"The model has no layer {layer!r}; it has {layers}, counted from 0 to {layers - 1}.")
    places = window_places(batch)
    if capture.queries is not None and len(capture.queries) != len(places):
        raise InputError(f"The capture has queries for {len(capture.queries)} windows; the batch has {len(places)}.")
    rows: list[list[int]] = [[] for _ in range(batch.shape[0])]
    for number, (row, start, stop) in enumerate(places):
        queries = range(stop - start) if capture.queries is None else capture.queries[number]
        for query in queries:
            if query not in range(stop - start):
                raise InputError(f"Window {number} has no token {query!r}; it has {stop - start}, counted from 0.")
            rows[row].append(start + query)
    width = max(map(len, rows), default=0)
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)


def split_attention(
    batch: Batch, capture: Capture, arrays: Mapping[int, NDArray[Any]]
) -> dict[int, list[NDArray[np.float32]]]:
    """Return captured attention by window, from arrays `[rows, head, query, cols]` whose queries are `capture_positions`."""
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
    """Graphs by the layers whose attention they return: each is made once, whoever asks, and no one else waits for it.

    Of those that return attention, the one made last is kept; the one without is kept for ever.
    """

    def __init__(self, make: Callable[[tuple[int, ...]], Graph]) -> None:
        self._make = make
        self._lock = Lock()
        self._made: dict[tuple[int, ...], Future[Graph]] = {}

    def of(self, capture: Capture | None) -> Graph:
        """Return the graph for a capture."""
        layers = tuple(sorted(set(capture.layers))) if capture is not None else ()
        with self._lock:
            made = self._made.get(layers)
            if made is None:
                future: Future[Graph] = Future()
                self._made = {key: kept for key, kept in self._made.items() if not key} | {layers: future}
        if made is not None:
            return made.result()
        try:
            future.set_result(self._make(layers))
        except BaseException as error:
            with self._lock:
                self._made.pop(layers, None)
            future.set_exception(error)
            raise
        return future.result()


def bucket_shape(rows: int, cols: int) -> tuple[int, int]:
    """Return the shape that a batch is padded to, for backends that compile for each: few shapes, little padding.

    Columns go up to a multiple of 32, rows to three binary digits and zeros: 1 to 8, 10, 12, 14, 16, 20, ... Measured on
    2,000 SQuAD questions in batches of 4,096 tokens: 18 shapes, and 87 % of what is then computed was in the batches.

    >>> bucket_shape(27, 150)
    (28, 160)
    """
    step = 1 << max(0, rows.bit_length() - 3)
    return -(-rows // step) * step, -(-cols // 32) * 32


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively; known of x86 on Linux alone, and taken for "no" elsewhere."""
    described = Path("/proc/cpuinfo")
    return described.exists() and not {"avx512_bf16", "amx_bf16"}.isdisjoint(described.read_text().split())
