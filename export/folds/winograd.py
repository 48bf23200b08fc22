"""A 3x3 convolution over many channels in a quarter of the multiplications: Winograd's F(4x4, 3x3).

A tile of 4x4 outputs needs 6x6 inputs. With the constant matrices below, kernel g and input tile d,

    outputs = At [ (G g G') * (Bt d Bt') ] A        * is elementwise: 36 multiplications for 16 outputs, not 144

and summed over input channels the elementwise product is a matrix product, one for each of the 36 places:

    V [36, C, T] = Bt d Bt' of the T tiles       a convolution 6x6 with stride 4 of each channel alone
    M [36, O, T] = U [36, O, C] V                U = G g G', known when the bundle is built
    y            = At M A                        a 1x1 convolution of 36 places to 16 pixels, then depth-to-space

The function does not change. Rounding does: the constants reach 8, and fp32 loses about one digit (half precision and
int8 lose too many: there the plain convolution stays). What is saved is worth the two rearrangements of the map only
where channels are many and the map is large, and the weights take four times the memory: hence the bounds.
Source: arXiv 1509.09308.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.folds.linear import bias_of, weight_of
from export.folds.report import Folded
from export.single_pass import SinglePass

FEWEST_CHANNELS = 256
FEWEST_PIXELS = 128 * 128
_TILE = 4
_BT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
_AT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)


class WinogradConv(nn.Module):
    """A 3x3 convolution with padding 1 of one map [1, C, H, W].

    Where tiles do not fit the map, or the map is small, the plain convolution, whose weights stay, answers.
    """

    gather: Tensor
    scatter: Tensor

    def __init__(self, plain: nn.Conv2d, fewest_pixels: int) -> None:
        super().__init__()
        self.plain, self.fewest_pixels = plain, fewest_pixels
        dtype = plain.weight.dtype
        kernels = torch.einsum("ai,bj,ocij->aboc", _G, _G, weight_of(plain)).flatten(0, 1)
        self.weight = nn.Parameter(kernels.to(dtype), requires_grad=False)
        self.bias = nn.Parameter(bias_of(plain).to(dtype).view(1, -1, 1, 1), requires_grad=False)
        self.register_buffer("gather", torch.einsum("ai,bj->abij", _BT, _BT).flatten(0, 1)[:, None].to(dtype))
        scatter = torch.einsum("pa,qb->pqab", _AT, _AT).flatten(2).flatten(0, 1)
        self.register_buffer("scatter", scatter[:, :, None, None].to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        if count > 1 or height % _TILE or width % _TILE or height * width < self.fewest_pixels:
            return self.plain(x)
        tiles = F.conv2d(x.reshape(channels, 1, height, width), self.gather, stride=_TILE, padding=1)
        # Flat before it is turned: OpenVINO turns maps with their pixels in two dimensions ten times as slowly.
        mixed = self.weight @ tiles.flatten(2).transpose(0, 1)
        places = mixed.transpose(0, 1).unflatten(2, (height // _TILE, width // _TILE))
        pixels = F.pixel_shuffle(F.conv2d(places, self.scatter), _TILE)
        return pixels.reshape(1, -1, height, width) + self.bias


def fold(module: SinglePass, fewest_channels: int = FEWEST_CHANNELS, fewest_pixels: int = FEWEST_PIXELS) -> Folded:
    """Rewrite every 3x3 convolution of the autoencoder with that many channels on both sides.

    The UNet's many channels lie on small maps.
    """
    folded = Folded()
    for stage in (module.encoder, module.decoder):
        for parent in list(stage.modules()):
            for name, child in list(parent.named_children()):
                wide = isinstance(child, nn.Conv2d) and min(child.in_channels, child.out_channels) >= fewest_channels
                if wide and child.kernel_size == (3, 3) and folded.count(_refusal(child)):
                    setattr(parent, name, WinogradConv(child, fewest_pixels))
    return folded


def _refusal(conv: nn.Conv2d) -> str | None:
    if conv.stride != (1, 1) or conv.padding != (1, 1) or conv.dilation != (1, 1) or conv.groups != 1:
        return f"stride {conv.stride}, padding {conv.padding}: its tiles do not overlap by two"
    return None
