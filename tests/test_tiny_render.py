"""The rendered ground truth: repeatable, and right where a formula says what it must be."""

import dataclasses

import numpy as np
import pytest

import tiny.render
from tiny.render import LOTUS_AXES, render, render_scene
from tiny.scene import HELD_OUT_SEEDS, STYLES, TRAIN_FIRST_SEED, Solid, make_scene


def test_the_same_seed_gives_the_same_picture_and_another_seed_another():
    first, again, other = render(7, 96, 128), render(7, 96, 128), render(8, 96, 128)
    for name in ("image", "depth", "normals", "intrinsics"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.depth, other.depth)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (97, 41)])
def test_arrays_have_their_stated_shapes_types_and_ranges(style, height, width):
    for seed in range(6):
        rendered = render(seed, height, width, style)
        assert rendered.image.shape == (height, width, 3)
        assert rendered.image.dtype == np.uint8
        assert rendered.depth.shape == (height, width)
        assert rendered.depth.dtype == np.float32
        assert 0 < rendered.depth.min() <= rendered.depth.max() <= STYLES[style].far
        assert rendered.normals.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rendered.normals, axis=2), 1, atol=1e-5)


def test_training_never_draws_a_held_out_seed():
    assert max(HELD_OUT_SEEDS) < TRAIN_FIRST_SEED


def test_normals_face_the_camera():
    for seed in range(8):
        rendered = render(seed, 64, 64)
        rays = _rays(rendered)
        assert ((rendered.normals * rays).sum(2) < 1e-3).all()


@pytest.mark.parametrize("style", ["mixed", "unseen"])
def test_normals_agree_with_the_gradient_of_depth(style):
    """The cross product of the steps to the neighbours' points, in double precision, on pixels off
    every edge.
    """
    checked = 0
    for seed in range(8):
        rendered = render(seed, 192, 192, style)
        points = _rays(rendered) * rendered.depth[..., None].astype(np.float64)
        across = points[1:-1, 2:] - points[1:-1, :-2]
        down = points[2:, 1:-1] - points[:-2, 1:-1]
        estimated = np.cross(down, across)
        estimated /= np.linalg.norm(estimated, axis=2, keepdims=True)
        normals = rendered.normals.astype(np.float64)
        inner = normals[1:-1, 1:-1]
        neighbours = (normals[1:-1, 2:], normals[1:-1, :-2], normals[2:, 1:-1], normals[:-2, 1:-1])
        # Off edges: the neighbours' normals agree, and each neighbour's point lies near this
        # pixel's tangent plane.
        smooth = np.all([(inner * n).sum(2) > 0.999 for n in neighbours], axis=0)
        centre = points[1:-1, 1:-1]
        for p in (points[1:-1, 2:], points[1:-1, :-2], points[2:, 1:-1], points[:-2, 1:-1]):
            smooth &= np.abs(((p - centre) * inner).sum(2)) < 2e-3 * centre[..., 2]
        cosine = (estimated * inner).sum(2)[smooth]
        # Depth is float32: a step of a few millimetres far away keeps about three digits.
        assert np.percentile(cosine, 1) > 0.995
        checked += smooth.sum()
    assert checked > 8 * 192 * 192 // 2


def test_the_depth_of_a_sphere_is_the_nearer_root_of_its_equation():
    scene = make_scene(3, STYLES["room"])
    camera = scene.camera
    distance, radius = 1.5, 0.4
    ball = Solid(
        shape="sphere",
        centre=camera.position + distance * camera.rotation[:, 2],
        half=np.full(3, radius),
        yaw=0.7,
        material=scene.surfaces[0],
    )
    rendered = render_scene(
        dataclasses.replace(scene, room=np.full(3, 50.0), solids=(ball,)), 80, 120
    )
    rays = _rays(rendered)
    # In the camera frame |t r - (0, 0, distance)| = radius, where r_z = 1 and t is the planar
    # depth.
    squared = (rays**2).sum(2)
    discriminant = distance**2 - squared * (distance**2 - radius**2)
    inside = discriminant > 1e-4
    expected = (distance - np.sqrt(discriminant[inside])) / squared[inside]
    assert inside.sum() > 500
    np.testing.assert_allclose(rendered.depth[inside], expected, atol=1e-4)
    assert (rendered.depth[discriminant < -1e-4] > distance + radius).all()
    normals = (rays[inside] * expected[:, None] - [0, 0, distance]) / radius
    np.testing.assert_allclose(rendered.normals[inside], normals, atol=2e-3)


def test_a_wall_seen_head_on_faces_the_camera_and_is_blue_in_lotus_axes():
    sky = render(2, 64, 64, "outdoor").normals[0, 0]
    np.testing.assert_array_equal(sky * LOTUS_AXES, [0, 0, 1])


def test_a_picture_costs_two_float32_rays_for_each_pixel(monkeypatch):
    """One to the surface and one on to the light, each asked of every solid once."""
    interval, rays = tiny.render._interval, []

    def counted(solid, origin, directions):
        rays.append(directions.shape[1])
        found = interval(solid, origin, directions)
        assert {bound.dtype.name for bound in found} == {"float32"}
        return found

    monkeypatch.setattr(tiny.render, "_interval", counted)
    for seed in range(5):
        scene = make_scene(seed, STYLES["mixed"])
        rays.clear()
        render_scene(scene, 256, 256)
        assert len(rays) == 2 * len(scene.solids)
        assert rays[: len(scene.solids)] == [256 * 256] * len(scene.solids)
        assert max(rays) <= 256 * 256


def _rays(rendered):
    """Directions [H, W, 3] with z = 1 through the pixels' centres, float64."""
    height, width = rendered.depth.shape
    focal, (centre_x, centre_y) = (
        rendered.intrinsics[0, 0].astype(np.float64),
        rendered.intrinsics[:2, 2],
    )
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([(x - centre_x) / focal, (y - centre_y) / focal, np.ones_like(x)], axis=2)
