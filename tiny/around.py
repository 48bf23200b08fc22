"""A rendered room from several sides, with the exact pose of each picture, and sparse points.

Axes and units are those of `render`. The world is right-handed with y up, in metres: that of
`scene`, which is left-handed, with z turned round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .render import Rendered, render_scene
from .scene import STYLES, Camera, Scene, is_close, make_scene

_RIGHT_HANDED = np.diag([1.0, 1.0, -1.0])
_PITCH = np.radians(-14.0)
_TRIES = 200
_REACH = 0.85  # of the way from the middle of the room to 0.3 m before its walls


@dataclass(frozen=True, kw_only=True)
class Seen(Rendered):
    """One picture of a room. `camera_from_world` float64 [4,4]: x right, y down, z forward."""

    camera_from_world: np.ndarray


def render_around(seed: int, count: int, height: int, width: int) -> Iterator[Seen]:
    """Pictures of the room of a seed from `count` places around its middle, each looking across
    it. The same seed, count and size give the same pictures.
    """
    scene = make_scene(seed, STYLES["room"])
    for number, camera in enumerate(_cameras(scene, count)):
        grain = 1000 * (seed + 1) + number  # seeds the sensor's noise alone
        picture = render_scene(dataclasses.replace(scene, camera=camera, seed=grain), height, width)
        matrix = np.eye(4)
        matrix[:3, :3] = camera.rotation.T @ _RIGHT_HANDED
        matrix[:3, 3] = -camera.rotation.T @ camera.position
        yield Seen(**vars(picture), camera_from_world=matrix)


def room_size(seed: int) -> float:
    """The diagonal of the room of a seed, in metres."""
    return float(np.linalg.norm(make_scene(seed, STYLES["room"]).room))


def world_points(view: Seen) -> np.ndarray:
    """The point of each pixel in the world, float64 [H,W,3]."""
    height, width = view.depth.shape
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(view.intrinsics).T
    turn, place = view.camera_from_world[:3, :3], view.camera_from_world[:3, 3]
    return (rays * view.depth[..., None] - place) @ turn


def sparse_points(views: list[Seen], count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of the world float64 [N,3], as structure from motion finds them, and in which views
    each is seen, bool [N,V]: at least two. Of `count` pixels that are drawn in each view.
    """
    random = np.random.default_rng(seed)
    drawn = []
    for view in views:
        rows, columns = (random.integers(0, size, count) for size in view.depth.shape)
        drawn.append(world_points(view)[rows, columns])
    points = np.concatenate(drawn)
    seen = np.stack([_sees(view, points) for view in views], 1)
    kept = seen.sum(1) >= 2
    return points[kept], seen[kept]


def _sees(view: Seen, points: np.ndarray) -> np.ndarray:
    """Which points [N] the picture shows: their depth is that of their pixel, to 1 %."""
    own = points @ view.camera_from_world[:3, :3].T + view.camera_from_world[:3, 3]
    height, width = view.depth.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v, _ = view.intrinsics @ (own / own[:, 2:]).T
    inside = (own[:, 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    row, column = (np.where(inside, each, 0).astype(int) for each in (v, u))
    return inside & (np.abs(view.depth[row, column] / own[:, 2] - 1) < 0.01)


def _cameras(scene: Scene, count: int) -> Iterator[Camera]:
    random = np.random.default_rng(np.random.Philox(key=[scene.seed, 78]))
    half = scene.room[[0, 2]] / 2 - 0.3
    for number in range(count):
        for attempt in range(_TRIES):
            angle = 2 * np.pi * (number + 0.3 * random.uniform(-1, 1)) / count
            reach = _REACH * (1 - 0.5 * attempt / _TRIES)  # nearer to the middle, where it is full
            x, z = -reach * half * (np.sin(angle), np.cos(angle))
            position = np.array([x, random.uniform(1.1, min(2.0, scene.room[1] - 0.4)), z])
            if not any(is_close(solid, position) for solid in scene.solids):
                break
        yield _looking(position, np.arctan2(-x, -z) + random.uniform(-0.1, 0.1), scene.camera.fov)


def _looking(position: np.ndarray, yaw: float, fov: float) -> Camera:
    """A level camera that looks a little down."""
    forward = np.array([np.sin(yaw) * np.cos(_PITCH), np.sin(_PITCH), np.cos(yaw) * np.cos(_PITCH)])
    right = np.array([np.cos(yaw), 0, -np.sin(yaw)])
    down = np.cross(right, forward)  # the world of scenes is left-handed
    return Camera(position=position, rotation=np.stack([right, down, forward], 1), fov=fov)
