"""Rows of measurements: JSON files that say on what machine, with which versions, at which commit,
by which command.

A row is worth nothing if nobody can get the code that made it. So a tree with changes that are not
committed is refused: by `parse_arguments` before anything is measured, and by `write_rows`. With
`--dirty` the rows are written, and say so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.build_engine import without_folders
from export.versions import tool_versions
from runtime.errors import LotusError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
REFUSED = ROOT / "out" / "refused-rows"
_INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
)
_TOOLS = (
    "torch",
    "diffusers",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt-rtx",
    "numpy",
    "pillow",
    "isal",
    "numba",
)
_UNMEASURED = (":(exclude)benchmarks/results", ":(exclude)*.md")
"""Tracked files that may differ: rows themselves, and text."""


class DirtyTreeError(LotusError):
    """Tracked files differ from the commit that a row would name."""


def parse_arguments(
    parser: argparse.ArgumentParser,
    words: Sequence[str] | None = None,
    *,
    wanted: Callable[[argparse.Namespace], bool] = lambda arguments: True,
) -> argparse.Namespace:
    """The parsed command line of a benchmark that writes rows, with the option `--dirty` added.

    Ends the process with status 1 where the tree has changes and `--dirty` is not given, so that
    nothing is measured in vain. `wanted` tells of parsed arguments whether rows will be written.
    """
    parser.add_argument(
        "--dirty",
        action="store_true",
        help="write rows although files differ from the commit; the rows say so",
    )
    arguments = parser.parse_args(words)
    changed = _changed_files()
    if changed and not arguments.dirty and wanted(arguments):
        parser.exit(1, f"error: {_refusal(changed)}\n")
    return arguments


def write_rows(
    name: str, rows: Sequence[dict[str, Any]], *, dirty: bool = False, unfinished: bool = False
) -> Path:
    """Write `results/<name>.json`: the rows with their circumstances. An earlier file of that name
    is replaced. `unfinished` says so in the file: more rows will follow.

    Where tracked files differ from the commit, `dirty` lets the rows be written all the same: their
    `commit` ends with "+changes" and they have a field `dirty`.

    Raises: DirtyTreeError for such a tree without `dirty`. The rows are then in REFUSED: the tree
    was clean when the measurement began, which may have taken an hour.
    """
    changed = _changed_files()
    refused = bool(changed) and not dirty
    folder = REFUSED if refused else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    body = describe(rows) | ({"unfinished": True} if unfinished else {})
    path.write_text(json.dumps(body, indent=2) + "\n")
    if refused:
        raise DirtyTreeError(f"{_refusal(changed)} What was measured is in {path}.")
    return path


def describe(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows with their circumstances, as `write_rows` writes them."""
    changed = _changed_files()
    return {
        "command": shlex.join(
            [
                "python",
                "-m",
                f"benchmarks.{Path(sys.argv[0]).stem}",
                *map(without_folders, sys.argv[1:]),
            ]
        ),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit() + ("+changes" if changed else ""),
        **({"dirty": True} if changed else {}),
        "machine": machine(),
        "versions": tool_versions(_TOOLS),
        "rows": list(rows),
    }


def commit() -> str:
    """The one that is checked out, short."""
    return _git("rev-parse", "--short", "HEAD") or "unknown"


def same_code(commit: str) -> bool:
    """Whether what is checked out differs from that commit in rows and text at most."""
    if not _git("rev-parse", "--quiet", "--verify", f"{commit}^{{commit}}"):
        return False
    return not _git("diff", "--name-only", commit, "--", ".", *_UNMEASURED)


def _changed_files() -> list[str]:
    """The tracked files that differ from the commit, those of _UNMEASURED aside."""
    return _git("diff", "--name-only", "HEAD", "--", ".", *_UNMEASURED).splitlines()


def _refusal(changed: list[str]) -> str:
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (
        f"these files differ from the commit that the rows would name: {', '.join(changed[:3])}"
        f"{more}. Commit first, or pass --dirty; the rows will then say that the tree had changes."
    )


def _git(*arguments: str) -> str:
    """What git prints; empty without git, and outside a repository."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
    except FileNotFoundError:
        return ""


def machine() -> dict[str, str]:
    """What the operating system tells; Linux tells more."""
    info = {
        "os": platform.system(),
        "arch": platform.machine(),
        "python": platform.python_version(),
    }
    info["cores"] = str(os.cpu_count())
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        pairs = [line.split(":", 1) for line in cpu.read_text().splitlines() if ":" in line]
        facts = {key.strip(): value.strip() for key, value in pairs}
        flags = facts.get("flags", facts.get("Features", "")).split()
        info["cpu"] = facts.get("model name", "unknown")
        info["isa"] = " ".join(flag for flag in _INSTRUCTION_SETS if flag in flags)
        info["memory"] = f"{int(Path('/proc/meminfo').read_text().split()[1]) * 1024 / 1e9:.0f} GB"
    return info
