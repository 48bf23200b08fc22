"""The change along the motion that `benchmarks/video.py` measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.video import FRAMES, Clip, change, clip_errors, draw_profile, steady_maps
from runtime.steady import shrink

HEIGHT, WIDTH = 80, 90


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A slope that moves by 1.5 columns and half a row a frame, of which nothing else changes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    maps = np.stack([(x - 1.5 * t) / 90 + (y - 0.5 * t) / 60 for t in range(5)])
    flow = np.full((5, HEIGHT, WIDTH, 2), (-1.5, -0.5), np.float32)
    seen = np.zeros((5, HEIGHT, WIDTH), bool)
    seen[1:, 1:, 2:] = True
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return Clip(
        maps=maps,
        depth=1 / (maps + 2),
        sky=np.zeros(maps.shape, bool),
        grey=np.zeros(maps.shape, np.uint8),
        flow=flow,
        seen=seen,
        thumbnails=[shrink(values, rgb, t / 30) for t, values in enumerate(maps)],
    )


def test_what_only_moves_does_not_change(clip: Clip) -> None:
    assert change(clip, clip.maps) < 1e-6
    still = replace(clip, flow=np.zeros_like(clip.flow))
    assert change(still, clip.maps) == pytest.approx((1.5 / 90 + 0.5 / 60) / clip.maps.std())


def test_it_is_a_share_of_the_spread_of_what_both_frames_show(clip: Clip) -> None:
    alternating = clip.maps + 0.1 * (np.arange(5) % 2)[:, None, None]
    expected = 0.1 / alternating.std()
    assert change(clip, alternating) == pytest.approx(expected, rel=1e-4)
    spoiled = alternating.copy()
    spoiled[:, 0] = 7  # a row that came from outside, and sky
    hidden = replace(clip, sky=spoiled == 7, seen=clip.seen & (np.arange(HEIGHT) > 2)[:, None])
    assert change(hidden, spoiled) == pytest.approx(0.1 / alternating[:, 1:].std(), rel=1e-4)


def test_ways_are_measured_and_drawn(clip: Clip) -> None:
    pytest.importorskip("cv2", reason="extra `flow`")
    noisy = clip.maps + np.random.default_rng(0).normal(0, 0.05, clip.maps.shape)
    noisy = replace(clip, maps=noisy.astype(np.float32))
    for mode in ("off", "causal", "clip"):
        plain, steps = steady_maps(noisy, "disparity", mode, False)
        smooth, _ = steady_maps(noisy, "disparity", mode, True)
        assert [step.cut for step in steps] == [True] + [False] * 4
        assert np.abs(np.diff(smooth, axis=0)).mean() < 0.8 * np.abs(np.diff(plain, axis=0)).mean()
    exact, whole = clip_errors(clip, clip.maps, "disparity")
    assert exact == pytest.approx(0, abs=1e-5)
    assert whole == pytest.approx(0, abs=1e-5)
    sheet = draw_profile(clip, {"off": clip.maps, "clip": clip.maps}, "disparity", "disparity")
    assert sheet.width == 3 * (4 * FRAMES + 8) - 8
