"""Windows to arrays and back, and the planner that decides which windows share a batch and a row.

A batch is what every backend reads. `window_index` says which window of its row a token belongs to, and attention never
crosses it. `plan_batches` plans from lengths alone, so it serves any training or inference loop; `pack` makes the arrays;
`split_logits` gives each window its own part of what the backend returns.

    padded   one window a row        sorted by length, so that little padding is left     any backend, any model
    packed   rows of one width       histogram best-fit; few shapes                       static shapes, training
    flat     one row, any length     no padding at all                                    variable-length attention

Nothing here knows a model. Packing: Krell et al. 2021 (https://arxiv.org/abs/2107.02027), shortest-pack-first on the
histogram of lengths, here best-fit.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from spanqa.errors import InputError
from spanqa.windows import Window

PADDING = -1

BatchLayout = Literal["padded", "packed", "flat"]
"""How windows lie in a batch: one a row, padded to the longest; several in rows of one width; all in one long row."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a backend reads: four int32 arrays `[rows, cols]`.

    `window_index` is the number of the window within its row that a token belongs to, -1 on padding; `position_ids`
    start at zero in each window; `token_type_ids` are the tokenizer's (0 and 1 for BERT). Padding is to the right.

    Two windows of 4 and 2 tokens, padded, and the same two packed into one row:

        input_ids       101 7 102 102        101 7 102 102 101 102
                        101 102   0   0
        position_ids      0 1   2   3          0 1   2   3   0   1
                          0 1   0   0
        window_index      0 0   0   0          0 0   0   0   1   1
                          0 0  -1  -1
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    window_index: NDArray[np.int32]

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in self.__slots__}
        assert len(set(shapes.values())) == 1 and self.input_ids.ndim == 2, f"arrays of different shapes: {shapes}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.input_ids.shape
        return rows, cols

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(np.count_nonzero(self.window_index != PADDING))


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """Which attention is wanted beside the logits.

    `layers` are counted from zero. `queries` are, for each window, the positions in the window of the tokens whose attention is
    wanted (whose queries look at all keys of the window); None is every token of every window. Full attention of BERT-large is
    384 MiB for a window of 512 tokens, ten queries 7.5 MiB.
    """

    layers: tuple[int, ...]
    queries: tuple[tuple[int, ...], ...] | None = None

    def of(self, places: Sequence[int]) -> "Capture":
        """Return the capture of those windows alone, in that order."""
        return Capture(self.layers, None if self.queries is None else tuple(self.queries[place] for place in places))


@dataclass(frozen=True, slots=True, eq=False)
class SpanLogits:
    """The output of a backend: for each token, how well the answer starts and ends there.

    `start` and `end` float32 `[rows, cols]`; on padding they mean nothing. `attention`, where it was captured: for each layer, one
    float32 array `[head, query, key]` for each window, row by row; keys are all tokens of the window.
    """

    start: NDArray[np.float32]
    end: NDArray[np.float32]
    attention: dict[int, list[NDArray[np.float32]]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WindowLogits:
    """The logits of one window, as far as an answer can lie there: its passage tokens, and its [CLS].

    `start` and `end` float32 `[token]`, for the passage tokens from `first` (a position in the passage) on; `null_start` and
    `null_end` are those of [CLS], "not in this window". `attention`, where it was captured: layer -> float32 `[head, query, key]`.
    """

    first: int
    start: NDArray[np.float32]
    end: NDArray[np.float32]
    null_start: float
    null_end: float
    attention: Mapping[int, NDArray[np.float32]] | None = None

    @property
    def null_score(self) -> float:
        """Start logit + end logit of [CLS]."""
        return self.null_start + self.null_end


def window_places(batch: Batch) -> list[tuple[int, int, int]]:
    """Return where each window of a batch lies, row by row: its row, first column (inclusive) and last column (exclusive)."""
    places = []
    for row, index in enumerate(batch.window_index):
        lengths = np.bincount(index[index != PADDING])
        ends = np.cumsum(lengths)
        places += [(row, int(end - length), int(end)) for length, end in zip(lengths, ends, strict=True)]
    return places


def split_logits(windows: Sequence[Window], batch: Batch, logits: SpanLogits) -> Iterator[WindowLogits]:
    """Yield the logits of the windows of a batch, row by row in the order they were packed."""
    row, at = 0, 0
    used = np.count_nonzero(batch.window_index != PADDING, axis=1).tolist()
    for number, window in enumerate(windows):
        if at == used[row]:
            row, at = row + 1, 0
        first = at + window.passage_start
        place = slice(first, first + window.stop - window.first)
        start, end = logits.start[row], logits.end[row]
        attention = None
        if logits.attention is not None:
            attention = {layer: arrays[number] for layer, arrays in logits.attention.items()}
        yield WindowLogits(window.first, start[place], end[place], float(start[at]), float(end[at]), attention)
        at += len(window)


def pad(windows: Sequence[Window]) -> Batch:
    """Return a batch with one window a row, as wide as the longest."""
    return pack([[window] for window in windows])


def pack(rows: Sequence[Sequence[Window]], cols: int | None = None) -> Batch:
    """Return a batch whose rows hold the given windows, one behind the other.

    `cols` is the width; by default that of the fullest row.
    """
    width = max(sum(map(len, row)) for row in rows) if cols is None else cols
    batch = Batch(
        input_ids=np.zeros((len(rows), width), np.int32),
        token_type_ids=np.zeros((len(rows), width), np.int32),
        position_ids=np.zeros((len(rows), width), np.int32),
        window_index=np.full((len(rows), width), PADDING, np.int32),
    )
    for r, row in enumerate(rows):
        at = 0
        for w, window in enumerate(row):
            place = slice(at, at + len(window))
            _write(window, batch.input_ids[r, place], batch.token_type_ids[r, place])
            batch.position_ids[r, place] = np.arange(len(window))
            batch.window_index[r, place] = w
            at = place.stop
    return batch


def _write(window: Window, ids: NDArray[np.int32], types: NDArray[np.int32]) -> None:
    template = window.template
    passage = window.passage_start
    question, between, after = (
        len(template.before),
        passage - len(template.between),
        passage + window.stop - window.first,
    )
    for array, (first, second, third) in ((ids, template.special_ids), (types, template.special_types)):
        array[:question], array[between:passage], array[after:] = first, second, third
    ids[question:between] = window.question.ids
    ids[passage:after] = window.passage.ids[window.first : window.stop]
    types[question:between] = template.question_type
    types[passage:after] = template.passage_type


def alike(length: int, longest: int) -> bool:
    """Return whether a window may share a padded batch with one of the longest length: it is at least half as long."""
    return 2 * length >= longest


def plan(lengths: Iterable[int], budget_tokens: int) -> list[list[int]]:
    """Group windows, given by their lengths, so that a padded batch has at most `budget_tokens` with its padding.

    Sorted by length, so that a batch holds windows of similar length: none is shorter than half of the longest. A window longer
    than the budget goes alone. The batches come longest first, as the positions of the lengths given.

        >>> plan([5, 2, 9, 2, 4], budget_tokens=10)
        [[2], [0, 4], [1, 3]]
    """
    batches: list[list[int]] = []
    longest = 0
    for position, length in sorted(enumerate(lengths), key=lambda item: -item[1]):
        if batches and (len(batches[-1]) + 1) * longest <= budget_tokens and alike(length, longest):
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = length
    return batches


def pack_rows(lengths: Iterable[int], cols: int) -> list[list[int]]:
    """Put windows, given by their lengths, into rows of at most `cols` tokens, few rows with little space left.

    Best fit, longest first, on the histogram of lengths: all windows of a length are placed at once, so that a million take
    seconds. Returns the rows as positions of the lengths given.

        >>> pack_rows([6, 2, 3, 5, 4], cols=10)
        [[0, 4], [3, 2, 1]]

    Raises:
        InputError: a window is longer than a row.
    """
    waiting: dict[int, list[int]] = defaultdict(list)
    for position, length in enumerate(lengths):
        waiting[length].append(position)
    if waiting and max(waiting) > cols:
        raise InputError(f"A window has {max(waiting)} tokens; it does not fit into a row of {cols}.")
    space: dict[int, list[list[int]]] = {0: []}  # tokens left in a row -> the rows with that much
    for length in sorted(waiting, reverse=True):
        positions = waiting[length][::-1]
        for left in sorted(left for left in space if left >= length):
            rows = space[left]
            while rows and positions:
                row = rows.pop()
                fill = [positions.pop() for _ in range(min(left // length, len(positions)))]
                space.setdefault(left - len(fill) * length, []).append(row + fill)
        while positions:
            row = [positions.pop() for _ in range(min(cols // length, len(positions)))]
            space.setdefault(cols - len(row) * length, []).append(row)
    return sorted((row for rows in space.values() for row in rows), key=lambda row: row[0])


def plan_batches(
    lengths: Sequence[int], layout: BatchLayout, budget_tokens: int, cols: int = 512
) -> Iterator[list[list[int]]]:
    """Yield batches, as rows of positions of the lengths given, of at most `budget_tokens` with their padding.

    `cols` is the width of packed rows. A window, or a packed row, longer than the budget goes alone.

    Raises:
        InputError: no such layout, or a window does not fit into a packed row.
    """
    if layout == "padded":
        yield from ([[position] for position in batch] for batch in plan(lengths, budget_tokens))
    elif layout == "packed":
        rows = pack_rows(lengths, cols)
        step = max(1, budget_tokens // cols)
        yield from (rows[i : i + step] for i in range(0, len(rows), step))
    elif layout == "flat":
        row: list[int] = []
        filled = 0
        for position, length in sorted(enumerate(lengths), key=lambda item: -item[1]):
            if row and filled + length > budget_tokens:
                yield [row]
                row, filled = [], 0
            row.append(position)
            filled += length
        if row:
            yield [row]
    else:
        raise InputError(f"There is no batch layout {layout!r}. Choose one of {', '.join(get_args(BatchLayout))}.")
