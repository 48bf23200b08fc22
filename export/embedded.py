"""What the package `tiny` brings: toy checkpoints, and rendered scenes to calibrate with.

It lies beside this one in a clone. Installed it is a package of its own, which may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.errors import CheckpointError

_SCENE_STYLE = "mixed"


def embedded_checkpoints() -> Path:
    """The folder of the toy checkpoints. Raises: CheckpointError where they are not installed."""
    try:
        import tiny
    except ModuleNotFoundError as error:
        raise CheckpointError(
            "the toy networks and rendered scenes are a package of their own, which is not "
            "installed: `pip install ./tiny` in a clone of the project"
        ) from error
    return Path(tiny.__path__[0]) / "checkpoints"


def rendered_scenes(count: int, height: int, width: int) -> Iterable[NDArray[np.uint8]]:
    """`count` pictures of the renderer, RGB uint8 [H,W,3], always the same ones."""
    from tiny.render import render
    from tiny.scene import TRAIN_FIRST_SEED

    seeds = range(TRAIN_FIRST_SEED, TRAIN_FIRST_SEED + count)
    return (render(seed, height, width, _SCENE_STYLE).image for seed in seeds)
