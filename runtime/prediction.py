"""The result of one prediction: the values, their colours, their files."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runtime.errors import DamagedBundleError, OutputError
from runtime.files import sha256_of
from runtime.marker import MARKER, SIGNATURE, chunk, marks, text_chunk
from runtime.tasks import TASKS
from runtime.writing import write_together

# Texts in our PNGs beside the marker: the task, and what the picture is known by (may be missing).
TASK, PICTURE = "Lotus-Task", "Lotus-Picture"
_ENDINGS = (".npy", "-16bit.png", ".png")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One task's map for one image.

    `values` is float32: [H,W] in [0,1] for depth and disparity, unit vectors [H,W,3] for normals.
    `source` is the picture's file, None for a picture in memory.
    """

    task: str
    values: NDArray[np.float32]
    source: Path | None = field(default=None, compare=False)

    def colorize(self) -> NDArray[np.uint8]:
        """RGB uint8 [H,W,3].

        Depth and disparity: Spectral from the image's smallest to its largest value, near is red.
        Normals: (n + 1) / 2. Other tasks: see their `Task`.
        """
        return TASKS[self.task].colorize(self.values)

    def save(
        self, path: str | os.PathLike[str], name: str | None = None, *, overwrite: bool = False
    ) -> list[Path]:
        """Write `<path>.npy` (float32), `<path>-16bit.png` (0..65535 over the task's range) and
        `<path>.png` (colours), and the folders above them. All three appear, or none.

        `save("out/room")` writes `out/room.npy` and so on; so do `save("out/room.png")` and
        `save("out", "room")`. A folder that exists, or a path that ends with a slash, takes
        `prediction.npy` and so on. The PNGs carry a mark. Files without it are not ours, and are
        replaced only with `overwrite`; so are results of another task or another picture file.
        (Pictures in memory are not told apart.)

        Returns the paths of array, 16-bit PNG and colours. Raises: OutputError.
        """
        stem = _stem(path, name)
        known_by = fingerprint(self.source) if self.source is not None else ""
        save_together({stem: self}, overwrite=overwrite, picture=known_by)
        return saved_paths(stem)


def saved_paths(stem: Path) -> list[Path]:
    """The files of the result `stem`: array, 16-bit PNG, colour PNG."""
    return [stem.with_name(f"{stem.name}{ending}") for ending in _ENDINGS]


def save_together(
    predictions: Mapping[Path, Prediction], *, overwrite: bool = False, picture: str = ""
) -> None:
    """Write the files of predictions of one picture, by their stems: all of them or none.

    `picture` is what the picture is known by; it is stored in the PNGs. Raises: OutputError.
    """

    def check() -> None:
        for stem, prediction in predictions.items():
            check_free(stem, prediction.task, overwrite=overwrite, picture=picture)

    contents: dict[Path, bytes] = {}
    for stem, prediction in predictions.items():
        # PNGs first: an array is known as ours by the PNG beside it.
        files = zip(saved_paths(stem), _encode(prediction, picture), strict=True)
        contents |= dict(reversed([*files]))
    write_together(contents, check)


def check_free(stem: Path, task: str, *, overwrite: bool = False, picture: str = "") -> None:
    """Refuse to write the result `stem` where it would replace what must stay.

    An earlier result of the same task and picture may be replaced, anything else only with
    `overwrite`. An array belongs to the PNGs of its name. Links are not followed: nobody but their
    owner knows what they stand for. Raises: OutputError.
    """
    array, *pictures = saved_paths(stem)
    for path in (*pictures, array):
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
        ours = result_marks(stem) if path == array else marks(path)
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


def _encode(prediction: Prediction, picture: str) -> tuple[bytes, bytes, bytes]:
    """The contents of the three files, in the order of `saved_paths`."""
    texts = {**dict([MARKER]), TASK: prediction.task, **({PICTURE: picture} if picture else {})}
    array, colors, info = io.BytesIO(), io.BytesIO(), PngInfo()
    np.save(array, prediction.values, allow_pickle=False)
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    Image.fromarray(prediction.colorize()).save(colors, format="PNG", pnginfo=info)
    deep = _png16(TASKS[prediction.task].encode16(prediction.values), texts)
    return array.getvalue(), deep, colors.getvalue()


def _png16(values: NDArray[np.uint16], texts: Mapping[str, str]) -> bytes:
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
