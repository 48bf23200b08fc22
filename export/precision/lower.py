"""A traced graph in the precision of its bundle, for the targets whose file carries it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir
from torch import Tensor
from torch.export import ExportedProgram

from export.precision.half import HALVES, to_half
from export.precision.overflow import measure, wide_nodes
from export.precision.weight_only import weights_to_int8
from export.targets import TARGETS
from runtime.manifest import Manifest

_ACTIVATIONS = {"int8": "fp16"}  # around int8 layers and of int8 weights


def lower(
    graph: ir.Graph,
    program: ExportedProgram,
    manifest: Manifest,
    feeds: Iterable[tuple[Tensor, ...]],
    progress: Callable[[str], None],
) -> None:
    """Rewrite `graph`, traced from `program`, to the manifest's precision; `feeds` are the calibration's inputs.

    Int8 layers, where it has any, are in it already; their scales become half too.
    """
    half = HALVES[_ACTIVATIONS.get(manifest.precision, manifest.precision)]
    wide = wide_nodes(graph, measure(program, half, feeds, progress), half)
    casts = to_half(graph, half, wide)
    names = f": {', '.join(str(node.name) for node in wide)}" if wide else ""
    progress(f"{half.name.lower()} graph, {casts} casts, {len(wide)} operators in float32 for their range{names}")
    if TARGETS[manifest.target].forms[manifest.precision] == "half-weights":
        progress(f"int8 weights in {weights_to_int8(graph)} operators")
