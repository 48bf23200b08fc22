"""Make the virtual environment of a clone: `python -m tools.install [--venv .venv]`.

Versions and hashes come from locks/development.txt. `make` runs this; on Windows, which has no
make, it is typed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "locks" / "development.txt"
SOURCES = (LOCK, ROOT / "pyproject.toml", ROOT / "setup.py")
"""An environment that is older than one of these is installed again."""

_ANNOUNCEMENT = """\
Installing into {venv}, 4 GB on disk, about three minutes on two cores:
  PyTorch 0.75 GB (the CPU build is enough; where pip takes the CUDA build, several GB),
  Open3D 0.31 GB, Ray 0.24 GB, TensorRT-RTX 0.24 GB, Numba 0.21 GB, OpenVINO 0.18 GB,
  PyArrow 0.17 GB, Playwright 0.17 GB, transformers 0.13 GB, and much that is smaller.
Nothing is installed anywhere else. Deleting the folder removes it."""
"""Said before anything is installed. Sizes are those of the installed packages, on Linux x86-64."""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.install", description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path(".venv"), metavar="DIR")
    try:
        install(parser.parse_args(argv).venv)
    except subprocess.CalledProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def python_of(venv: Path) -> Path:
    """The interpreter of a virtual environment on this system."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_ready(venv: Path) -> bool:
    """Whether the environment was installed since its sources last changed."""
    mark = venv / ".ready"
    return mark.exists() and all(
        mark.stat().st_mtime >= source.stat().st_mtime for source in SOURCES
    )


def install(venv: Path) -> None:
    """Make the environment, and in it what every part of a clone needs.

    Raises: subprocess.CalledProcessError with the command that failed.
    """
    print(_ANNOUNCEMENT.format(venv=venv), flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python_of(venv)), "-m", "pip", "install", "--quiet"]
    for arguments in (
        ["--require-hashes", "--no-deps", "--requirement", str(LOCK)],
        # PyTorch has one build for each kind of GPU and one for CPUs, which have the same version
        # and other hashes; an index may offer any of them. Its version is pinned, its hash is not.
        ["--constraint", str(ROOT / "constraints.txt"), "torch"],
        ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
    ):
        subprocess.run([*pip, *arguments], check=True)
    (venv / ".ready").touch()


if __name__ == "__main__":
    sys.exit(main())
