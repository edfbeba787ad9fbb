"""Chunks answered on Ray, by actors on as many machines as it has.

They go to Ray's core actors and not through Ray Data, because they come out of an iterator of this process and end in any order, and
because a chunk that kills its actor must end the job: Ray Data would repeat it without end.
"""

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from spanqa import __version__
from spanqa.checkpoint import BUNDLED
from spanqa.errors import BackendError, CheckpointError, SpanQAWarning
from spanqa.extras import require
from spanqa.progress import Progress, silent
from spanqa.reader import Reader
from spanqa.scale.answering import AnswerRule, Setup, answer_chunks, setup_of
from spanqa.scale.job import Chunk, Result
from spanqa.scale.ray_fleet import (
    Fleet,
    device_of,
    joined,
    last_line,
    on_every_machine,
    threads_of,
    total,
    wanted,
    with_room,
)
from spanqa.scale.rows import BadRow
from spanqa.signing import VerifyKey, as_keys

IN_FLIGHT = 2
"""Chunks that an actor has at a time: one that it answers, and the next."""

DEATHS = 3
"""The job ends when a chunk has killed so many actors, or so many in turn die while they load the model."""

_PATIENCE = 60.0  # seconds


@contextmanager
def ray_actors(
    reader: Reader,
    fleet: Fleet = Fleet(),
    *,
    rule: AnswerRule = AnswerRule(),
    id_column: str | None = None,
    model: str | os.PathLike[str] = BUNDLED[0],
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    threads: int | None = None,
    verify_key: VerifyKey | Sequence[VerifyKey] | None = None,
) -> "Iterator[Actors]":
    """Start actors that answer chunks as `reader` would, and stop them at the end of the `with` block.

        with ray_actors(reader, Fleet(4, gpus=1), model="my-model") as actors:
            run_batch(reader, rows, out, answering=actors, setup=actors.setup)

    `reader` needs no GPU: its settings are theirs, and its model is compared with theirs. `model`, a folder that is on every machine
    or a name, and what follows are as in `Reader.load`, in each actor; `device="auto"` is "cuda" where `fleet` gives them GPUs, else
    "cpu". `rule` and `id_column` are those of the job. A caller that has joined a Ray already stays in it.

    Raises:
        NotInstalledError: Ray is not installed.
        InputError: a GPU is wanted, and none set aside.
        BackendError: there is no Ray at the address, no actor can be placed, or an actor's model or setup is another one.
        SpanQAError: what `Reader.load` raises in an actor.
    """
    require("ray")
    load = {
        "model": on_every_machine(model),
        "backend": backend,
        "device": device_of(device, fleet.gpus, "--gpus-per-actor 1"),
        "dtype": dtype,
        "revision": revision,
        "threads": threads,
        "verify_key": as_keys(verify_key),
    }
    with joined(fleet.address) as ours:
        actors = Actors(with_room(fleet, alone=ours), load, reader, rule, id_column)
        try:
            actors.start()
            yield actors
        finally:
            actors.stop()


# --- an actor


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What an actor has loaded, and where."""

    node: str
    version: str
    weights: str
    tokenizer: str
    setup: Setup


class _Worker:
    """What runs in an actor. The model is not loaded when it is made but by a call, whose error then says what was wrong."""

    def load(self, load: Mapping[str, Any], settings: Mapping[str, Any], rule: AnswerRule, id: str | None) -> _Loaded:
        import ray

        self._reader = Reader.load(**load).with_settings(**settings)
        self._rule, self._id = rule, id
        checkpoint = self._reader.checkpoint
        return _Loaded(
            ray.util.get_node_ip_address(),
            __version__,
            checkpoint.weights.sha256,
            checkpoint.tokenizer.fingerprint,
            setup_of(self._reader),
        )

    def answer(self, chunk: Chunk) -> Result:
        [result] = answer_chunks([chunk], self._reader, self._rule, self._id)
        return result


# --- the driver's side


@dataclass(slots=True, eq=False)
class _Task:
    """A chunk, and how many actors have died while they had it in work."""

    chunk: Chunk
    deaths: int = 0


@dataclass(slots=True, eq=False)
class _Actor:
    """An actor, the reference of its loading until that is done, and the chunks that it has, by reference and in order."""

    handle: Any
    loading: Any
    given: dict[Any, _Task] = field(default_factory=dict)


class Actors:
    """Answers chunks, in any order; made by `ray_actors`. At most `IN_FLIGHT` chunks and results exist for each actor.

    `setup` is what all of them compute with. An actor that dies, alone or with its machine, is replaced, and its chunks are given to
    others. Errors of the model are raised as they are.
    """

    setup: Setup

    def __init__(
        self, fleet: Fleet, load: Mapping[str, Any], reader: Reader, rule: AnswerRule, id_column: str | None
    ) -> None:
        assert fleet.cpus is not None and fleet.most is not None
        self._fleet, self._reader = fleet, reader
        threads = load["threads"] or threads_of(load["backend"], fleet.cpus)
        settings = {"windows": reader.windows, "answers": reader.answers, "calibration": reader.calibration}
        self._load = ({**load, "threads": threads}, settings, rule, id_column)
        self._actors: list[_Actor] = []
        self._died_loading = 0
        self._first: _Loaded | None = None

    def start(self) -> None:
        """Ask for the least number of actors, and wait until one of them has its model."""
        for _ in range(self._fleet.least):
            self._add()
        while self._first is None:
            for actor, _ in self._ended():
                self._settle_loading(actor)
        self.setup = self._first.setup

    def stop(self) -> None:
        """End all actors."""
        while self._actors:
            self._remove(self._actors[-1])

    def __call__(self, chunks: Iterable[Chunk], progress: Progress = silent) -> Iterator[Result]:
        """Yield the result of each chunk; what is read of one is not reported.

        Raises:
            BackendError: a chunk kills one actor after the other; the message names its rows.
        """
        source = map(_Task, chunks)
        waiting: deque[_Task] = deque()
        while True:
            self._give(waiting, source)
            if not waiting and not any(actor.given for actor in self._actors):
                return
            for actor, reference in self._ended():
                if actor.loading is not None:
                    self._settle_loading(actor)
                else:
                    yield from self._settle(actor, reference, waiting)

    def _give(self, waiting: deque[_Task], source: Iterator[_Task]) -> None:
        """Give chunks to the actors that have room, least busy first, and take no more than one further chunk from the source."""
        while True:
            if not waiting and (task := next(source, None)) is not None:
                waiting.append(task)
            if not waiting:
                break
            free = [actor for actor in self._actors if actor.loading is None and len(actor.given) < IN_FLIGHT]
            if not free:
                self._grow()
                return
            actor, task = min(free, key=lambda actor: len(actor.given)), waiting.popleft()
            actor.given[actor.handle.answer.remote(task.chunk)] = task
        for actor in [actor for actor in self._actors if not actor.given]:
            self._remove(actor)  # nothing is left for it, and others may need its place

    def _grow(self) -> None:
        """Ask for more actors: as many as there are, so that a large fleet is there soon and a short job has a small one."""
        loading = sum(actor.loading is not None for actor in self._actors)
        ready = len(self._actors) - loading
        assert self._fleet.most is not None
        for _ in range(min(max(1, ready) - loading, self._fleet.most - len(self._actors))):
            self._add()

    def _add(self) -> None:
        import ray

        fleet = self._fleet
        options = {"num_cpus": fleet.cpus, "num_gpus": fleet.gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        handle = ray.remote(**options)(_Worker).remote()
        self._actors.append(_Actor(handle, handle.load.remote(*self._load)))

    def _remove(self, actor: _Actor) -> None:
        import ray

        self._actors.remove(actor)
        ray.kill(actor.handle)

    def _ended(self) -> list[tuple[_Actor, Any]]:
        """Wait until something has ended, a chunk or the loading of a model, and return it with its actor."""
        import ray

        actor_of = {
            reference: actor
            for actor in self._actors
            for reference in (actor.given if actor.loading is None else [actor.loading])
        }
        ended, _ = ray.wait(list(actor_of), timeout=_PATIENCE)
        if not ended and all(actor.loading is not None for actor in self._actors):
            fleet = self._fleet
            warnings.warn(
                f"No actor has started in {_PATIENCE:.0f} s. {wanted(len(self._actors), fleet.cpus, fleet.gpus)}; {total()}. "
                "`ray status` shows what is in use.",
                SpanQAWarning,
                stacklevel=2,
            )
        return [(actor_of[reference], reference) for reference in ended]

    def _settle_loading(self, actor: _Actor) -> None:
        import ray

        try:
            loaded: _Loaded = _value(actor.loading)
        except CheckpointError as error:  # here it was found, and is sound
            raise CheckpointError(
                f"On another machine: {error} A model must lie at the same path on all of them."
            ) from error
        except ray.exceptions.RayError as error:
            self._remove(actor)
            if getattr(error, "actor_init_failed", False):  # it was not even made, and would not be at another time
                raise BackendError(
                    f"An actor cannot be made: {last_line(error)}. Every machine of the cluster needs what this one has: spanqa with "
                    "its extra [ray], in the same version."
                ) from error
            self._died_loading += 1
            if self._died_loading == DEATHS:
                raise BackendError(
                    f"{DEATHS} actors have died while they loaded the model. {_short(error)} Does the model fit in the memory of a "
                    "machine, as often as there are actors on it?"
                ) from error
            self._add()
            return
        self._check(loaded)
        actor.loading, self._died_loading = None, 0

    def _check(self, loaded: _Loaded) -> None:
        """Check that an actor answers as all others do.

        Raises:
            BackendError: it does not.
        """
        checkpoint = self._reader.checkpoint
        self._first = first = self._first or loaded
        pairs = {
            "spanqa": (loaded.version, __version__),
            "weights": (loaded.weights, checkpoint.weights.sha256),
            "tokenizer": (loaded.tokenizer, checkpoint.tokenizer.fingerprint),
            "backend": (loaded.setup.backend, first.setup.backend),
            "device": (loaded.setup.device, first.setup.device),
            "dtype": (loaded.setup.dtype, first.setup.dtype),
            "layout": (loaded.setup.layout, first.setup.layout),
        }
        for name, (has, should) in pairs.items():
            if has != should:
                raise BackendError(
                    f"An actor on {loaded.node} has another {name} than the job: {has}, expected {should}. All machines must compute "
                    "with the same: install the same versions there, have the same model, and name --backend, --device and --dtype."
                )

    def _settle(self, actor: _Actor, reference: Any, waiting: deque[_Task]) -> Iterator[Result]:
        """Yield the result of a chunk; if its actor has died, those that it had finished before, and let the others wait again."""
        import ray

        try:
            result: Result = _value(reference)
        except ray.exceptions.RayError:
            self._remove(actor)
        else:
            del actor.given[reference]
            yield result
            return
        again: list[_Task] = []
        for each, task in actor.given.items():
            try:
                result = _value(each)
            except ray.exceptions.RayError as error:
                again.append(task)
                if task is again[0]:  # it was in work; those behind it were not
                    _count_death(task, error)
            else:
                yield result
        actor.given = {}
        waiting.extendleft(reversed(again))


def _count_death(task: _Task, error: Exception) -> None:
    task.deaths += 1
    if task.deaths < DEATHS:
        return
    first, last = (
        each.number if isinstance(each, BadRow) else each.row.number
        for each in (task.chunk.rows[0], task.chunk.rows[-1])
    )
    rows = f"row {first:,}" if first == last else f"rows {first:,} to {last:,}"
    raise BackendError(
        f"{DEATHS} actors have died while they read {rows} (chunk {task.chunk.number:,}). {_short(error)} The other chunks that were "
        "done are kept. Look for a row there that is unlike others, or give each actor more memory; then run the same command again."
    ) from error


def _value(reference: Any) -> Any:
    """Return what a call has returned, or raise what it has raised.

    Raises:
        ray.exceptions.RayError: its actor or machine has died.
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _short(error: Exception) -> str:
    """Return the reason that Ray gives, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:397]}..."
