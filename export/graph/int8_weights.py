"""Weights as int8: symmetric, one scale for each output channel.

w[c] ~ s[c] q[c]    s[c] = max |w[c]| / 127    q[c] = round(w[c] / s[c]), from -127 to 127
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

LARGEST = 127
FEWEST_CHANNELS = 16
"""TensorRT has no int8 kernel for narrower convolutions; they are a thousandth of the work, and
reach the whole map.
"""

_SMALLEST = 2.0**-24  # of float16
_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def output_axis(node: ir.Node) -> int | None:
    """The axis of the second operand that counts output channels; None for an operator without
    weights.
    """
    if (
        node.op_type == "Gemm"
        and "transB" in node.attributes
        and node.attributes["transB"].as_int()
    ):
        return 0
    return _OUTPUT_AXIS.get(node.op_type)


def channel_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The scale of each slice along `axis`, [channels], at least float16's smallest; a slice of
    zeros has scale 1.
    """
    others = tuple(dimension for dimension in range(weight.ndim) if dimension != axis)
    peaks = np.abs(weight).max(others)
    return np.maximum(np.where(peaks > 0, peaks, LARGEST) / LARGEST, _SMALLEST).astype(np.float32)


def to_int8(weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """The nearest int8 to `weight` over the `scale` [channels] along `axis`."""
    shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
    rounded: NDArray[np.int8] = np.clip(
        np.rint(weight / scale.reshape(shape)), -LARGEST, LARGEST
    ).astype(np.int8)
    return rounded
