"""A 3x3 convolution over many channels in a quarter of the multiplications: Winograd's F(4x4, 3x3).

A tile of 4x4 outputs needs 6x6 inputs. With the constant matrices below, kernel g and input tile d,

    outputs = At [ (G g G') * (Bt d Bt') ] A

where * is elementwise: 36 multiplications for 16 outputs, not 144. Summed over input channels the
elementwise product is a matrix product, one for each of the 36 places:

    U [36, O, C] = G g G'                      product of the constants [36, 9] and kernels [9, O C]
    V [36, C, T] = Bt d Bt' of the T tiles     convolution 6x6, stride 4, of each channel alone
    M [36, O, T] = U V
    y            = At M A                      1x1 convolution of 36 places to 16 pixels, then
                                               depth-to-space

The function does not change. Rounding does: the constants reach 8, and fp32 loses about one digit
(half precision and int8 lose too many: there the plain convolution stays). What is saved is worth
the two rearrangements of the map only where channels are many and the map is large: hence the
bounds. U takes four times the kernels' memory, and is made for each prediction, so that neither the
file nor the process holds it; an engine that likes may make it once. V has 2.25 times the map's
elements, so that a wide map is taken in strips of _MOST_TILES tiles. Source: arXiv 1509.09308.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.folds.linear import bias_of, weight_of
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe

FEWEST_CHANNELS = 256
FEWEST_PIXELS = 128 * 128
_TILE = 4
_MOST_TILES = 2048
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
_G = (
    torch.tensor(
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
        dtype=torch.float64,
    )
    / 24
)
_AT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    dtype=torch.float64,
)


class WinogradConv(nn.Module):
    """A 3x3 convolution with padding 1 of one map [1, C, H, W].

    Where tiles do not fit the map, or the map is small, the plain convolution, whose weights stay,
    answers.
    """

    spread: Tensor
    gather: Tensor
    scatter: Tensor

    def __init__(self, plain: nn.Conv2d, fewest_pixels: int) -> None:
        super().__init__()
        self.plain, self.fewest_pixels = plain, fewest_pixels
        dtype = plain.weight.dtype
        self.taps = nn.Parameter(
            weight_of(plain).permute(2, 3, 0, 1).reshape(9, -1).to(dtype), requires_grad=False
        )
        self.register_buffer("spread", torch.einsum("ai,bj->abij", _G, _G).view(36, 9).to(dtype))
        self.bias = nn.Parameter(bias_of(plain).to(dtype).view(1, -1, 1, 1), requires_grad=False)
        self.register_buffer(
            "gather", torch.einsum("ai,bj->abij", _BT, _BT).flatten(0, 1)[:, None].to(dtype)
        )
        scatter = torch.einsum("pa,qb->pqab", _AT, _AT).flatten(2).flatten(0, 1)
        self.register_buffer("scatter", scatter[:, :, None, None].to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        if count > 1 or height % _TILE or width % _TILE or height * width < self.fewest_pixels:
            return self.plain(x)
        maps = x.reshape(channels, 1, height, width)
        weight = (self.spread @ self.taps).view(36, -1, channels)
        rows = max(_MOST_TILES // (width // _TILE), 1) * _TILE
        parts = [
            self._strip(maps, weight, top, min(top + rows, height))
            for top in range(0, height, rows)
        ]
        return (torch.cat(parts, 2) if len(parts) > 1 else parts[0]) + self.bias

    def _strip(self, maps: Tensor, weight: Tensor, top: int, bottom: int) -> Tensor:
        """These rows of the output [1, O, rows, W], without the bias; `maps` are [C, 1, H, W]."""
        height, width = maps.shape[2:]
        if bottom - top < height:
            maps = maps[:, :, max(top - 1, 0) : min(bottom + 1, height)]
        padded = F.pad(maps, (1, 1, int(top == 0), int(bottom == height)))
        tiles = F.conv2d(padded, self.gather, stride=_TILE)
        # Flat before it is turned: OpenVINO turns maps with their pixels in two dimensions ten
        # times as slowly.
        mixed = weight @ tiles.flatten(2).transpose(0, 1)
        places = mixed.transpose(0, 1).unflatten(2, ((bottom - top) // _TILE, width // _TILE))
        return F.pixel_shuffle(F.conv2d(places, self.scatter), _TILE).reshape(
            1, -1, bottom - top, width
        )


def fold(
    module: SinglePass,
    recipe: Recipe,
    fewest_channels: int = FEWEST_CHANNELS,
    fewest_pixels: int = FEWEST_PIXELS,
) -> Folded:
    """Rewrite every 3x3 convolution of the autoencoder with that many channels on both sides, where
    the recipe gains by it.

    The UNet's many channels lie on small maps.
    """
    folded = Folded()
    if not recipe.winograd:
        return folded
    for stage in (module.encoder, module.decoder):
        for parent in list(stage.modules()):
            for name, child in list(parent.named_children()):
                if not isinstance(child, nn.Conv2d) or child.kernel_size != (3, 3):
                    continue
                wide = min(child.in_channels, child.out_channels) >= fewest_channels
                if wide and folded.accept(_refusal(child)):
                    setattr(parent, name, WinogradConv(child, fewest_pixels))
    return folded


def _refusal(conv: nn.Conv2d) -> str | None:
    if (
        conv.stride != (1, 1)
        or conv.padding != (1, 1)
        or conv.dilation != (1, 1)
        or conv.groups != 1
    ):
        return f"stride {conv.stride}, padding {conv.padding}: its tiles do not overlap by two"
    return None
