"""SmoothQuant: channels that are much larger than the others hand a part of their size to the
weights.

    x W  =  (x / s) (diag(s) W)          s_j = sqrt(max |x_j| / max |W_j|)

With one scale for a whole input, an outlying channel leaves the others few of the 256 steps;
divided by s, channels and weights share the range evenly. The function does not change. The
division costs nothing where a linear operator comes before, which takes it over: a norm's scale and
shift, the rows of a matrix. Those are the linear layers of the UNet's transformers, the one behind
the sum of tokens aside. Source: arXiv 2211.10438, with its alpha of 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.folds.flatten_tokens import LeanBlock, LeanTransformer
from export.network.single_pass import SinglePass
from export.quantize.layers import OUTPUT_AXIS, Kernel, LayerHooks
from export.quantize.ranges import Feeds

_OUTLYING = 8.0
"""Largest channel over the median one, from which a layer is smoothed. Below, rounding gains
nothing from it.
"""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A linear layer, and what divides the channels of its input."""

    layer: nn.Linear
    divide: Callable[[Tensor], None]


def smooth(module: SinglePass, feeds: Feeds) -> int:
    """Rewrite, in place, every linear layer of the folded transformers whose input has outlying
    channels.

    Returns how many were.
    """
    places = [site for part in module.unet.modules() for site in _places(part)]
    largest = _largest_inputs(module, [site.layer for site in places], feeds)
    count = 0
    for site in places:
        channels = largest[id(site.layer.weight)]
        if channels.max() < _OUTLYING * channels.median():
            continue
        columns = site.layer.weight.detach().abs().amax(dim=0)
        factors = (channels.clamp(min=1e-5) / columns.clamp(min=1e-5)).sqrt()
        site.divide(factors)
        site.layer.weight.data *= factors
        count += 1
    return count


def _largest_inputs(module: SinglePass, layers: list[nn.Linear], feeds: Feeds) -> dict[int, Tensor]:
    """Largest magnitude of each input channel [C], by the identity of the layer's weight."""
    largest: dict[int, Tensor] = {}
    wanted = {id(layer.weight) for layer in layers}

    def note(name: str, kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        key = id(args[1]) if kernel in OUTPUT_AXIS else None
        if key in wanted:
            channels = args[0].abs().flatten(0, -2).amax(dim=0)
            largest[key] = torch.maximum(largest[key], channels) if key in largest else channels
        return kernel(*args, **kwargs)

    with torch.inference_mode(), LayerHooks(module, note):
        for image, *noise in feeds():
            encoded = module.encoder(image)
            for unet in module.unets.values():  # nothing of the decoder is smoothed
                unet(encoded, *noise)
    return {key: channels.clone() for key, channels in largest.items()}


def _places(part: nn.Module) -> Iterator[_Place]:
    if isinstance(part, LeanTransformer):
        yield _Place(layer=part.proj_in, divide=lambda factors: _divide_norm(part.norm, factors))
    if isinstance(part, LeanBlock):
        project, up, down = part.attn1.project, part.ff.net[0].proj, part.ff.net[2]
        width, hidden = part.attn1.out.in_features, down.in_features
        yield _Place(layer=project, divide=lambda factors: _divide_norm(part.norm1, factors))
        values = slice(2 * width, None)  # queries and keys come first
        yield _Place(
            layer=part.attn1.out, divide=lambda factors: _divide_rows(project, values, factors)
        )
        yield _Place(layer=up, divide=lambda factors: _divide_norm(part.norm3, factors))
        # GEGLU: the first half of the rows is multiplied by the activated second half.
        yield _Place(layer=down, divide=lambda factors: _divide_rows(up, slice(hidden), factors))


def _divide_norm(norm: nn.LayerNorm | nn.GroupNorm, factors: Tensor) -> None:
    """Through the norm's scale and shift; a norm without them (fold 6 took them) gets a scale."""
    if norm.weight is None:
        norm.weight = nn.Parameter(torch.ones_like(factors), requires_grad=False)
        norm.elementwise_affine = True
    norm.weight.data /= factors
    if norm.bias is not None:
        norm.bias.data /= factors


def _divide_rows(layer: nn.Linear, rows: slice, factors: Tensor) -> None:
    layer.weight.data[rows] /= factors[:, None]
    if layer.bias is not None:
        layer.bias.data[rows] /= factors
