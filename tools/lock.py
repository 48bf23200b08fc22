"""Write constraints.txt and locks/: `make lock`. Versions stay unless `--upgrade` is given.

One resolution by uv holds for Python 3.10 and newer on Linux, macOS and Windows. It is written
twice: with markers and hashes for pip's `--require-hashes`, and as constraints for people.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools.install import LOCK, ROOT

TOOLS = ROOT / "locks" / "tools.txt"
TRITON = ROOT / "locks" / "triton.txt"
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = (
    *("cpu", "openvino", "rtx", "export", "scene", "fast", "views", "video", "flow"),
    *("ros", "serve", "web", "cluster", "dev", "docs"),
)
TORCH = re.compile(r"torch|triton|cuda-toolkit|nvidia-")
"""PyTorch and what only its CUDA builds need: see tools/install.py for why they have no hash."""

_ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^ \\;]+)", re.MULTILINE)
_CONSTRAINTS_HEAD = """\
# The versions this project was tested with, on Python 3.10 and newer; `make lock` writes this file.
# A range stands where the newest version leaves out an older Python: pip takes the newest that has
# the Python that it installs for. A marker would not do with `pip install --python-version`, since
# pip judges markers by the Python that it runs in.
"""
_LOCK_HEAD = "# `make lock` writes this file. For `pip install --require-hashes --no-deps -r`.\n"


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    options = sys.argv[1:] if argv is None else argv
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    entries = _split(_compile(["pyproject.toml", *extras, *options], LOCK, CONSTRAINTS))
    hashed = [entry for entry in entries if not TORCH.match(entry)]
    LOCK.write_text(_LOCK_HEAD + "".join(hashed))
    CONSTRAINTS.write_text(_CONSTRAINTS_HEAD + "".join(constraints("".join(entries))))
    for group, path in (("tools", TOOLS), ("triton", TRITON)):
        arguments = ["--group", f"pyproject.toml:{group}", *options]
        path.write_text(_LOCK_HEAD + _compile(arguments, path))
    return 0


def pins(text: str) -> list[tuple[str, str]]:
    """Name and version of each entry of a lock, or of each line of constraints with one version."""
    return [(entry["name"], entry["version"]) for entry in _ENTRY.finditer(text)]


def constraints(lock: str) -> list[str]:
    """A line for each package of a lock: its version, or the range of its versions."""
    versions: dict[str, list[str]] = {}
    for name, version in pins(lock):
        versions.setdefault(name, []).append(version)
    return [
        f"{name}=={found[0]}\n" if len(found) == 1 else f"{name}>={found[0]},<={found[-1]}\n"
        for name, found in versions.items()
    ]


def _split(lock: str) -> list[str]:
    """The entries of a lock, each with its hashes."""
    starts = [entry.start() for entry in _ENTRY.finditer(lock)]
    return [lock[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def _compile(arguments: list[str], *files: Path) -> str:
    """uv's resolution, which keeps the versions that are in these files now."""
    output = ROOT / "locks" / ".resolution.txt"
    kept = [path.read_text() for path in files if path.exists()]
    output.write_text("\n".join(entry[0] for text in kept for entry in _ENTRY.finditer(text)))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--python-version", "3.10", "--generate-hashes", "--no-header", "--no-annotate"]
    try:
        subprocess.run([*command, "--output-file", str(output), *arguments], cwd=ROOT, check=True)
        return output.read_text()
    finally:
        output.unlink()


if __name__ == "__main__":
    sys.exit(main())
