"""What each target needs, as data: ONNX opset, tolerance of the golden, suffix of a built engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place where bundles run.

    `opset` is the default ONNX opset; `group_norm_kernel` says whether the target runs `GroupNormalization` itself;
    `attention` is the operator it runs fastest, "split" for heads split by the graph (see export/attention.py);
    `upsampling` one of export/folds/subpixel.py's forms by precision, the fastest in `benchmarks.upsampling`;
    `winograd` are the precisions in which export/folds/winograd.py is faster and exact enough;
    `tolerance` are the largest and the mean absolute difference from the PyTorch reference that the golden may show,
    by precision: in bf16 and int8 single pixels at edges may be far off, and the mean is what proves the engine;
    `engine_suffix` is set where a vendor's builder turns the graph into an engine.
    """

    opset: int
    group_norm_kernel: bool = True
    attention: str = "split"
    upsampling: dict[str, str]
    winograd: tuple[str, ...] = ()
    tolerance: dict[str, tuple[float, float]]
    engine_suffix: str | None = None


_BF16 = (0.4, 0.02)
_INT8 = (0.8, 0.05)

# The name of a target is also the name of the runtime's backend. TensorRT 10.3 (JetPack 6) documents opset 20;
# TensorRT-RTX, ONNX Runtime and OpenVINO keep the fused operators of opset 23.
TARGETS = {
    "onnxruntime": Target(
        opset=23,
        group_norm_kernel=False,
        attention="contrib",
        upsampling={"fp32": "shuffle", "int8": "shuffle"},
        winograd=("fp32",),
        tolerance={"fp32": (1e-4, 1e-4), "int8": _INT8},
    ),
    "openvino": Target(
        opset=23,
        attention="joined",
        upsampling={"fp32": "transposed", "bf16": "shuffle", "int8": "shuffle"},
        winograd=("fp32",),
        tolerance={"fp32": (1e-3, 1e-3), "bf16": _BF16, "int8": _INT8},
    ),
    "tensorrt": Target(
        opset=20, upsampling={"fp32": "transposed"}, tolerance={"fp32": (1e-3, 1e-3)}, engine_suffix=".plan"
    ),
    "tensorrt-rtx": Target(
        opset=23, upsampling={"fp32": "transposed"}, tolerance={"fp32": (1e-3, 1e-3)}, engine_suffix=".rtx"
    ),
}
