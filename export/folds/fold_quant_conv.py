"""Only the posterior's mean is read, through two linear steps that are one.

    moments = Q conv_out(h) + q
    latent  = scaling * mean half of moments
            = conv(h) with the weight  scaling * Q[:C] W  and the bias  scaling * (Q[:C] b + q[:C])

Q is a 1x1 convolution behind a 3x3 one: it acts on conv_out's output channels.

Exact at the border too: the 3x3 convolution's padding comes before both.
"""

from __future__ import annotations

from torch import nn

from export.folds.linear import (
    bias_of,
    last_convolution,
    merge_pixelwise,
    refuse_nothing,
    refuse_wide,
    set_affine,
    weight_of,
)
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Merge the encoder's last convolution, `quant_conv`'s mean half and the scaling factor."""
    encoder = module.encoder
    folded = Folded()
    conv, quant = last_convolution(encoder.network), encoder.quant
    if not folded.accept(
        refuse_wide("quant_conv", quant) or refuse_nothing(quant, encoder.scaling)
    ):
        return folded
    weight, bias = merge_pixelwise(weight_of(conv), bias_of(conv), quant)
    kept = slice(encoder.channels)
    set_affine(conv, encoder.scaling * weight[kept], encoder.scaling * bias[kept])
    encoder.quant, encoder.scaling = nn.Identity(), 1.0
    return folded
