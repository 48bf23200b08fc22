"""Rows of measurements: JSON files that say on what machine, with which versions, at which commit, by which command."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
_TOOLS = ("torch", "diffusers", "onnx", "onnxruntime", "openvino", "tensorrt-rtx", "numpy", "pillow")


def write_rows(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write `results/<name>.json`: the rows with their circumstances. An earlier file of that name is replaced."""
    body = {
        "command": shlex.join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(_without_folder, sys.argv[1:])]
        ),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "machine": _machine(),
        "versions": {tool: version for tool in _TOOLS if (version := _version(tool))},
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(body, indent=2) + "\n")
    return path


def _without_folder(argument: str) -> str:
    """A path of this machine tells nobody anything: keep its last part."""
    return Path(argument).name if Path(argument).is_absolute() or argument.startswith("..") else argument


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def _machine() -> dict[str, Any]:
    info = {"os": platform.system(), "arch": platform.machine(), "python": platform.python_version()}
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text().splitlines()
        info["cpu"] = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        info["cores"] = str(sum(line.startswith("processor") for line in lines))
        flags = next(line for line in lines if line.startswith("flags")).split()
        info["isa"] = " ".join(
            flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags
        )
        info["memory"] = f"{int(Path('/proc/meminfo').read_text().split()[1]) / 1e6:.0f} GB"
    return info


def _version(tool: str) -> str | None:
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return None
