"""What a target and a recipe are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.errors import BuildError
from runtime.manifest import EngineInfo

BuildEngine = Callable[[Path, Path], EngineInfo]
"""Makes the engine (second path) of an ONNX file (first path; its weights lie beside it), and
describes it. May write more files beside the engine: all of them become part of the bundle. Raises
BackendMissingError or DeviceMissingError where it cannot work on this machine; then the engine is
left to the device."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
# Largest and mean absolute difference. In lower precision single pixels at edges may be far off,
# and the mean is what proves the engine.
FP16_TOLERANCE = (0.05, 0.005)
BF16_TOLERANCE = (0.4, 0.02)
INT8_TOLERANCE = (0.8, 0.05)


@dataclass(frozen=True, kw_only=True)
class Int8:
    """What is int8 in a graph: layers, with their inputs and weights, or `weights_only`.

    `extra_tensors` are rounded beside the inputs of layers ("output", "residual": see
    export/quantize/layers.py). With `zero_points` activations are uint8 with a zero point, else
    int8 around 0 (export/graph/qdq.py).
    """

    weights_only: bool = False
    extra_tensors: tuple[str, ...] = ()
    zero_points: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a target builds in one precision; the defaults leave the graph as it is traced.

    `tolerance`: the largest and the mean absolute difference from the PyTorch reference that the
        golden may show.
    `half`: the type of weights and activations in the file, "fp16" or "bf16"; None is float32.
    `stored`: the type of the weights of products and convolutions in a file that is float32
        otherwise: the one in which the target computes with them (export/graph/stored.py).
    `int8`: what is int8 in it.
    `group_norm`, `attention`, `upsampling`: forms of operators, of export/graph/group_norm.py,
        export/graph/attention.py and export/folds/subpixel.py; `python -m benchmarks.forms`
        measures them.
    `decodes_batched`: whether the latents of several tasks are decoded as one batch, not in turn.
    `opset`: that of the file, where it is older than the one that the network is traced at. What
        is left of the graph means the same in both, and older libraries have kernels for it.
    `winograd`: whether wide convolutions are faster and exact enough by export/folds/winograd.py.
    """

    tolerance: tuple[float, float]
    half: str | None = None
    stored: str | None = None
    int8: Int8 | None = None
    group_norm: str = "kernel"
    attention: str = "split"
    upsampling: str = "transposed"
    winograd: bool = False
    decodes_batched: bool = False
    opset: int | None = None

    @property
    def quantizes_layers(self) -> bool:
        """Whether layers have int8 inputs and weights, for which ranges are calibrated."""
        return self.int8 is not None and not self.int8.weights_only

    @property
    def graph_types(self) -> str:
        """The types in the file, in words: two targets of the same types can share a graph."""
        types = self.half or "float32"
        if self.stored is not None:
            types += f" with weights stored as {self.stored}"
        if self.int8 is None:
            return types
        return f"{types} with int8 {'weights' if self.int8.weights_only else 'layers'}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place where bundles run.

    `name` is also the name of the runtime's backend. `opset` is the default ONNX opset. `recipes`
    are by precision. `fallback_precision` says what is built for a precision without kernels
    there. `engine_suffix` and `build` are set where a vendor's builder makes an engine of the
    graph. `stand_ins` are backends that run the golden where the target's own cannot.
    """

    name: str
    opset: int
    recipes: Mapping[str, Recipe]
    fallback_precision: Mapping[str, str] = field(default_factory=dict)
    engine_suffix: str | None = None
    build: BuildEngine | None = None
    stand_ins: tuple[str, ...] = ("onnxruntime",)

    def recipe(self, precision: str) -> Recipe:
        """The recipe of a precision. Raises: BuildError where the target has none."""
        if precision not in self.recipes:
            raise BuildError(
                f"target {self.name!r} has no precision {precision!r}; it has "
                f"{sorted(self.recipes)}"
            )
        return self.recipes[precision]
