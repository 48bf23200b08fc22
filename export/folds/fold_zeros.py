"""Zeros beside the image latent add nothing, and their channels leave the first convolution.

    conv_in([z, 0]) = W_z z + W_0 0 + b = W_z z + b

The border is exact: both halves are padded alike, and zeros with zeros.
"""

from __future__ import annotations

from torch import nn

from export.folds.linear import bias_of, set_affine, weight_of
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Cut a UNet's first convolution where it reads zeros."""
    folded = Folded()
    for unet in module.unets.values():
        conv = unet.network.conv_in
        if unet.reads_zeros and folded.accept(_refusal(conv)):
            kept = conv.in_channels // 2
            set_affine(conv, weight_of(conv)[:, :kept], bias_of(conv))
            conv.in_channels = kept
            unet.reads_zeros = False
    return folded


def _refusal(conv: nn.Conv2d) -> str | None:
    return None if conv.groups == 1 else "its channels do not add up"
