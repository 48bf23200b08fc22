"""Linear maps, multiplied out in float64 and rounded once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def weight_of(layer: Any) -> Tensor:
    """The weight of a linear layer or of a convolution as float64."""
    weight: Tensor = layer.weight.detach().double()
    return weight


def bias_of(layer: Any) -> Tensor:
    """The bias as float64, zeros [out] where the layer has none."""
    return (
        weight_of(layer).new_zeros(layer.weight.shape[0])
        if layer.bias is None
        else layer.bias.detach().double()
    )


def merge_pixelwise(weight: Tensor, bias: Tensor, after: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the 1x1 convolution (or nothing) that comes after
    it.
    """
    if not isinstance(after, nn.Conv2d):
        return weight, bias
    matrix = weight_of(after)[..., 0, 0]
    return (matrix @ weight.flatten(1)).view(-1, *weight.shape[1:]), matrix @ bias + bias_of(after)


def refuse_wide(name: str, after: nn.Module) -> str | None:
    """Why `merge_pixelwise` does not hold for the layer called `name`."""
    if isinstance(after, nn.Conv2d) and after.kernel_size != (1, 1):
        return f"{name} is {after.kernel_size}, and does not act on single pixels"
    return None


def refuse_nothing(quant: nn.Module, scaling: float) -> str | None:
    """Why there is nothing to merge where a small autoencoder's latents are the UNet's own."""
    if isinstance(quant, nn.Identity) and scaling == 1:
        return "the autoencoder's latents are the scaled ones, and no 1x1 convolution is between"
    return None


def refuse_between(unets: Iterable[Any]) -> str | None:
    """Why the UNets' last convolutions cannot take what comes behind them all."""
    if any(unet.adds_noise or unet.factor != 1 for unet in unets):
        return "the scheduler's step is between the UNet's last convolution and the decoder"
    return None


def last_convolution(network: Any) -> Any:
    """The one that an encoder or a decoder ends with, large or small."""
    layers = getattr(network, "layers", None)
    return network.conv_out if layers is None else layers[-1]


def new_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """The layer x W^T + b with weight [out, in]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return layer


def set_affine(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Replace a layer's weight and bias, keeping its dtype."""
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
