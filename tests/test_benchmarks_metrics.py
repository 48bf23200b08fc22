"""Metrics against slow loops, closed-form cases and degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.metrics import DepthAccuracy, NormalAccuracy

RANDOM = np.random.default_rng(0)
DEPTH = RANDOM.uniform(1, 10, (12, 9))


def depth_accuracy(space: str = "depth") -> DepthAccuracy:
    return DepthAccuracy(space=space, nearest=0.1, farthest=50.0)


def slow_depth_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """One pixel at a time, from the definitions."""
    pixels = list(zip(prediction.ravel(), truth.ravel(), strict=True))
    n = len(pixels)
    logs = [math.log(p) - math.log(t) for p, t in pixels]
    return {
        "abs_rel": sum(abs(p - t) / t for p, t in pixels) / n,
        "delta1": sum(max(p / t, t / p) < 1.25 for p, t in pixels) / n,
        "delta2": sum(max(p / t, t / p) < 1.25**2 for p, t in pixels) / n,
        "delta3": sum(max(p / t, t / p) < 1.25**3 for p, t in pixels) / n,
        "rmse": math.sqrt(sum((p - t) ** 2 for p, t in pixels) / n),
        "log10": sum(abs(math.log10(p) - math.log10(t)) for p, t in pixels) / n,
        "silog": 100 * math.sqrt(sum(x * x for x in logs) / n - (sum(logs) / n) ** 2),
    }


def test_depth_against_a_slow_loop_after_numpys_own_least_squares() -> None:
    prediction = 0.2 * DEPTH + RANDOM.normal(0, 0.1, DEPTH.shape)
    design = np.stack([prediction.ravel(), np.ones(DEPTH.size)], axis=1)
    scale, shift = np.linalg.lstsq(design, DEPTH.ravel(), rcond=None)[0]
    expected = slow_depth_metrics(np.clip(scale * prediction + shift, 0.1, 50), DEPTH)
    assert depth_accuracy().update(prediction, DEPTH) == pytest.approx(expected, rel=1e-9)


def test_disparity_against_a_slow_loop() -> None:
    prediction = 0.7 / DEPTH + 0.1 + RANDOM.normal(0, 0.01, DEPTH.shape)
    prediction[0, :4] = 0  # "as far as can be said": not fitted, still scored
    fitted = prediction > 0
    design = np.stack([prediction[fitted], np.ones(fitted.sum())], axis=1)
    scale, shift = np.linalg.lstsq(design, 1 / DEPTH[fitted], rcond=None)[0]
    aligned = np.clip(1 / np.maximum(scale * prediction + shift, 1e-3), 0.1, 50)
    result = depth_accuracy("disparity").update(prediction, DEPTH)
    assert result == pytest.approx(slow_depth_metrics(aligned, DEPTH), rel=1e-9)


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (0.01, 3), (-2, 5)])
def test_any_affine_copy_of_the_truth_is_perfect(scale: float, shift: float) -> None:
    for space, values in (("depth", DEPTH), ("disparity", 1 / DEPTH)):
        result = depth_accuracy(space).update(scale * values + shift + 10, DEPTH)
        assert result["abs_rel"] < 1e-9
        assert result["delta1"] == 1


def test_constant_prediction_is_the_mean() -> None:
    result = depth_accuracy().update(np.full_like(DEPTH, 7.0), DEPTH)
    assert result["rmse"] == pytest.approx(DEPTH.std())


def test_mask_range_and_non_finite_pixels_are_left_out() -> None:
    prediction, truth = DEPTH.copy(), DEPTH.copy()
    mask = np.ones(DEPTH.shape, bool)
    prediction[0, 0], mask[0, 0] = 1000, False
    truth[1, 1] = 1000.0  # beyond the range
    truth[2, 2] = np.nan
    prediction[3, 3] = np.inf
    assert depth_accuracy().update(prediction, truth, mask)["abs_rel"] < 1e-9


def test_no_valid_pixel_is_nan_and_does_not_count() -> None:
    accuracy = depth_accuracy()
    nothing = accuracy.update(DEPTH, DEPTH, np.zeros(DEPTH.shape, bool))
    assert all(math.isnan(value) for value in nothing.values())
    accuracy.update(DEPTH, DEPTH)
    assert accuracy.compute()["delta1"] == 1
    assert depth_accuracy().compute() == {}
    assert all(math.isnan(value) for value in NormalAccuracy().compute().values())


def test_mean_is_over_images_not_pixels() -> None:
    accuracy = depth_accuracy()
    one = accuracy.update(DEPTH + RANDOM.normal(0, 1, DEPTH.shape), DEPTH)
    two = accuracy.update(DEPTH[:3], DEPTH[:3])
    assert accuracy.compute()["abs_rel"] == pytest.approx((one["abs_rel"] + two["abs_rel"]) / 2)


def rotate(vectors: np.ndarray, degrees: float) -> np.ndarray:
    """Turn around the z axis."""
    angle = math.radians(degrees)
    matrix = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    return vectors @ matrix.T


@pytest.mark.parametrize("degrees", [0, 1e-4, 5, 11, 90, 179.999, 180])
def test_angle_of_a_known_turn(degrees: float) -> None:
    truth = np.zeros((4, 5, 3))
    truth[..., 0] = 1
    result = NormalAccuracy().update(3 * rotate(truth, degrees), truth)
    assert result["mean"] == pytest.approx(degrees, abs=1e-9)
    assert result["below_11.25"] == (100 if degrees < 11.25 else 0)


def test_normals_against_a_slow_loop_and_pooled_over_images() -> None:
    accuracy, angles = NormalAccuracy(), []
    for count in (7, 40):
        first, second = RANDOM.normal(size=(2, 1, count, 3))
        accuracy.update(first, second)
        for a, b in zip(first[0], second[0], strict=True):
            cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
            angles.append(math.degrees(math.acos(cosine)))
    result = accuracy.compute()
    assert result["mean"] == pytest.approx(sum(angles) / 47)
    assert result["median"] == pytest.approx(sorted(angles)[23])
    assert result["rmse"] == pytest.approx(math.sqrt(sum(x * x for x in angles) / 47))
    assert result["below_30"] == pytest.approx(100 * sum(x < 30 for x in angles) / 47)


def test_zero_vectors_do_not_count() -> None:
    truth = np.zeros((2, 2, 3))
    truth[0, 0] = [0, 0, 1]
    accuracy = NormalAccuracy()
    accuracy.update(np.ones((2, 2, 3)), truth)
    assert len(accuracy.angles[0]) == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must agree"):
        depth_accuracy().update(DEPTH, DEPTH[:-1])
    with pytest.raises(ValueError, match="must agree"):
        depth_accuracy().update(DEPTH, DEPTH, np.ones((2, 2), bool))
