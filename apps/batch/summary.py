"""How far a run is, and how it went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from apps.batch.ledger import BAD, DONE, UNREAD
from runtime.console import one_line, say, show

_EVERY = 5.0  # seconds between two lines
_SLOW = 0.5  # of the median: what a straggler does
_MOST_NAMED = 5
_MOST_SAID = 20  # pictures that could not be read; a disk that is gone has as many as there are


class Progress:
    """Says on stderr how far a run is, every few seconds. `total` pictures, of which `left` are to
    be done now. `unread` has the pictures that could not be read, with the reasons.
    """

    def __init__(self, left: int, total: int) -> None:
        self._left, self._done, self._bad = left, 0, 0
        self.unread: dict[str, str] = {}
        self._start = self._said = time.perf_counter()
        if left < total:
            say(f"{total} pictures, {total - left} are done already, {left} to do")
        else:
            say(f"{total} pictures to do")

    @property
    def kept(self) -> int:
        """How many pictures have a row now, done or bad."""
        return self._done - len(self.unread)

    def add(self, table: pa.Table) -> None:
        """Count the rows of a finished part, and say each picture that is not done."""
        self._done += len(table)
        for row in table.select(["picture", "status", "note"]).to_pylist():
            self._bad += row["status"] == BAD
            if row["status"] == UNREAD:
                self.unread[row["picture"]] = row["note"]
            if row["status"] == BAD or (row["status"] == UNREAD and len(self.unread) <= _MOST_SAID):
                say(one_line(f"{row['status'].upper()} {row['picture']}: {row['note']}"))
        now = time.perf_counter()
        if now - self._said >= _EVERY or self._done >= self._left:
            self._said = now
            rate = self._done / (now - self._start)
            rest = (self._left - self._done) / rate if rate else 0
            say(
                f"[{self._done}/{self._left}] {rate:.1f} pictures/s, {self._bad} bad, "
                f"about {_duration(rest)} left"
            )


def summarize(
    merged: pa.Table, before: pa.Table, seconds: float, unread: Mapping[str, str]
) -> dict[str, Any]:
    """What is in the ledger, and how fast this run was.

    `merged`: the rows of all pictures of the source; `before`: those of earlier runs; `unread`: the
    pictures that could not be read, which have no row, with the reasons.
    """
    fresh = merged.filter(pc.invert(pc.is_in(merged["finished"], before["finished"])))
    took = np.array(fresh["seconds"]) if len(fresh) else np.zeros(1)
    slowest = fresh.sort_by([("seconds", "descending")]).slice(0, _MOST_NAMED)
    return {
        "pictures": len(merged) + len(unread),
        "done": _number(merged, DONE),
        "bad": _number(merged, BAD),
        "unread": len(unread),
        "unread_reasons": dict(Counter(unread.values()).most_common(_MOST_NAMED)),
        "this_run": {
            "pictures": len(fresh),
            "seconds": round(seconds, 3),
            "pictures_per_second": round(len(fresh) / seconds, 3),
            "seconds_per_picture": {
                "median": round(float(np.median(took)), 4),
                "p95": round(float(np.quantile(took, 0.95)), 4),
                "largest": round(float(took.max()), 4),
            },
            "engines": _engines(fresh),
            "slowest": {row["picture"]: round(row["seconds"], 4) for row in slowest.to_pylist()},
        },
    }


def _engines(fresh: pa.Table) -> dict[str, Any]:
    """What each process did in the time it worked, and whether it was far slower than the others.

    Those that a picture killed are not among them.
    """
    alive = fresh.filter(pc.not_equal(fresh["worker"], ""))
    sums = alive.group_by("worker").aggregate([("seconds", "sum"), ("seconds", "count")])
    rates = {
        row["worker"]: (row["seconds_count"], row["seconds_count"] / max(row["seconds_sum"], 1e-9))
        for row in sums.sort_by("worker").to_pylist()
    }
    middle = float(np.median([rate for _, rate in rates.values()])) if rates else 0.0
    return {
        name: {
            "pictures": count,
            "pictures_per_second": round(rate, 3),
            "straggler": rate < _SLOW * middle,
        }
        for name, (count, rate) in rates.items()
    }


def _number(merged: pa.Table, status: str) -> int:
    return len(merged.filter(pc.equal(merged["status"], status)))


def tell(summary: dict[str, Any], where: str) -> None:
    """The summary in a few lines on stdout."""
    now, speed = summary["this_run"], summary["this_run"]["seconds_per_picture"]
    unread = f", {summary['unread']} could not be read" if summary["unread"] else ""
    show(f"{summary['pictures']} pictures: {summary['done']} done, {summary['bad']} bad{unread}")
    if now["pictures"]:
        show(
            f"this run: {now['pictures']} in {_duration(now['seconds'])}, "
            f"{now['pictures_per_second']:.1f}/s with {len(now['engines'])} engines; of one "
            f"picture median {speed['median']:.3f} s, 95 % below {speed['p95']:.3f} s, slowest "
            f"{speed['largest']:.3f} s ({one_line(next(iter(now['slowest'])))})"
        )
    for name, engine in now["engines"].items():
        if engine["straggler"]:
            show(f"straggler: the engine {name} did {engine['pictures_per_second']:.1f}/s")
    if summary["bad"]:
        show(f"the bad ones, with reasons: {where}/bad.csv")
    for reason, count in summary["unread_reasons"].items():
        show(one_line(f"not read: {count}, {reason}"))
    if summary["unread"]:
        show(f"the same command tries again what could not be read: {where}/unread.csv")
    show(where)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def skipped_in_words(skipped: Counter[str]) -> list[str]:
    """A line for the files that were left out; none where there are none."""
    reasons = "; ".join(f"{count} {reason}" for reason, count in skipped.most_common())
    return [f"{skipped.total()} files left out: {reasons}"] if skipped else []
