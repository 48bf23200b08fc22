"""What undoes the latent's scaling belongs to the convolution that makes it.

    z = P (conv_out(h) / scaling) + p     a 1x1 convolution behind a 3x3 one
      = conv(h) with the weight  P W / scaling  and the bias  P b / scaling + p

The other way round, a 1x1 convolution before the decoder's padded 3x3 one, would be wrong at the border: padding is
zero, and P maps zero to p.
"""

from __future__ import annotations

from torch import nn

from export.folds.linear import bias_of, set_affine, weight_of
from export.folds.report import Folded
from export.single_pass import SinglePass


def fold(module: SinglePass) -> Folded:
    """Merge the UNet's last convolution, `1 / scaling` and `post_quant_conv`."""
    decoder = module.decoder
    folded = Folded()
    conv, quant = module.unet.network.conv_out, decoder.quant
    if not folded.count(_refusal(quant)):
        return folded
    weight, bias = weight_of(conv) / decoder.scaling, bias_of(conv) / decoder.scaling
    if isinstance(quant, nn.Conv2d):
        matrix = weight_of(quant)[..., 0, 0]
        weight, bias = (matrix @ weight.flatten(1)).view(-1, *weight.shape[1:]), matrix @ bias + bias_of(quant)
    set_affine(conv, weight, bias)
    decoder.quant, decoder.scaling = nn.Identity(), 1.0
    return folded


def _refusal(quant: nn.Module) -> str | None:
    if isinstance(quant, nn.Conv2d) and quant.kernel_size != (1, 1):
        return f"post_quant_conv is {quant.kernel_size}, and does not act on single pixels"
    return None
