"""What long trials of the runtime share: a small bundle, and a process's memory."""

from __future__ import annotations

import os
from pathlib import Path


def build_small(output: Path) -> Path:
    """`tiny/disparity-d` at 64x64 for ONNX Runtime, which OpenVINO opens too. Raises: SystemExit
    where it cannot be built.
    """
    from export.build_engine import main as build

    if build(["tiny/disparity-d", "--resolution", "64x64", "--output", str(output)]) != 0:
        raise SystemExit("the bundle cannot be built")
    return output


def resident_mb(process: int | str = "self") -> float:
    """Resident megabytes of a process, as Linux tells; 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
