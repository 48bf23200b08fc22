"""With a fixed seed, mode G's noise is a constant, and so is what the first convolution makes of
it.

    conv_in([z, n]) = W_z z + W_n n + b = W_z z + m

with m = W_n n + b, a map [1, C, h, w] for each bucket.

The border is exact: both halves are padded with the same zeros.

What a scheduler's step adds of the noise to the predicted latent is constant too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.folds.linear import bias_of, weight_of
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


class ConstantNoiseConv(nn.Module):
    """`conv_in` over the image latent [B, C, h, w] alone; `maps` hold what the noise and the bias
    add.
    """

    def __init__(self, plain: nn.Conv2d, noises: dict[tuple[int, ...], Tensor]) -> None:
        super().__init__()
        channels = next(iter(noises.values())).shape[1]
        weight, dtype = weight_of(plain), plain.weight.dtype
        conv: Any = nn.Conv2d  # its arguments are those of another convolution
        self.conv = conv(
            plain.in_channels - channels,
            plain.out_channels,
            plain.kernel_size,
            plain.stride,
            plain.padding,
            bias=False,
            device="meta",
        )
        self.conv.weight = nn.Parameter(weight[:, :-channels].to(dtype), requires_grad=False)
        self.maps = {
            size: F.conv2d(
                noise.double(), weight[:, -channels:], bias_of(plain), plain.stride, plain.padding
            ).to(dtype)
            for size, noise in noises.items()
        }

    def forward(self, latent: Tensor) -> Tensor:
        return self.conv(latent) + self.maps[tuple(latent.shape[2:])]


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Rewrite a UNet's first convolution where its noise is fixed."""
    folded = Folded()
    for unet in module.unets.values():
        if unet.noises and folded.accept(_refusal(unet.network.conv_in)):
            with torch.no_grad():
                unet.network.conv_in = ConstantNoiseConv(unet.network.conv_in, unet.noises)
            if unet.noise_factor != 0:
                unet.offsets = {size: unet.noise_factor * n for size, n in unet.noises.items()}
            unet.noises, unet.noise_factor = {}, 0.0
    return folded


def _refusal(conv: nn.Conv2d) -> str | None:
    if conv.groups != 1 or conv.padding_mode != "zeros":
        return "its channels do not add up, or it is not padded with zeros"
    return None
