"""A stage for pipelines of Ray Data."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from spanqa.checkpoint import BUNDLED
from spanqa.errors import InputError
from spanqa.reader import Reader
from spanqa.scale.answering import AnswerRule, answer_chunks
from spanqa.scale.job import Chunk
from spanqa.scale.outputs import Answered, answer_array, answers_array
from spanqa.scale.questions import asked_of, columns_among
from spanqa.scale.ray_fleet import device_of, threads_of
from spanqa.scale.rows import BadRow, Row
from spanqa.signing import VerifyKey


class AnswerRows:
    """A stage of a Ray Data pipeline that answers each row: a class for `map_batches`, whose every actor has a model of its own.

        rows.map_batches(
            AnswerRows, fn_constructor_kwargs={"context": "body"}, batch_format="pyarrow", batch_size=256, num_cpus=2
        )

    `prediction` is a struct with the fields that `spanqa batch` writes to Parquet, and with a `top_k` above 1 `predictions` is a list of
    them. A row that cannot be read gets a null there, and the reason in `prediction_error`, which is null in all other rows. The columns of question and text are found by their usual names
    if they are not given; `asks` are asked of every row instead of a column. A row of several questions becomes several rows. The
    rest is as in `Reader.load`; `threads` are as many as the actor has CPUs, and `device="auto"` is "cuda" where it has a GPU, else
    "cpu".

    Raises:
        DatasetError: a column is missing.
        InputError: there is a column of the name of `into` already, a batch is no table of Arrow, or `asks` is a single text.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = BUNDLED[0],
        *,
        question: str | None = None,
        context: str | None = None,
        asks: Sequence[str] = (),
        into: str = "prediction",
        rule: AnswerRule = AnswerRule(),
        backend: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        threads: int | None = None,
        verify_key: VerifyKey | Sequence[VerifyKey] | None = None,
    ) -> None:
        if isinstance(asks, str):
            raise InputError(f"asks is {asks!r}; expected a list of questions, such as [{asks!r}].")
        assigned = _assigned()
        if assigned is not None:
            threads = threads or threads_of(backend, assigned.get("CPU", 1.0))
            device = device_of(device, assigned.get("GPU", 0.0), "num_gpus=1 in map_batches")
        self._reader = Reader.load(
            model,
            backend=backend,
            device=device,
            dtype=dtype,
            revision=revision,
            threads=threads,
            verify_key=verify_key,
        )
        self._question, self._context, self._asks, self._into, self._rule = question, context, asks, into, rule

    def __call__(self, table: Any) -> Any:
        """Return a table of Arrow with its answers."""
        import pyarrow

        if not isinstance(table, pyarrow.Table):
            raise InputError(
                f'AnswerRows was given a batch of type {type(table).__name__}; expected a table of Arrow: map_batches(..., batch_format="pyarrow").'
            )
        names, into = table.column_names, self._into
        new = [into, f"{into}s", f"{into}_error"] if self._rule.top_k > 1 else [into, f"{into}_error"]
        for name in new:
            if name in names:
                raise InputError(f"There is a column {name!r} already. Give `into` another name than {into!r}.")
        columns = columns_among(
            names, "The dataset", question=self._question, context=self._context, id=None, asks=bool(self._asks)
        )
        read = table.select([name for name in (columns.question, columns.context) if name is not None])
        chunk = Chunk(1, tuple(asked_of(_rows_of(read), columns, self._asks)))
        [result] = answer_chunks([chunk], self._reader, self._rule)
        found: list[tuple[int, Answered | None, str | None]] = [
            *((each.row.number, each, None) for each in result.answered),
            *((each.number, None, each.reason) for each in result.bad),
        ]
        found.sort(key=lambda each: each[0])
        answered = table.take(pyarrow.array([number - 1 for number, *_ in found], pyarrow.int64()))
        answers = [answer for _, answer, _ in found]
        arrays = [answer_array([None if each is None else each.prediction for each in answers])]
        if self._rule.top_k > 1:
            arrays.append(answers_array([None if each is None else each.predictions for each in answers]))
        arrays.append(pyarrow.array([reason for *_, reason in found], pyarrow.string()))
        for name, array in zip(new, arrays, strict=True):
            answered = answered.append_column(name, array)
        return answered


def _rows_of(table: Any) -> Iterator[Row | BadRow]:
    for number in range(table.num_rows):
        try:
            yield Row(number + 1, None, {name: table[name][number].as_py() for name in table.column_names}, 0)
        except UnicodeDecodeError:
            yield BadRow(number + 1, None, "not UTF-8")


def _assigned() -> dict[str, float] | None:
    """Return what Ray has set aside for the actor that this is, by kind; None outside of actors."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return None
    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    return resources
