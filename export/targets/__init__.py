"""Where bundles run, as data: a target is one file here, and one entry of TARGETS.

A target has a recipe for each precision that it can be built in. A recipe says what is done to the
graph. Nothing here imports torch or ONNX: a device that only finishes a bundle needs NumPy alone.
"""

from __future__ import annotations

from export.targets.onnxruntime import ONNXRUNTIME
from export.targets.openvino import OPENVINO
from export.targets.target import Recipe, Target
from export.targets.tensorrt import TENSORRT
from export.targets.tensorrt_rtx import TENSORRT_RTX

__all__ = ["TARGETS", "Recipe", "Target"]

TARGETS: dict[str, Target] = {
    target.name: target for target in (ONNXRUNTIME, OPENVINO, TENSORRT, TENSORRT_RTX)
}
