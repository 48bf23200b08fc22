"""Linear maps of one input are one matrix, and what is linear before them moves into it.

    self attention   q, k, v = x Wq, x Wk, x Wv    =  x [Wq Wk Wv]
    layer norm       (n * g + b) W + c             =  n (diag(g) W) + (b W + c)

n has mean 0 and variance 1.

The norm's scale and shift go into the projections that follow: the three of self attention, the
query of cross attention, the first of the feed-forward network.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from export.folds.linear import bias_of, new_linear, set_affine, weight_of
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


class SelfAttention(nn.Module):
    """Self attention with one matrix for queries, keys and values; x [B, S, C], or [B S, C] with
    `batch` = B.
    """

    def __init__(self, project: nn.Linear, out: nn.Linear, heads: int) -> None:
        super().__init__()
        self.project, self.out, self.heads = project, out, heads

    def forward(self, x: Tensor, batch: int | None = None, **_: object) -> Tensor:
        projected = self.project(x)
        if batch is not None:
            projected = projected.unflatten(0, (batch, -1))
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in projected.chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.out(mixed.reshape(*x.shape[:-1], -1))


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Rewrite every transformer block of the UNets."""
    folded = Folded()
    for block in module.unet.modules():
        if isinstance(block, BasicTransformerBlock) and folded.accept(_refusal(block)):
            block.attn1 = _merge(block.attn1)
            for norm, layer in _norms(block):
                _absorb(norm, layer)
    return folded


def _refusal(block: BasicTransformerBlock) -> str | None:
    attention = block.attn1
    if block.norm_type != "layer_norm" or block.only_cross_attention or block.pos_embed is not None:
        return f"its norms are {block.norm_type!r}, or its attention reads more than its input"
    if (
        attention.norm_q is not None
        or attention.group_norm is not None
        or attention.residual_connection
    ):
        return "its attention normalises or adds by itself"
    if not hasattr(block.attn2, "query"):
        return "its cross attention was not folded"
    return None


def _merge(attention: Any) -> SelfAttention:
    parts = (attention.to_q, attention.to_k, attention.to_v)
    weight = torch.cat([weight_of(part) for part in parts])
    bias = torch.cat([bias_of(part) for part in parts])
    return SelfAttention(
        new_linear(weight, bias, attention.to_q.weight.dtype), attention.to_out[0], attention.heads
    )


def _norms(block: BasicTransformerBlock) -> list[tuple[nn.LayerNorm, nn.Linear]]:
    return [
        (block.norm1, block.attn1.project),
        (block.norm2, block.attn2.query),
        (block.norm3, block.ff.net[0].proj),
    ]


def _absorb(norm: nn.LayerNorm, layer: nn.Linear) -> None:
    weight = weight_of(layer)
    shift = weight @ bias_of(norm) + bias_of(layer)
    set_affine(layer, weight * weight_of(norm), shift)
    norm.register_parameter("weight", None)
    norm.register_parameter("bias", None)
    norm.elementwise_affine = False
