"""Damaged inputs, and what must come of them: `python -m benchmarks.fuzz`.

Each case is damaged by its number and the seed alone, and run in a process with limits on time,
memory and files. Right is an answer that the damage does not change (for a picture: one that
decodes), or an error of our own. All else is a finding, and its input is kept in
out/fuzz/findings/. POSIX only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.fuzzing.pool import Outcome, as_json, run_cases
from benchmarks.fuzzing.stops import STOPS
from benchmarks.fuzzing.worker import KINDS, find_kind
from benchmarks.rows import ROOT, parse_arguments, write_rows

FOLDER = ROOT / "out" / "fuzz"
_EVERY = 10.0  # seconds between lines of progress


def main() -> int:
    """Run, print and save the table. Status 1 where there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="cases of each kind")
    parser.add_argument("--stops", type=int, default=200, help="predictions that are killed")
    parser.add_argument("--only", nargs="*", choices=[*KINDS, *STOPS], default=[*KINDS, *STOPS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--resume", action="store_true", help="keep the outcomes of a stopped run")
    parser.add_argument("--name", default="fuzz", help="of the file of rows")
    parser.add_argument("--no-rows", action="store_true", help="write no rows")
    arguments = parse_arguments(parser)
    rows = []
    for name in arguments.only:
        run = _run_kind if name in KINDS else _run_stops
        rows.append(run(name, arguments))
        print(_in_words(rows[-1]), flush=True)
    if not arguments.no_rows:
        print(f"rows: {write_rows(arguments.name, rows, dirty=arguments.dirty).name}")
    return 1 if any(row["findings"] for row in rows) else 0


def _run_kind(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    kind = find_kind(name)
    with _Log(name, arguments.count, arguments) as log:
        numbers = range(arguments.first, arguments.first + arguments.count)
        run_cases(
            name,
            kind,
            [number for number in numbers if number not in log.done],
            seed=arguments.seed,
            jobs=arguments.jobs,
            keep=FOLDER / "findings" / name,
            note=log.note,
        )
        return log.row()


def _run_stops(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    with _Log(name, arguments.stops, arguments) as log:
        for outcome in STOPS[name](arguments.stops, arguments.seed):
            log.note(outcome)
        return log.row()


class _Log:
    """The outcomes of a kind: a line of JSON for each, progress, and their counts."""

    def __init__(self, name: str, count: int, arguments: argparse.Namespace) -> None:
        self._name, self._count = name, count
        self._path = FOLDER / f"{name}-{arguments.seed}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._outcomes: list[Outcome] = []
        if arguments.resume and self._path.exists():
            last = range(arguments.first, arguments.first + count)
            lines = self._path.read_text(encoding="utf-8").splitlines()
            found = [Outcome(**json.loads(line)) for line in lines]
            self._outcomes = [outcome for outcome in found if outcome.number in last]
        self.done = {outcome.number for outcome in self._outcomes}
        self._start = self._said = time.monotonic()
        self._stream = self._path.open("w", encoding="utf-8")
        self._stream.writelines(f"{as_json(outcome)}\n" for outcome in self._outcomes)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def note(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._stream.write(f"{as_json(outcome)}\n")
        self._stream.flush()
        if outcome.outcome == "finding":
            print(f"{self._name} {outcome.number}: {outcome.label}", flush=True)
            print(*(f"    {text}" for text in outcome.findings), sep="\n", flush=True)
        if time.monotonic() - self._said > _EVERY:
            self._said = time.monotonic()
            took = self._said - self._start
            print(f"{self._name}: {len(self._outcomes)} of {self._count}, {took:.0f} s", flush=True)

    def row(self) -> dict[str, Any]:
        counts = Counter(outcome.outcome for outcome in self._outcomes)
        refused = {word: counts[word] for word in sorted(counts) if word.endswith("Error")}
        answered = {
            word: counts[word]
            for word in sorted(counts)
            if word not in refused and word not in ("finding", "engine")
        }
        timed = [outcome for outcome in self._outcomes if outcome.seconds]
        return {
            "kind": self._name,
            "cases": len(self._outcomes),
            "answered": answered,
            "refused": refused,
            "engine": counts["engine"],
            "findings": counts["finding"],
            "slowest_s": max((outcome.seconds for outcome in timed), default=0.0),
            "largest_mb": max((outcome.megabytes for outcome in timed), default=0.0),
        }


def _in_words(row: dict[str, Any]) -> str:
    parts = [f"{row['kind']}: {row['cases']} cases"]
    parts += [f"{count} {word}" for word, count in {**row["answered"], **row["refused"]}.items()]
    parts += [f"{row['engine']} of the engine's own", f"{row['findings']} findings"]
    parts += [f"slowest {row['slowest_s']:.1f} s", f"largest {row['largest_mb']:.0f} MB"]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
