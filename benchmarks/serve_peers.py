"""What a server of spanqa is compared with: two small FastAPI servers with the same route, `POST /v1/answers`.

    python benchmarks/serve_peers.py pipeline PORT '{"model": ..., "threads": 2}'     transformers 4.57.6's pipeline, in its environment
    python benchmarks/serve_peers.py batcher PORT '{"backend": ..., ...}'             spanqa's engine behind a batcher that counts

The pipeline answers one request at a time on all threads, as Hugging Face's own server does. The batcher waits until it has 32
questions, or 10 ms after the first, and reads them together.
"""

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from contender import KINDS
from fastapi import FastAPI
from pydantic import BaseModel

MOST, SECONDS = 32, 0.010


class Asked(BaseModel):
    question: str
    passages: list[str]


def pipeline(options):
    """Requests wait for one thread, each answered by a call of its own."""
    run = KINDS["transformers_pipeline"]({**options, "batch_size": 1})
    run([("Who?", "Anna came.")])
    app, thread = FastAPI(), ThreadPoolExecutor(1)

    @app.post("/v1/answers")
    async def answer(body: Asked):
        loop = asyncio.get_running_loop()
        [text] = await loop.run_in_executor(thread, run, [(body.question, body.passages[0])])
        return {"answers": [{"text": text}] if text else []}

    return app


def batcher(options):
    """Requests wait for a batch by count and time, all answered by one call."""
    run = KINDS["spanqa_reader"](options)
    run([("Who?", "Anna came.")])
    app, thread = FastAPI(), ThreadPoolExecutor(1)
    waiting: asyncio.Queue = asyncio.Queue()
    started = []

    async def serve():
        loop = asyncio.get_running_loop()
        while True:
            batch = [await waiting.get()]
            until = loop.time() + SECONDS
            while waiting.qsize() < MOST - 1 and loop.time() < until:
                await asyncio.sleep(0.001)
            while waiting.qsize() and len(batch) < MOST:
                batch.append(waiting.get_nowait())
            texts = await loop.run_in_executor(thread, run, [pair for pair, _ in batch])
            for (_, future), text in zip(batch, texts, strict=True):
                future.set_result(text)

    @app.post("/v1/answers")
    async def answer(body: Asked):
        if not started:
            started.append(asyncio.create_task(serve()))
        future = asyncio.get_running_loop().create_future()
        waiting.put_nowait(((body.question, body.passages[0]), future))
        text = await future
        return {"answers": [{"text": text}] if text else []}

    return app


if __name__ == "__main__":
    kind, port, options = sys.argv[1:]
    app = {"pipeline": pipeline, "batcher": batcher}[kind](json.loads(options))

    @app.get("/ready")
    async def ready():
        return {}

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
