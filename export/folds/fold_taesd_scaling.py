"""A small autoencoder's changes of range belong to the convolutions beside them.

    encoder   conv((x + 1) / 2)       = conv'(x + 1)       conv'  has the weight  W / 2
    decoder   tanh(z / 3) * 3, conv   = tanh(z'), conv'    conv'  has the weight  3 W
              2 conv(h) - 1           = conv'(h)           conv'  has the weight  2 W, bias  2 b - 1

A UNet's last convolution makes z' = z / 3.

Scales alone go through a padded convolution: zero stays zero. The encoder's + 1 does not, and
stays.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.vae import DecoderTiny, EncoderTiny
from torch import Tensor, nn

from export.folds.linear import bias_of, last_convolution, refuse_between, set_affine, weight_of
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.targets import Recipe

_BOUND = 3.0  # of the decoder's latents. Source: DecoderTiny.forward


class ShiftedEncoder(nn.Module):
    """EncoderTiny with the half of its range in the first convolution; image [B,3,H,W] in
    [-1,1].
    """

    def __init__(self, plain: EncoderTiny) -> None:
        super().__init__()
        self.layers = plain.layers

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image + 1)


class BoundedDecoder(nn.Module):
    """DecoderTiny over a third of its latent [B,C,h,w]; its map is in [-1,1]."""

    def __init__(self, plain: DecoderTiny) -> None:
        super().__init__()
        self.layers = plain.layers

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent.tanh())


def fold(module: SinglePass, recipe: Recipe) -> Folded:
    """Rewrite the small encoder and the small decoder, where the checkpoint's own were replaced."""
    folded = Folded()
    encoder, decoder = module.encoder, module.decoder
    if isinstance(encoder.network, EncoderTiny) and folded.accept(_refusal(encoder.network)):
        _scale(encoder.network.layers[0], 0.5)
        encoder.network = ShiftedEncoder(encoder.network)
    if isinstance(decoder.network, DecoderTiny) and folded.accept(
        _refusal(decoder.network) or _between(decoder) or refuse_between(module.unets.values())
    ):
        last = last_convolution(decoder.network)
        for unet in module.unets.values():
            conv = unet.network.conv_out
            set_affine(conv, weight_of(conv) / _BOUND, bias_of(conv) / _BOUND)
        _scale(decoder.network.layers[0], _BOUND)
        set_affine(last, 2 * weight_of(last), 2 * bias_of(last) - 1)
        decoder.network = BoundedDecoder(decoder.network)
    return folded


def _scale(conv: nn.Conv2d, factor: float) -> None:
    """Fold a factor on a convolution's input into its weight."""
    set_affine(conv, factor * weight_of(conv), bias_of(conv))


def _refusal(network: Any) -> str | None:
    if not all(isinstance(layer, nn.Conv2d) for layer in (network.layers[0], network.layers[-1])):
        return "it does not begin and end with a convolution"
    return None


def _between(decoder: nn.Module) -> str | None:
    if decoder.scaling != 1 or not isinstance(decoder.quant, nn.Identity):
        return "a scaling or a 1x1 convolution is left between the UNet and the decoder"
    return None
