"""Only the posterior's mean is read, through two linear steps that are one.

    moments = Q conv_out(h) + q           a 1x1 convolution behind a 3x3 one: Q acts on conv_out's output channels
    latent  = scaling * mean half of moments
            = conv(h) with the weight  scaling * Q[:C] W  and the bias  scaling * (Q[:C] b + q[:C])

Exact at the border too: the 3x3 convolution's padding comes before both.
"""

from __future__ import annotations

from torch import nn

from export.folds.linear import bias_of, set_affine, weight_of
from export.folds.report import Folded
from export.single_pass import SinglePass


def fold(module: SinglePass) -> Folded:
    """Merge the encoder's last convolution, `quant_conv`'s mean half and the scaling factor."""
    encoder = module.encoder
    folded = Folded()
    conv, quant = encoder.network.conv_out, encoder.quant
    if not folded.count(_refusal(quant)):
        return folded
    weight, bias = weight_of(conv), bias_of(conv)
    if isinstance(quant, nn.Conv2d):
        matrix = weight_of(quant)[..., 0, 0]
        weight, bias = (matrix @ weight.flatten(1)).view(-1, *weight.shape[1:]), matrix @ bias + bias_of(quant)
    kept = slice(encoder.channels)
    set_affine(conv, encoder.scaling * weight[kept], encoder.scaling * bias[kept])
    encoder.quant, encoder.scaling = nn.Identity(), 1.0
    return folded


def _refusal(quant: nn.Module) -> str | None:
    if isinstance(quant, nn.Conv2d) and quant.kernel_size != (1, 1):
        return f"quant_conv is {quant.kernel_size}, and does not act on single pixels"
    return None
