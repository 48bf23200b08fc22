"""ONNX Runtime on the CPU: the file is float32, with int8 layers in int8."""

from __future__ import annotations

from export.targets.target import INT8_TOLERANCE, Int8, Recipe, Target

ONNXRUNTIME = Target(
    name="onnxruntime",
    opset=23,
    recipes={
        "fp32": Recipe(
            tolerance=(1e-4, 1e-4),
            group_norm="rows",
            attention="contrib",
            upsampling="four",
            winograd=True,
        ),
        "int8": Recipe(
            tolerance=INT8_TOLERANCE,
            # Without an int8 output it computes the layer in fp32. It turns int8 into uint8, but
            # not everywhere, and where the two meet the layer is fp32; a zero point costs it
            # nothing (docs/experiments.md).
            int8=Int8(extra_tensors=("output",), zero_points=True),
            # Version 1.23, the last for Python 3.10, has no kernel for QuantizeLinear of opset 23.
            opset=21,
            group_norm="rows",
            attention="contrib",
            upsampling="shuffle",
        ),
    },
    # On x86 its CPU provider would cast to float32 and back.
    fallback_precision={"fp16": "fp32", "bf16": "fp32"},
)
