"""Try the project: `python -m tools.demo`. It is what `make demo` runs, and runs on every system.

It makes a virtual environment, builds a bundle of two toy networks (disparity and normals, with one
encoder and one decoder), verifies it, and predicts for the pictures in tiny/samples.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tools.install import ROOT, is_ready, python_of
from tools.install import main as install_command

_BUILD = ("export/build_engine.py", "--resolution", "256x256", "--overwrite")
_STEPS = (
    (*_BUILD, "tiny/disparity-d", "tiny/normal-d", "--output", "engines/demo"),
    ("-m", "runtime", "verify", "engines/demo"),
    ("-m", "runtime", "predict", "engines/demo", "tiny/samples", "--output=out/demo"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status of the first step that fails, or 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path(".venv"), metavar="DIR")
    venv = parser.parse_args(argv).venv.absolute()
    if not is_ready(venv) and install_command(["--venv", str(venv)]):
        return 1
    print(
        "Building a bundle of two toy networks into engines/demo, about 45 s on two cores.\n"
        "Then: verifying it, and predicting for the pictures in tiny/samples into out/demo/.\n",
        flush=True,
    )
    for step in _STEPS:
        print("python", *step, flush=True)
        status = subprocess.run([str(python_of(venv)), *step], cwd=ROOT, check=False).returncode
        if status:
            return status
    print("Look at out/demo/*-disparity.png and out/demo/*-normal.png")
    print(f"The environment for commands of your own: {_activation(venv)}")
    return 0


def _activation(venv: Path) -> str:
    programs = python_of(venv).parent
    return str(programs / "Activate.ps1") if os.name == "nt" else f"source {programs}/activate"


if __name__ == "__main__":
    sys.exit(main())
