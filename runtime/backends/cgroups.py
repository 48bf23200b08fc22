"""The control groups of Linux that this process is in: containers bound time and memory by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cgroup_folders(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version (1 or 2) and folder of this process's group and of those around it. `root` is where
    /proc and /sys lie.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield from ((2, folder) for folder in _upwards(root / "sys/fs/cgroup", path))
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
            yield from ((1, folder) for folder in _upwards(mount, path))


def read_text(path: Path) -> str:
    """The content of a file of the system; "" where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _upwards(mount: Path, path: str) -> list[Path]:
    """The group's folder and those above it. Inside a container only the mount may be there."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
