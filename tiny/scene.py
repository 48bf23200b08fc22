"""What is pictured: rooms, and ground planes under a sky, with boxes, spheres and cylinders, drawn
from a seed.

World coordinates: y is up, the floor is y = 0, metres. Everything random is drawn here, sensor
noise aside.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

TRAIN_FIRST_SEED = 1_000_000
"""Training renders this seed and those above it, never one below."""
HELD_OUT_SEEDS = range(200)
"""Evaluation renders these and no others."""


@dataclass(frozen=True, kw_only=True)
class Paint:
    """What a material is drawn from. A repeated name is drawn more often; colours are linear, in
    [0, 1].
    """

    textures: tuple[str, ...] = ("plain", "plain", "checker", "stripe", "smooth", "smooth", "white")
    brightness: tuple[float, float] = (0.08, 0.9)
    tint: float = 0.18  # largest standard deviation of red, green and blue from the brightness
    contrast: tuple[float, float] = (0.25, 0.85)  # second colour over first


_ANY_PAINT = Paint()


@dataclass(frozen=True, kw_only=True)
class Style:
    """What `make_scene` may draw from: a style is a row of `STYLES`, not a branch of code."""

    backgrounds: tuple[str, ...]  # of "room", "outdoor"
    shapes: tuple[str, ...] = (
        "box",
        "box",
        "sphere",
        "cylinder",
    )  # a repeated name is drawn more often
    floor: Paint = _ANY_PAINT
    walls: Paint = _ANY_PAINT
    ceiling: Paint = _ANY_PAINT
    things: Paint = _ANY_PAINT
    solids: tuple[int, int] = (3, 11)  # fewest, most
    floating: float = 0.2  # share of the solids that hang in the air
    field_of_view: tuple[float, float] = (45, 80)  # degrees, across the longer edge
    pitch_indoors: tuple[float, float] = (-30, 12)  # degrees, up is positive
    pitch_outdoors: tuple[float, float] = (-20, 8)
    exposure: tuple[float, float] = (0.5, 1.0)
    sensor_noise: tuple[float, float] = (0.0, 0.02)  # standard deviation, display values in [0, 1]
    fog: tuple[float, float] | None = None  # metres after which 1 / e of the light is left
    far: float = 30.0  # metres


# As in most rooms: ceilings are white, walls pale, floors darker, and what stands on them has
# colours.
_FLOOR = Paint(
    textures=("plain", "checker", "stripe", "smooth", "smooth"), brightness=(0.1, 0.4), tint=0.06
)
_WALLS = Paint(
    textures=("plain", "plain", "smooth", "stripe"),
    brightness=(0.5, 0.85),
    tint=0.08,
    contrast=(0.6, 0.9),
)
_CEILING = Paint(textures=("plain",), brightness=(0.75, 0.95), tint=0.03)
_THINGS = Paint(
    textures=("plain", "plain", "plain", "smooth", "checker", "stripe"),
    brightness=(0.1, 0.7),
    tint=0.35,
)
_MIXED = Style(
    backgrounds=("room", "room", "outdoor"),
    floor=_FLOOR,
    walls=_WALLS,
    ceiling=_CEILING,
    things=_THINGS,
    solids=(2, 8),
    floating=0.05,
    field_of_view=(50, 70),
    pitch_indoors=(-25, 5),
    pitch_outdoors=(-15, 3),
)
_UNSEEN_TEXTURES = ("plain", "brick", "dots", "brick", "dots")

STYLES = {
    "mixed": _MIXED,
    "room": dataclasses.replace(_MIXED, backgrounds=("room",)),
    "outdoor": dataclasses.replace(_MIXED, backgrounds=("outdoor",)),
    # Anything goes: what the autoencoder learns from, which is to keep pictures of every kind.
    "motley": Style(backgrounds=("room", "room", "outdoor")),
    # For evaluation alone: shapes, textures, air and light that training never sees.
    "unseen": dataclasses.replace(
        _MIXED,
        shapes=("ellipsoid", "prism", "octahedron"),
        floor=dataclasses.replace(_FLOOR, textures=_UNSEEN_TEXTURES),
        walls=dataclasses.replace(_WALLS, textures=_UNSEEN_TEXTURES),
        things=dataclasses.replace(_THINGS, textures=_UNSEEN_TEXTURES),
        exposure=(0.12, 0.5),
        sensor_noise=(0.01, 0.04),
        fog=(6.0, 60.0),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Material:
    """Colours are linear RGB in [0, 1]; `scale` is the texture's period in metres."""

    texture: str
    colours: np.ndarray  # [2, 3]
    scale: float
    offset: np.ndarray  # [2], metres


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A convex body, rotated around the vertical axis; `half` of a cylinder is radius, half height,
    radius.
    """

    shape: str  # "box", "sphere", "cylinder", "ellipsoid", "prism" (hexagonal) or "octahedron"
    centre: np.ndarray  # [3], metres
    half: np.ndarray  # [3], metres
    yaw: float  # radians
    material: Material


@dataclass(frozen=True, kw_only=True)
class Camera:
    """`rotation` has the camera's right, down and forward axes in world coordinates as columns."""

    position: np.ndarray  # [3], metres
    rotation: np.ndarray  # [3, 3]
    fov: float  # radians, across the longer edge


@dataclass(frozen=True, kw_only=True)
class Light:
    """A lamp at `position`; the sun is a lamp that is very far away."""

    position: np.ndarray  # [3], metres
    colour: np.ndarray  # [3]
    ambient: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that a picture is computed from; `room` is None outdoors."""

    seed: int
    room: np.ndarray | None  # [3]: width, height, length in metres; x and z are centred on 0
    surfaces: tuple[Material, ...]  # of the floor, then of the walls and ceiling (or the sky)
    solids: tuple[Solid, ...]
    camera: Camera
    light: Light
    noise: np.ndarray  # [256, 256] smooth noise in [0, 1], tileable; textures and clouds read it
    exposure: float
    sensor_noise: float
    fog: float | None  # metres after which 1 / e of the light is left
    far: float


def make_scene(seed: int, style: Style) -> Scene:
    """Draw a scene from a seed."""
    rng = np.random.default_rng(np.random.Philox(seed))
    indoors = str(rng.choice(style.backgrounds)) == "room"
    room = (
        np.array([rng.uniform(3, 9), rng.uniform(2.3, 3.6), rng.uniform(3, 10)])
        if indoors
        else None
    )
    camera = _draw_camera(rng, style, room)
    solids = []
    for _ in range(rng.integers(style.solids[0], style.solids[1] + 1)):
        solid = _draw_solid(rng, style, room, camera)
        if not is_close(solid, camera.position):
            solids.append(solid)
    scene = Scene(
        seed=seed,
        room=room,
        surfaces=tuple(
            _draw_material(rng, paint, 1.0 if indoors else 3.0)
            for paint in (style.floor, style.walls, style.ceiling)
        ),
        solids=tuple(solids),
        camera=camera,
        light=_draw_light(rng, room),
        noise=_draw_noise(rng),
        exposure=rng.uniform(*style.exposure),
        sensor_noise=rng.uniform(*style.sensor_noise),
        fog=None,
        far=style.far,
    )
    # Drawn last, so that the scenes of styles without fog are what they were before there was any.
    return (
        scene
        if style.fog is None
        else dataclasses.replace(scene, fog=np.exp(rng.uniform(*np.log(style.fog))))
    )


def _draw_camera(rng: np.random.Generator, style: Style, room: np.ndarray | None) -> Camera:
    yaw, roll = rng.uniform(-np.pi, np.pi), np.radians(rng.normal(0, 2))
    if room is None:
        position = np.array([0, rng.uniform(1.0, 4.0), 0])
        pitch = np.radians(rng.uniform(*style.pitch_outdoors))
    else:
        # Away from the wall that is looked at, so that most of the room is in view.
        x, z = (
            -rng.uniform(0, 0.8, 2)
            * (room[[0, 2]] / 2 - 0.3)
            * np.array([np.sin(yaw), np.cos(yaw)])
        )
        position = np.array([x, rng.uniform(0.7, room[1] - 0.5), z])
        pitch = np.radians(rng.uniform(*style.pitch_indoors))
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.array([np.cos(yaw), 0, -np.sin(yaw)])
    down = -np.array([-np.sin(yaw) * np.sin(pitch), np.cos(pitch), -np.cos(yaw) * np.sin(pitch)])
    right, down = (
        np.cos(roll) * right + np.sin(roll) * down,
        np.cos(roll) * down - np.sin(roll) * right,
    )
    fov = np.radians(rng.uniform(*style.field_of_view))
    return Camera(position=position, rotation=np.stack([right, down, forward], 1), fov=fov)


def _draw_solid(
    rng: np.random.Generator, style: Style, room: np.ndarray | None, camera: Camera
) -> Solid:
    """A solid in front of the camera: on the floor, in the air, or (a thin box) on a wall."""
    shape = str(rng.choice(style.shapes))
    size = 1.0 if room is not None else np.exp(rng.uniform(0, 1.6))
    half = size * np.exp(rng.uniform(np.log(0.12), np.log(0.7), 3))
    if shape in ("sphere", "cylinder", "prism"):
        half[2] = half[0]
    if shape == "sphere":
        half[1] = half[0]
    bearing = np.arctan2(*camera.rotation[[0, 2], 2]) + rng.uniform(-0.55, 0.55) * camera.fov
    nearest, farthest = (0.9, 6.0) if room is not None else (1.5, 20.0)
    distance = np.exp(rng.uniform(np.log(nearest), np.log(farthest))) + half.max()
    centre = camera.position + distance * np.array([np.sin(bearing), 0, np.cos(bearing)])
    floats = rng.random() < style.floating
    centre[1] = half[1] + (rng.uniform(0, 1.2 * size) if floats else 0)
    yaw = rng.uniform(-np.pi, np.pi)
    if room is not None:
        reach = room[[0, 2]] / 2
        if shape == "box" and rng.random() < 0.25:  # cupboards, pictures, doors
            side = rng.integers(2)
            half[[0, 2]] = np.where(
                [side == 0, side == 1], 0.05 + 0.2 * rng.random(), half[[0, 2]] * 1.3
            )
            centre[2 * side] = np.copysign(reach[side], centre[2 * side])
            yaw = 0.0
        centre[[0, 2]] = np.clip(centre[[0, 2]], -reach, reach)
        centre[1] = min(centre[1], room[1] - half[1])
    return Solid(
        shape=shape,
        centre=centre,
        half=half,
        yaw=yaw,
        material=_draw_material(rng, style.things, 0.4 * size),
    )


def is_close(solid: Solid, position: np.ndarray) -> bool:
    """Whether the solid's bounding sphere comes within 0.3 m of the position, which may be
    inside.
    """
    radius = np.linalg.norm(solid.half) if solid.shape != "sphere" else solid.half[0]
    return bool(np.linalg.norm(solid.centre - position) < radius + 0.3)


def _draw_material(rng: np.random.Generator, paint: Paint, size: float) -> Material:
    base = np.clip(
        rng.uniform(*paint.brightness) + rng.normal(0, paint.tint, 3) * rng.random(), 0.03, 0.97
    )
    other = np.clip(
        base * rng.uniform(*paint.contrast) + rng.normal(0, 0.55 * paint.tint, 3), 0.02, 0.97
    )
    return Material(
        texture=str(rng.choice(paint.textures)),
        colours=np.stack([base, other]).astype(np.float32),
        scale=size * np.exp(rng.uniform(np.log(0.15), np.log(1.0))),
        offset=rng.uniform(0, 50, 2),
    )


def _draw_light(rng: np.random.Generator, room: np.ndarray | None) -> Light:
    if room is None:
        azimuth, elevation = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(20, 75))
        toward = np.array(
            [
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
                np.cos(azimuth) * np.cos(elevation),
            ]
        )
        position = 1e4 * toward
    else:
        position = np.array([*rng.uniform(-0.4, 0.4, 2), rng.uniform(0.8, 0.97)])[[0, 2, 1]] * room
    return Light(
        position=position, colour=1 + rng.normal(0, 0.06, 3), ambient=rng.uniform(0.25, 0.55)
    )


def _draw_noise(rng: np.random.Generator) -> np.ndarray:
    """Tileable noise whose spectrum falls with frequency, float32 [256, 256] in [0, 1]."""
    spectrum = np.fft.rfft2(rng.standard_normal((256, 256), np.float32))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    field = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / 256) ** rng.uniform(1.0, 1.8))
    return np.clip(0.5 + (field - field.mean()) / (4 * field.std()), 0, 1).astype(np.float32)
