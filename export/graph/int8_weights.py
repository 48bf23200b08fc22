"""Weights as int8: symmetric, one scale for each output channel.

w[c] ~ s[c] q[c]    s[c] = max |w[c]| / 127    q[c] = round(w[c] / s[c]), from -127 to 127

Beside int8 activations the scale is a little larger. x86 CPUs without VNNI multiply an activation,
shifted to 0 to 255, by a weight and add the next such product in 16 bits, which saturate from
32,768 on. Two neighbours that are together at most 128 stay below: 255 * 128 = 32,640. Those of
different signs do not add up, and rounding adds at most 1 to a pair:

s[c] = max (w[c,2i]+ + w[c,2i+1]+, w[c,2i]- + w[c,2i+1]-) / 127    w+ = max(w, 0)   w- = max(-w, 0)
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
    return _steps(np.abs(weight).max(others))


def safe_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Those of `channel_scales` [channels], so large that no pair of neighbours saturates 16 bits.
    Pairs are of input channels, which kernels put side by side.

    `axis` is 0 or 1; the other one of the two counts input channels.
    """
    inputs = np.moveaxis(weight, (axis, 1 - axis), (0, 1))
    peaks = np.zeros(len(inputs), np.float32)
    for one_sign in (np.maximum(inputs, 0), np.maximum(-inputs, 0)):
        even, odd = one_sign[:, ::2], one_sign[:, 1::2]
        even[:, : odd.shape[1]] += odd
        peaks = np.maximum(peaks, even.reshape(len(inputs), -1).max(1))
    return _steps(peaks)


def to_int8(weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """The nearest int8 to `weight` over the `scale` [channels] along `axis`."""
    shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
    rounded: NDArray[np.int8] = np.clip(
        np.rint(weight / scale.reshape(shape)), -LARGEST, LARGEST
    ).astype(np.int8)
    return rounded


def _steps(peaks: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(np.where(peaks > 0, peaks, LARGEST) / LARGEST, _SMALLEST).astype(np.float32)
