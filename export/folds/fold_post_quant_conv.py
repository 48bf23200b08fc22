"""What undoes the latent's scaling belongs to the convolution that makes it.

    z = P (conv_out(h) / scaling) + p     a 1x1 convolution behind a 3x3 one
      = conv(h) with the weight  P W / scaling  and the bias  P b / scaling + p

The other way round, a 1x1 convolution before the decoder's padded 3x3 one, would be wrong at the
border: padding is zero, and P maps zero to p.
"""

from __future__ import annotations

from torch import nn

from export.folds.linear import (
    bias_of,
    merge_pixelwise,
    refuse_between,
    refuse_nothing,
    refuse_wide,
    set_affine,
    weight_of,
)
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Merge each UNet's last convolution, `1 / scaling` and `post_quant_conv`."""
    decoder = module.decoder
    folded = Folded()
    quant = decoder.quant
    if not folded.accept(
        refuse_wide("post_quant_conv", quant)
        or refuse_nothing(quant, decoder.scaling)
        or refuse_between(module.unets.values())
    ):
        return folded
    for unet in module.unets.values():
        conv = unet.network.conv_out
        weight, bias = weight_of(conv) / decoder.scaling, bias_of(conv) / decoder.scaling
        set_affine(conv, *merge_pixelwise(weight, bias, quant))
    decoder.quant, decoder.scaling = nn.Identity(), 1.0
    return folded
