"""The graphs of a bundle: one small file for each bucket, all over one file of weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.bundle.costs import read_costs
from export.errors import BuildError
from export.graph.attention import write_attention
from export.graph.group_norm import spell_out_group_norm
from export.graph.half import HALVES
from export.graph.qdq import quantize
from export.graph.stored import store_weights
from export.graph.to_onnx import Traced, trace
from export.graph.weight_file import WEIGHTS, WeightFile
from export.graph.weight_only import weights_to_int8
from export.network.single_pass import SinglePass
from export.plan import Plan
from export.progress import say
from export.quantize.half_precision import to_half_precision
from export.quantize.layers import Ranges
from runtime.manifest import Bucket, Memory


def write_graphs(
    network: SinglePass, plan: Plan, stage: Path, ranges: Ranges
) -> tuple[Memory, int]:
    """Write the graph of each bucket, and `model.onnx.data` for all, into the folder `stage`, and
    return what decides how much memory they take, and their ONNX opset (of several, the newest).

    The layers of `ranges` become int8. Raises: BuildError when the exporter or the ONNX checker
    refuses; OSError.
    """
    with (stage / WEIGHTS).open("wb") as stream:
        weights, opsets = WeightFile(stream), []
        for bucket in plan.buckets:
            say(f"tracing the {bucket} graph (ONNX opset {plan.traced_opset})")
            traced = trace(network, plan.input_shapes(bucket), plan.traced_opset)
            _rewrite(traced, plan, bucket, ranges)
            opsets.append(_declare_opset(traced.model.graph, plan))
            weights.externalise(traced.model.graph)
            ir.save(traced.model, stage / bucket.graph)
            del traced
    for bucket in plan.buckets:
        try:
            onnx.checker.check_model(str(stage / bucket.graph))
        except onnx.checker.ValidationError as error:
            raise BuildError(f"the ONNX checker refuses the {bucket} graph: {error}") from error
    memory = Memory(
        weights=dict(weights.bytes_by_type),
        activations={
            str(bucket): read_costs(stage / bucket.graph)["all"].peak for bucket in plan.buckets
        },
    )
    return memory, max(opsets)


def _rewrite(traced: Traced, plan: Plan, bucket: Bucket, ranges: Ranges) -> None:
    """The traced graph by the plan's recipe: forms of operators, then types."""
    graph, recipe = traced.model.graph, plan.recipe
    spell_out_group_norm(graph, recipe.group_norm)
    write_attention(graph, recipe.attention)
    quantize(graph, ranges, unsigned=recipe.int8 is not None and recipe.int8.zero_points)
    if recipe.half is not None:
        feeds = plan.calibration.feeds(plan, bucket)
        to_half_precision(traced, recipe.half, feeds, plan.calibration.batches(bucket))
    if recipe.int8 is not None and recipe.int8.weights_only:
        say(f"int8 weights in {weights_to_int8(graph)} operators")
    if recipe.stored is not None:
        store_weights(graph, HALVES[recipe.stored])
    RemoveUnusedNodesPass()(traced.model)


def _declare_opset(graph: ir.Graph, plan: Plan) -> int:
    """Let the file be of the plan's opset, where that has all of its operators, and return which
    it is of. Without folds, attention over a constant prompt needs the one that is traced.
    """
    own = [node for node in graph if not node.domain]
    fits = all(
        onnx.defs.has(node.op_type, plan.opset)
        and {*node.attributes} <= {*onnx.defs.get_schema(node.op_type, plan.opset).attributes}
        for node in own
    )
    graph.opset_imports[""] = opset = plan.opset if fits else plan.traced_opset
    return opset
