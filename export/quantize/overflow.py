"""What every operator of the network answers on calibration images: its largest value, and what a
half type loses.

The traced PyTorch program is interpreted in float32, one operator at a time. Operators that float16
cannot hold stay in float32 (half.py): found by measurement, not by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from export.progress import track

_MARGIN = 4.0  # other pictures may reach further than the calibration's
_LARGEST_LOSS = 2.0  # times the type's epsilon; rounding alone loses at most half of one
_DTYPES = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Of one operator: `peak` is the largest |x| of its answer, or of attention's scores; `loss`
    the relative error (norm of the difference by the norm) of its answer in the half type, more
    than rounding where values underflow.
    """

    peak: float = 0.0
    loss: float = 0.0


def measure(
    program: ExportedProgram,
    half: ir.DataType,
    feeds: Iterable[tuple[Tensor, ...]],
    images: int | None = None,
) -> dict[str, Magnitude]:
    """The largest magnitudes over `feeds`, of that many `images`, of every operator of the program
    that answers a float tensor, by its name.
    """
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    meter = _Meter(module, _DTYPES[half])
    with torch.no_grad():
        for inputs in track(feeds, "magnitudes of calibration images", images):
            meter.run(*inputs)
    return meter.magnitudes


def fp32_nodes(
    graph: ir.Graph,
    operators: Mapping[ir.Node, str],
    magnitudes: Mapping[str, Magnitude],
    half: ir.DataType,
) -> list[ir.Node]:
    """The nodes that must stay float32: an answer, an operand or a weight that `half` cannot hold.

    `operators` names the operator of the program that a node stands for.
    """
    limits = torch.finfo(_DTYPES[half])
    bad = {
        name
        for name, seen in magnitudes.items()
        if seen.peak * _MARGIN > limits.max or seen.loss > _LARGEST_LOSS * limits.eps
    }
    large = {value for value in graph.initializers.values() if _peak_of(value) > limits.max}
    for node in graph:
        name = operators.get(node, "")
        # What was not measured only moves values: views, and the Split that the exporter makes of
        # several answers.
        if name in bad or (name not in magnitudes and not large.isdisjoint(node.inputs)):
            large.update(node.outputs)
    return [node for node in graph if not large.isdisjoint((*node.inputs, *node.outputs))]


def _peak_of(value: ir.Value) -> float:
    if value.dtype != ir.DataType.FLOAT or value.const_value is None or value.const_value.size == 0:
        return 0.0
    return _peak(torch.from_numpy(value.const_value.numpy()))


class _Meter(fx.Interpreter):
    """Runs a program and keeps the largest magnitudes of each node."""

    def __init__(self, module: fx.GraphModule, half: torch.dtype) -> None:
        super().__init__(module)
        self.magnitudes: dict[str, Magnitude] = {}
        self._half = half

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n.op == "call_function" and _is_new(output):
            seen = self.magnitudes.get(n.name, Magnitude())
            peak = _peak(output)
            if n.target is torch.ops.aten.scaled_dot_product_attention.default:
                queries, keys, *_ = self.fetch_args_kwargs_from_env(n)[0]
                scores = max(_peak(q @ k.mT) for q, k in zip(queries[0], keys[0], strict=True))
                peak = max(peak, scores * self._scale(n, queries))
            self.magnitudes[n.name] = Magnitude(
                peak=max(seen.peak, peak), loss=max(seen.loss, self._loss(output))
            )
        return output

    def _scale(self, node: fx.Node, queries: Tensor) -> float:
        scale = node.kwargs.get("scale")
        return scale if isinstance(scale, float) else float(queries.shape[-1] ** -0.5)

    def _loss(self, x: Tensor) -> float:
        norm = float(x.norm())
        return float(x.to(self._half).to(x.dtype).sub_(x).norm()) / norm if norm > 0 else 0.0


def _is_new(output: Any) -> bool:
    """Values that an operator computed, and no view of another's."""
    return (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and output.numel() > 0
        and not output._is_view()
    )


def _peak(x: Tensor) -> float:
    low, high = torch.aminmax(x)
    return max(float(high), -float(low))
