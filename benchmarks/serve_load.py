"""`spanqa serve` under load, beside two other servers: open-loop Poisson arrivals of real questions, in random order.

    SPANQA_DATA=... python benchmarks/serve_load.py --out benchmarks/results/serve-load.json

Needs the environment of scripts/make_hf4_env. The servers are processes of their own, as is what loads them (load_client.py);
all stay up, and only one is loaded at a time. Latency counts from the time at which a request was due. The offline rate is that of
`Reader.ask_many` on the same questions, measured in the same run, as is a full batch: the seconds of one batch of windows of full
length that fills the token budget.

    levels       spanqa at 25, 50, 75 and 90 % of its offline rate
    overload     spanqa at 200 %: memory, accepted requests, refusals
    equal p99    the highest rate at which each server answers everything with p99 within two full batches: a search in steps
                 of 5 % of its own offline rate, the servers taking turns
    one by one   a passage of 150 words: how much HTTP, queue and decoding add to the forward pass
    flood        short questions beside passages of 15,000 words, each asked by itself
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import shlex
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from side_by_side import HF4, MINI, ROOT, ask, choose_examples, processor, start

from spanqa import Reader, __version__
from spanqa.batches import pack
from spanqa.evaluate import score_squad
from spanqa.files import describe
from spanqa.squad import Example
from spanqa.windows import cut

HERE = ROOT / "benchmarks"
LEVELS = (0.25, 0.5, 0.75, 0.9)
STEPS = [step / 100 for step in range(30, 110, 5)]
"""Shares of a server's own offline rate, among which the highest bearable one is sought."""


class Bench:
    """What all parts share: the questions, the reader in this process, and the servers."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.quick, self.threads, self.max_wait = arguments.quick, arguments.threads, arguments.max_wait
        self.examples = choose_examples("squad", 100 if self.quick else 2000, shuffle=True)
        self.bodies = [body(each.question, each.passage) for each in self.examples]
        self.reader = Reader.load(MINI, dtype=arguments.dtype, threads=self.threads)
        self.ports: dict[str, int] = {}
        self.pids: dict[str, int] = {}

    def load(self, server: str, rate: float, seconds: float, seed: int = 0) -> dict:
        """Load a server with random questions."""
        arrivals = poisson(rate, seconds, len(self.bodies), seed)
        return {"rate": rate, **summary(self.send(server, self.bodies, arrivals))}

    def send(
        self, server: str, bodies: list[str], arrivals: list[tuple[float, int]], watch: tuple[float, ...] = ()
    ) -> dict:
        """Send requests when they are due; `memory` is that of the server after so many seconds."""
        process = subprocess.Popen(
            [sys.executable, HERE / "load_client.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        json.dump({"port": self.ports[server], "bodies": bodies, "arrivals": arrivals}, process.stdin)
        process.stdin.close()
        process.stdout.readline()
        began, memory = time.monotonic(), []
        for seconds in watch:
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            memory.append(resident(self.pids[server]))
        found = json.loads(process.stdout.read())
        process.wait()
        return {**found, "memory": memory}


def body(question: str, passage: str) -> str:
    return json.dumps({"question": question, "passages": [passage]})


def poisson(rate: float, seconds: float, bodies: int, seed: int) -> list[tuple[float, int]]:
    pool, now, arrivals = random.Random(seed), 0.0, []
    while (now := now + pool.expovariate(rate)) < seconds:
        arrivals.append((now, pool.randrange(bodies)))
    return arrivals


def percentile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def summary(found: dict) -> dict:
    """Counts by status, and the latencies of what was answered and of what was refused."""
    rows = found["rows"]
    statuses = sorted({row[3] for row in rows})
    answered = [row[2] for row in rows if row[3] == 200]
    refused = [row[2] for row in rows if row[3] == 429]
    return {
        "requests": len(rows),
        "status": {str(status): sum(row[3] == status for row in rows) for status in statuses},
        "p50": percentile(answered, 0.5),
        "p99": percentile(answered, 0.99),
        "longest": max(answered, default=None),
        "refused_p99": percentile(refused, 0.99),
        "sender_cpu_share": found["cpu_share"],
        "connections": found["connections"],
        "machine_load": os.getloadavg()[0],
    }


def resident(pid: int) -> int:
    """Bytes of memory of a process and its children."""
    status = Path(f"/proc/{pid}/status").read_text()
    own = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(resident(int(child)) for child in children)


@contextlib.contextmanager
def serving(bench: Bench, dtype: str) -> Iterator[None]:
    """Start all servers, wait until they are ready, and stop them at the end."""
    options = {"model": str(MINI), "threads": bench.threads}
    peers = [str(HERE / "serve_peers.py")]
    ours = ["--model", str(MINI), "--threads", str(bench.threads), "--dtype", dtype]
    ours += ["--max-wait", str(bench.max_wait), "--port"]
    commands = {
        "spanqa": [sys.executable, "-m", "spanqa", "serve", *ours],
        "batcher": [sys.executable, *peers, "batcher"],
        "pipeline": [str(HF4), *peers, "pipeline"],
    }
    more = {
        "batcher": json.dumps({**options, "backend": bench.reader.backend.name, "dtype": dtype}),
        "pipeline": json.dumps(options),
    }
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(bench.threads)}
    processes = []
    try:
        for name, command in commands.items():
            bench.ports[name] = free_port()
            command = [*command, str(bench.ports[name]), *([more[name]] if name in more else [])]
            process = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=sys.stderr)
            bench.pids[name] = process.pid
            processes.append(process)
        for name, process in zip(commands, processes, strict=True):
            wait_until_ready(name, process, bench.ports[name])
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_until_ready(name: str, process: subprocess.Popen, port: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
            return
        time.sleep(0.2)
    raise RuntimeError(f"server {name} ended, or was not ready after 120 seconds")


# --- the parts


def full_batch(reader: Reader, runs: int) -> float:
    """Seconds of a batch that fills the token budget with windows of full length: the median."""
    size = reader.backend.batch_tokens
    passage = reader.prepare("word " * 2 * size)
    windows = cut("What is it?", [passage], reader.checkpoint.tokenizer, reader.windows)[0]
    batch = pack([[window] for window in windows[: size // len(windows[0])]])
    return statistics.median(seconds(lambda: reader.backend.forward(batch)) for _ in range(runs))


def seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def offline(bench: Bench) -> tuple[dict[str, float], list[str]]:
    """Questions a second of `ask_many` and of the pipeline on lists, and our answers."""
    examples = bench.examples
    pairs = [(each.question, each.passage) for each in examples]
    list(bench.reader.ask_many(pairs[:50]))
    answers: list[str] = []
    ours = len(pairs) / seconds(lambda: answers.extend(each.text for each in bench.reader.ask_many(pairs)))
    some = examples[: 40 if bench.quick else 500]
    process = start({"kind": "transformers_pipeline", "model": str(MINI), "batch_size": 1}, bench.threads)
    ask(process, some[:10])
    theirs = len(some) / ask(process, some)["seconds"]
    process.stdin.close()
    process.wait()
    return {"spanqa": ours, "batcher": ours, "pipeline": theirs}, answers


def levels(bench: Bench, rate: float, answers: list[str]) -> dict:
    """Each level; the answers of all of them beside those of the reader."""
    one_by_one = [(0.1 * i, i) for i in range(30 if bench.quick else 150)]
    rows: dict = {"unloaded": summary(bench.send("spanqa", bench.bodies, one_by_one))}
    texts: dict[int, str] = {}
    for level in LEVELS:
        arrivals = poisson(rate * level, 6 if bench.quick else 40, len(bench.examples), seed=round(100 * level))
        found = bench.send("spanqa", bench.bodies, arrivals)
        rows[f"{level:.0%}"] = {"rate": rate * level, **summary(found)}
        texts.update({row[0]: row[4] for row in found["rows"] if row[3] == 200})
    asked: list[Example] = [bench.examples[i] for i in texts]
    over_http = {bench.examples[i].id: text for i, text in texts.items()}
    reader = {bench.examples[i].id: answers[i] for i in texts}
    rows["answers"] = {
        "questions": len(asked),
        "other_than_offline": sum(over_http[name] != reader[name] for name in reader),
        "f1_over_http": score_squad(asked, over_http)["f1"],
        "f1_offline": score_squad(asked, reader)["f1"],
    }
    return rows


def overload(bench: Bench, rate: float) -> dict:
    last = 15 if bench.quick else 60
    arrivals = poisson(2 * rate, last, len(bench.examples), seed=7)
    found = bench.send("spanqa", bench.bodies, arrivals, watch=(min(10, last / 2), last))
    return {"rate": 2 * rate, **summary(found), "memory": found["memory"]}


def equal_p99(bench: Bench, rates: dict[str, float], limit: float) -> dict:
    """The highest step that each server bears, by halving."""
    bounds = {name: [-1, len(STEPS)] for name in rates}  # bears the first, not the second
    tried: dict[str, list] = {name: [] for name in rates}
    while any(high - low > 1 for low, high in bounds.values()):
        for name, (low, high) in bounds.items():
            if high - low <= 1:
                continue
            step = (low + high) // 2
            found = bench.load(name, STEPS[step] * rates[name], 5 if bench.quick else 15, seed=step)
            bears = found["status"].keys() == {"200"} and found["p99"] <= limit
            tried[name].append({"share": STEPS[step], "bears": bears, **found})
            bounds[name][0 if bears else 1] = step
    return {
        name: {"questions_per_s": STEPS[low] * rates[name] if low >= 0 else 0.0, "tried": tried[name]}
        for name, (low, _) in bounds.items()
    }


def one_by_one(bench: Bench) -> dict:
    """Turn by turn: a request over HTTP, the same by `Reader.ask`, its forward pass alone."""
    reader = bench.reader
    example = next(each for each in bench.examples if 145 <= len(each.passage.split()) <= 155)
    windows = cut(example.question, [reader.prepare(example.passage)], reader.checkpoint.tokenizer, reader.windows)[0]
    batch = pack([[window] for window in windows])
    connection = http.client.HTTPConnection("127.0.0.1", bench.ports["spanqa"])
    asked = body(example.question, example.passage).encode()

    def over_http() -> None:
        connection.request("POST", "/v1/answers", asked, {"Content-Type": "application/json"})
        connection.getresponse().read()

    calls = {
        "http": over_http,
        "ask": lambda: reader.ask(example.question, example.passage),
        "forward": lambda: reader.backend.forward(batch),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(30 if bench.quick else 300):
        for name, call in calls.items():
            times[name].append(seconds(call))
    connection.close()
    found = {f"{name}_ms": 1e3 * statistics.median(values[5:]) for name, values in times.items()}
    return {"words": len(example.passage.split()), **found, "added_ms": found["http_ms"] - found["forward_ms"]}


def flood(bench: Bench, rate: float) -> dict:
    """Short questions at a tenth of the offline rate, alone and beside long passages that alone are twice what the machine reads."""
    texts = [each.passage for each in bench.examples]
    longs = [" ".join(" ".join(texts[i:] + texts[:i]).split()[:15_000]) for i in range(8)]
    question = "Who was the first king of Norway?"
    took = seconds(lambda: bench.reader.ask(question, longs[0]))
    length = 8 if bench.quick else 40
    short = poisson(rate / 10, length, len(bench.bodies), seed=1)
    long = [(at, len(bench.bodies) + i) for at, i in poisson(2 / took, length, len(longs), seed=2)]
    bodies = [*bench.bodies, *(body(question, text) for text in longs)]
    alone = summary(bench.send("spanqa", bench.bodies, short))
    found = bench.send("spanqa", bodies, sorted(short + long))
    parts = {
        name: summary({**found, "rows": [row for row in found["rows"] if (row[0] < len(bench.bodies)) == is_short]})
        for name, is_short in (("short", True), ("long", False))
    }
    return {"seconds_of_a_long_one": took, "alone": alone, "beside_long": parts["short"], "long": parts["long"]}


# --- what was wanted


def checks(record: dict) -> dict[str, dict]:
    """Each target, what was measured, and whether it was met."""
    batch, at_levels, over = record["full_batch_s"], record["levels"], record["overload"]
    at, rates, ratios = at_levels["75%"], record["equal_p99"], record["offline_questions_per_s"]
    bf16 = record["dtype"] == "bf16"
    wanted: dict[str, tuple[float | None, float, bool]] = {
        "at 75 %, requests without an answer": (at["requests"] - at["status"].get("200", 0), 0, False),
        "at 75 %, p99 in full batches": (at["p99"] / batch, 2, False),
        "at 75 %, p50 in unloaded medians": (at["p50"] / at_levels["unloaded"]["p50"], 3, False),
        "at 200 %, growth of memory from 10 s to 60 s": (over["memory"][1] / over["memory"][0] - 1, 0.1, False),
        "at 200 %, p99 of what is accepted, in those of 75 %": (over["p99"] / at["p99"], 1, False),
        "at 200 %, p99 of refusals in seconds": (over["refused_p99"], 0.05, False),
        "added to a forward pass, ms": (record["one_by_one"]["added_ms"], 2, False),
        "flood, p99 of short ones above one batch, in those alone": (
            (record["flood"]["beside_long"]["p99"] - batch) / record["flood"]["alone"]["p99"], 3, False,
        ),
    }  # fmt: skip
    ours = rates["spanqa"]["questions_per_s"]
    if rates["pipeline"]["questions_per_s"]:
        ratio = ours / rates["pipeline"]["questions_per_s"]
        wanted["rate at equal p99, times the pipeline"] = (ratio, 2.5 if bf16 else 1.25, True)
    found = {
        name: {
            "measured": value,
            "wanted": limit,
            "met": value is not None and (value >= limit if least else value <= limit),
        }
        for name, (value, limit, least) in wanted.items()
    }
    found["offline rate, times the pipeline"] = {"measured": ratios["spanqa"] / ratios["pipeline"]}
    if rates["batcher"]["questions_per_s"]:
        found["rate at equal p99, times the batcher"] = {"measured": ours / rates["batcher"]["questions_per_s"]}
    return found


def show(record: dict) -> None:
    table = Table(
        "", "requests", "answered", "p50 ms", "p99 ms", "refused p99 ms", "sender's CPU", box=None, padding=(0, 2)
    )
    rows = {name: row for name, row in record["levels"].items() if name != "answers"}
    rows["200%"] = record["overload"]
    rows |= {f"flood: {name}": row for name, row in record["flood"].items() if isinstance(row, dict)}
    for name, row in rows.items():
        times = (f"{1e3 * row[key]:.0f}" if row[key] is not None else "" for key in ("p50", "p99", "refused_p99"))
        table.add_row(
            name, f"{row['requests']}", f"{row['status'].get('200', 0)}", *times, f"{row['sender_cpu_share']:.0%}"
        )
    targets = Table("", "measured", "wanted", "", box=None, padding=(0, 2))
    for name, row in record["checks"].items():
        value = "" if row["measured"] is None else f"{row['measured']:.3g}"
        met = {True: "met", False: "missed", None: ""}[row.get("met")]
        targets.add_row(name, value, f"{row['wanted']:g}" if "wanted" in row else "", met)
    console = Console(width=150)
    console.print(table, "", targets)
    console.print({name: row["questions_per_s"] for name, row in record["equal_p99"].items()})
    console.print(record["levels"]["answers"], record["one_by_one"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="auto", help="of spanqa and of the batcher; the pipeline computes in fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-wait", type=float, default=0.5, help="of spanqa serve, in seconds")
    parser.add_argument("--quick", action="store_true", help="a trial of about two minutes, whose figures mean little")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not HF4.exists():
        sys.exit("This needs transformers 4.57.6: run scripts/make_hf4_env.")
    began, load = time.monotonic(), os.getloadavg()[0]
    bench = Bench(arguments)
    dtype = bench.reader.backend.dtype
    say = Console(stderr=True).print
    say("offline")
    batch = full_batch(bench.reader, 5 if arguments.quick else 15)
    rates, answers = offline(bench)
    record: dict = {
        "command": shlex.join(["python", "benchmarks/serve_load.py", *sys.argv[1:]]),
        "model": describe(MINI / "model.safetensors", (MINI / "model.safetensors").read_bytes()),
        "dtype": dtype,
        "backend": bench.reader.backend.name,
        "threads": arguments.threads,
        "processor": processor(),
        "machine_load_before": load,
        "versions": {
            "spanqa": __version__, **{name: version(name) for name in ("openvino", "fastapi", "uvicorn", "httptools", "uvloop")},
            "transformers of the pipeline": "4.57.6",
        },
        "full_batch_s": batch,
        "offline_questions_per_s": rates,
    }  # fmt: skip
    with serving(bench, dtype):
        with urllib.request.urlopen(f"http://127.0.0.1:{bench.ports['spanqa']}/info") as info:
            record["batch_tokens"] = json.load(info)["batch_tokens"]
        for name, part in (
            ("levels", lambda: levels(bench, rates["spanqa"], answers)),
            ("overload", lambda: overload(bench, rates["spanqa"])),
            ("one_by_one", lambda: one_by_one(bench)),
            ("flood", lambda: flood(bench, rates["spanqa"])),
            ("equal_p99", lambda: equal_p99(bench, rates, 2 * batch)),
        ):
            say(f"{time.monotonic() - began:.0f} s: {name}")
            record[name] = part()
    record["checks"] = checks(record)
    record["seconds"] = time.monotonic() - began
    show(record)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
