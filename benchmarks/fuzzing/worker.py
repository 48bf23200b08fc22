"""One process that runs cases, one after the other, and reports each: started by `pool`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import IO, Any

from benchmarks.fuzzing.guard import ON_STDERR, Guard, Memory
from benchmarks.fuzzing.kind import OUTSIDE, Damage, Kind, WrongAnswerError
from runtime.errors import DeadlineError, LotusError

KINDS = {
    "pictures": "benchmarks.fuzzing.pictures:Pictures",
    "manifests": "benchmarks.fuzzing.manifests:Manifests",
    "graphs": "benchmarks.fuzzing.graphs:Graphs",
    "graphs-openvino": "benchmarks.fuzzing.graphs:OpenVinoGraphs",
    "weights": "benchmarks.fuzzing.files:Weights",
    "goldens": "benchmarks.fuzzing.files:Goldens",
}
_LONGEST = 20_000  # characters of an error's message


def find_kind(name: str) -> Kind:
    """The kind of this name in KINDS, or of a place "module:Class"."""
    module, _, found = KINDS.get(name, name).partition(":")
    kind: Kind = getattr(importlib.import_module(module), found)()
    return kind


def main() -> int:
    """Run the cases that stand on stdin, one number a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the cases; empty")
    parser.add_argument("--report", type=int, required=True, help="number of an open pipe")
    arguments = parser.parse_args()
    os.environ["TMPDIR"] = tempfile.tempdir = str(arguments.folder / "tmp")
    (arguments.folder / "tmp").mkdir(parents=True)
    report = os.fdopen(arguments.report, "w", buffering=1)
    numbers = [int(line) for line in sys.stdin]
    try:
        kind = find_kind(arguments.kind)
        guard = Guard(address_space=kind.address_space)
        kind.prepare(arguments.folder)
        guard.watch(arguments.folder / OUTSIDE)
        for number in numbers:
            random = Random(f"{arguments.seed}/{kind.name}/{number}")
            _case(kind, guard, random, arguments.folder, number, report)
    except BaseException:  # of ours: stderr is the cases'
        _say(report, error=traceback.format_exc())
        return 1
    return 0


def _case(
    kind: Kind, guard: Guard, random: Random, root: Path, number: int, report: IO[str]
) -> None:
    """Make, run, judge and report one case. The folder of a finding stays."""
    folder = root / str(number)
    folder.mkdir()
    damage = kind.damage(random, folder)
    _say(report, number=number, label=damage.label)
    memory, cpu, wall = Memory(), time.process_time(), time.perf_counter()
    with guard.armed([folder, root / "bundle"], [folder / "cache", root / "cache", root / "tmp"]):
        outcome, findings, error = _outcome(kind, damage, folder)
    cpu, megabytes = time.process_time() - cpu, memory.peak()
    limits = []
    if cpu > kind.seconds:
        limits.append(f"{cpu:.0f} s of CPU time")
    if megabytes > kind.megabytes:
        limits.append(f"{megabytes:.0f} MB of memory")
    words = [text for text in guard.found if text.startswith(ON_STDERR)]
    findings += [text for text in guard.found if text not in words]
    engine = limits + words if kind.crashes else []
    findings += [] if kind.crashes else limits + words
    left = isinstance(error, DeadlineError)  # its thread goes on: this process is of no use
    findings = [text for text in findings if not (left and text == "a thread was left behind")]
    _say(
        report,
        done=number,
        label=damage.label,
        outcome="finding" if findings else "engine" if engine else outcome,
        findings=findings + engine,
        seconds=round(time.perf_counter() - wall, 3),
        megabytes=round(megabytes, 1),
    )
    if left:
        os._exit(0)
    if not findings:
        shutil.rmtree(folder)


def _outcome(
    kind: Kind, damage: Damage, folder: Path
) -> tuple[str, list[str], BaseException | None]:
    """What came out in a word, what was wrong about it, and the error."""
    try:
        word = kind.run(folder)
    except WrongAnswerError as error:
        return "wrong", [f"wrong answer: {error}"], error
    except LotusError as error:
        return type(error).__name__, _odd_message(error, damage), error
    except BaseException as error:
        return "foreign", [f"foreign: {type(error).__name__}: {str(error)[:300]}"], error
    if damage.must is not None:
        return word, [f"answered ({word}), {damage.must.__name__} expected"], None
    return word, [], None


def _odd_message(error: LotusError, damage: Damage) -> list[str]:
    """What is wrong with an error of our own."""
    findings = []
    text = str(error)
    try:
        text.encode()
    except UnicodeEncodeError:
        findings.append(f"{type(error).__name__}: a message that cannot be printed: {text[:100]!r}")
    if len(text) > _LONGEST:
        findings.append(f"{type(error).__name__}: a message of {len(text)} characters")
    if damage.must is not None and not isinstance(error, damage.must):
        findings.append(f"{type(error).__name__} instead of {damage.must.__name__}: {text[:200]}")
    return findings


def _say(report: IO[str], **facts: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        report.write(f"{json.dumps(facts)}\n")
        report.flush()


if __name__ == "__main__":
    sys.exit(main())
