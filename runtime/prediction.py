"""The result of one prediction: for each task the values, their colours, their files."""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import TaskError
from runtime.saving import (
    DEFAULT,
    check_formats,
    fingerprint,
    save_together,
    saved_paths,
    stem_of,
    task_stems,
)
from runtime.tasks import TASKS
from runtime.tiles import Tiled

if TYPE_CHECKING:
    from runtime.camera import Camera
    from runtime.reconstruct import Points, Reconstruction


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskMap:
    """One task's map for one image.

    `values` is float32: [H,W] in [0,1] for depth and disparity, unit vectors [H,W,3] for normals.
    `uncertainty` float32 [H,W] says how far the answers of an ensemble lie apart: the median
    distance to `values` over the value, for normals the median angle in degrees. None without an
    ensemble. `meaning` says what a value is, as the bundle puts it; empty where there is none.
    """

    task: str
    values: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None = None
    meaning: str = ""

    def colorize(self) -> NDArray[np.uint8]:
        """RGB uint8 [H,W,3].

        Depth and disparity: Spectral from the image's smallest to its largest value, near is red.
        Normals: (n + 1) / 2. Other tasks: see their `Task`.
        """
        return TASKS[self.task].colorize(self.values)


class Prediction:
    """The maps of one image, by task: `prediction["normal"].values`.

    It is made of each task's values, in the order of the bundle's tasks; at least one. Iteration
    gives the tasks. With one task, `values`, `task` and `colorize` are those of its map; with
    several they raise TaskError. `uncertainty` has the tasks of an ensemble. `source` is the
    picture's file, None for a picture in memory. `tiled` says how a map came out of tiles, None
    without them. `meanings` says of tasks what a value is; files pass it on.
    """

    def __init__(
        self,
        values: Mapping[str, NDArray[np.float32]],
        *,
        source: Path | None = None,
        uncertainty: Mapping[str, NDArray[np.float32]] | None = None,
        tiled: Tiled | None = None,
        meanings: Mapping[str, str] | None = None,
    ) -> None:
        spreads, words = uncertainty or {}, meanings or {}
        self._maps = {
            name: TaskMap(
                task=name,
                values=array,
                uncertainty=spreads.get(name),
                meaning=words.get(name, TASKS[name].meaning),
            )
            for name, array in values.items()
        }
        self.source = source
        self.tiled = tiled

    def __getitem__(self, task: str) -> TaskMap:
        """Raises: TaskError, which is a KeyError, for a task that the bundle does not answer."""
        if task not in self._maps:
            raise TaskError(f"there is no map of {task!r} here, only of {', '.join(self._maps)}")
        return self._maps[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __contains__(self, task: object) -> bool:
        return task in self._maps

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(each.values.shape)}" for name, each in self.items())
        return f"<Prediction: {shapes}>"

    def keys(self) -> KeysView[str]:
        """The tasks, in the order of the bundle."""
        return self._maps.keys()

    def items(self) -> ItemsView[str, TaskMap]:
        """Each task with its map."""
        return self._maps.items()

    @property
    def task(self) -> str:
        """The only task. Raises: TaskError where there are several."""
        return self._only.task

    @property
    def values(self) -> NDArray[np.float32]:
        """The values of the only map. Raises: TaskError where there are several."""
        return self._only.values

    @property
    def uncertainty(self) -> NDArray[np.float32] | None:
        """The uncertainty of the only map. Raises: TaskError where there are several."""
        return self._only.uncertainty

    def colorize(self) -> NDArray[np.uint8]:
        """The colours of the only map, RGB uint8 [H,W,3]. Raises: TaskError where there are
        several.
        """
        return self._only.colorize()

    def reconstruct(self, camera: Camera | None = None, **known: Any) -> Reconstruction:
        """Depth, normals, sky and edges in the camera's frame, in metres where a distance is known:
        `runtime.reconstruct.reconstruct` of the maps, with its keywords. Raises: GeometryError.
        """
        from runtime.reconstruct import reconstruct

        maps = {task: each.values for task, each in self.items()}
        return reconstruct(maps, camera, **known)

    def points(self, camera: Camera | None = None, stride: int = 1, **known: Any) -> Points:
        """The points of `reconstruct`: positions, normals and pixels, as arrays.

        >>> cloud = engine("photo.jpg").points(Camera.from_fov(60))
        >>> cloud.positions                        # float32 [N,3]: x right, y down, z forward

        Raises: GeometryError.
        """
        return self.reconstruct(camera, **known).points(stride)

    @property
    def _only(self) -> TaskMap:
        if len(self) > 1:
            first = next(iter(self))
            raise TaskError(
                f"this prediction has maps of {' and '.join(self)}: choose one, as in "
                f"prediction[{first!r}].values"
            )
        return next(iter(self._maps.values()))

    def save(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        overwrite: bool = False,
        formats: Sequence[str] = DEFAULT,
    ) -> list[Path]:
        """Write the files of each map, and the folders above them. All files appear, or none.

        `formats` are any of `npy` (`<path>.npy`, float32), `png16` (`<path>-16bit.png`, 0..65535
        over the task's range), `color` (`<path>.png`), `npz` (`<path>.npz`: values with what they
        mean) and `exr` (`<path>.exr`, float32; needs the package `OpenEXR`). Of an ensemble `npy`
        has `<path>-uncertainty.npy` beside it; `npz` and `exr` hold the uncertainty themselves.

        `save("out/room")` writes `out/room.npy` and so on; so do `save("out/room.png")` and
        `save("out", "room")`. A folder that exists, or a path that ends with a slash, takes
        `prediction.npy` and so on. With several tasks each has its files, `out/room-normal.npy`
        and so on. All but `npy` carry a mark. Files without it are not ours, and are replaced only
        with `overwrite`; so are results of another task or another picture file. (Pictures in
        memory are not told apart.) An `npy` belongs to the marked file of its name that lists it.

        Returns for each task the paths, in the order above, an uncertainty's last. Raises:
        OutputError.
        """
        chosen = check_formats(formats)
        stem = stem_of(path, name)
        stems = task_stems(stem, self) if len(self) > 1 else dict.fromkeys(self, stem)
        known_by = fingerprint(self.source) if self.source is not None else ""
        maps = {stems[task]: each for task, each in self.items()}
        save_together(maps, overwrite=overwrite, picture=known_by, formats=chosen)
        return [
            file
            for stem, each in maps.items()
            for file in saved_paths(stem, chosen, uncertain=each.uncertainty is not None)
        ]
