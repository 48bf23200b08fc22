"""What each target needs, as data: ONNX opset, tolerance of the golden, suffix of a built engine."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place where bundles run.

    `opset` is the default ONNX opset; `group_norm` names a form of export/group_norm.py by precision, where the
    target's own kernel is missing or slow; `attention` one of export/attention.py's, for the operator that it runs
    fastest, and `upsampling` one of export/folds/subpixel.py's, both chosen by `benchmarks.forms`;
    `winograd` are the precisions in which export/folds/winograd.py is faster and exact enough;
    `tolerance` are the largest and the mean absolute difference from the PyTorch reference that the golden may show,
    by precision: in bf16 and int8 single pixels at edges may be far off, and the mean is what proves the engine;
    `forms` says what the graph in the file is, by precision: "float" (all of it float32) or "half", alone, with int8
    layers ("-qdq") or with int8 weights ("-weights"), see export/precision/; `int8_beside` are the tensors it wants
    in int8 beside the layers' inputs (export/precision/layers.py), `int8_affine` whether activations are uint8 with a
    zero point, else int8 around 0 (export/precision/qdq.py); `instead` is what is built for a precision without kernels
    there; `engine_suffix` is set where a vendor's builder turns the graph into an engine.
    """

    opset: int
    group_norm: dict[str, str] = field(default_factory=dict)
    attention: dict[str, str] = field(default_factory=dict)
    upsampling: dict[str, str]
    winograd: tuple[str, ...] = ()
    tolerance: dict[str, tuple[float, float]]
    forms: dict[str, str]
    int8_beside: tuple[str, ...] = ()
    int8_affine: bool = False
    instead: dict[str, str] = field(default_factory=dict)
    engine_suffix: str | None = None

    def typed(self, precision: str) -> bool:
        """Whether the graph in the file has half types, which ONNX Runtime's CPU does not round to."""
        return self.forms[precision].startswith("half")

    def int8_layers(self, precision: str) -> bool:
        """Whether layers of the graph in the file have int8 inputs and weights."""
        return self.forms[precision].endswith("-qdq")


_FP16 = (0.05, 0.005)
_BF16 = (0.4, 0.02)
_INT8 = (0.8, 0.05)
# TensorRT-RTX 1.7.1 cannot build transposed convolutions in bf16.
_TENSORRT_UPSAMPLING = dict.fromkeys(("fp32", "fp16", "int8"), "transposed") | {"bf16": "shuffle"}

# The name of a target is also the name of the runtime's backend. TensorRT 10.3 (JetPack 6) documents opset 20;
# TensorRT-RTX, ONNX Runtime and OpenVINO keep the fused operators of opset 23.
TARGETS = {
    "onnxruntime": Target(
        opset=23,
        group_norm={"fp32": "rows", "int8": "rows"},
        attention={"fp32": "contrib", "int8": "contrib"},
        upsampling={"fp32": "four", "int8": "shuffle"},
        winograd=("fp32",),
        tolerance={"fp32": (1e-4, 1e-4), "int8": _INT8},
        forms={"fp32": "float", "int8": "float-qdq"},
        int8_beside=("output",),  # otherwise it computes the layer in fp32
        # It turns int8 into uint8, but not everywhere, and where the two meet the layer is fp32. A zero point costs it
        # nothing; OpenVINO's convolutions take up to a third longer with one (benchmarks/NOTES.md).
        int8_affine=True,
        instead={"fp16": "fp32", "bf16": "fp32"},  # on x86 its CPU provider would cast to float32 and back
    ),
    "openvino": Target(
        opset=23,
        group_norm={"bf16": "channels", "int8": "channels"},  # in fp32 convolutions take the plain layout too
        attention={"fp32": "joined", "bf16": "blocks", "int8": "blocks"},
        upsampling={"fp32": "transposed", "bf16": "shuffle", "int8": "clipped"},
        winograd=("fp32",),
        tolerance={"fp32": (1e-3, 1e-3), "bf16": _BF16, "int8": _INT8},
        forms={"fp32": "float", "bf16": "float", "int8": "float-qdq"},  # bf16 is a hint to its compiler
    ),
    "tensorrt": Target(
        opset=20,
        upsampling=_TENSORRT_UPSAMPLING,
        tolerance={"fp32": (1e-3, 1e-3), "fp16": _FP16, "bf16": _BF16, "int8": _INT8},
        forms={"fp32": "float", "fp16": "half", "bf16": "half", "int8": "half-qdq"},
        int8_beside=("residual",),  # a convolution's kernel adds it in the same pass then
        engine_suffix=".plan",
    ),
    "tensorrt-rtx": Target(
        opset=23,
        upsampling=_TENSORRT_UPSAMPLING,
        tolerance={"fp32": (1e-3, 1e-3), "fp16": _FP16, "bf16": _BF16, "int8": _INT8},
        forms={"fp32": "float", "fp16": "half", "bf16": "half", "int8": "half-weights"},
        engine_suffix=".rtx",
    ),
}
