"""Clips of rendered scenes: repeatable, and the flow leads to the same point."""

from __future__ import annotations

import itertools

import numpy as np

from tiny.clip import render_clip


def test_flow_leads_to_the_same_point_in_the_frame_before() -> None:
    before, now = list(render_clip(2, 2, 96, 128))
    assert not before.seen.any()
    assert now.seen.mean() > 0.9
    v, u = np.meshgrid(np.arange(96) + 0.5, np.arange(128) + 0.5, indexing="ij")
    there = np.stack([u, v], -1) + now.flow
    column, row = np.floor(there[now.seen]).astype(int).T
    # Where the picture changed in place, it did not along the flow (to one pixel).
    off = np.abs(before.image[row, column].astype(int) - now.image[now.seen]).max(-1)
    still = np.abs(before.image.astype(int) - now.image)[now.seen].max(-1)
    changed = still > 25
    assert changed.sum() > 100
    assert off[changed].mean() < 0.3 * still[changed].mean()
    assert np.abs(now.flow[now.seen]).max() > 0.5


def test_clips_repeat_and_cut() -> None:
    first, again = list(render_clip(0, 3, 48, 64, cut=2)), list(render_clip(0, 3, 48, 64, cut=2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.flow, other.flow)
    assert [frame.seen.any() for frame in first] == [False, True, False]
    changed = [np.abs(a.depth - b.depth).mean() for a, b in itertools.pairwise(first)]
    assert changed[1] > 5 * changed[0]
