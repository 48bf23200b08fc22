"""The result of one prediction: for each task the values, their colours, their files."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zlib
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runtime.errors import DamagedBundleError, OutputError, TaskError
from runtime.files import sha256_of
from runtime.marker import MARKER, SIGNATURE, chunk, marks, text_chunk
from runtime.tasks import TASKS
from runtime.tiles import Tiled
from runtime.writing import write_together

if TYPE_CHECKING:
    from runtime.camera import Camera
    from runtime.reconstruct import Points, Reconstruction

# Texts in our PNGs beside the marker: the task, and what the picture is known by (may be missing).
TASK, PICTURE = "Lotus-Task", "Lotus-Picture"
# And of an ensemble the unit of the uncertainty that lies beside.
_UNCERTAINTY = "Lotus-Uncertainty"
_ENDINGS, _UNCERTAINTY_ENDING = (".npy", "-16bit.png", ".png"), "-uncertainty.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskMap:
    """One task's map for one image.

    `values` is float32: [H,W] in [0,1] for depth and disparity, unit vectors [H,W,3] for normals.
    `uncertainty` float32 [H,W] says how far the answers of an ensemble lie apart: the median
    distance to `values` over the value, for normals the median angle in degrees. None without an
    ensemble.
    """

    task: str
    values: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None = None

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
    without them.
    """

    def __init__(
        self,
        values: Mapping[str, NDArray[np.float32]],
        *,
        source: Path | None = None,
        uncertainty: Mapping[str, NDArray[np.float32]] | None = None,
        tiled: Tiled | None = None,
    ) -> None:
        spreads = uncertainty or {}
        self._maps = {
            name: TaskMap(task=name, values=array, uncertainty=spreads.get(name))
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
        self, path: str | os.PathLike[str], name: str | None = None, *, overwrite: bool = False
    ) -> list[Path]:
        """Write `<path>.npy` (float32), `<path>-16bit.png` (0..65535 over the task's range) and
        `<path>.png` (colours), of an ensemble `<path>-uncertainty.npy` (float32), and the folders
        above them. All files appear, or none.

        `save("out/room")` writes `out/room.npy` and so on; so do `save("out/room.png")` and
        `save("out", "room")`. A folder that exists, or a path that ends with a slash, takes
        `prediction.npy` and so on. With several tasks each has its files, `out/room-normal.npy`
        and so on. The PNGs carry a mark. Files without it are not ours, and are replaced only with
        `overwrite`; so are results of another task or another picture file. (Pictures in memory
        are not told apart.)

        Returns for each task the paths of array, 16-bit PNG, colours and uncertainty. Raises:
        OutputError.
        """
        stem = _stem(path, name)
        stems = task_stems(stem, self) if len(self) > 1 else dict.fromkeys(self, stem)
        known_by = fingerprint(self.source) if self.source is not None else ""
        maps = {stems[task]: each for task, each in self.items()}
        save_together(maps, overwrite=overwrite, picture=known_by)
        return [
            file
            for stem, each in maps.items()
            for file in saved_paths(stem, uncertain=each.uncertainty is not None)
        ]


def task_stems(stem: Path, tasks: Iterable[str]) -> dict[str, Path]:
    """The result of each task of one picture, named with the task."""
    return {task: stem.with_name(f"{stem.name}-{task}") for task in tasks}


def saved_paths(stem: Path, *, uncertain: bool = False) -> list[Path]:
    """The files of the result `stem`: array, 16-bit PNG, colour PNG, and with `uncertain` the array
    of an ensemble's uncertainty.
    """
    endings = (*_ENDINGS, *[_UNCERTAINTY_ENDING] * uncertain)
    return [stem.with_name(f"{stem.name}{ending}") for ending in endings]


def save_together(
    maps: Mapping[Path, TaskMap], *, overwrite: bool = False, picture: str = ""
) -> None:
    """Write the files of maps of one picture, by their stems: all of them or none.

    `picture` is what the picture is known by; it is stored in the PNGs. The uncertainty of an
    earlier result is removed where the new one has none. Raises: OutputError.
    """

    def check() -> None:
        for stem, each in maps.items():
            uncertain = each.uncertainty is not None
            check_free(stem, each.task, overwrite=overwrite, picture=picture, uncertain=uncertain)

    contents: dict[Path, bytes] = {}
    outdated: list[Path] = []
    for stem, each in maps.items():
        uncertain = each.uncertainty is not None
        # PNGs first: an array is known as ours by the PNG beside it.
        files = zip(saved_paths(stem, uncertain=uncertain), _encode(each, picture), strict=True)
        contents |= dict(sorted(files, key=lambda file: file[0].suffix != ".png"))
        if not uncertain and _UNCERTAINTY in result_marks(stem):
            outdated += saved_paths(stem, uncertain=True)[-1:]
    write_together(contents, check)
    for path in outdated:
        with contextlib.suppress(OSError):
            path.unlink()


def check_free(
    stem: Path,
    task: str,
    *,
    overwrite: bool = False,
    picture: str = "",
    uncertain: bool = False,
) -> None:
    """Refuse to write the result `stem` where it would replace what must stay; `uncertain` as of
    `saved_paths`.

    An earlier result of the same task and picture may be replaced, anything else only with
    `overwrite`. An array belongs to the PNGs of its name. Links are not followed: nobody but their
    owner knows what they stand for. Raises: OutputError.
    """
    paths = saved_paths(stem, uncertain=uncertain)
    earlier = result_marks(stem)
    for path in sorted(paths, key=lambda path: path.suffix != ".png"):
        try:
            kind = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"cannot write {path}: {reason}") from error
        if stat.S_ISDIR(kind):
            raise OutputError(f"cannot write {path}: there is a folder of this name")
        if overwrite:
            continue
        ours = marks(path) if path.suffix == ".png" else earlier
        if path.name.endswith(_UNCERTAINTY_ENDING) and _UNCERTAINTY not in earlier:
            ours = {}  # the array of a picture of that name, say
        if not ours or not stat.S_ISREG(kind):
            what = "it is not a result of lotus-edge"
        elif ours.get(TASK, task) != task:
            what = f"it is the {ours[TASK]} of a picture, and this is its {task}"
        elif ours.get(PICTURE, "") != picture:
            what = "it is the result of another picture, or of this one before it was changed"
        else:
            continue
        raise OutputError(
            f"{path} exists, and {what}. Choose another name or folder, or replace it with "
            "--overwrite (in Python overwrite=True)."
        )


def result_marks(stem: Path) -> dict[str, str]:
    """The marks of the result `stem` that lies there already; empty where there is none of ours."""
    _, deep, colors = saved_paths(stem)
    return marks(colors) or marks(deep)


def fingerprint(path: Path) -> str:
    """By what a picture is known again: the beginning of its SHA-256; empty if it is no file."""
    try:
        return sha256_of(path)[:16]
    except (DamagedBundleError, ValueError):  # reading the picture says why
        return ""


def _stem(path: str | os.PathLike[str], name: str | None) -> Path:
    """What `save(path, name)` calls its files, without their endings. Raises: OutputError."""
    if not isinstance(path, str | os.PathLike) or not isinstance(name, str | None):
        raise OutputError(f"expected the path of a result, found {path!r}, {name!r}")
    text = str(Path(path) / name) if name else str(os.fspath(path))
    if name:
        return _without_ending(text)
    is_folder = os.path.isdir(text or ".")  # noqa: PTH112  (False, no error, for any odd name)
    if is_folder or text.endswith(("/", os.sep)):
        return Path(text) / "prediction"
    return _without_ending(text)


def _without_ending(text: str) -> Path:
    for ending in sorted(_ENDINGS, key=len, reverse=True):
        if Path(text).name.endswith(ending) and Path(text).name != ending:
            return Path(text.removesuffix(ending))
    return Path(text)


def _encode(task_map: TaskMap, picture: str) -> list[bytes]:
    """The contents of the files, in the order of `saved_paths`."""
    task = TASKS[task_map.task]
    texts = {**dict([MARKER]), TASK: task_map.task, **({PICTURE: picture} if picture else {})}
    if task_map.uncertainty is not None:
        texts[_UNCERTAINTY] = task.uncertainty_unit
    colors, info = io.BytesIO(), PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    Image.fromarray(task_map.colorize()).save(colors, format="PNG", pnginfo=info)
    deep = png16(task.encode16(task_map.values), texts)
    arrays = [each for each in (task_map.values, task_map.uncertainty) if each is not None]
    values, *uncertainty = map(_npy, arrays)
    return [values, deep, colors.getvalue(), *uncertainty]


def _npy(array: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def png16(values: NDArray[np.uint16], texts: Mapping[str, str]) -> bytes:
    """A 16-bit PNG of [H,W] (grey) or [H,W,3] (RGB); Pillow writes no 16-bit RGB. Source: PNG
    specification, 11.2.
    """
    height, width = values.shape[:2]
    color_type = 2 if values.ndim == 3 else 0
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    return b"".join(
        (
            SIGNATURE,
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)),
            *(text_chunk(keyword, text) for keyword, text in texts.items()),
            chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)),
            chunk(b"IEND", b""),
        )
    )
