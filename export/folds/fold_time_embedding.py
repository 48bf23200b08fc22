"""Timestep and task are constants, and so is what they add inside every residual block.

    emb  = time_embedding(sinusoid(t)) + class_embedding(task)      a constant vector
    h    = conv1(x) + (W silu(emb) + b)                             one value for each channel
         = conv1(x) with the bias  b1 + W silu(emb) + b

The embeddings' own networks leave: what they answer is a constant, for a block that had to keep its
projection.
"""

from __future__ import annotations

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


class Known(nn.Module):
    """A network whose answer is known, [1, E]."""

    answer: Tensor

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.register_buffer("answer", answer)

    def forward(self, *_: object) -> Tensor:
        return self.answer


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Rewrite every residual block of the UNets that takes the embedding."""
    folded = Folded()
    for unet in module.unets.values():
        embedding, network = unet.embedding(), unet.network
        for block in network.modules():
            if (
                isinstance(block, ResnetBlock2D)
                and block.time_emb_proj is not None
                and folded.accept(_refusal(block))
            ):
                _absorb(block, embedding)
        network.time_embedding = Known(embedding)
        if unet.task is not None:
            network.class_embedding = Known(torch.zeros_like(embedding))
    return folded


def _refusal(block: ResnetBlock2D) -> str | None:
    if block.time_embedding_norm != "default":
        return (
            f"a {block.time_embedding_norm!r} embedding multiplies after the norm and is no bias "
            "of the convolution"
        )
    if block.conv1.bias is None:
        return "its first convolution has no bias"
    return None


def _absorb(block: ResnetBlock2D, embedding: Tensor) -> None:
    activated = embedding if block.skip_time_act else block.nonlinearity(embedding)
    project = block.time_emb_proj
    shift = activated.double() @ project.weight.double().T + project.bias.double()
    block.conv1.bias.data = (block.conv1.bias.double() + shift[0]).to(block.conv1.bias.dtype)
    block.time_emb_proj = None
    block.time_embedding_norm = (
        "none"  # with any name but its two, the block leaves the embedding unused
    )
