"""From any picture to the network's input, and from the network's map back to the picture's
size.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime import loops
from runtime.errors import ImageError, ImageWarning
from runtime.manifest import Bucket
from runtime.pictures.colour import array_to_rgb, to_array, to_rgb
from runtime.pictures.decode import decode_file, decode_image
from runtime.pictures.formats import IMAGE_SUFFIXES, MAX_PIXELS, why_not_read
from runtime.shrink import shrink
from runtime.tasks import Resize, Task

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Fit",
    "ImageLike",
    "Levels",
    "Pixels",
    "choose_bucket",
    "fit_of",
    "fit_to_bucket",
    "load",
    "read",
    "restore",
    "size_of",
    "warn",
    "why_not_read",
]

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any] | Levels"
Pixels: TypeAlias = "NDArray[Any] | Image.Image"
"""RGB uint8 [H,W,3], Pillow's image of mode RGB, or the float32 [H,W,3] of `Levels`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """A picture whose samples may lie outside those of any file: float32 [H,W,3], RGB, in levels of
    8 bits (0 is black, 255 white). For protocols that pad with values that are no colour.
    """

    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an image of `height` x `width` lies in a bucket: resized to the content size, top left,
    edges repeated.
    """

    height: int
    width: int
    content_height: int
    content_width: int


def load(
    image: ImageLike | bytes,
    *,
    strict: bool = False,
    icc: bool = True,
    max_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Any picture as RGB uint8 [H,W,3], upright, in sRGB; `Levels` as their float32 [H,W,3].

    `image` is a path, a file's content as bytes, a PIL image, or an array [H,W], [H,W,1], [H,W,3]
    or [H,W,4] (grey, RGB, RGBA), which is read as a file of the same samples. EXIF rotation is
    applied, alpha dropped (as the reference does), deep samples scaled to 8 bits (docs/concepts.md
    has the rule). Of several pictures in a file the first is read. The content of a file says what
    it is, not its name.

    What is odd but usable gives an ImageWarning: an end that is missing, a profile that cannot be
    used, a range that had to be guessed. `strict=True` refuses it. `icc=False` ignores embedded
    profiles, as the reference does. More than `max_pixels` are refused before they are decoded
    (None: MAX_PIXELS, of formats that take more memory fewer: 1.4 GB in any case).

    Raises: ImageError for a missing, damaged, foreign, empty, non-finite or over-large picture;
    MemoryError where there is too little memory to decode it.
    """
    pixels, notes = read(image, strict=strict, icc=icc, max_pixels=max_pixels)
    warn(notes, stacklevel=3)
    return to_array(pixels) if isinstance(pixels, Image.Image) else pixels


def warn(notes: Sequence[str], stacklevel: int = 2) -> None:
    """An ImageWarning for each note of `read`. Raises: ImageError where warnings are errors."""
    for note in notes:
        try:
            warnings.warn(note, ImageWarning, stacklevel=stacklevel)
        except ImageWarning as error:
            raise ImageError(str(error)) from error


def read(
    image: ImageLike | bytes,
    *,
    strict: bool = False,
    icc: bool = True,
    max_pixels: int | None = None,
) -> tuple[Pixels, list[str]]:
    """What `load` answers, and what it warns of, as at most one note. A picture that needs no
    change stays as Pillow decoded it, which spares two copies. Raises: ImageError, MemoryError.
    """
    if max_pixels is not None and (type(max_pixels) is not int or max_pixels < 1):
        raise ImageError(f"max_pixels is a positive integer, found {max_pixels!r}")
    if isinstance(image, Levels):
        return _checked_levels(image), []
    name = _checked(image)
    notes: list[str] = []
    try:
        if isinstance(image, np.ndarray):
            rgb: Pixels = array_to_rgb(image, notes)
        else:
            picture = (
                decode_image(image, max_pixels=max_pixels)
                if isinstance(image, Image.Image)
                else decode_file(
                    image if isinstance(image, bytes) else Path(image),
                    strict=strict,
                    max_pixels=max_pixels,
                )
            )
            notes += picture.notes
            rgb = to_rgb(picture, icc, notes)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except MemoryError:
        raise  # it says nothing about the picture, which may be tried again alone
    except Exception as error:
        # The one place where what decoders raise for damaged data, of whatever type, becomes ours.
        raise ImageError(f"{name}: cannot be decoded: {error or type(error).__name__}") from error
    if notes and strict:
        raise ImageError(f"{name}: {'; '.join(notes)}")
    return rgb, [f"{name}: {'; '.join(notes)}"] if notes else []


def choose_bucket(buckets: Sequence[Bucket], height: int, width: int) -> Bucket:
    """The bucket nearest to the image's aspect ratio; among equals, the one that rescales the image
    least.
    """

    def distance(bucket: Bucket) -> tuple[float, float]:
        aspect = abs(math.log(bucket.width / bucket.height) - math.log(width / height))
        scale = min(bucket.height / height, bucket.width / width)
        return round(aspect, 6), abs(math.log(scale))

    return min(buckets, key=distance)


def size_of(pixels: Pixels) -> tuple[int, int]:
    """Height and width."""
    return pixels.size[::-1] if isinstance(pixels, Image.Image) else pixels.shape[:2]


def fit_of(height: int, width: int, bucket: Bucket) -> Fit:
    """How an image of this size lies in a bucket: as large as fits, its aspect kept."""
    scale = min(bucket.height / height, bucket.width / width)
    return Fit(
        height=height,
        width=width,
        content_height=min(bucket.height, max(1, round(height * scale))),
        content_width=min(bucket.width, max(1, round(width * scale))),
    )


def fit_to_bucket(pixels: Pixels, bucket: Bucket) -> tuple[NDArray[np.uint8], Fit]:
    """Resize to the bucket, keeping the aspect (bilinear, antialiased), then pad right and bottom
    by repeating the edge: RGB uint8 [H,W,3] of the bucket's size. `Levels` keep their type.
    """
    height, width = size_of(pixels)
    fit = fit_of(height, width, bucket)
    if (fit.content_height, fit.content_width) != (height, width):
        pixels = _resized(pixels, fit.content_height, fit.content_width)
    rgb: NDArray[Any] = np.asarray(pixels)
    pad = (bucket.height - fit.content_height, bucket.width - fit.content_width)
    if any(pad):
        rgb = np.pad(rgb, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")
    return rgb, fit


def restore(
    task: Task, output: NDArray[np.float32], fit: Fit, resize: Resize | None
) -> NDArray[np.float32]:
    """Cut the padding off the task's map [C,H,W] and bring it back to the image's size.

    `resize=None` leaves the content size.
    """
    output = output[:, : fit.content_height, : fit.content_width]
    if resize is None or output.shape[1:] == (fit.height, fit.width):
        return np.ascontiguousarray(output)
    return task.resize(output, fit.height, fit.width, resize)


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8:
        pixels = Image.fromarray(pixels)
    if isinstance(pixels, Image.Image):
        return shrink(pixels, height, width, loops.ready(pixels.width * pixels.height))
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., band])) for band in range(3)]
    return np.stack(
        [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes],
        axis=-1,
    )


def _checked_levels(levels: Levels) -> NDArray[Any]:
    values = levels.values
    whole = values.dtype == np.float32 and values.ndim == 3 and values.shape[2] == 3
    if not (whole and values.size and np.isfinite(values).all()):
        raise ImageError(
            "levels are a non-empty, finite float32 array [H,W,3], found "
            f"{values.dtype} {list(values.shape)}"
        )
    return values


def _checked(image: object) -> str:
    """What a message calls this picture. Raises: ImageError for what is none."""
    if isinstance(image, np.ndarray):
        _check_array(image)
        return "the given array"
    if isinstance(image, Image.Image):
        return "the given PIL image"
    if isinstance(image, bytes):
        return "the given bytes"
    if isinstance(image, str | os.PathLike):
        return str(image)
    raise ImageError(
        f"expected a path, a PIL image or an array [H,W,3], found {type(image).__name__}"
    )


def _check_array(array: NDArray[Any]) -> None:
    if (
        array.dtype.kind not in "buif"
        or array.dtype == np.int8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
        or 0 in array.shape
    ):
        raise ImageError(
            "expected a non-empty array [H,W,3] in RGB order, best of uint8 (or [H,W], [H,W,1], "
            f"[H,W,4]; or deeper samples), found {array.dtype} {list(array.shape)}"
        )
