"""TensorRT: types are in the graph. Engines are built on the device, for that device."""

from __future__ import annotations

import functools

from export.targets.target import (
    BF16_TOLERANCE,
    FP16_TOLERANCE,
    INT8_TOLERANCE,
    Int8,
    Recipe,
    Target,
)
from export.targets.tensorrt_builder import build_engine

TENSORRT = Target(
    name="tensorrt",
    opset=20,  # what TensorRT 10.3 (JetPack 6) documents
    recipes={
        "fp32": Recipe(tolerance=(1e-3, 1e-3)),
        "fp16": Recipe(tolerance=FP16_TOLERANCE, half="fp16"),
        # TensorRT-RTX 1.7.1 cannot build transposed convolutions in bf16; one graph for both.
        "bf16": Recipe(tolerance=BF16_TOLERANCE, half="bf16", upsampling="shuffle"),
        "int8": Recipe(
            tolerance=INT8_TOLERANCE,
            half="fp16",
            int8=Int8(extra_tensors=("residual",)),  # a convolution's kernel adds it then
        ),
    },
    engine_suffix=".plan",
    build=functools.partial(build_engine, flavour="tensorrt"),
)
