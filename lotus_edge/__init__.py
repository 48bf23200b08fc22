"""Run Lotus bundles: depth, disparity and surface normals from one photograph, without torch.

>>> from lotus_edge import LotusEngine
>>> with LotusEngine("engines/disparity-d") as engine:
...     engine("photo.jpg").save("out/")

The public names of this project, in a clone and installed. A wheel holds the packages of the clone
inside this one, and this file a second time under the name `runtime`; setup.py makes it so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import runtime as _runtime

if TYPE_CHECKING:
    from runtime import Anchors, Camera, LotusEngine, LotusError, Prediction, Verification

__all__ = ["Anchors", "Camera", "LotusEngine", "LotusError", "Prediction", "Verification"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_runtime, name)  # loaded on first use, as there
