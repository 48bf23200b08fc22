"""The range of each layer's input, and of what is rounded beside it: what becomes -127 and 127.

One pass over the calibration images fills a histogram of |x| for each layer; images stream through,
nothing of them is kept. From it come candidates for a bound on |x|: the largest value seen, two
percentiles, and the one with the least squared rounding error. The range goes from -bound to bound;
for targets whose int8 has a zero point, only as far as there are values: what SiLU answers is at
least -0.28, and has nearly twice as many steps then. A second pass rounds each layer's input by
every candidate and compares the layer's *output* with the exact one, that of a convolution on at
most 128 of its channels, to save time; the candidate with the smallest error wins.

An output has a range for each channel, the largest value seen: an int8 kernel scales its channels
one by one anyway (export/graph/qdq.py). Ranges that cut anything off are worse there, since
they cut a channel's few large values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from export.network.single_pass import SinglePass
from export.progress import track
from export.quantize.layers import (
    OUTPUT,
    OUTPUT_AXIS,
    Handle,
    Kernel,
    LayerHooks,
    Range,
    round_to_int8,
    round_weight,
    upsampling_channels,
)

Feeds = Callable[[], Iterable[tuple[Tensor, ...]]]
"""Yields the module's inputs for each calibration image, anew at each call."""

_BINS = 4096
_PERCENTILES = {"percentile 99.99": 0.9999, "percentile 99.999": 0.99999}
_MSE_BOUNDS = 96
_COMPARED = 128  # output channels


@dataclass(kw_only=True)
class Histogram:
    """Counts of |x| in equal bins from 0 to `top`, and the lowest (<= 0) and highest (>= 0) values
    seen.
    """

    top: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))

    @property
    def largest(self) -> float:
        """The largest magnitude seen."""
        return max(-self.lowest, self.highest)

    def update(self, values: Tensor) -> None:
        """Add the values; where they go beyond `top`, it doubles and bins merge in pairs, so that
        no pass is lost.
        """
        values = values.detach().float()
        lowest, highest = map(float, values.aminmax())
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        largest = max(-lowest, highest)
        self.top = self.top or largest
        while largest > self.top:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.top *= 2
        if self.top > 0:
            self.counts += torch.histc(values.abs(), _BINS, 0, self.top).double()

    def candidates(self, *, symmetric: bool = True) -> list[Range]:
        """Ranges to choose from; a layer that saw only zeros gets the bound 1."""
        if self.largest == 0:
            return [Range(method="min-max", low=-1.0, high=1.0)]
        chosen = {"min-max": self.largest}
        shares = self.counts.cumsum(0) / self.counts.sum()
        edges = torch.arange(1, _BINS + 1, dtype=torch.float64) * (self.top / _BINS)
        for method, share in _PERCENTILES.items():
            chosen[method] = float(
                edges[int(torch.searchsorted(shares, share).clamp(max=_BINS - 1))]
            )
        chosen["mse"] = self._least_squares(edges, symmetric)
        return [
            self._range(method, min(bound, self.largest), symmetric)
            for method, bound in chosen.items()
        ]

    def _range(self, method: str, bound: float, symmetric: bool) -> Range:
        low, high = (
            (bound, bound) if symmetric else (min(bound, -self.lowest), min(bound, self.highest))
        )
        return Range(method=method, low=-low, high=high)

    def _least_squares(self, edges: Tensor, symmetric: bool) -> float:
        """The bound whose rounding and clipping of the bins' middles has the least squared
        error.
        """
        middles = edges - self.top / _BINS / 2
        bounds = self.largest * torch.arange(1, _MSE_BOUNDS + 1, dtype=torch.float64) / _MSE_BOUNDS
        scales = torch.tensor(
            [[self._range("mse", bound, symmetric).scale] for bound in bounds.tolist()],
            dtype=torch.float64,
        )
        rounded = (middles / scales).round().mul(scales).minimum(bounds[:, None])
        errors = ((rounded - middles) ** 2 * self.counts).sum(1)
        return float(bounds[errors.argmin()])


def choose_ranges(
    module: SinglePass,
    names: Iterable[str],
    feeds: Feeds,
    *,
    symmetric: bool = True,
    images: int | None = None,
) -> dict[str, Range]:
    """The range of each named layer, by the calibration images, of which there are `images`: see
    above.
    """
    wanted, upsamplings = set(names), upsampling_channels(module)
    histograms: dict[str, Histogram] = {}
    channels: dict[str, Tensor] = {}

    def count(name: str, kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if name in wanted and name.endswith(f"/{OUTPUT}"):
            each = args[0].abs().transpose(0, 1).flatten(1).amax(dim=1)
            own = upsamplings.get(name.removesuffix(f"/{OUTPUT}"), len(each))
            largest = each.view(own, -1).amax(dim=1)
            channels[name] = torch.maximum(channels.get(name, largest), largest)
        elif name in wanted:
            histograms.setdefault(name, Histogram()).update(args[0])
        return kernel(*args, **kwargs)

    _run(module, count, feeds, "histograms of layers", images)
    candidates = {
        name: histogram.candidates(symmetric=symmetric) for name, histogram in histograms.items()
    }
    errors = {name: [0.0] * len(ranges) for name, ranges in candidates.items()}

    def compare(name: str, kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        exact = kernel(*args, **kwargs)
        if name in candidates:
            rest, target = _compared(kernel, args, exact)
            for index, candidate in enumerate(candidates[name]):
                output = kernel(round_to_int8(args[0], candidate), *rest, **kwargs)
                errors[name][index] += float((output - target).square_().sum())
        return exact

    _run(module, compare, feeds, "ranges of layers", images)
    chosen = {name: _best(candidates[name], errors[name]) for name in candidates}
    for name, largest in channels.items():
        bound = torch.where(largest > 0, largest, 1.0)
        chosen[name] = Range(method="channels", low=-bound, high=bound)
    return chosen


def _compared(
    kernel: Kernel, args: tuple[Any, ...], exact: Tensor
) -> tuple[tuple[Any, ...], Tensor]:
    """What comes behind the input, rounded, and the exact answer; of a convolution both for a few
    output channels, evenly spread.
    """
    rest = round_weight(kernel, args)
    if kernel not in OUTPUT_AXIS or kernel is F.linear:  # a sum with a residual, or little work
        return rest, exact
    weight, bias, *more = rest
    every = (
        -(-exact.shape[1] // _COMPARED) | 1
    )  # odd: four channels in a row may be the four places of one (subpixel)
    few = weight[:, ::every] if OUTPUT_AXIS[kernel] else weight[::every]
    return (few, bias if bias is None else bias[::every], *more), exact[:, ::every]


def _best(candidates: list[Range], errors: list[float]) -> Range:
    return candidates[min(range(len(candidates)), key=errors.__getitem__)]


def _run(module: SinglePass, handle: Handle, feeds: Feeds, label: str, images: int | None) -> None:
    with torch.inference_mode(), LayerHooks(module, handle):
        for inputs in track(feeds(), label, images):
            module(*inputs)
