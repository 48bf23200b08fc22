"""`lotus-edge serve` under load, on loopback: `python -m benchmarks.serve`.

Three parts, each a row. *load*: clients ask without a pause; every answer must be the engine's, bit
by bit, the only error a 503, and the server's memory flat. *stop*: SIGTERM comes under load,
several times; every prediction that was accepted must have been answered in full. *malformed*:
requests that are none; each is refused with a status below 500, nothing is a traceback, and the
server stays ready. Clients and server share the machine, so the latencies say how long a client
waits among others, not how fast an engine is. The status is 1 where a part failed.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.malformed import MALFORMED, png
from benchmarks.rows import ROOT, parse_arguments, write_rows
from benchmarks.soak import FIXED_THRESHOLD
from benchmarks.trial import build_small, resident_mb
from runtime import LotusEngine

PICTURES = 24
STOPS = 5
_PAUSE = 0.05  # seconds after a 503; Retry-After says more, but the load is wanted
_BOUND = 0.03  # of growth of the server's memory


def main() -> int:
    """Run all parts, print them, save the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: tiny/disparity-d, built at 64x64")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    parser.add_argument("--malformed", type=int, default=1000, help="requests that are none")
    parser.add_argument("--name", default="serve", help="of the file of rows")
    arguments = parse_arguments(parser)
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or build_small(Path(folder) / "bundle")
        pictures = _pictures(bundle)
        parts: list[Callable[[], dict[str, Any]]] = [
            lambda: load(bundle, pictures, arguments.clients, arguments.seconds),
            lambda: stop(bundle, pictures, arguments.clients),
            lambda: malformed(bundle, arguments.malformed),
        ]
        rows = []
        for part in parts:
            rows.append(part())
            print(json.dumps(rows[-1], indent=2))
    print(f"rows: {write_rows(arguments.name, rows, dirty=arguments.dirty).name}")
    return int(any(row["problems"] for row in rows))


@dataclass(kw_only=True)
class Server:
    """The command in a process of its own, on a port of its own."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def start(cls, bundle: Path) -> Server:
        """Started, and ready."""
        command = [sys.executable, "-m", "apps", "serve", str(bundle), "--port", "0"]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | FIXED_THRESHOLD,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        found = re.search(r"http://[\d.]+:(\d+)", process.stderr.readline())
        if found is None:
            raise SystemExit(f"the server does not start: {process.stderr.read()}")
        server = cls(process=process, port=int(found[1]))
        while process.poll() is None and not server.ready():
            time.sleep(0.1)
        return server

    def ready(self) -> bool:
        """Whether /readyz says so."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def memory(self) -> float:
        """Resident, in MB."""
        return resident_mb(self.process.pid)

    def stop(self) -> str:
        """End it as an operator does. Returns what it said."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.wait()
        return said


@dataclass(kw_only=True)
class Seen:
    """What clients saw: answers by status, seconds of latency and queueing, and what was wrong."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cut: int = 0


def ask_on(
    server: Server, pictures: list[tuple[bytes, bytes]], seed: int, seen: Seen, until: float
) -> None:
    """One client, on a connection that is kept, until the time is over or nobody listens."""
    choice = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    while time.monotonic() < until:
        picture, wanted = choice.choice(pictures)
        start = time.perf_counter()
        try:
            connection.request("POST", "/v1/predict", picture, {"Accept": "application/x-npz"})
            answer = connection.getresponse()
            body = answer.read()
        except http.client.IncompleteRead:
            seen.cut += 1
            return
        except (OSError, http.client.HTTPException):
            return  # nobody listens any more: the request was not accepted
        seen.statuses[answer.status] += 1
        if answer.status == 503:
            time.sleep(_PAUSE)
            continue
        if answer.status != 200 or body != wanted:
            seen.wrong.append(f"{answer.status}: {body[:200]!r}")
            continue
        seen.latencies.append(time.perf_counter() - start)
        timing = re.search(r"queue;dur=([\d.]+)", answer.headers["Server-Timing"])
        seen.queued.append(float(timing[1]) / 1000 if timing else float("nan"))
    connection.close()


def under_load(
    server: Server,
    pictures: list[tuple[bytes, bytes]],
    clients: int,
    seconds: float,
    meanwhile: Callable[[], None],
) -> Seen:
    """So many clients for so long; `meanwhile` runs beside them."""
    seen, until = Seen(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=ask_on, args=(server, pictures, seed, seen, until))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join()
    return seen


def load(
    bundle: Path, pictures: list[tuple[bytes, bytes]], clients: int, seconds: float
) -> dict[str, Any]:
    """The row of the load."""
    server, memory = Server.start(bundle), list[float]()
    end = time.monotonic() + seconds

    def watch() -> None:
        while time.monotonic() < end:
            memory.append(server.memory())
            time.sleep(0.25)

    seen = under_load(server, pictures, clients, seconds, watch)
    ready, said = server.ready(), server.stop()
    quarter = len(memory) // 4
    before, after = (
        statistics.median(part) for part in (memory[quarter : 2 * quarter], memory[-quarter:])
    )
    growth = after / before - 1
    others = {status: count for status, count in seen.statuses.items() if status not in (200, 503)}
    problems = [
        *([f"statuses: {others}"] if others else []),
        *([f"{len(seen.wrong)} wrong answers, as {seen.wrong[0]}"] if seen.wrong else []),
        *([f"memory grew by {growth:.1%}"] if growth > _BOUND else []),
        *([f"it said {said}"] if "Traceback" in said or not ready else []),
    ]
    return {
        "part": "load",
        "clients": clients,
        "seconds": seconds,
        "answers": seen.statuses[200],
        "busy": seen.statuses[503],
        "per_second": round(seen.statuses[200] / seconds, 1),
        "latency_ms": _milliseconds(seen.latencies),
        "queue_ms": _milliseconds(seen.queued),
        "memory_mb": {"before": round(before, 1), "after": round(after, 1)},
        "growth": round(growth, 4),
        "problems": problems,
    }


def stop(bundle: Path, pictures: list[tuple[bytes, bytes]], clients: int) -> dict[str, Any]:
    """The row of SIGTERM under load."""
    problems, accepted, answered, seconds = [], 0, 0, []
    for _ in range(STOPS):
        server, said = Server.start(bundle), list[str]()

        def end(server: Server = server, said: list[str] = said) -> None:
            time.sleep(2)
            start = time.monotonic()
            said.append(server.stop())
            seconds.append(time.monotonic() - start)

        seen = under_load(server, pictures, clients, 60, end)
        found = re.search(r"stopped after (\d+) predictions", said[0])
        took = int(found[1]) if found else -1
        accepted, answered = accepted + took, answered + seen.statuses[200]
        if took != seen.statuses[200] or seen.cut or seen.wrong or server.process.returncode:
            problems.append(
                f"{took} accepted, {seen.statuses[200]} answered, {seen.cut} cut, "
                f"{len(seen.wrong)} wrong, status {server.process.returncode}: {said[0][-500:]}"
            )
    return {
        "part": "stop",
        "clients": clients,
        "stops": STOPS,
        "accepted": accepted,
        "answered": answered,
        "slowest_s": round(max(seconds), 2),
        "problems": problems,
    }


def malformed(bundle: Path, count: int) -> dict[str, Any]:
    """The row of requests that are none."""
    server, problems, statuses = Server.start(bundle), [], Counter[str]()
    for number in range(count):
        name, request = MALFORMED[number % len(MALFORMED)](random.Random(number))
        status = _send(server.port, request)
        statuses[status] += 1
        if not re.fullmatch(r"4\d\d", status):
            problems.append(f"{name} {number}: {status}")
        if number % 100 == 99 and not server.ready():
            problems.append(f"not ready after {number + 1}")
    said = server.stop()
    if "Traceback" in said:
        problems.append(f"it said {said[-1000:]}")
    return {
        "part": "malformed",
        "requests": count,
        "statuses": dict(sorted(statuses.items())),
        "problems": problems[:20],
    }


def _send(port: int, request: bytes) -> str:
    """The status of the answer; "none" where there was none."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(request)
            head = connection.recv(64)
        except OSError:
            return "none"
    found = re.match(rb"HTTP/1\.1 (\d{3})", head)
    return found[1].decode() if found else "none"


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [0.0] * 99
    return {f"p{share}": round(1000 * cuts[share - 1], 1) for share in (50, 90, 99)}


def _pictures(bundle: Path) -> list[tuple[bytes, bytes]]:
    """Pictures as files, each with the answer that the engine gives here."""
    found = []
    with LotusEngine(bundle) as engine:
        for seed in range(PICTURES):
            content, answer = png(seed), io.BytesIO()
            prediction = engine(np.asarray(Image.open(io.BytesIO(content))))
            np.savez(answer, **{task: each.values for task, each in prediction.items()})
            found.append((content, answer.getvalue()))
    return found


if __name__ == "__main__":
    sys.exit(main())
