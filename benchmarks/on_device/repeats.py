"""Do something again and again for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def repeat(
    call: Callable[[], Any], *, seconds: float, least: int = 3, most: int = 10_000
) -> list[float]:
    """The seconds that each call took: at least `least` calls and at most `most`, and between the
    two as many as begin within `seconds`.
    """
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or (len(taken) < most and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def summary(taken: list[float]) -> dict[str, float]:
    """Percentiles of seconds, the least, and how many there were."""
    p50, p90, p99 = (float(np.percentile(taken, share)) for share in (50, 90, 99))
    return {"p50_s": p50, "p90_s": p90, "p99_s": p99, "min_s": min(taken), "rounds": len(taken)}
