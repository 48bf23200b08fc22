"""What this machine reaches at most: the rate of one large matrix product, by type."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.backends import BACKENDS
from runtime.backends.session import import_vendor
from runtime.errors import BackendMissingError

EDGE = 3072
SLOW_GFLOPS = 5.0
"""Below this rate a machine has no instructions for the type."""


def product_rates() -> dict[str, float]:
    """GFLOP/s now: the median of five products of EDGE x EDGE, on the GPU where there is one; of
    one smaller product where the machine has no instructions for the type, which takes minutes.
    float32 and bfloat16 are PyTorch's. int8 is ONNX Runtime's on the CPU, and left out without it;
    two operations there are a product and a sum.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def product_of(dtype: torch.dtype, edge: int) -> Callable[[], Any]:
        left, right = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
        return lambda: float((left @ right)[0, 0])  # reading a value waits for a GPU

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        small = _rate(product_of(dtype, EDGE // 8), EDGE // 8, times=3)
        slow = small < SLOW_GFLOPS
        rates[str(dtype).removeprefix("torch.")] = (
            small if slow else _rate(product_of(dtype, EDGE), EDGE)
        )
    with contextlib.suppress(ImportError, BackendMissingError):
        rates["int8"] = _rate(int8_product(EDGE), EDGE)
    return rates


def _rate(product: Callable[[], Any], edge: int, *, times: int = 5) -> float:
    """GFLOP/s in the median; the first one is not counted."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * edge**3 / statistics.median(seconds[1:]) / 1e9


def int8_product(edge: int) -> Callable[[], Any]:
    """One product of uint8 by int8, edge x edge both, by ONNX Runtime on the CPU, as int8 networks
    have it.

    Raises: ImportError without onnx, BackendMissingError without onnxruntime.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    left = random.integers(0, 255, (edge, edge)).astype(np.uint8)
    right = random.integers(-63, 63, (edge, edge)).astype(np.int8)
    shape = [edge, edge]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["sums"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, shape)],
        [numpy_helper.from_array(right, "right")],
    )
    opset = helper.make_opsetid("", 17)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnxruntime = import_vendor(BACKENDS["onnxruntime"])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"left": left})
