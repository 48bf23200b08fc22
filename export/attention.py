"""Attention as one operator over tokens [B, S, C], without the transpositions around it.

The exporter writes attention with its heads apart:

    q, k, v [B, S, C] -> Reshape [B, S, heads, d] -> Transpose [B, heads, S, d] -> Attention -> Transpose -> Reshape

ONNX's `Attention` (opset 23) takes [B, S, C] with the number of heads as well, and so does ONNX Runtime's own
`MultiHeadAttention`, whose CPU kernel works through the keys block by block and never stores the S x S matrix.
"""

from __future__ import annotations

import onnx_ir as ir

CONTRIB = "com.microsoft"


def join_heads(graph: ir.Graph, *, contrib: bool) -> int:
    """Rewrite every `Attention` whose heads are split and joined around it; with `contrib` to `MultiHeadAttention`.

    Attention over one head (the autoencoder's) is rewritten too. Returns how many were.
    """
    nodes = [node for node in graph if node.op_type == "Attention"]
    return sum(_rewrite(graph, node, contrib) for node in nodes)


def _rewrite(graph: ir.Graph, node: ir.Node, contrib: bool) -> bool:
    tokens = [_joined(value) for value in node.inputs]
    last = _only_user(node.outputs[0], "Transpose")
    if len(tokens) != 3 or None in tokens or last is None or list(last.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
        return False
    shape = node.inputs[0].shape
    assert shape is not None
    batch, heads, length, depth = (int(edge) for edge in shape)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else depth**-0.5
    if contrib:
        fused = ir.node("MultiHeadAttention", tokens, {"num_heads": heads, "scale": scale}, domain=CONTRIB)
        graph.opset_imports[CONTRIB] = 1
    else:
        fused = ir.node("Attention", tokens, {"q_num_heads": heads, "kv_num_heads": heads, "scale": scale})
    fused.name = node.name
    # The reshape behind, to [B, S, C] or [B S, C], stays and reads the tokens.
    ir.convenience.replace_nodes_and_values(graph, last, [last, node], [fused], [last.outputs[0]], fused.outputs)
    fused.outputs[0].shape = ir.Shape([batch, length, heads * depth])
    return True


def _joined(value: ir.Value | None) -> ir.Value | None:
    """The tokens [B, S, C] that were reshaped and transposed to `value` [B, heads, S, d]."""
    turn = value.producer() if value is not None else None
    if turn is None or turn.op_type != "Transpose" or list(turn.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
        return None
    split = turn.inputs[0].producer()
    if split is None or split.op_type != "Reshape" or split.inputs[0].shape is None:
        return None
    source = split.inputs[0]
    return source if len(source.shape) == 3 else None


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    users = [usage.node for usage in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None
