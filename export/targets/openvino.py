"""OpenVINO on the CPU: the file is float32, with int8 layers in int8; bf16 is a hint to its
compiler, see runtime/backends/openvino.py. It rounds weights then, so that they are stored rounded.
"""

from __future__ import annotations

from export.targets.target import BF16_TOLERANCE, INT8_TOLERANCE, Int8, Recipe, Target

OPENVINO = Target(
    name="openvino",
    opset=23,
    recipes={
        # In fp32 its convolutions take the plain layout too, as its group norm does.
        "fp32": Recipe(tolerance=(1e-3, 1e-3), attention="joined", winograd=True),
        "bf16": Recipe(
            tolerance=BF16_TOLERANCE,
            stored="bf16",
            group_norm="channels",
            attention="blocks",
            upsampling="shuffle",
        ),
        "int8": Recipe(
            tolerance=INT8_TOLERANCE,
            int8=Int8(),  # its convolutions take up to a third longer with zero points
            group_norm="channels",
            attention="blocks",
            upsampling="clipped",
        ),
    },
)
