"""The maps of a picture, of one engine after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.engine import LotusEngine
from runtime.errors import ImageError
from runtime.prediction import TaskMap


def ask(
    engines: Iterable[LotusEngine],
    rgb: NDArray[np.uint8],
    *,
    ensemble: int = 1,
    tiles: bool = False,
) -> dict[str, TaskMap]:
    """The maps of a picture by task.

    `ensemble` is for those engines that take noise. Raises: ImageError where none of them does.
    """
    maps: dict[str, TaskMap] = {}
    refusals: list[ImageError | None] = []
    for engine in engines:
        refusals.append(_refusal(engine, ensemble))
        maps |= engine(rgb, ensemble=1 if refusals[-1] else ensemble, tiles=tiles)
    if refusals and refusals[0] is not None and None not in refusals:
        raise refusals[0]
    return maps


def check_ensemble(engines: Sequence[LotusEngine], ensemble: int) -> None:
    """Before the work. Raises: ImageError where none of the engines takes noise."""
    refusals = [_refusal(engine, ensemble) for engine in engines]
    if refusals and refusals[0] is not None and None not in refusals:
        raise refusals[0]


def _refusal(engine: LotusEngine, ensemble: int) -> ImageError | None:
    try:
        engine.check_seed(None, ensemble)
    except ImageError as error:
        return error
    return None
