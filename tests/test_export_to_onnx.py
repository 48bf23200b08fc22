"""The exporter's clean-up, with its slowest rule asked less often."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import onnx
import onnx_ir as ir
import pytest
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter.rules.common import slice_split_rule

from export.graph.to_onnx import quick_clean_up

HALVES = """<ir_version: 10, opset_import: ["" : 20]>
g (float[2,8] x) => (float[2,4] y)
<int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] last = {1}>
{
    b = Slice (x, four, eight, last)
    a = Slice (x, zero, four, last)
    c = Relu (a)
    y = Mul (c, b)
}
"""


@pytest.mark.parametrize("clean_up", [quick_clean_up, nullcontext])
def test_halves_become_one_split(clean_up: type[AbstractContextManager[None]]) -> None:
    model = ir.from_proto(onnx.parser.parse_model(HALVES))
    with clean_up():
        optimize_ir(model)
    assert [node.op_type for node in model.graph] == ["Split", "Relu", "Mul"]


def test_the_rule_is_asked_at_slices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    whole = type(slice_split_rule).try_rewrite

    def record(rule: object, model: ir.Model, graph: ir.Graph, node: ir.Node, **more: object):
        if rule is slice_split_rule:
            asked.append(node.op_type)
        return whole(rule, model, graph, node, **more)

    monkeypatch.setattr(type(slice_split_rule), "try_rewrite", record)
    for clean_up, expected in ((quick_clean_up, {"Slice"}), (nullcontext, {"Slice", "Relu"})):
        asked.clear()
        with clean_up():
            optimize_ir(ir.from_proto(onnx.parser.parse_model(HALVES)))
        assert {*asked} >= expected
        assert ("Relu" in asked) == ("Relu" in expected)
    assert "try_rewrite" not in vars(slice_split_rule), "nothing of it stays"
