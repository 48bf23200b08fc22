"""Rows of measurements: JSON files that say on what machine, with which versions, at which commit, by which command."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.build_engine import without_folders
from export.versions import tool_versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")
_TOOLS = ("torch", "diffusers", "onnx", "onnxruntime", "openvino", "tensorrt-rtx", "numpy", "pillow")


def write_rows(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write `results/<name>.json`: the rows with their circumstances. An earlier file of that name is replaced."""
    body = {
        "command": shlex.join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(without_folders, sys.argv[1:])]
        ),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "machine": _machine(),
        "versions": tool_versions(_TOOLS),
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(body, indent=2) + "\n")
    return path


def _commit() -> str:
    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout.strip()
        except FileNotFoundError:
            return "unknown"

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def _machine() -> dict[str, str]:
    """What the operating system tells; Linux tells more."""
    info = {"os": platform.system(), "arch": platform.machine(), "python": platform.python_version()}
    info["cores"] = str(os.cpu_count())
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        pairs = [line.split(":", 1) for line in cpu.read_text().splitlines() if ":" in line]
        facts = {key.strip(): value.strip() for key, value in pairs}
        flags = facts.get("flags", facts.get("Features", "")).split()
        info["cpu"] = facts.get("model name", "unknown")
        info["isa"] = " ".join(flag for flag in _INSTRUCTION_SETS if flag in flags)
        info["memory"] = f"{int(Path('/proc/meminfo').read_text().split()[1]) / 1e6:.0f} GB"
    return info
