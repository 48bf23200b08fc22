"""The prompt is a constant, and so are the keys and values of every cross attention.

With K, V [N, C] of the N prompt tokens, head h, d channels to a head, and tokens x:

    out(x) = sum over h of softmax(((x Wq_h + bq_h) K_h^T) / sqrt(d)) V_h Wo_h + bo

K_h^T belongs to the query's matrix and Wo_h to the values, so that two small matrices do the work
of two square ones:

    A_h = Wq_h K_h^T / sqrt(d)      [C, N]         a_h = bq_h K_h^T / sqrt(d)
    U_h = V_h Wo_h                  [N, C]
    out(x) = sum over h of softmax(x A_h + a_h) U_h + bo

That takes 2 C N heads multiplications for each token, not 2 C^2 + 2 C N.

Two tokens, the empty prompt of the released checkpoints, leave one number to a head, since
softmax(l) = (s, 1 - s) with s = sigmoid(l_0 - l_1):

    out(x) = sum over h of sigmoid(x (A_h0 - A_h1) + a_h0 - a_h1) (U_h0 - U_h1) + U_h1 + bo

With many tokens and narrow heads the square matrices are the smaller ones; K and V are constants
there, and no more.
"""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from export.folds.linear import bias_of, new_linear, weight_of
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


class TwoTokenAttention(nn.Module):
    """Cross attention over two constant tokens; x [..., C]."""

    def __init__(self, query: nn.Linear, out: nn.Linear) -> None:
        super().__init__()
        self.query, self.out = query, out

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return self.out(torch.sigmoid(self.query(x)))


class FewTokenAttention(nn.Module):
    """Cross attention over N constant tokens as two matrices; x [..., C]."""

    def __init__(self, query: nn.Linear, out: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.query, self.out, self.tokens = query, out, tokens

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        logits = self.query(x)
        return self.out(logits.unflatten(-1, (-1, self.tokens)).softmax(dim=-1).flatten(-2))


class ConstantKeyAttention(nn.Module):
    """Cross attention with keys and values [1, heads, N, d] as constants; x [B, S, C], or [B S, C]
    with `batch` = B.
    """

    key: Tensor
    value: Tensor

    def __init__(self, query: nn.Linear, out: nn.Linear, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.query, self.out = query, out
        self.register_buffer("key", key)
        self.register_buffer("value", value)

    def forward(self, x: Tensor, batch: int | None = None, **_: object) -> Tensor:
        batch = len(x) if batch is None else batch
        query = self.query(x).reshape(batch, -1, *self.key.shape[1::2]).transpose(1, 2)
        key, value = (constant.expand(batch, -1, -1, -1) for constant in (self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Rewrite the cross attention of every transformer block of the UNets."""
    folded = Folded()
    for unet in module.unets.values():
        for block in unet.network.modules():
            if (
                isinstance(block, BasicTransformerBlock)
                and block.attn2 is not None
                and folded.accept(_refusal(block))
            ):
                block.attn2 = _constant(block.attn2, unet.prompt)
    return folded


def _refusal(block: BasicTransformerBlock) -> str | None:
    attention = block.attn2
    if block.only_cross_attention:
        return "the block's first attention reads the prompt too"
    if attention.norm_cross or attention.norm_q is not None or attention.norm_k is not None:
        return "keys or queries are normalised"
    if (
        attention.residual_connection
        or attention.rescale_output_factor != 1
        or attention.group_norm is not None
    ):
        return "the attention adds, rescales or normalises by itself"
    return None


def _constant(attention: Attention, prompt: Tensor) -> nn.Module:
    heads, dtype = attention.heads, attention.to_q.weight.dtype
    project = attention.to_out[0]
    tokens = prompt[0].double()
    key, value = (
        (tokens @ weight_of(part).T + bias_of(part)).unflatten(-1, (heads, -1)).transpose(0, 1)
        for part in (attention.to_k, attention.to_v)
    )  # [heads, N, d]
    if heads * len(tokens) >= attention.to_q.in_features + len(tokens):
        return ConstantKeyAttention(
            attention.to_q, project, key[None].to(dtype), value[None].to(dtype)
        )
    key = key * key.shape[-1] ** -0.5
    logits = key @ weight_of(attention.to_q).unflatten(0, (heads, -1))  # [heads, N, C]
    bias = (key @ bias_of(attention.to_q).view(heads, -1, 1))[..., 0]  # [heads, N]
    mixed = value @ weight_of(project).T.unflatten(0, (heads, -1))  # [heads, N, C]
    if len(tokens) == 2:
        return TwoTokenAttention(
            new_linear(logits[:, 0] - logits[:, 1], bias[:, 0] - bias[:, 1], dtype),
            new_linear((mixed[:, 0] - mixed[:, 1]).T, bias_of(project) + mixed[:, 1].sum(0), dtype),
        )
    query = new_linear(logits.flatten(0, 1), bias.flatten(), dtype)
    return FewTokenAttention(
        query, new_linear(mixed.flatten(0, 1).T, bias_of(project), dtype), len(tokens)
    )
