"""Run one step in a process of its own, so that whatever it does is a line and no crash.

The child writes its result into a file. It ends when it is done, when its time is up, and when the
parent is gone: it watches its standard input for that.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT

_LOG_LINES = 3  # of what a child that failed has said last


class TimeUp(Exception):
    """The step was stopped after its time."""


class StepFailed(Exception):
    """The step cannot be done here; the words say why."""


def run_step(action: str, options: dict[str, Any], *, folder: Path, seconds: float) -> Any:
    """The result of `action` of the worker, computed by a child process in at most `seconds`. What
    it says goes into a log in `folder`.

    Raises: TimeUp, StepFailed.
    """
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.on_device.worker", action, str(result)]
    with (folder / "log.txt").open("wb") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _give(child, options)
            status = _wait(child, seconds)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            if child.stdin is not None:
                child.stdin.close()
    try:
        answer = json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StepFailed(_last_words(folder / "log.txt", status)) from None
    if "error" in answer:
        raise StepFailed(answer["error"])
    return answer["result"]


def _give(child: subprocess.Popen[bytes], options: dict[str, Any]) -> None:
    """One line; the pipe stays open for as long as this process lives."""
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(options).encode() + b"\n")
        child.stdin.flush()
    except OSError:  # it has ended already; its status says why
        pass


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int:
    start = time.monotonic()
    try:
        return child.wait(timeout=max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise TimeUp(f"stopped after {time.monotonic() - start:.0f} s") from None


def _last_words(log: Path, status: int) -> str:
    """Why a child without a result ended: its signal or status, and what it said last."""
    how = f"status {status}"
    if status < 0:
        how = signal.Signals(-status).name
        how += ", as where memory ran out" if how == "SIGKILL" else ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or [
        "it said nothing"
    ]
    return f"the step's process ended with {how}: {' / '.join(lines[-_LOG_LINES:])[:500]}"
