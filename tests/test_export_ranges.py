"""Int8: rounding, histograms, ranges, and what makes them smaller."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import image_inputs
from torch.nn import functional as F

from export.folds.flatten_tokens import LeanBlock
from export.graph.int8_weights import channel_scales, safe_scales, to_int8
from export.network.single_pass import SinglePass
from export.quantize.layers import (
    LARGEST,
    FakeQuant,
    Range,
    find_layers,
    round_to_int8,
    round_weight,
)
from export.quantize.ranges import Histogram, _compared, choose_ranges
from export.quantize.smooth import smooth


def test_rounding_agrees_with_the_definition() -> None:
    values = torch.linspace(-2, 2, 1001)
    for low, high, scale, zero in (
        (-1.5, 1.5, 1.5 / 127, 0),
        (-0.27, 1.0, 1.27 / 254, -73),
        (0.0, 2.0, 2 / 254, -127),
    ):
        span = Range(low=low, high=high)
        assert (span.scale, span.zero) == (pytest.approx(scale), zero)
        expected = (
            np.clip(np.rint(values.numpy() / np.float32(scale)) + zero, -128, 127) - zero
        ) * scale
        assert np.abs(round_to_int8(values, span).numpy() - expected).max() < 1e-6
    weight = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[:, 2] = 0
    for axis in (0, 1):
        peaks = weight.abs().transpose(0, axis).flatten(1).amax(dim=1)
        stored = channel_scales(weight.numpy(), axis)
        assert np.allclose(stored, torch.where(peaks > 0, peaks / 127, 1), rtol=1e-6)
        assert np.abs(to_int8(weight.numpy(), stored, axis)).max() == LARGEST
        stored = safe_scales(weight.numpy(), axis)
        whole = to_int8(weight.numpy(), stored, axis)
        shape = [-1 if place == axis else 1 for place in range(4)]
        kernel = {0: F.conv2d, 1: F.conv_transpose2d}[axis]
        rounded, *_ = round_weight(kernel, (None, weight))
        assert np.abs(whole * stored.reshape(shape) - rounded.numpy()).max() < 1e-6
        assert (stored[2] == 1) == (axis == 1), "zeros"


def test_histogram_keeps_every_count_when_it_grows() -> None:
    histogram = Histogram()
    random = np.random.default_rng(0)
    parts = [random.normal(0, size, 10_000).astype(np.float32) for size in (0.1, 1, 5)]
    for part in parts:
        histogram.update(torch.from_numpy(part))
    whole = np.abs(np.concatenate(parts))
    assert histogram.counts.sum() == whole.size
    assert histogram.largest == whole.max()
    found = {one.method: one.high for one in histogram.candidates()}
    assert all(one.low == -one.high for one in histogram.candidates())
    assert found["min-max"] == histogram.largest
    assert found["percentile 99.99"] == pytest.approx(np.quantile(whole, 0.9999), rel=0.02)
    assert found["mse"] == pytest.approx(_slow_mse_bound(whole), rel=0.05)


def _slow_mse_bound(values: np.ndarray) -> float:
    bounds = np.linspace(0.01, 1, 200) * values.max()
    errors = [
        ((np.clip(np.rint(values / (bound / 127)), 0, 127) * (bound / 127) - values) ** 2).sum()
        for bound in bounds
    ]
    return float(bounds[int(np.argmin(errors))])


def test_zeros_have_a_range() -> None:
    histogram = Histogram()
    histogram.update(torch.zeros(8))
    assert [(one.low, one.high) for one in histogram.candidates()] == [(-1.0, 1.0)]


@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_go_where_values_are(symmetric: bool) -> None:
    """Of what SiLU answers: without a zero point nearly half of the steps stand for values that
    never come.
    """
    values = F.silu(4 * torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    histogram = Histogram()
    histogram.update(values)
    for span in histogram.candidates(symmetric=symmetric):
        assert span.low == (-span.high if symmetric else pytest.approx(-0.2785, abs=1e-3))
        assert span.scale == pytest.approx((span.high - span.low) / 254)
        error = (round_to_int8(values, span) - values).abs()[values < span.high]
        assert (
            error.max() <= span.scale * 1.001
        )  # half a step, and where the lowest lies between two
    assert (span.zero < -100) is not symmetric


def test_an_outlier_is_cut_off_where_that_serves_the_output() -> None:
    """One input of 1000 among values of about 1 would leave those seven steps."""
    histogram = Histogram()
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[0] = 1000
    histogram.update(values)
    assert min(one.high for one in histogram.candidates()) < 20


def test_wide_convolutions_are_compared_on_fewer_channels() -> None:
    """Those come out as they would among all; of matrices and residuals nothing is left out."""
    torch.manual_seed(0)
    image, bias = torch.randn(1, 8, 6, 6), torch.randn(512)
    for kernel, args in (
        (F.conv2d, (image, torch.randn(512, 8, 3, 3), bias, 1, 1)),
        (F.conv2d, (image, torch.randn(512, 8, 3, 3), None, 1, 1)),
        (F.conv_transpose2d, (image, torch.randn(8, 512, 4, 4), bias, 2, 1)),
    ):
        rest, wanted = _compared(kernel, args, kernel(*args))
        every = slice(
            None, None, 5
        )  # odd, so that of "shuffle" channels of each place are among them
        assert torch.equal(wanted, kernel(*args)[:, every])
        assert torch.allclose(
            kernel(image, *rest), kernel(image, *round_weight(kernel, args))[:, every], atol=1e-5
        )
    for kernel, args in (
        (F.linear, (image, torch.randn(512, 6), bias)),
        (torch.add, (image, image)),
    ):
        rest, wanted = _compared(kernel, args, kernel(*args))
        assert torch.equal(wanted, kernel(*args))
        assert kernel(image, *rest).shape == wanted.shape


@pytest.mark.slow
def test_ranges_stream_and_are_chosen_by_output_error(folded: SinglePass) -> None:
    names = [layer.name for layer in find_layers(folded, image_inputs(1)[0])][:6]
    passes: list[int] = []

    def feeds() -> Iterator[tuple[torch.Tensor]]:
        passes.append(len(passes))
        yield from image_inputs()

    ranges = choose_ranges(folded, names, feeds)
    assert list(ranges) == names
    assert len(passes) == 2
    errors = {}
    with torch.inference_mode():
        exact = folded(*image_inputs(1)[0])[0]
        for factor in (0.2, 1.0):
            cut = {
                name: Range(low=factor * one.low, high=factor * one.high)
                for name, one in ranges.items()
            }
            with FakeQuant(folded, cut):
                errors[factor] = float((folded(*image_inputs(1)[0])[0] - exact).abs().mean())
    assert errors[1.0] < errors[0.2]


@pytest.mark.slow
def test_smoothing_is_exact_and_serves_rounding(folded: SinglePass) -> None:
    """One channel of a norm's output a hundred times as large as the others."""
    module = copy.deepcopy(folded).double()
    block = next(part for part in module.unet.modules() if isinstance(part, LeanBlock))
    factors = torch.ones(block.attn1.project.in_features, dtype=torch.float64)
    factors[3] = 100
    block.norm1.weight = torch.nn.Parameter(factors, requires_grad=False)
    block.attn1.project.weight.data /= factors
    feeds = [(image.double(),) for (image,) in image_inputs()]
    name = next(name for name in _names(module) if name.endswith("attn1.project"))

    def prediction_and_error() -> tuple[torch.Tensor, float]:
        ranges = choose_ranges(module, [name], lambda: feeds)
        with torch.inference_mode():
            exact = module(*feeds[0])[0]
            with FakeQuant(module, ranges):
                return exact, float((module(*feeds[0])[0] - exact).abs().mean())

    before, error_before = prediction_and_error()
    assert smooth(module, lambda: feeds) >= 1
    after, error_after = prediction_and_error()
    assert (before - after).abs().max() < 1e-12
    assert error_after < 0.7 * error_before


def _names(module: SinglePass) -> list[str]:
    return [
        path.removesuffix(".weight").replace(".", "/", 1) for path, _ in module.named_parameters()
    ]
