"""The command `lotus-edge` (also `python -m apps`): one subcommand for each thing to do.

To add one, write a function that adds its subparser, as `add_predict` in runtime/__main__.py does,
and name it in `COMMANDS`.
"""

from __future__ import annotations

import sys

from runtime.extras import explain_missing_packages

if __name__ == "__main__":
    explain_missing_packages()

from apps.bag.command import add_bag
from apps.scene.command import add_scene
from apps.video.command import add_video
from runtime.__main__ import COMMANDS as RUNTIME_COMMANDS
from runtime.__main__ import AddCommand, run

COMMANDS: tuple[AddCommand, ...] = (*RUNTIME_COMMANDS, add_scene, add_video, add_bag)


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status, as `runtime.__main__.run`."""
    return run(COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
