"""Run Lotus bundles: depth, disparity and surface normals from one photograph, without torch.

>>> from runtime import LotusEngine
>>> with LotusEngine("engines/disparity-d") as engine:
...     engine("photo.jpg").save("out/")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.alignment import Anchors
    from runtime.camera import Camera
    from runtime.engine import LotusEngine
    from runtime.errors import LotusError
    from runtime.golden import Verification
    from runtime.prediction import Prediction

__all__ = ["Anchors", "Camera", "LotusEngine", "LotusError", "Prediction", "Verification"]

_HOME = {
    "Anchors": ".alignment",
    "Camera": ".camera",
    "LotusEngine": ".engine",
    "LotusError": ".errors",
    "Prediction": ".prediction",
    "Verification": ".golden",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: a Jetson that only finishes a bundle (NumPy + TensorRT) needs
    # runtime.manifest, not Pillow.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __package__), name)
