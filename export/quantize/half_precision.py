"""A traced graph in float16 or bfloat16, but for what the type cannot hold."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from export.graph.half import HALVES, to_half
from export.graph.to_onnx import Traced
from export.progress import say
from export.quantize.overflow import fp32_nodes, measure


def to_half_precision(
    traced: Traced, precision: str, feeds: Iterable[tuple[Tensor, ...]], images: int
) -> None:
    """Rewrite the graph in place to `precision`, "fp16" or "bf16".

    `feeds` are the inputs of the calibration's `images`. Int8 layers, where the graph has any,
    stay; their scales become half too.
    """
    half, graph = HALVES[precision], traced.model.graph
    magnitudes = measure(traced.program, half, feeds, images)
    kept = fp32_nodes(graph, traced.operators, magnitudes, half)
    casts = to_half(graph, half, kept)
    names = f": {', '.join(str(node.name) for node in kept)}" if kept else ""
    say(
        f"{half.name.lower()} graph, {casts} casts, {len(kept)} operators in float32 for their "
        f"range{names}"
    )
