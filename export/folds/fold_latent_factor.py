"""What a scheduler's step makes of the UNet's output is a factor, and belongs to the convolution
that makes it.

    factor * conv_out(h) = conv(h) with the weight  factor * W  and the bias  factor * b
"""

from __future__ import annotations

from export.folds.linear import bias_of, set_affine, weight_of
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Scale a UNet's last convolution where its output has a factor."""
    folded = Folded()
    for unet in module.unets.values():
        if unet.factor != 1 and folded.accept(None):
            conv = unet.network.conv_out
            set_affine(conv, unet.factor * weight_of(conv), unet.factor * bias_of(conv))
            unet.factor = 1.0
    return folded
