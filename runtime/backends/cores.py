"""How many processor cores this process may use: inference libraries count those of the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from runtime.backends.cgroups import cgroup_folders, read_text


def usable_cores(root: Path = Path("/")) -> int:
    """Those of its affinity, or fewer where a cgroup (a container) has a quota of time.

    `root` is where /proc and /sys lie. A quota of 1.5 cores counts as 2.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def restricted_cores() -> int | None:
    """`usable_cores` where they are fewer than the machine has; None where all are usable."""
    cores = usable_cores()
    return cores if cores < (os.cpu_count() or 1) else None


def _quotas(root: Path) -> Iterator[float]:
    """The quotas in cores of this process's cgroup and of those around it."""
    for version, folder in cgroup_folders(root, "cpu"):
        if version == 2:
            yield from _ratio(read_text(folder / "cpu.max").split())
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            yield from _ratio([read_text(folder / name).strip() for name in names])


def _ratio(words: list[str]) -> Iterator[float]:
    """Quota over period, both in microseconds; nothing where there is no quota ("max", -1)."""
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])
