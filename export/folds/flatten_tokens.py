"""Tokens stay one matrix [B S, C] from the transformer's first linear layer to its last.

diffusers keeps [B, S, C], which exports each linear layer as a batched product and an addition; a
matrix exports as one `Gemm` with its bias. Nothing is computed differently. Attention alone sees
the images of a batch apart.
"""

from __future__ import annotations

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from export.folds.fuse_qkv_and_norms import SelfAttention
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


class LeanTransformer(nn.Module):
    """Transformer2DModel of folded blocks; x [B, C, H, W], answered in the one-tuple that its
    caller unpacks.
    """

    def __init__(self, plain: Transformer2DModel) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = plain.norm, plain.proj_in, plain.proj_out
        self.blocks = nn.ModuleList(LeanBlock(block) for block in plain.transformer_blocks)

    def forward(self, x: Tensor, **_: object) -> tuple[Tensor]:
        batch, channels, height, width = x.shape
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(-1, channels))
        for block in self.blocks:
            tokens = block(tokens, batch)
        return (
            self.proj_out(tokens).reshape(batch, height, width, channels).permute(0, 3, 1, 2) + x,
        )


class LeanBlock(nn.Module):
    """Self attention, cross attention and feed-forward network on tokens [B S, C]."""

    def __init__(self, plain: BasicTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn1 = plain.norm1, plain.attn1
        self.norm2, self.attn2 = plain.norm2, plain.attn2
        self.norm3, self.ff = plain.norm3, plain.ff

    def forward(self, tokens: Tensor, batch: int) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens), batch)
        tokens = tokens + self.attn2(self.norm2(tokens), batch)
        return tokens + self.ff(self.norm3(tokens))


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Rewrite every transformer of the UNets whose blocks are folded."""
    folded = Folded()
    for parent in list(module.unet.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Transformer2DModel) and folded.accept(_refusal(child)):
                setattr(parent, name, LeanTransformer(child))
    return folded


def _refusal(transformer: Transformer2DModel) -> str | None:
    if not (transformer.is_input_continuous and transformer.use_linear_projection):
        return "its projections are convolutions, not linear layers"
    if transformer.proj_out.out_features != transformer.proj_in.in_features:
        return "it changes the number of channels"
    if not all(isinstance(block.attn1, SelfAttention) for block in transformer.transformer_blocks):
        return "its blocks were not folded"
    return None
