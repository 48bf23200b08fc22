"""Nearest 2x upsampling followed by a 3x3 convolution is a convolution of the small map: 4
multiplications, not 9.

Along one axis, with kernel (a, b, c) and small map x, the enlarged map is x0 x0 x1 x1 x2 x2 ...;
its convolution is

    even outputs   y[2i]   = a x[i-1] + (b + c) x[i]
    odd outputs    y[2i+1] = (a + b) x[i] + c x[i+1]

two taps each, and the zero padding falls on the same outputs. In two directions: four 2x2 kernels,
one for each parity of row and column. Equal ways to write it; the target takes the one it runs
fastest (`benchmarks.forms`):

    transposed   one transposed convolution, 4x4, stride 2: the kernel (c, b + c, a + b, a) along
                 each axis
    clipped      the same, and a Clip to what a float can hold: OpenVINO 2026.4 answers an int8
                 transposed convolution in float32, and turns it to bf16 in a pass of its own,
                 unless an activation follows
    shuffle      one 2x2 convolution to 4 C channels on the map padded by one, depth-to-space, one
                 pixel cut all around
    four         four 2x2 convolutions, each padded on its own two sides, then depth-to-space of all
"""

from __future__ import annotations

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from export.folds.linear import bias_of, weight_of
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe

FORMS = ("transposed", "shuffle", "four", "clipped")
_LARGEST = 3e38
_TAPS = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)
"""[parity, tap, kernel element]: which elements of the 3-kernel meet in each tap."""


class SubpixelUpsample(nn.Module):
    """Upsampling and `conv` as convolutions of the small map [B, C, H, W]; the answer is [B, C',
    2H, 2W].

    Where the block asks for another size than 2H x 2W (latents that are no multiple of the UNet's
    levels), the algebra does not hold at the cut border and the plain form, whose weights stay,
    answers. Raises: ValueError for a form that is none of FORMS.
    """

    def __init__(self, plain: nn.Module, conv: nn.Conv2d, form: str) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"upsampling has the forms {FORMS}, not {form!r}")
        self.plain, self.form, self.channels = plain, form, conv.out_channels
        # [row parity, column parity, out, in, row tap, column tap]
        kernels = torch.einsum("pre,qsf,oief->pqoirs", _TAPS, _TAPS, weight_of(conv))
        dtype, bias = conv.weight.dtype, None if conv.bias is None else bias_of(conv)
        if form in ("transposed", "clipped"):
            # Output 2i + p of a transposed convolution takes x[i - 1 + p + r] at kernel element 3 -
            # p - 2 r.
            whole = kernels.new_empty(conv.in_channels, conv.out_channels, 4, 4)
            for p, q, r, s in torch.cartesian_prod(*[torch.arange(2)] * 4).tolist():
                whole[:, :, 3 - p - 2 * r, 3 - q - 2 * s] = kernels[p, q, :, :, r, s].T
            weights = [whole]
        elif form == "shuffle":
            # Depth-to-space puts channel (c, p, q) at (2i + p, 2j + q); cutting one pixel makes odd
            # places even.
            weights = [kernels.flip(0, 1).permute(2, 0, 1, 3, 4, 5).flatten(0, 2)]
            bias = None if bias is None else bias.repeat_interleave(4)
        else:
            weights = list(kernels.flatten(0, 1))
        self.weights = nn.ParameterList(
            [nn.Parameter(w.to(dtype), requires_grad=False) for w in weights]
        )
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)

    def forward(self, x: Tensor, output_size: torch.Size | None = None) -> Tensor:
        height, width = x.shape[2:]
        if output_size is not None and tuple(output_size) != (2 * height, 2 * width):
            return self.plain(x, output_size)
        if self.form in ("transposed", "clipped"):
            y = F.conv_transpose2d(x, self.weights[0], self.bias, stride=2, padding=1)
            return y if self.form == "transposed" else y.clamp(-_LARGEST, _LARGEST)
        if self.form == "shuffle":
            return F.pixel_shuffle(F.conv2d(x, self.weights[0], self.bias, padding=1), 2)[
                :, :, 1:-1, 1:-1
            ]
        parts = [
            F.conv2d(F.pad(x, (1 - q, q, 1 - p, p)), self.weights[2 * p + q], self.bias)
            for p in (0, 1)
            for q in (0, 1)
        ]
        return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 2)


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Rewrite every upsampling of the UNets and of the decoder, in the recipe's form."""
    form, folded = recipe.upsampling, Folded()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Upsample2D) and folded.accept(_refusal(child)):
                setattr(parent, name, SubpixelUpsample(child, child.conv, form))
            elif isinstance(child, nn.Sequential) and any(
                isinstance(layer, nn.Upsample) for layer in child
            ):
                setattr(parent, name, _rewrite_sequence(child, form, folded))
    return folded


def _rewrite_sequence(layers: nn.Sequential, form: str, folded: Folded) -> nn.Sequential:
    """The same layers with each upsampling that a convolution follows, as a small autoencoder has
    them, as one.
    """
    kept: list[nn.Module] = []
    for layer in layers:
        enlarge = kept[-1] if kept else None
        fits = isinstance(enlarge, nn.Upsample) and folded.accept(_refusal_of_pair(enlarge, layer))
        if fits and enlarge is not None and isinstance(layer, nn.Conv2d):
            kept[-1] = SubpixelUpsample(nn.Sequential(enlarge, layer), layer, form)
        else:
            kept.append(layer)
    return nn.Sequential(*kept)


def _refusal(block: Upsample2D) -> str | None:
    if (
        not (block.use_conv and block.interpolate and block.name == "conv")
        or block.norm is not None
    ):
        return "it does not end in a convolution, or more than enlarging comes before that"
    return _refusal_of_convolution(block.conv)


def _refusal_of_pair(enlarge: nn.Upsample, layer: nn.Module) -> str | None:
    if enlarge.mode != "nearest" or enlarge.scale_factor != 2:
        return f"it enlarges {enlarge.scale_factor} times, {enlarge.mode!r}"
    if not isinstance(layer, nn.Conv2d):
        return "no convolution follows it"
    return _refusal_of_convolution(layer)


def _refusal_of_convolution(conv: nn.Conv2d) -> str | None:
    if conv.kernel_size != (3, 3) or conv.padding != (1, 1):
        return f"its convolution is {conv.kernel_size} with padding {conv.padding}"
    if (
        conv.stride != (1, 1)
        or conv.dilation != (1, 1)
        or conv.groups != 1
        or conv.padding_mode != "zeros"
    ):
        return "its convolution strides, dilates, has groups or is not padded with zeros"
    return None
