"""Attention in the form that a target runs fastest.

"split" is what the exporter writes. "contrib" and "joined" are one operator over tokens [B, S, C],
without the transpositions around it. The exporter writes attention with its heads apart:

    q, k, v [B, S, C] -> Reshape [B, S, heads, d] -> Transpose [B, heads, S, d] -> Attention
                      -> Transpose -> Reshape

ONNX's `Attention` (opset 23) takes [B, S, C] with the number of heads as well, and so does ONNX
Runtime's own `MultiHeadAttention`, whose CPU kernel works through the keys block by block and never
stores the S x S matrix.

"blocks": joined, but over wide heads and from 8,192 keys on a block of queries q at a time is
multiplied with all keys, as large products, and nothing larger than a block's scores is kept.
OpenVINO's kernel reads all keys and values again for every few queries, and waits for memory where
they leave the cache: the autoencoder's, of one wide head, beyond 4,096 keys. Over the UNet's narrow
heads the kernel is faster (docs/experiments.md has both):

    m = max q K^T        p = exp([q, -m] [K, 1]^T)        y = (p V) / sum p

In bf16 every operator's answer is rounded, and scores of 100 to halves: exp(q K^T - m) would be up
to 3 times as far off as the kernel, which rounds none. The second product takes m off while it sums
in float32. What matters is near 0 then and rounded finely, and m itself, which cancels out, need
not be exact: up to scores of 20,000 its rounding leaves exp within range. The division comes last,
of [block, d] elements. No softmax is left that OpenVINO could find and fuse back into its kernel.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from export.graph.node_writer import NodeWriter
from export.graph.shapes import static_shape

CONTRIB = "com.microsoft"
_LONG = 8192  # keys
_WIDE = 256  # channels of a head
_BLOCK = 512  # queries
FORMS = ("split", "contrib", "joined", "blocks")


def write_attention(graph: ir.Graph, form: str) -> None:
    """Rewrite every `Attention` of the exporter's in one of FORMS. Raises: ValueError for
    another.
    """
    if form not in FORMS:
        raise ValueError(f"attention has the forms {FORMS}, not {form!r}")
    if form == "blocks":
        split_queries(graph, _LONG, _WIDE)
    if form != "split":
        join_heads(graph, contrib=form == "contrib")


def split_queries(graph: ir.Graph, fewest: int, narrowest: int = 0) -> int:
    """Spell out every `Attention` over `fewest` keys or more of `narrowest` channels or more, a
    block of queries at a time. Returns how many were.
    """
    attentions = [node for node in graph if node.op_type == "Attention" and len(node.inputs) == 3]
    nodes = []
    for node in attentions:
        length, depth = static_shape(node.inputs[1])[2:]
        if length >= fewest and depth >= narrowest:
            nodes.append(node)
    for node in nodes:
        writer = NodeWriter(graph, node.name or "")
        y = _by_blocks(writer, node)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], writer.nodes, [node.outputs[0]], [y]
        )
    return len(nodes)


def _by_blocks(writer: NodeWriter, node: ir.Node) -> ir.Value:
    add, constant, (q, k, v) = writer.add, writer.constant, node.inputs
    length, depth = static_shape(q)[2:]
    last, unit = constant(np.array([-1])), constant(np.array(1, np.float32))
    scale = constant(np.array(_scale(node, depth), np.float32))
    keys = add("Transpose", k, perm=[0, 1, 3, 2])
    keys_and_ones = add("Pad", keys, constant(np.array([0, 0, 0, 0, 0, 0, 1, 0])), unit)
    blocks = math.ceil(length / _BLOCK)
    answers = []
    for block in writer.add_many("Split", blocks, add("Mul", q, scale), axis=2, num_outputs=blocks):
        largest = add("ReduceMax", add("MatMul", block, keys), last, keepdims=1)
        shifted = add("Concat", block, add("Neg", largest), axis=3)
        shares = add("Exp", add("MatMul", shifted, keys_and_ones))
        answers.append(
            add("Div", add("MatMul", shares, v), add("ReduceSum", shares, last, keepdims=1))
        )
    return add("Concat", *answers, axis=2)


def _scale(node: ir.Node, depth: int) -> float:
    return node.attributes["scale"].as_float() if "scale" in node.attributes else depth**-0.5


def join_heads(graph: ir.Graph, *, contrib: bool) -> int:
    """Rewrite every `Attention` whose heads are split and joined around it; with `contrib` to
    `MultiHeadAttention`.

    Attention over one head (the autoencoder's) is rewritten too. Returns how many were.
    """
    nodes = [node for node in graph if node.op_type == "Attention"]
    return sum(_rewrite(graph, node, contrib) for node in nodes)


def _rewrite(graph: ir.Graph, node: ir.Node, contrib: bool) -> bool:
    tokens = [_joined(value) for value in node.inputs]
    last = _only_user(node.outputs[0], "Transpose")
    if (
        len(tokens) != 3
        or None in tokens
        or last is None
        or list(last.attributes["perm"].as_ints()) != [0, 2, 1, 3]
    ):
        return False
    batch, heads, length, depth = static_shape(node.inputs[0])
    scale = _scale(node, depth)
    if contrib:
        fused = ir.node(
            "MultiHeadAttention", tokens, {"num_heads": heads, "scale": scale}, domain=CONTRIB
        )
        graph.opset_imports[CONTRIB] = 1
    else:
        fused = ir.node(
            "Attention", tokens, {"q_num_heads": heads, "kv_num_heads": heads, "scale": scale}
        )
    fused.name = node.name
    # The reshape behind, to [B, S, C] or [B S, C], stays and reads the tokens.
    ir.convenience.replace_nodes_and_values(
        graph, last, [last, node], [fused], [last.outputs[0]], fused.outputs
    )
    fused.outputs[0].shape = ir.Shape([batch, length, heads * depth])
    return True


def _joined(value: ir.Value | None) -> ir.Value | None:
    """The tokens [B, S, C] that were reshaped and transposed to `value` [B, heads, S, d]."""
    turn = value.producer() if value is not None else None
    if (
        turn is None
        or turn.op_type != "Transpose"
        or list(turn.attributes["perm"].as_ints()) != [0, 2, 1, 3]
    ):
        return None
    split = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    source = split.inputs[0] if split is not None and split.op_type == "Reshape" else None
    if source is None or source.shape is None:
        return None
    return source if len(source.shape) == 3 else None


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    users = [usage.node for usage in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None
