"""Pictures with cameras, poses and sparse points, as structure from motion leaves them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import GeometryError
from runtime.there import is_dir, is_file

Floats = NDArray[np.float64]

_FOCALS = {"SIMPLE_PINHOLE": 1, "PINHOLE": 2, "SIMPLE_RADIAL": 1, "RADIAL": 1, "OPENCV": 2}
_FOCALS |= {"FULL_OPENCV": 2}


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A camera as COLMAP describes it: the name of its `model` and its `params`, in pixels of a
    picture of `width` x `height` (None: of the picture's own size). The centre of the first pixel
    is at (0.5, 0.5).
    """

    model: str
    params: tuple[float, ...]
    width: int | None = None
    height: int | None = None

    @property
    def pinhole(self) -> tuple[float, float, float, float] | None:
        """fx, fy, cx and cy where it has no distortion; None where it has some."""
        focals = _FOCALS.get(self.model)
        if focals is None or any(self.params[focals + 2 :]):
            return None
        return self.params[0], self.params[focals - 1], *self.params[focals : focals + 2]  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One picture of a model. `name` is what the model calls it, `picture` its file.

    `camera_from_world` [4,4] has the camera's axes x right, y down, z forward. `points` [N,3] are
    sparse points of the world: those that were recognised in this picture, or with
    `Model.tracked` False all there are. `problem` says why it cannot be used, where that is known
    already.
    """

    name: str
    picture: Path
    lens: Lens
    camera_from_world: Floats
    points: Floats
    problem: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Views in the order of their names. `kind` is in words, `path` what was read. `tracked`: the
    model says which picture shows which point. `known_by`: the same for the same files.
    """

    kind: str
    path: Path
    views: list[View]
    tracked: bool
    known_by: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model lies: the folder of a COLMAP model, or a `transforms.json`."""

    path: Path
    files: list[Path] = field(default_factory=list)

    @property
    def known_by(self) -> str:
        """The beginning of the SHA-256 of its files. Raises: GeometryError."""
        digest = hashlib.sha256()
        try:
            for path in self.files:
                digest.update(path.read_bytes())
        except OSError as error:
            raise GeometryError(f"cannot read the model {self.path}: {error}") from error
        return digest.hexdigest()[:16]


def find_model(path: Path) -> Source:
    """What `--views` names: a model's folder, a folder above it as COLMAP and nerfstudio make it,
    or a `transforms.json`. Raises: GeometryError.
    """
    if is_file(path):
        if path.suffix.lower() == ".json":
            return Source(path=path, files=[path])
        raise GeometryError(f"--views {path}: give the folder of a COLMAP model, or a .json file")
    if not is_dir(path):
        raise GeometryError(f"--views {path}: there is no such folder")
    if files := _colmap_files(path):
        return Source(path=path, files=files)
    if is_file(path / "transforms.json"):
        return Source(path=path / "transforms.json", files=[path / "transforms.json"])
    for inner in ("sparse/0", "sparse", "0", "colmap/sparse/0"):
        if files := _colmap_files(path / inner):
            return Source(path=path / inner, files=files)
    raise GeometryError(
        f"--views {path}: found neither a COLMAP model (cameras, images and points3D, .bin or "
        ".txt; here, or in sparse/0) nor a transforms.json"
    )


def _colmap_files(folder: Path) -> list[Path]:
    for ending in (".bin", ".txt"):
        files = [folder / f"{name}{ending}" for name in ("cameras", "images", "points3D")]
        if all(is_file(path) for path in files):
            return files
    return []


def read_model(path: Path, images: Path | None = None, points: Path | None = None) -> Model:
    """The model at a path. `images` is the folder of its pictures, else where such models have
    them; `points` a PLY of sparse points, for a `transforms.json` that names none.

    Raises: GeometryError; ModuleNotFoundError where pycolmap is needed and missing.
    """
    from apps.views.colmap import read_colmap
    from apps.views.transforms import read_transforms

    source = find_model(path)
    if images is not None and not is_dir(images):
        raise GeometryError(f"--images {images}: there is no such folder")
    if source.path.suffix.lower() == ".json":
        model = read_transforms(source, images, points)
    elif points is not None:
        raise GeometryError("--points is for a transforms.json: a COLMAP model has its own")
    else:
        model = read_colmap(source, images)
    return replace(model, views=[*_named_apart(sorted(model.views, key=lambda view: view.name))])


def _named_apart(views: Iterable[View]) -> Iterator[View]:
    """A second view of one name gets another name, and a problem: reports are by name."""
    met = Counter[str]()
    for view in views:
        met[view.name] += 1
        number = met[view.name]
        yield (
            view
            if number == 1
            else replace(
                view, name=f"{view.name} ({number})", problem="the model names this picture before"
            )
        )


def pose(matrix: Any) -> Floats | None:
    """A rigid [4,4] out of [3,4] or [4,4]; None for what is none: not finite, scaled, mirrored."""
    try:
        found = np.asarray(matrix, np.float64)
    except (TypeError, ValueError):
        return None
    if found.shape not in ((3, 4), (4, 4)) or not np.isfinite(found).all():
        return None
    whole = np.vstack([found[:3], [0, 0, 0, 1]])
    turn = whole[:3, :3]
    rigid = np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) and np.linalg.det(turn) > 0
    return whole if rigid else None
