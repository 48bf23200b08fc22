"""The exporter's own clean-up of a traced graph, without the rules that these networks never meet.

Each rule is tried at each node, and one of the exporter's, which looks for halves of a tensor,
walks the whole graph each time: the square of its size.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewriteRule, rewrite
from onnxscript.rewriter.rules.common import (
    div_by_1_rule,
    fuse_pad_into_conv_rule,
    max_min_rule,
    mul_by_1_rule,
    reshape_reshape_rule,
    transpose_transpose_rule,
)

_RULES: list[RewriteRule] = [
    *mul_by_1_rule.commute(),
    div_by_1_rule,
    max_min_rule,  # to Clip
    reshape_reshape_rule,
    transpose_transpose_rule,
    fuse_pad_into_conv_rule,
]
_ROUNDS = 2  # what one round folds, the next may rewrite


def simplify(model: ir.Model) -> None:
    """Fold constants, apply the rules, and leave out what is unused or there twice, in place."""
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model, _RULES)
    for each in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        each(model)
