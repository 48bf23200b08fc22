"""Worker processes that run cases, watched: one that hangs is ended, one that dies is replaced."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.kind import Kind

ROOT = Path(__file__).resolve().parents[2]
_START = 120.0  # seconds for the imports and undamaged inputs, on a busy machine
_SLOW = 6.0  # times the CPU seconds of a kind, on a busy machine


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one case. `outcome` is a word: an error's type, what the kind says of an
    answer, "finding", or "engine" for what the vendor's library did.
    """

    number: int
    label: str
    outcome: str
    findings: Sequence[str] = ()
    seconds: float = 0.0
    megabytes: float = 0.0


def run_cases(
    name: str,
    kind: Kind,
    numbers: Sequence[int],
    *,
    seed: int,
    jobs: int,
    keep: Path,
    note: Callable[[Outcome], None],
) -> None:
    """Run the cases `numbers` of a kind in `jobs` processes. `note` gets each outcome, by one
    thread at a time. The inputs of findings are moved to the folder `keep`.

    Raises: RuntimeError if a process cannot even make its undamaged inputs.
    """
    lock = threading.Lock()
    errors: list[BaseException] = []

    def noted(outcome: Outcome) -> None:
        with lock:
            note(outcome)

    def work(own: Sequence[int]) -> None:
        try:
            while own:
                own = _run_process(name, kind, own, seed=seed, keep=keep, note=noted)
        except BaseException as error:  # handed on below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(numbers[job::jobs],)) for job in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _run_process(
    name: str,
    kind: Kind,
    numbers: Sequence[int],
    *,
    seed: int,
    keep: Path,
    note: Callable[[Outcome], None],
) -> Sequence[int]:
    """One process, until it ends. Returns the numbers that it did not come to."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    bad: set[int] = set()

    def noted(outcome: Outcome) -> None:
        note(outcome)
        if outcome.outcome in ("finding", "engine"):
            bad.add(outcome.number)

    try:
        current, done, hung, status = _follow(name, kind, numbers, seed=seed, root=root, note=noted)
        if not current and numbers:
            raise RuntimeError(f"no case could be made: status {status}")
        if current and current["number"] not in done:
            noted(_died(kind, current, hung, status))
            done.add(current["number"])
        _keep(root / "in", keep, bad)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return [number for number in numbers if number not in done]


def _follow(
    name: str,
    kind: Kind,
    numbers: Sequence[int],
    *,
    seed: int,
    root: Path,
    note: Callable[[Outcome], None],
) -> tuple[dict[str, Any], set[int], bool, int]:
    """Start a process and read its reports until it ends, or is ended because it hangs.

    Returns the case that was begun last, the numbers that are done, whether it hung, and its exit
    status.
    """
    current: dict[str, Any] = {}
    done: set[int] = set()
    hung = False
    reading, writing = os.pipe()
    words = ["benchmarks.fuzzing.worker", name, "--seed", str(seed), "--folder", str(root / "in")]
    with (
        os.fdopen(reading, "rb", buffering=0) as stream,
        subprocess.Popen(
            [sys.executable, "-m", *words, "--report", str(writing)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            text=True,
        ) as process,
    ):
        os.close(writing)
        try:
            assert process.stdin is not None
            process.stdin.write("\n".join(map(str, numbers)))
            process.stdin.close()
            lines = _Lines(stream.fileno())
            while line := lines.read(kind.seconds * _SLOW if current else _START):
                facts = json.loads(line)
                if "error" in facts:
                    raise RuntimeError(facts["error"])
                if "done" in facts:
                    done.add(facts["done"])
                    note(Outcome(number=facts.pop("done"), **facts))
                else:
                    current = facts
            hung = line == b""
        finally:
            if hung or sys.exc_info()[0] is not None:
                process.kill()
        return current, done, hung, process.wait()


def _died(kind: Kind, current: dict[str, Any], hung: bool, status: int) -> Outcome:
    if hung:
        what = f"no end after {kind.seconds * _SLOW:.0f} s"
    else:
        what = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return Outcome(
        number=current["number"],
        label=current["label"],
        outcome="engine" if kind.crashes else "finding",
        findings=[what],
    )


def _keep(root: Path, keep: Path, numbers: set[int]) -> None:
    """Move the folders of these cases, where they are still there."""
    for number in numbers:
        if (root / str(number)).is_dir():
            keep.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(keep / str(number), ignore_errors=True)
            shutil.move(root / str(number), keep / str(number))


class _Lines:
    """Lines of a pipe, with a deadline for each."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._buffer = b""

    def read(self, seconds: float) -> bytes | None:
        """The next line; empty when none came in time, None at the end."""
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._number], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return b""
            block = os.read(self._number, 1 << 16)
            if not block:
                return None
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def as_json(outcome: Outcome) -> str:
    """One line."""
    return json.dumps(dataclasses.asdict(outcome))
