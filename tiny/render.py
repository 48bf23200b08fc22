"""Pictures of scenes with exact depth and normals, ray-cast in NumPy.

The same seed gives the same scene at every size.

Conventions
- Camera frame: x right, y down, z forward (OpenCV). `depth` is planar: the z coordinate, not the
  length of the ray.
- `normals` are unit vectors in the camera frame that face the camera, so a wall seen head-on has
  (0, 0, -1). The maps that the tiny Lotus learns have x right, y up, z towards the camera:
  `normals * LOTUS_AXES`. The usual rgb = (n + 1) / 2 paints that wall (0.5, 0.5, 1).
- The sky is a plane at `Scene.far` metres, facing the camera, so that depth is finite everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import STYLES, Material, Scene, Solid, make_scene

LOTUS_AXES = np.array([1, -1, -1], np.float32)
"""Multiplies camera-frame normals into the axes of the predicted normal maps."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A picture and its ground truth; conventions in the module's docstring."""

    image: np.ndarray  # uint8 [H, W, 3]
    depth: np.ndarray  # float32 [H, W], metres
    normals: np.ndarray  # float32 [H, W, 3]
    sky: np.ndarray  # bool [H, W]; a sensor would measure no depth there
    intrinsics: np.ndarray  # float32 [3, 3], pixels; the centre of the first pixel is (0.5, 0.5)


def render(seed: int, height: int, width: int, style: str = "mixed") -> Rendered:
    """Draw the scene of a seed and picture it, `height` by `width` pixels. `style` is a key of
    `STYLES`.
    """
    return render_scene(make_scene(seed, STYLES[style]), height, width)


def render_scene(scene: Scene, height: int, width: int) -> Rendered:
    """Picture a scene: one ray through each pixel's centre, one more from where it ends to the
    light.
    """
    camera = scene.camera
    focal = np.float32(0.5 * max(height, width) / np.tan(camera.fov / 2))
    y, x = np.meshgrid(
        (np.arange(height, dtype=np.float32) + np.float32(0.5 - height / 2)) / focal,
        (np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2)) / focal,
        indexing="ij",
    )
    # The camera-frame z of a direction is 1, so the ray's parameter is the planar depth.
    directions = camera.rotation.astype(np.float32) @ np.stack(
        [x.ravel(), y.ravel(), np.ones(x.size, np.float32)]
    )
    origin = camera.position.astype(np.float32)[:, None]
    depth, surface = _cast(scene, origin, directions)
    points = origin + depth * directions
    normals, albedo = _shade_surfaces(scene, surface, points, directions, depth / focal)
    lit = surface != _SKY
    radiance = albedo.copy()
    radiance[:, lit] *= _illuminate(scene, points[:, lit], normals[:, lit])
    if scene.fog is not None:
        left = np.exp(-depth / np.float32(scene.fog))
        radiance = radiance * left + _HAZE * (1 - left)
    camera_normals = camera.rotation.astype(np.float32).T @ normals
    camera_normals[:, ~lit] = np.array([[0], [0], [-1]], np.float32)
    return Rendered(
        image=_expose(scene, radiance).T.reshape(height, width, 3),
        depth=depth.reshape(height, width),
        normals=np.ascontiguousarray(camera_normals.T).reshape(height, width, 3),
        sky=~lit.reshape(height, width),
        intrinsics=np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32),
    )


_HAZE = np.array([[0.8], [0.85], [0.92]], np.float32)
_FLOOR, _SKY, _FIRST_SOLID = 0, 3, 4
"""Surface numbers: `_FLOOR`, 1 for walls, 2 for the ceiling, `_SKY`, then the solids in order."""


def _cast(
    scene: Scene, origin: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Depth float32 [N] and surface number int8 [N] of the first hit of each ray [3, N]."""
    if scene.room is None:
        with np.errstate(divide="ignore"):
            ground = -origin[1] / directions[1]
        hits_ground = (ground > 0) & (ground < scene.far)
        depth = np.where(hits_ground, ground, np.float32(scene.far))
        surface = np.where(hits_ground, _FLOOR, _SKY).astype(np.int8)
    else:
        half = (scene.room / 2).astype(np.float32)[:, None]
        centre = np.array([[0], [half[1, 0]], [0]], np.float32)
        with np.errstate(divide="ignore"):
            leave = (np.copysign(half, directions) + centre - origin) / directions
        depth = leave.min(0)
        surface = np.where(leave[1] <= depth, np.where(directions[1] < 0, _FLOOR, 2), 1).astype(
            np.int8
        )
    for number, solid in enumerate(scene.solids, _FIRST_SOLID):
        enter, leave = _interval(solid, origin, directions)
        hit = (enter < leave) & (enter > 0) & (enter < depth)
        depth[hit] = enter[hit]
        surface[hit] = number
    return depth, surface


def _interval(
    solid: Solid, origin: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays enter and leave the solid; enter >= leave for a miss. Arrays [N] from [3, N]
    (or [3, 1]).
    """
    o = _to_local(solid, origin - solid.centre.astype(np.float32)[:, None])
    d = _to_local(solid, directions)
    half = solid.half.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        if solid.shape == "sphere":
            return _roots((d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - half[0] ** 2)
        if solid.shape == "ellipsoid":
            o, d = o / half[:, None], d / half[:, None]
            return _roots((d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1)
        if solid.shape != "cylinder":
            axes, widths = _slabs(solid)
            inverse = 1 / (axes @ d)
            to_centre, reach = -(axes @ o) * inverse, np.abs(widths[:, None] * inverse)
            return (to_centre - reach).max(0), (to_centre + reach).min(0)
        flat_o, flat_d = o[::2], d[::2]
        enter, leave = _roots(
            (flat_d * flat_d).sum(0),
            (flat_o * flat_d).sum(0),
            (flat_o * flat_o).sum(0) - half[0] ** 2,
        )
        to_centre, reach = -o[1] / d[1], np.abs(half[1] / d[1])
        return np.maximum(enter, to_centre - reach), np.minimum(leave, to_centre + reach)


def _slabs(solid: Solid) -> tuple[np.ndarray, np.ndarray]:
    """A body with flat faces as |axes @ p| <= widths in its own axes: unit axes [K, 3], widths
    [K].
    """
    half = solid.half.astype(np.float32)
    if solid.shape == "box":
        return np.eye(3, dtype=np.float32), half
    if solid.shape == "prism":
        sides = [[np.cos(angle), 0, np.sin(angle)] for angle in (0, np.pi / 3, 2 * np.pi / 3)]
        return np.array([*sides, [0, 1, 0]], np.float32), np.array(
            [half[0]] * 3 + [half[1]], np.float32
        )
    if solid.shape == "octahedron":
        axes = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]], np.float32) / half
        lengths = np.linalg.norm(axes, axis=1)
        return axes / lengths[:, None], 1 / lengths
    raise ValueError(f"unknown shape {solid.shape!r}")


def _roots(a: np.ndarray, half_b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both roots of a t^2 + 2 half_b t + c; NaN, which compares as a miss, where there is none."""
    root = np.sqrt(half_b * half_b - a * c)
    return (-half_b - root) / a, (root - half_b) / a


def _to_local(solid: Solid, vectors: np.ndarray) -> np.ndarray:
    """World vectors [3, N] in the solid's own axes."""
    return _yaw_matrix(solid.yaw).T @ vectors


def _yaw_matrix(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def _shade_surfaces(
    scene: Scene, surface: np.ndarray, points: np.ndarray, directions: np.ndarray, pixel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """World normals and albedo, both float32 [3, N]; `pixel` is a pixel's width in metres at the
    point.
    """
    normals, albedo = np.zeros_like(points), np.empty_like(points)
    for number in np.unique(surface):
        index = np.flatnonzero(surface == number)
        p, ray = points[:, index], directions[:, index]
        if number == _SKY:
            albedo[:, index] = _sky_colour(scene, ray)
            continue
        if number >= _FIRST_SOLID:
            solid = scene.solids[number - _FIRST_SOLID]
            material, local = (
                solid.material,
                _to_local(solid, p - solid.centre.astype(np.float32)[:, None]),
            )
            local_normals = _solid_normals(solid, local)
            uv = _surface_coordinates(solid.shape, local, local_normals)
            normal = _yaw_matrix(solid.yaw) @ local_normals
        else:
            material, normal = scene.surfaces[number], _background_normals(scene, number, p)
            uv = _surface_coordinates("box", p, normal)
        normals[:, index] = normal
        slant = -(normal * ray).sum(0) / np.sqrt((ray * ray).sum(0))
        footprint = pixel[index] / (np.maximum(slant, 0.05) * np.float32(material.scale))
        albedo[:, index] = _texture(scene.noise, material, uv, footprint)
    return normals, albedo


def _background_normals(scene: Scene, number: int, points: np.ndarray) -> np.ndarray:
    normals = np.zeros_like(points)
    if number != 1:
        normals[1] = 1 if number == _FLOOR else -1
    else:
        half = (scene.room / 2).astype(np.float32)
        on_x = np.abs(points[0]) / half[0] > np.abs(points[2]) / half[2]
        normals[0] = np.where(on_x, -np.sign(points[0]), 0)
        normals[2] = np.where(on_x, 0, -np.sign(points[2]))
    return normals


def _solid_normals(solid: Solid, local: np.ndarray) -> np.ndarray:
    """Outward normals of surface points, both [3, N] in the solid's own axes."""
    half = solid.half.astype(np.float32)
    if solid.shape == "sphere":
        return local / np.sqrt((local * local).sum(0))
    if solid.shape == "ellipsoid":
        gradient = local / half[:, None] ** 2
        return gradient / np.sqrt((gradient * gradient).sum(0))
    if solid.shape != "cylinder":
        axes, widths = _slabs(solid)
        along = axes @ local
        face = (np.abs(along) / widths[:, None]).argmax(0)
        return axes[face].T * np.sign(along[face, np.arange(len(face))])
    normals = np.zeros_like(local)
    radius = np.hypot(local[0], local[2])
    cap = np.abs(local[1]) / half[1] > radius / half[0]
    normals[::2] = np.where(cap, 0, local[::2] / radius)
    normals[1] = np.where(cap, np.sign(local[1]), 0)
    return normals


def _surface_coordinates(shape: str, local: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Texture coordinates in metres, float32 [2, N]."""
    x, y, z = local
    flat = np.abs(normals[1]) > 0.7
    if shape in ("box", "prism", "octahedron"):
        return np.stack([np.where(np.abs(normals[0]) > 0.7, z, x), np.where(flat, z, y)])
    around = np.arctan2(x, z) * np.hypot(x, z).max(initial=0)
    if shape in ("sphere", "ellipsoid"):
        return np.stack([around, y])
    return np.stack([np.where(flat, x, around), np.where(flat, z, y)])


def _texture(
    noise: np.ndarray, material: Material, uv: np.ndarray, footprint: np.ndarray
) -> np.ndarray:
    """Albedo float32 [3, N]. Against aliasing, a pattern fades to its mean where a pixel spans half
    a period.
    """
    u, v = (uv + material.offset.astype(np.float32)[:, None]) / np.float32(material.scale)
    match material.texture:
        case "plain":
            weight = np.full_like(u, 0.0)
        case "checker":
            weight = ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
        case "stripe":
            weight = np.floor(u) % 2
        case "smooth":
            weight = _lookup(noise, u * 32, v * 32)
        case "white":
            weight = _hash(np.floor(u * 6), np.floor(v * 6))
        case "brick":
            along = u + 0.5 * (np.floor(2 * v) % 2)
            weight = ((along % 1 < 0.08) | (2 * v % 1 < 0.16)).astype(np.float32)
        case "dots":
            weight = (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(np.float32)
        case unknown:
            raise ValueError(
                f"unknown texture {unknown!r}; known: plain, checker, stripe, smooth, white, "
                "brick, dots"
            )
    weight = 0.5 + (weight - 0.5) * np.clip(1.5 - 2 * footprint, 0, 1)
    first, second = material.colours[:, :, None]
    return first + weight * (second - first)


def _lookup(noise: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear samples of a periodic map at coordinates in texels."""
    size = noise.shape[0]
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    i, j = v0.astype(np.int32) % size, u0.astype(np.int32) % size
    i1, j1 = (i + 1) % size, (j + 1) % size
    upper = noise[i, j] * (1 - fu) + noise[i, j1] * fu
    lower = noise[i1, j] * (1 - fu) + noise[i1, j1] * fu
    return upper * (1 - fv) + lower * fv


def _hash(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each pair of whole numbers, the same on every machine."""
    mixed = u.astype(np.int64) * 73856093 ^ v.astype(np.int64) * 19349663
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    return ((mixed >> 8) & 0xFFFF).astype(np.float32) / 65536


def _sky_colour(scene: Scene, directions: np.ndarray) -> np.ndarray:
    x, y, z = directions / np.sqrt((directions * directions).sum(0))
    zenith = np.array([[0.25], [0.45], [0.85]], np.float32)
    height = np.clip(y, 0, 1) ** np.float32(0.5)
    clouds = np.clip(2 * _lookup(scene.noise, 60 * x / (y + 0.15), 60 * z / (y + 0.15)) - 0.8, 0, 1)
    sky = _HAZE + (zenith - _HAZE) * height
    return sky + (1 - sky) * clouds * height * 0.9


def _illuminate(scene: Scene, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Light on surface points [3, N], float32 [3, N]: ambient, and Lambert's term where the lamp is
    seen.
    """
    light = scene.light
    start = points + np.float32(2e-3) * normals
    toward = light.position.astype(np.float32)[:, None] - start
    cosine = np.maximum((normals * toward).sum(0) / np.sqrt((toward * toward).sum(0)), 0)
    for solid in scene.solids:
        enter, leave = _interval(solid, start, toward)
        cosine[(enter < leave) & (leave > 0) & (enter < 1)] = 0
    # A little light from above, so that faces in shadow still differ by their direction.
    ambient = light.ambient * (1 + 0.25 * normals[1])
    return ambient + light.colour.astype(np.float32)[:, None] * cosine


def _expose(scene: Scene, radiance: np.ndarray) -> np.ndarray:
    """Linear radiance [3, N] to display values, uint8 [3, N], with the sensor's noise."""
    display = np.clip(radiance * np.float32(scene.exposure), 0, 1) ** np.float32(1 / 2.2)
    grain = np.random.default_rng(np.random.Philox(key=scene.seed + 1)).standard_normal(
        display.shape, np.float32
    )
    return np.clip((display + np.float32(scene.sensor_noise) * grain) * 255 + 0.5, 0, 255).astype(
        np.uint8
    )
