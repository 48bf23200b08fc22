"""Points, normals, edges, sky and floors, on rendered scenes with exact depth and normals."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.geometry import edge_mask, facing, find_floor, normals_of, sky_mask, unproject
from runtime.refine import refine
from tiny.render import Rendered, render

SIZE = 128


def camera_of(scene: Rendered) -> Camera:
    return Camera.from_matrix(scene.intrinsics, *scene.depth.shape)


def plane(normal: tuple[float, float, float], distance: float, camera: Camera) -> np.ndarray:
    """Depth [H,W] of the plane normal . P = -distance."""
    x, y = camera.slopes()
    return -distance / (normal[0] * x + normal[1] * y + normal[2])


@pytest.mark.parametrize("seed", range(4))
def test_normals_of_exact_depth_are_exact_on_planes(seed: int) -> None:
    scene = render(seed, SIZE, SIZE, "room")
    found = normals_of(scene.depth, camera_of(scene))
    angle = np.degrees(np.arccos(np.clip((found * scene.normals).sum(-1), -1, 1)))
    assert np.percentile(angle[np.isfinite(angle)], 80) < 0.5  # the rest: edges, round bodies
    assert (facing(found, camera_of(scene)) > 0)[np.isfinite(angle)].all()


def test_a_floor_that_runs_away_has_no_edges_and_a_box_has() -> None:
    camera = Camera.from_fov(60).at(SIZE, SIZE)
    floor = plane((0.0, -1.0, 0.0), 1.5, camera)
    seen = np.where(np.isfinite(floor) & (floor > 0) & (floor < 15), floor, np.nan)
    near = np.isfinite(seen)
    near[:, [0, -1]] = near[[0, -1]] = False
    inner = near & np.roll(near, 2, 0) & np.roll(near, -1, 0)
    assert not edge_mask(seen, camera)[inner].any()
    seen[90:110, 40:80] = 1.2
    flies = edge_mask(seen, camera)
    assert flies[100, 39:41].all()
    assert not flies[100, 60]


def test_what_a_network_smears_over_an_edge_is_an_edge() -> None:
    camera = Camera.from_fov(60).at(64, 64)
    depth = np.full((64, 64), 1.0)
    depth[:, 40:] = 3.0
    depth[:, 35:40] = np.linspace(1, 3, 5)
    flies = edge_mask(depth, camera, edge=1.0)  # by the slant alone
    assert flies[32, 36:39].all()
    assert not flies[32, :34].any()


def test_pixels_without_depth_are_edges_and_have_no_point() -> None:
    depth = np.full((8, 8), 2.0)
    depth[3, 3], depth[4, 4], depth[5, 5] = 0, -1, np.inf
    camera = Camera.from_fov(60)
    assert edge_mask(depth, camera)[[3, 4, 5], [3, 4, 5]].all()
    assert np.isnan(unproject(depth, camera)[[3, 4, 5], [3, 4, 5]]).all()
    with pytest.raises(GeometryError, match="at least 2x2"):
        unproject(np.ones(5), camera)


@pytest.mark.parametrize("seed", range(6))
def test_the_sky_of_exact_depth(seed: int) -> None:
    scene = render(seed, SIZE, SIZE, "outdoor")
    depth = np.where(scene.sky, np.nan, scene.depth)
    found = sky_mask(depth)
    assert (found[scene.sky]).mean() > 0.97  # small holes below are no sky
    assert found[~scene.sky].mean() < 0.1  # the far ground at the horizon
    room = render(seed, SIZE, SIZE, "room")
    assert not sky_mask(room.depth).any()


def test_the_floor_gives_the_cameras_height() -> None:
    from tiny.scene import STYLES, make_scene

    found = 0
    for seed in range(12):
        scene, drawn = render(seed, SIZE, SIZE, "room"), make_scene(seed, STYLES["room"])
        floor_pixels = (scene.normals @ drawn.camera.rotation[1]) > 0.999
        if floor_pixels.mean() < 0.15:
            continue
        floor = find_floor(unproject(scene.depth, camera_of(scene)), scene.normals)
        assert floor.distance == pytest.approx(drawn.camera.position[1], rel=0.01), seed
        found += 1
    assert found > 4


def test_no_floor_is_an_error() -> None:
    camera = Camera.from_fov(60).at(32, 32)
    wall = np.full((32, 32), 2.0)
    with pytest.raises(GeometryError, match="no floor"):
        find_floor(unproject(wall, camera), normals_of(wall, camera))


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_refining_takes_noise_away_and_keeps_edges(seed: int) -> None:
    scene = render(seed, SIZE, SIZE, "room")
    noisy = scene.depth * np.exp(np.random.default_rng(seed).normal(0, 0.03, scene.depth.shape))
    fused = refine(noisy, scene.normals, camera_of(scene))
    error = np.abs(np.log(fused / scene.depth))
    assert np.median(error) < 0.006  # of 0.02
    assert np.percentile(error, 99) < 0.08


def test_refining_what_is_right_changes_nothing() -> None:
    scene = render(3, SIZE, SIZE, "room")
    fused = refine(scene.depth, scene.normals, camera_of(scene))
    assert np.percentile(np.abs(np.log(fused / scene.depth)), 95) < 0.003


def test_a_large_picture_takes_over_the_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = render(3, SIZE, SIZE + 3, "room")
    bent = scene.depth * (1 + 0.05 * np.sin(np.linspace(0, 6, SIZE + 3)))[None]
    whole = refine(bent, scene.normals, camera_of(scene))
    monkeypatch.setattr("runtime.refine.LARGEST", 64)
    reduced = refine(bent, scene.normals, camera_of(scene))
    assert np.median(np.abs(np.log(reduced / whole))) < 0.003
    assert np.median(np.abs(np.log(bent / whole))) > 0.008


def test_refine_leaves_unknown_depth_unknown() -> None:
    scene = render(3, 64, 64, "room")
    depth = scene.depth.copy()
    depth[:10] = np.nan
    fused = refine(depth, scene.normals, camera_of(scene))
    assert np.isnan(fused[:10]).all()
    assert np.isfinite(fused[10:]).all()
    with pytest.raises(GeometryError, match="no pixel"):
        refine(np.full_like(depth, np.nan), scene.normals, camera_of(scene))
