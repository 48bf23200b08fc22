"""The spaces in which maps are affine to depth, as `Task.space` names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import GeometryError


@dataclass(frozen=True, kw_only=True)
class Space:
    """depth ** `power` = scale * value + shift, with scale > 0. `power` is 1 or -1."""

    name: str
    power: int

    def of_depth(self, depth: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Positive depth in this space, of the same shape."""
        return np.asarray(depth, np.float64) ** self.power

    def to_depth(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Depth of what is in this space; NaN where that is not positive."""
        values = np.asarray(values, np.float64)
        with np.errstate(invalid="ignore"):
            values = np.where(values > 0, values, np.nan)
        return np.asarray(values**self.power)


SPACES = {
    space.name: space for space in (Space(name="depth", power=1), Space(name="disparity", power=-1))
}


def find_space(name: str | None) -> Space:
    """The space of this name. Raises: GeometryError."""
    if name not in SPACES:
        raise GeometryError(
            f"only maps of depth or disparity give points, found the space {name!r}; known: "
            f"{', '.join(SPACES)}"
        )
    return SPACES[name]
