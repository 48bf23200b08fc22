"""The installed commands: `lotus-edge` (also `python -m lotus_edge`) and `lotus-edge-build`."""

from __future__ import annotations

import sys

from runtime.extras import explain_missing_packages


def main() -> int:
    """`lotus-edge`. Returns the exit status, as apps/__main__.py."""
    explain_missing_packages()
    from apps.__main__ import main as run

    return run()


def build() -> int:
    """`lotus-edge-build`. Returns the exit status, as export/build_engine.py."""
    explain_missing_packages()
    from export.build_engine import command

    return command()


if __name__ == "__main__":
    sys.exit(main())
