"""Clips of rendered scenes: a camera that moves along a path drawn from the seed, and for each
frame exact depth, normals, and where each pixel was in the frame before.

Axes and units are those of `render`. Scenes stand still; the sensor's noise is new in each frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .render import Rendered, render_scene
from .scene import STYLES, Camera, make_scene

_REACH = np.array(
    [0.08, 0.03, 0.05]
)  # metres to the right, down, forward: below 0.3 nothing is met
_TURN = np.radians([4.0, 1.5])  # to the right, down
_SAME = 0.02  # relative difference of depth up to which a pixel shows the same point


@dataclass(frozen=True, kw_only=True)
class Frame(Rendered):
    """One frame. `flow` float32 [H,W,2]: the pixel's point was at (u, v) + flow in the frame
    before, in pixels. `seen` bool [H,W]: whether it could be seen there; nowhere in the first frame
    of a shot.
    """

    flow: np.ndarray
    seen: np.ndarray


def render_clip(
    seed: int,
    frames: int,
    height: int,
    width: int,
    style: str = "mixed",
    cut: int | None = None,
) -> Iterator[Frame]:
    """The frames of a clip, one after the other. From frame `cut` on another scene is shown.

    The camera sways around where `render` has it, as one that a person holds or a slow robot: at 30
    frames/s up to 0.2 m/s and 12 degrees/s.
    """
    before: Rendered | None = None
    pose: Camera | None = None
    for number in range(frames):
        first = 0 if cut is None or number < cut else cut
        scene = make_scene(seed + (7919 if first else 0), STYLES[style])
        camera = _moved(scene.camera, seed + first, number / 64)
        grain = 1000 * (scene.seed + 1) + number  # seeds the sensor's noise alone
        now = render_scene(dataclasses.replace(scene, camera=camera, seed=grain), height, width)
        if number == first or before is None or pose is None:
            flow, seen = np.zeros((height, width, 2), np.float32), np.zeros((height, width), bool)
        else:
            flow, seen = _flow(now, camera, before, pose)
        yield Frame(**vars(now), flow=flow, seen=seen)
        before, pose = now, camera


def _moved(camera: Camera, seed: int, time: float) -> Camera:
    """The camera at a time, in units of 64 frames."""
    random = np.random.default_rng(np.random.Philox(key=[seed, 77]))
    rates, phases = random.uniform(0.4, 1.0, 5), random.uniform(0, 2 * np.pi, 5)
    waves = np.sin(2 * np.pi * rates * time + phases)
    yaw, pitch = waves[3:] * _TURN
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]]
    )
    return dataclasses.replace(
        camera,
        position=camera.position + camera.rotation @ (waves[:3] * _REACH),
        rotation=camera.rotation @ turn @ tilt,
    )


def _flow(
    now: Rendered, camera: Camera, before: Rendered, pose: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Where the points of a frame's pixels were in the frame before, and whether it showed them."""
    height, width = now.depth.shape
    focal, depth = float(now.intrinsics[0, 0]), now.depth.astype(np.float64)
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    rays = np.stack([(u - width / 2) / focal, (v - height / 2) / focal, np.ones_like(u)], -1)
    world = camera.position + (rays * depth[..., None]) @ camera.rotation.T
    x, y, z = np.moveaxis((world - pose.position) @ pose.rotation, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        there = np.stack([focal * x / z + width / 2, focal * y / z + height / 2], -1)
    inside = (z > 0) & (there >= 0).all(-1) & (there < (width, height)).all(-1)
    column, row = np.floor(np.where(inside[..., None], there, 0)).astype(int).transpose(2, 0, 1)
    shown = before.depth[row, column]
    seen = inside & (np.abs(shown / np.where(z > 0, z, 1) - 1) < _SAME)
    return (there - np.stack([u, v], -1)).astype(np.float32), seen
