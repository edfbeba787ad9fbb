"""Sends requests to a server at given times, whether or not earlier ones were answered, and says when each answer came.

Reads one JSON object: {"port", "bodies": [JSON text, ...], "arrivals": [[seconds, number of a body], ...]}. Prints "go" when it
begins, and at the end one JSON object: {"cpu_share", "connections", "rows": [[number, arrival, latency, status, text], ...]}. Latency
counts from the time at which the request was due; status 0 means that there was no answer. One process, kept cheap, so that
it takes little from the server on the same machine.
"""

import asyncio
import contextlib
import json
import sys
import time

PATIENCE = 60.0
"""Seconds after the last arrival until requests without an answer are given up."""


class Connection(asyncio.Protocol):
    """A connection that is kept alive; it carries one request at a time."""

    def __init__(self, load):
        self.load, self.row, self.received = load, None, b""

    def connection_made(self, transport):
        self.transport = transport

    def send(self, row, request):
        self.row, self.received = row, b""
        self.transport.write(request)

    def data_received(self, data):
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or self.row is None:
            return
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        if len(body) < int(lower[at:].split(b"\r\n", 1)[0]):
            return
        row, self.row = self.row, None
        self.load.answered(row, int(head[9:12]), body)
        if b"connection: close" in lower:
            self.transport.close()
        else:
            self.load.idle.append(self)

    def connection_lost(self, error):
        if self in self.load.idle:
            self.load.idle.remove(self)
        if self.row is not None:
            self.load.answered(self.row, 0, b"")


class Load:
    """The requests of one run."""

    def __init__(self, port, bodies, arrivals):
        self.port, self.arrivals = port, arrivals
        self.requests = [request(port, body) for body in bodies]
        self.rows = [[number, arrival, None, 0, None] for arrival, number in arrivals]
        self.idle, self.next, self.open, self.left = [], 0, 0, len(arrivals)
        self.over = asyncio.Event()

    async def run(self):
        self.loop = asyncio.get_running_loop()
        self.started = self.loop.time()
        cpu = time.process_time()
        self.fire()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), self.arrivals[-1][0] + PATIENCE)
        return (time.process_time() - cpu) / (self.loop.time() - self.started)

    def fire(self):
        """Send what is due, and come back when the next one is."""
        while self.next < len(self.rows):
            wait = self.started + self.rows[self.next][1] - self.loop.time()
            if wait > 0:
                self.loop.call_later(wait, self.fire)
                return
            row = self.rows[self.next]
            self.next += 1
            if self.idle:
                self.idle.pop().send(row, self.requests[row[0]])
            else:
                self.loop.create_task(self.connect(row))

    async def connect(self, row):
        self.open += 1
        try:
            _, connection = await self.loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
        except OSError:
            self.answered(row, 0, b"")
        else:
            connection.send(row, self.requests[row[0]])

    def answered(self, row, status, body):
        row[2:] = self.loop.time() - self.started - row[1], status, body
        self.left -= 1
        if not self.left:
            self.over.set()


def request(port, body):
    data = body.encode()
    head = f"POST /v1/answers HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def text(status, body):
    if status != 200:
        return None
    answers = json.loads(body)["answers"]
    return answers[0]["text"] if answers else ""


def main():
    load = Load(**json.load(sys.stdin))
    print("go", flush=True)
    share = asyncio.run(load.run())
    rows = [[*row[:4], text(row[3], row[4])] for row in load.rows]
    print(json.dumps({"cpu_share": share, "connections": load.open, "rows": rows}))


if __name__ == "__main__":
    main()
