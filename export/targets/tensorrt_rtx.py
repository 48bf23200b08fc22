"""TensorRT-RTX: TensorRT's graphs at a newer opset. Engines are built anywhere, without a GPU."""

from __future__ import annotations

import functools

from export.targets.target import INT8_TOLERANCE, Int8, Recipe, Target
from export.targets.tensorrt import TENSORRT
from export.targets.tensorrt_builder import build_engine

TENSORRT_RTX = Target(
    name="tensorrt-rtx",
    opset=23,
    recipes={
        **TENSORRT.recipes,
        # Weights alone are the one int8 that it documents.
        "int8": Recipe(tolerance=INT8_TOLERANCE, half="fp16", int8=Int8(weights_only=True)),
    },
    engine_suffix=".rtx",
    build=functools.partial(build_engine, flavour="tensorrt-rtx"),
)
