"""The clean-up of a traced graph against the exporter's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import pytest
from onnxscript.optimizer import optimize_ir

from export.graph import to_onnx
from export.graph.simplify import simplify

if TYPE_CHECKING:
    from export.network.single_pass import SinglePass

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("opset", [20, 23])
def test_a_graph_is_as_the_exporter_would_leave_it(
    folded: SinglePass, monkeypatch: pytest.MonkeyPatch, opset: int
) -> None:
    """At a size whose latent has an odd side, so that each kind of padding occurs."""
    left: list[ir.Model] = []

    def both(model: ir.Model) -> None:
        theirs = model.clone()
        simplify(model)
        optimize_ir(theirs)
        left.append(theirs)
        for node in (*model.graph, *theirs.graph):
            node.name = ""  # counted over all models; ours are named afterwards
        assert ir.to_proto(model) == ir.to_proto(theirs)

    monkeypatch.setattr(to_onnx, "simplify", both)
    to_onnx.trace(folded, {"image": (1, 3, 64, 104)}, opset)
    assert len(left) == 1
