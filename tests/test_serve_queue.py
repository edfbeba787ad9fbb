"""The policy of a server, without HTTP: admission, deadlines, fairness, and requests that nobody waits for any more."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event
from typing import Any

import pytest

pytest.importorskip("fastapi")

from spanqa.answers import Ranking
from spanqa.batches import Batch, Capture, SpanLogits
from spanqa.engine import BatchRecord
from spanqa.errors import DeadlineError, InputError, QuestionTooLongError, QueueFullError
from spanqa.pipelines import pipeline
from spanqa.pipelines.calls import CallSettings
from spanqa.reader import Reader
from spanqa.serve.problems import Problem, problem_of
from spanqa.serve.queue import AnswerQueue, AskedOfPassages, AskedOfPipeline, Times

PASSAGE = "The pier was built in 1873 by Anna Kestrel. It is made of granite and 240 metres long."
LONG = " ".join(f"In {1000 + n} it rained for {n} days." for n in range(60))


class Gated:
    """A backend whose batches wait for the gate, and are counted when they begin."""

    def __init__(self, backend: Any, batch_tokens: int) -> None:
        self.backend, self.batch_tokens, self.batches_at_once = backend, batch_tokens, 1
        self.name, self.device, self.dtype, self.layouts = "gated", "cpu", "fp32", backend.layouts
        self.began = 0
        self.gate = Event()
        self.gate.set()

    def forward(self, batch: Batch, *, capture: Capture | None = None) -> SpanLogits:
        self.began += 1
        assert self.gate.wait(30)
        logits: SpanLogits = self.backend.forward(batch, capture=capture)
        return logits


@pytest.fixture
def reader(tiny_reader: Callable[..., Reader]) -> Iterator[Reader]:
    """The tiny model, 512 tokens a batch, behind a gate."""
    tiny = tiny_reader()
    found = Reader(tiny.checkpoint, Gated(tiny.backend, 512))
    yield found
    gated(found).gate.set()
    found.close()


def gated(reader: Reader) -> Gated:
    assert isinstance(reader.backend, Gated)
    return reader.backend


@contextmanager
def queue_of(reader: Reader, **limits: Any) -> Iterator[AnswerQueue]:
    queue = AnswerQueue(reader.engine, **({"max_wait": 100.0, "max_requests": 100, "max_bytes": 10**9} | limits))
    yield queue
    queue.close()


def ask(reader: Reader, question: str = "Who built it?", passage: str = PASSAGE) -> AskedOfPassages:
    return AskedOfPassages(reader, question, [passage], [None])


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


async def until(condition: Callable[[], Any]) -> None:
    end = soon()
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.001)


async def hold(queue: AnswerQueue, reader: Reader) -> "asyncio.Task[list[Ranking]]":
    """Keep the engine busy with the first batch of a long request, which waits for the gate."""
    backend = gated(reader)
    backend.gate.clear()
    began = backend.began
    task = asyncio.ensure_future(queue.answer([ask(reader, passage=LONG)], soon()))
    await until(lambda: backend.began > began and reader.engine.waiting_tokens)
    return task


# --- answers


def test_answers_under_load_are_those_of_the_reader(reader: Reader) -> None:
    texts = [PASSAGE, LONG, LONG[:300], "A pier.", PASSAGE * 3]
    asked = [replace(ask(reader, f"What about {n}?", texts[n % 5]), top_k=1 + n % 3) for n in range(40)]

    async def run(queue: AnswerQueue) -> list[list[Ranking]]:
        return await asyncio.gather(*(queue.answer([each], soon()) for each in asked))

    with queue_of(reader) as queue:
        found = asyncio.run(run(queue))
    for each, [ranking] in zip(asked, found, strict=True):
        expected = reader.ranking(each.question, list(each.passages), each.top_k)
        assert [(a.text, a.start, a.end) for a in ranking.answers] == [
            (a.text, a.start, a.end) for a in expected.answers
        ]
        assert ranking.no_answer_probability == pytest.approx(expected.no_answer_probability, abs=1e-5)
        assert [a.probability for a in ranking.answers] == pytest.approx(
            [a.probability for a in expected.answers], abs=1e-5
        )


def test_a_question_of_the_pipeline_is_answered_as_the_pipeline_answers(reader: Reader) -> None:
    settings = CallSettings(top_k=3, max_seq_len=40, doc_stride=8, handle_impossible_answer=True)
    asked = [
        AskedOfPipeline(reader, question, LONG[:500], settings) for question in ("When did it rain?", "How long? " * 40)
    ]
    with queue_of(reader) as queue:
        found = asyncio.run(queue.answer(asked, soon()))
    qa = pipeline(model=reader)
    call = {"top_k": 3, "max_seq_len": 40, "doc_stride": 8, "handle_impossible_answer": True}
    for each, answers in zip(asked, found, strict=True):
        for answer, expected in zip(answers, qa(question=each.question, context=each.context, **call), strict=True):
            assert answer == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}


def test_several_questions_are_answered_in_order_and_sources_are_handed_on(reader: Reader) -> None:
    asked = [
        AskedOfPassages(reader, "Who?", [f"Passage number {n} is here.", "Another."], [f"{n}.txt", None])
        for n in range(5)
    ]
    with queue_of(reader) as queue:
        found = asyncio.run(queue.answer(asked, soon()))
    for each, ranking in zip(asked, found, strict=True):
        best, expected = ranking.answers[0], reader.ranking("Who?", list(each.passages), 1).answers[0]
        assert (best.text, best.passage_index) == (expected.text, expected.passage_index)
        assert best.source == each.sources[best.passage_index or 0]


def test_a_question_that_cannot_be_read_is_counted(reader: Reader) -> None:
    with queue_of(reader) as queue:
        with pytest.raises(QuestionTooLongError, match=r"Question 2: The question has \d+ tokens"):
            asyncio.run(queue.answer([ask(reader), ask(reader, "why " * 100)], soon()))
        with pytest.raises(InputError, match=r"^The question is empty"):
            asyncio.run(queue.answer([ask(reader, " ")], soon()))
    assert gated(reader).began == 0


def test_the_seconds_of_each_stage_are_noted(reader: Reader) -> None:
    times = Times()
    with queue_of(reader) as queue:
        asyncio.run(queue.answer([ask(reader)], soon(), times))
    assert min(times.prepare, times.read, times.decode) > 0
    assert (
        times.tokens
        == len(reader.checkpoint.tokenizer.encode("Who built it?")) + len(reader.prepare(PASSAGE).tokens) + 3
    )


# --- turns


@pytest.mark.parametrize("text", [LONG, LONG * 2])
def test_a_short_question_does_not_wait_for_a_long_text(reader: Reader, text: str) -> None:
    async def run(queue: AnswerQueue) -> None:
        long = await hold(queue, reader)
        longer = asyncio.ensure_future(queue.answer([ask(reader, passage=text)], soon()))
        short = asyncio.ensure_future(queue.answer([ask(reader)], soon()))
        waiting = reader.engine.waiting_tokens
        await until(lambda: reader.engine.waiting_tokens > waiting)
        gated(reader).gate.set()
        await short
        assert not long.done()
        await asyncio.gather(long, longer)

    with queue_of(reader) as queue:
        asyncio.run(run(queue))


# --- admission


def test_a_request_that_would_wait_too_long_is_refused_at_once(reader: Reader) -> None:
    async def run(queue: AnswerQueue) -> None:
        long = await hold(queue, reader)
        queue.tokens_per_second = 10.0
        with pytest.raises(Problem, match=r"would wait for about \d+\.\d seconds; at most 5 are allowed") as refused:
            await queue.answer([ask(reader, passage=LONG * 4)], soon())
        assert refused.value.error_type == "overloaded"
        waiting = reader.engine.waiting_tokens / 10.0  # all of it goes before a longer one
        assert refused.value.retry_after == pytest.approx(waiting - 5)
        assert int(refused.value.headers["retry-after"]) >= waiting - 5
        short = asyncio.ensure_future(queue.answer([ask(reader)], soon()))  # goes before the long one
        gated(reader).gate.set()
        await asyncio.gather(long, short)

    with queue_of(reader, max_wait=5.0) as queue:
        asyncio.run(run(queue))


def test_what_nobody_waits_for_any_more_keeps_nobody_out(reader: Reader) -> None:
    async def run(queue: AnswerQueue) -> None:
        long = await hold(queue, reader)
        queue.tokens_per_second = 10.0
        long.cancel()
        with suppress(asyncio.CancelledError):
            await long
        next_one = asyncio.ensure_future(queue.answer([ask(reader, passage=LONG * 4)], soon()))
        await asyncio.sleep(0)
        gated(reader).gate.set()
        assert len(await next_one) == 1

    with queue_of(reader, max_wait=5.0) as queue:
        asyncio.run(run(queue))


def test_requests_that_come_at_once_count_before_they_are_in_the_queue(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Event()
    prepare = AskedOfPassages.prepare
    monkeypatch.setattr(AskedOfPassages, "prepare", lambda self: gate.wait(30) and prepare(self))

    async def run(queue: AnswerQueue) -> list[Any]:
        queue.tokens_per_second = 10.0
        tasks = [asyncio.ensure_future(queue.answer([ask(reader)], soon())) for _ in range(10)]
        await until(lambda: any(task.done() for task in tasks))
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with queue_of(reader, max_wait=7.0) as queue:
        found = asyncio.run(run(queue))
    # 100 characters are 33 tokens, 3.3 seconds each: the first three wait for 0, 3.3 and 6.6 seconds
    assert [isinstance(each, Problem) for each in found] == [False] * 3 + [True] * 7


def test_a_long_text_is_read_when_nothing_else_waits_however_slow_the_machine(reader: Reader) -> None:
    with queue_of(reader, max_wait=0.0) as queue:
        queue.tokens_per_second = 1.0
        assert asyncio.run(queue.answer([ask(reader, passage=LONG)], soon()))


def test_a_full_queue_of_the_engine_refuses(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanqa.engine.QUEUE_BATCHES", 2)

    async def run(queue: AnswerQueue) -> None:
        long = await hold(queue, reader)
        with pytest.raises(QueueFullError) as full:
            await queue.answer([ask(reader, passage=LONG)], soon())
        assert problem_of(full.value).error_type == "overloaded"
        short = asyncio.ensure_future(queue.answer([ask(reader)], soon()))  # what is longer does not shut it out
        gated(reader).gate.set()
        await asyncio.gather(long, short)

    with queue_of(reader) as queue:
        asyncio.run(run(queue))


def test_requests_and_their_bytes_are_bounded(reader: Reader) -> None:
    with queue_of(reader, max_requests=2, max_bytes=100) as queue:
        # alone, it may be as large as it wants
        with queue.admitted(1_000), pytest.raises(Problem, match="Too many requests"), queue.admitted(1):
            pass
        with queue.admitted(50), queue.admitted(50):
            assert (queue.requests, queue.bytes) == (2, 100)
            with pytest.raises(Problem, match="Too many requests"), queue.admitted(0):
                pass
        with pytest.raises(KeyError), queue.admitted(50):
            raise KeyError
        assert (queue.requests, queue.bytes) == (0, 0)


def test_the_speed_is_learnt_from_batches_and_from_full_ones_most(reader: Reader) -> None:
    with queue_of(reader) as queue:
        for observe in reader.engine.observers:
            observe(BatchRecord(1, 512, 100, 0.4))
        assert queue.tokens_per_second == pytest.approx(1280)
        for observe in reader.engine.observers:
            observe(BatchRecord(1, 16, 10, 1.0))
        after_small = queue.tokens_per_second
        assert 1240 < after_small < 1280
        for observe in reader.engine.observers:
            observe(BatchRecord(2, 256, 100, 4.0))
        assert queue.tokens_per_second == pytest.approx(after_small + 0.2 * (128 - after_small))


# --- deadlines, and clients that have gone


def test_a_request_is_given_up_at_its_deadline_and_never_read(reader: Reader) -> None:
    async def run(queue: AnswerQueue) -> None:
        long = await hold(queue, reader)
        with pytest.raises((TimeoutError, DeadlineError)) as late:
            await queue.answer([ask(reader)], soon(0.05))
        assert problem_of(late.value).status == 504
        assert problem_of(late.value).error_type == "deadline_exceeded"
        gated(reader).gate.set()
        await long

    with queue_of(reader) as queue:
        asyncio.run(run(queue))
    alone = gated(reader).began
    gated(reader).began = 0
    reader.ranking("Who built it?", LONG)
    assert gated(reader).began == alone


def test_a_deadline_that_has_passed_reads_nothing(reader: Reader) -> None:
    with queue_of(reader) as queue, pytest.raises((TimeoutError, DeadlineError)):
        asyncio.run(queue.answer([ask(reader)], soon(-1)))
    assert gated(reader).began == 0


@pytest.mark.parametrize("preparing", [False, True])
def test_a_request_whose_client_has_gone_is_never_read(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, preparing: bool
) -> None:
    gate, begun = Event(), Event()
    prepare = AskedOfPassages.prepare

    def slowly(self: AskedOfPassages) -> Any:
        begun.set()
        assert gate.wait(30)
        return prepare(self)

    async def run(queue: AnswerQueue) -> None:
        long = await hold(queue, reader)
        monkeypatch.setattr(AskedOfPassages, "prepare", slowly)
        waiting = reader.engine.waiting_tokens
        task = asyncio.ensure_future(queue.answer([ask(reader)], soon()))
        await until(begun.is_set)
        if not preparing:
            gate.set()
            await until(lambda: reader.engine.waiting_tokens > waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        gated(reader).gate.set()
        await long

    with queue_of(reader) as queue:
        asyncio.run(run(queue))
        queue._short.shutdown(wait=True)
    served = gated(reader).began
    monkeypatch.undo()
    gated(reader).began = 0
    reader.ranking("Who built it?", LONG)
    assert gated(reader).began == served


def test_decoding_that_nobody_waits_for_is_not_begun(reader: Reader) -> None:
    decoded: list[str] = []

    class Noted(AskedOfPassages):
        def decode(self, reading: Any) -> Ranking:
            decoded.append(self.question)
            return super().decode(reading)

    async def run(queue: AnswerQueue) -> None:
        long = await hold(queue, reader)
        waiting = reader.engine.waiting_tokens
        task = asyncio.ensure_future(queue.answer([Noted(reader, "Who?", [PASSAGE], [None])], soon()))
        await until(lambda: reader.engine.waiting_tokens > waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gated(reader).gate.set()
        await long

    with queue_of(reader) as queue:
        asyncio.run(run(queue))
        queue._short.shutdown(wait=True)
    assert decoded == []
