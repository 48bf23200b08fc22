"""Scale and shift: from known distances, from normals, and what is said where neither can be.

Maps are exact, of rendered scenes, with an unknown affine change; so the right answer is known.
"""

from __future__ import annotations

import numpy as np
import pytest

from runtime.alignment import RELATIVE, Anchors, align, guess
from runtime.calibration import calibrate
from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.reconstruct import reconstruct
from runtime.spaces import SPACES
from runtime.tasks import TASKS
from tiny.render import LOTUS_AXES, Rendered, render

SPACE = pytest.mark.parametrize("space", list(SPACES))


def changed(scene: Rendered, space: str, seed: int = 0) -> tuple[np.ndarray, float, float]:
    """The exact map with a random affine change; the scale and shift that undo it."""
    random = np.random.default_rng(seed)
    scale, shift = float(np.exp(random.uniform(-3, 3))), float(random.uniform(-3, 3))
    return (SPACES[space].of_depth(scene.depth) - shift) / scale, scale, shift


def camera_of(scene: Rendered) -> Camera:
    return Camera.from_matrix(scene.intrinsics, *scene.depth.shape)


def points(scene: Rendered, count: int, seed: int, outliers: float = 0.0) -> Anchors:
    random = np.random.default_rng(seed)
    u, v = random.uniform(0, scene.depth.shape[1], (2, count))
    depth = scene.depth[v.astype(int), u.astype(int)].astype(np.float64)
    wrong = random.permutation(count)[: round(outliers * count)]
    depth[wrong] *= np.exp(random.uniform(0.3, 2, len(wrong)) * random.choice([-1, 1], len(wrong)))
    return Anchors(u=u, v=v, depth=depth)


@SPACE
@pytest.mark.parametrize("seed", range(8))
def test_anchors_of_which_a_third_is_wrong(space: str, seed: int) -> None:
    scene = render(seed, 64, 64, "room")
    values, scale, shift = changed(scene, space, seed)
    found = align(values, space, points(scene, 200, seed, outliers=0.3))
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.shift == pytest.approx(shift, rel=1e-6, abs=1e-6 * scale)
    assert (found.unit, found.metric, found.inliers, found.candidates) == ("m", True, 140, 200)
    assert found.residual < 1e-6
    assert np.allclose(found.depth(values), scene.depth, rtol=1e-5)


@SPACE
def test_anchors_of_which_nearly_half_agree_on_something_else(space: str) -> None:
    """As where a sensor sees the window that the picture looks through."""
    scene = render(5, 64, 64, "room")
    values, scale, shift = changed(scene, space)
    anchors = points(scene, 200, 1)
    wrong = np.argsort(anchors.depth)[-90:]
    depth = anchors.depth.copy()
    depth[wrong] *= 0.3
    found = align(values, space, Anchors(u=anchors.u, v=anchors.v, depth=depth))
    assert (found.scale, found.shift) == pytest.approx((scale, shift), rel=1e-6)
    assert found.inliers == 110


@SPACE
def test_noisy_anchors_are_averaged(space: str) -> None:
    scene = render(3, 64, 64, "room")
    values = changed(scene, space)[0]
    anchors = points(scene, 2000, 1, outliers=0.2)
    noise = np.exp(np.random.default_rng(2).normal(0, 0.02, 2000))
    noisy = Anchors(u=anchors.u, v=anchors.v, depth=anchors.depth * noise)
    found = align(values, space, noisy)
    assert np.allclose(found.depth(values), scene.depth, rtol=0.01)
    assert 0.005 < found.residual < 0.03


@SPACE
def test_a_depth_map_of_the_same_picture_is_anchors(space: str) -> None:
    scene = render(3, 64, 64, "room")
    values, scale, _ = changed(scene, space)
    sensor = scene.depth.copy()
    sensor[:20] = 0  # a sensor's "nothing"
    sensor[30, 30] = np.nan
    found = align(values, space, Anchors.from_map(sensor, unit="feet"))
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert (found.unit, found.candidates) == ("feet", 44 * 64 - 1)


@SPACE
def test_two_anchors_are_enough_and_one_with_the_shift(space: str) -> None:
    scene = render(3, 64, 64, "room")
    values, scale, shift = changed(scene, space)
    far, near = (np.unravel_index(pick(scene.depth), (64, 64)) for pick in (np.argmax, np.argmin))
    v, u = np.array([far, near]).T + 0.5
    depth = np.array([scene.depth.max(), scene.depth.min()])
    assert align(values, space, Anchors(u=u, v=v, depth=depth)).scale == pytest.approx(scale)
    one = Anchors(u=u[:1], v=v[:1], depth=depth[:1])
    by_offset = align(values, space, one, offset=shift / scale)
    assert (by_offset.scale, by_offset.shift) == pytest.approx((scale, shift))
    assert align(values, space, one, scale=scale).shift == pytest.approx(shift)


def test_anchors_that_are_none() -> None:
    scene = render(3, 64, 64, "room")
    values, _, _ = changed(scene, "depth")

    def refused(said: str, u: object, v: object, depth: object) -> None:
        with pytest.raises(GeometryError, match=said):
            align(values, "depth", Anchors(u=u, v=v, depth=depth))  # type: ignore[arg-type]

    refused("found 0", [], [], [])
    refused("found 0 of 2", [100, 200], [5, 5], [1, 2])  # beside the picture
    refused("found 0 of 0", [5, 6], [5, 5], [0, np.nan])
    refused("as many u", [5], [5, 6], [1, 2])
    refused("positive", [5, 6], [5, 6], [1, -2])
    refused("numbers", ["left", 6], [5, 6], [1, 2])
    refused("one depth", [5.5, 50.5, 30.5], [5.5, 40.5, 60.5], [2, 2, 2])
    with pytest.raises(GeometryError, match="contradict"):
        align(-values, "depth", points(scene, 50, 0))
    with pytest.raises(GeometryError, match="space"):
        align(values, "albedo", points(scene, 50, 0))


@SPACE
@pytest.mark.parametrize("seed", range(8))
def test_normals_give_the_shift(space: str, seed: int) -> None:
    scene = render(seed, 128, 128, "room")
    values, scale, shift = changed(scene, space, seed)
    found = calibrate(values, space, scene.normals, camera_of(scene)).alignment
    size = np.ptp(values)
    assert found.offset == pytest.approx(shift / scale, abs=0.005 * size)
    assert (found.unit, found.fallback, found.method) == (RELATIVE, None, "shift from normals")
    ratio = found.depth(values) / scene.depth
    assert np.allclose(ratio / np.median(ratio), 1, atol=0.02)
    assert np.median(found.depth(values)) == pytest.approx(1, rel=1e-5)
    assert found.turned < 3  # degrees


@SPACE
@pytest.mark.parametrize("seed", range(4))
def test_normals_give_the_shift_through_noise_and_beside_a_sky(space: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    scene = render(seed, 128, 128, "outdoor" if seed % 2 else "room")
    values, scale, shift = changed(scene, space, seed)
    seen = ~scene.sky
    values = values + random.normal(0, 0.003 * np.ptp(values[seen]), values.shape)
    normals = scene.normals + random.normal(0, 0.05, scene.normals.shape).astype(np.float32)
    found = calibrate(values, space, normals, camera_of(scene), seen).alignment
    assert found.offset == pytest.approx(shift / scale, abs=0.05 * np.ptp(values[seen]))


@SPACE
def test_the_field_of_view_is_found_with_exact_maps(space: str) -> None:
    errors = []
    for seed in range(8):
        scene = render(seed, 128, 128, "room")
        values, _, _ = changed(scene, space, seed)
        found = calibrate(values, space, scene.normals, None)
        error = abs(found.camera.fov - camera_of(scene).fov)
        assert found.fov_error is not None
        assert error < 1.5 or error < found.fov_error
        assert "searched" in found.camera.source
        errors.append(error)
    assert np.median(errors) < 0.3


def test_what_normals_cannot_tell_is_a_guess_that_says_so() -> None:
    head_on = np.broadcast_to(np.array([0, 0, -1], np.float32), (64, 64, 3))
    values = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    wall = calibrate(values, "depth", head_on, Camera.from_fov(60)).alignment
    assert wall.fallback is not None
    assert "too little" in wall.fallback
    scene = render(3, 64, 64, "room")
    values, _, _ = changed(scene, "disparity")
    turned = calibrate(-values, "disparity", scene.normals, camera_of(scene)).alignment
    assert turned.fallback is not None
    assert "contradict" in turned.fallback
    first, second = render(0, 64, 64, "room"), render(7, 64, 64, "room")  # of another picture
    values, _, _ = changed(first, "disparity")
    unrelated = calibrate(values, "disparity", second.normals, camera_of(first)).alignment
    assert unrelated.fallback is not None
    assert "degrees from" in unrelated.fallback
    with pytest.raises(GeometryError, match="leaves none"):
        calibrate(values, "depth", scene.normals, None, np.zeros((64, 64), bool))
    with pytest.raises(GeometryError, match="one picture"):
        calibrate(values, "depth", scene.normals[:32], None)


@SPACE
def test_a_guess_has_its_ratio_and_its_label(space: str) -> None:
    values, _, _ = changed(render(3, 64, 64, "room"), space)
    found = guess(values, space, ratio=7)
    near, far = np.percentile(found.depth(values), [1, 99])
    assert far / near == pytest.approx(7, rel=1e-3)
    assert found.unit == RELATIVE
    assert found.fallback
    with pytest.raises(GeometryError, match="no shape"):
        guess(np.ones((4, 4)), space)


def maps_of(scene: Rendered, task: str) -> dict[str, np.ndarray]:
    space = TASKS[task].space
    assert space is not None
    return {task: changed(scene, space)[0], "normal": scene.normals * LOTUS_AXES}


@pytest.mark.parametrize("task", ["depth", "disparity"])
def test_the_best_that_is_known_is_used(task: str) -> None:
    scene = render(3, 64, 64, "room")
    maps, camera = maps_of(scene, task), camera_of(scene)
    by_anchors = reconstruct({task: maps[task]}, camera, anchors=points(scene, 20, 0))
    assert np.allclose(by_anchors.depth, scene.depth, rtol=1e-4)
    assert by_anchors.alignment.method == "scale and shift from 20 known distances"

    one = Anchors(u=np.array([20.5]), v=np.array([40.5]), depth=scene.depth[40:41, 20])
    by_one = reconstruct(maps, camera, anchors=one)
    assert by_one.alignment.method == "scale from 1 known distance; shift from normals"
    assert by_one.alignment.unit == "m"
    assert np.allclose(by_one.depth, scene.depth, rtol=0.03)

    assert reconstruct(maps, camera).alignment.unit == RELATIVE
    alone = reconstruct({task: maps[task]}, camera, anchors=one).alignment
    assert alone.fallback
    assert "guess" in alone.method
    assert reconstruct({task: maps[task]}).camera.fov == pytest.approx(60)


@pytest.mark.parametrize("task", ["depth", "disparity"])
def test_normals_with_x_to_the_other_side_are_turned_round(task: str) -> None:
    """Authors differ in that side; what the map says of slopes does not."""
    for seed in range(6):
        scene = render(seed, 96, 96, "room")
        maps = maps_of(scene, task)
        right = reconstruct(maps, camera_of(scene))
        turned = maps | {"normal": maps["normal"] * np.array([-1, 1, 1], np.float32)}
        found = reconstruct(turned, camera_of(scene))
        assert (right.mirrored, found.mirrored) == (False, True)
        np.testing.assert_array_equal(found.depth, right.depth)
        np.testing.assert_array_equal(found.normals, right.normals)


def test_the_cameras_height_gives_metres_and_the_floor_is_level() -> None:
    from tiny.scene import STYLES, make_scene

    seed = 0
    scene, drawn = render(seed, 128, 128, "room"), make_scene(seed, STYLES["room"])
    height = float(drawn.camera.position[1])
    found = reconstruct(maps_of(scene, "disparity"), camera_of(scene), camera_height=height)
    assert found.alignment.method.startswith("scale from the camera's height")
    assert np.nanmedian(found.depth / scene.depth) == pytest.approx(1, abs=0.03)
    assert found.floor is not None
    assert found.floor.distance == pytest.approx(height, rel=1e-3)
    up = found.upright @ found.floor.normal
    assert np.allclose(up, [0, -1, 0], atol=1e-6)
    assert np.allclose(found.upright @ found.upright.T, np.eye(3), atol=1e-9)
    # The world's up, in the camera's frame.
    assert found.floor.normal @ drawn.camera.rotation[1] > np.cos(np.radians(1))


def test_points_are_those_that_can_be_seen() -> None:
    scene = render(3, 64, 64, "room")
    found = reconstruct(maps_of(scene, "depth"), camera_of(scene), anchors=points(scene, 50, 0))
    cloud = found.points(stride=2)
    assert 500 < len(cloud.positions) <= 32 * 32
    assert np.allclose(cloud.positions[:, 2], scene.depth[cloud.rows, cloud.columns], rtol=1e-3)
    assert np.allclose(cloud.normals, scene.normals[cloud.rows, cloud.columns])
    assert not found.edges[cloud.rows, cloud.columns].any()
    with pytest.raises(GeometryError, match="stride"):
        found.points(0)


@pytest.mark.parametrize(
    ("tasks", "options", "said"),
    [
        (["normal"], {}, "depth or disparity"),
        (["depth"], {"refine": True}, "normals"),
        (["depth"], {"search": True}, "normals"),
        (["depth", "normal"], {"sky": np.zeros((3, 3), bool)}, "mask"),
    ],
)
def test_what_cannot_be_reconstructed(
    tasks: list[str], options: dict[str, object], said: str
) -> None:
    maps = maps_of(render(3, 64, 64, "room"), "depth")
    with pytest.raises(GeometryError, match=said):
        reconstruct({task: maps[task] for task in tasks}, **options)  # type: ignore[arg-type]
