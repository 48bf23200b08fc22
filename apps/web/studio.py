"""What the page shows of a photo, without the page: maps, a scene, files, and words about them."""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.scene import files
from runtime.camera import Camera
from runtime.engine import LotusEngine
from runtime.errors import GeometryError, ImageError, ImageWarning
from runtime.image import load
from runtime.prediction import TaskMap
from runtime.reconstruct import Reconstruction, reconstruct

MOST_PIXELS = 2_000_000
"""A photo is made smaller than this: what a page shows, and what its visitors share a machine
for."""
_MOST_POINTS = 250_000
_ISLAND = 60  # triangles: smaller parts are left out of the mesh


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo as it was predicted for: `rgb` uint8 [H,W,3], `size` (width, height) as it came, the
    maps' `values` by task, the camera that its file tells of (None: nothing), and the `engines`
    with what they took, in words.
    """

    rgb: NDArray[np.uint8]
    size: tuple[int, int]
    values: Mapping[str, NDArray[np.float32]]
    camera: Camera | None
    engines: list[str]
    note: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What can be seen and downloaded: `glb` is None where there is nothing to stand on, and
    `words` say why. `distance` is that from the middle of the scene to the camera. `downloads` are
    all files.
    """

    glb: Path | None
    distance: float
    fov: float
    downloads: list[Path]
    words: str


class Studio:
    """Some bundles, and what they make of one photo. One call at a time."""

    def __init__(self, engines: Sequence[LotusEngine], max_pixels: int) -> None:
        self._engines = engines
        self._max_pixels = max_pixels

    @property
    def tasks(self) -> list[str]:
        """All that is answered, in the order of the bundles."""
        names = [task for engine in self._engines for task in engine.manifest.tasks]
        return list(dict.fromkeys(names))

    @property
    def takes_seed(self) -> bool:
        """Whether a seed changes anything."""
        return any(map(_takes_seed, self._engines))

    def examples(self) -> list[NDArray[np.uint8]]:
        """The pictures of the golden samples, RGB uint8 [H,W,3]: every bundle has some."""
        first = self._engines[0]
        with np.load(first.folder / first.manifest.golden.file) as golden:
            arrays = [golden[name] for name in golden.files if name.startswith("image_")]
        return [array if array.ndim == 3 else array[0] for array in arrays]

    def see(self, path: Path, seed: int | None = None) -> Photo:
        """Read a photo and predict. Raises: ImageError, also for a file that is gone."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ImageWarning)
            try:
                rgb = load(path.read_bytes(), max_pixels=self._max_pixels)
            except FileNotFoundError as error:  # swept away, after a quarter of an hour
                raise ImageError("the photo is not here any more: give it again") from error
            except MemoryError as error:
                raise ImageError(
                    "there is not enough memory for it now: give a smaller one, or try again later"
                ) from error
            except ImageError as error:
                raise ImageError(str(error).removeprefix("the given bytes: ")) from error
        height, width = rgb.shape[:2]
        try:
            camera = Camera.from_exif(path, height, width)
        except (GeometryError, ImageError, OSError):  # OSError: the file went meanwhile
            camera = None
        rgb = _smaller(rgb)
        values: dict[str, NDArray[np.float32]] = {}
        engines = []
        for engine in self._engines:
            start = time.perf_counter()
            prediction = engine(rgb, seed if _takes_seed(engine) else None)
            took = time.perf_counter() - start
            engines.append(_engine_in_words(engine, took))
            values |= {task: each.values for task, each in prediction.items()}
        return Photo(
            rgb=rgb,
            size=(width, height),
            values=values,
            camera=None if camera is None else camera.at(*rgb.shape[:2]),
            engines=engines,
            note="; ".join(str(each.message).partition(": ")[2] for each in caught),
        )

    def build(self, photo: Photo, folder: Path, fov: float | None, edge: float) -> Scene:
        """The scene and all files, written into `folder`. `fov` None: what the photo tells, else an
        assumption.
        """
        camera = photo.camera or Camera.assumed().at(*photo.rgb.shape[:2])
        if fov is not None:
            camera = Camera.from_fov(fov).at(*photo.rgb.shape[:2])
        contents, distance = _maps(photo), 1.0
        try:
            found = reconstruct(photo.values, camera, edge=edge)
            stride = math.ceil(math.sqrt(found.depth.size / _MOST_POINTS))
            meshes, mesh = files.encode_meshes(found, photo.rgb, stride, _ISLAND, faces=None)
            ends = [mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)]
            distance = float(np.linalg.norm(np.mean(ends, axis=0)))
            contents |= meshes
            contents["cloud.ply"] = files.encode_cloud(found, found.points(stride), photo.rgb)
            contents |= files.encode_maps(found)
            words = _scene_in_words(found)
        except GeometryError as error:
            words = f"There is none: {error}."
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        glb = folder / "mesh.glb"
        return Scene(
            glb=glb if glb.name in contents else None,
            distance=distance,
            fov=camera.fov,
            downloads=[folder / name for name in contents],
            words=words,
        )


def colors(photo: Photo, task: str) -> NDArray[np.uint8]:
    """The map in colours, RGB uint8 [H,W,3]."""
    return TaskMap(task=task, values=photo.values[task]).colorize()


def _maps(photo: Photo) -> dict[str, bytes]:
    """Each map in colours and as an array."""
    contents = {}
    for task, values in photo.values.items():
        picture, array = io.BytesIO(), io.BytesIO()
        Image.fromarray(colors(photo, task)).save(picture, format="PNG")
        np.save(array, values, allow_pickle=False)
        contents[f"{task}.png"] = picture.getvalue()
        contents[f"{task}.npy"] = array.getvalue()
    return contents


def _smaller(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = rgb.shape[:2]
    scale = math.sqrt(MOST_PIXELS / (height * width))
    if scale >= 1:
        return rgb
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))


def _takes_seed(engine: LotusEngine) -> bool:
    return engine.manifest.mode == "g" and not engine.manifest.fixed_noise


def _engine_in_words(engine: LotusEngine, took: float) -> str:
    manifest = engine.manifest
    tasks = " and ".join(manifest.tasks)
    return (
        f"{tasks} by {manifest.name} ({engine.backend}, {manifest.precision}): {took * 1000:.0f} ms"
    )


def _scene_in_words(found: Reconstruction) -> str:
    alignment = found.alignment
    why = f" ({alignment.fallback})" if alignment.fallback else ""
    level = "" if found.up is None else " It stands upright, by the normals."
    return f"It has no metres ({alignment.unit}). Its shape: {alignment.method}{why}.{level}"
