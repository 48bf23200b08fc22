"""With a fixed seed, mode G's noise is a constant, and so is what the first convolution makes of it.

    conv_in([z, n]) = W_z z + W_n n + b = W_z z + m          m = W_n n + b, a map [1, C, h, w] for each bucket

The border is exact: both halves are padded with the same zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.folds.linear import bias_of, weight_of
from export.folds.report import Folded
from export.single_pass import SinglePass


class ConstantNoiseConv(nn.Module):
    """`conv_in` over the image latent [B, C, h, w] alone; `maps` hold what the noise and the bias add."""

    def __init__(self, plain: nn.Conv2d, noises: dict[tuple[int, int], Tensor]) -> None:
        super().__init__()
        channels = next(iter(noises.values())).shape[1]
        weight, dtype = weight_of(plain), plain.weight.dtype
        shape = (plain.in_channels - channels, plain.out_channels, plain.kernel_size)
        self.conv = nn.Conv2d(*shape, plain.stride, plain.padding, bias=False, device="meta")
        self.conv.weight = nn.Parameter(weight[:, :-channels].to(dtype), requires_grad=False)
        self.maps = {
            size: F.conv2d(noise.double(), weight[:, -channels:], bias_of(plain), plain.stride, plain.padding).to(dtype)
            for size, noise in noises.items()
        }

    def forward(self, latent: Tensor) -> Tensor:
        return self.conv(latent) + self.maps[tuple(latent.shape[2:])]


def fold(module: SinglePass) -> Folded:
    """Rewrite the UNet's first convolution where the noise is fixed."""
    folded = Folded()
    unet = module.unet
    if unet.noises and folded.count(_refusal(unet.network.conv_in)):
        with torch.no_grad():
            unet.network.conv_in = ConstantNoiseConv(unet.network.conv_in, unet.noises)
        unet.noises = {}
    return folded


def _refusal(conv: nn.Conv2d) -> str | None:
    if conv.groups != 1 or conv.padding_mode != "zeros":
        return "its channels do not add up, or it is not padded with zeros"
    return None
