"""From any picture to the network's input, and from the network's map back to the picture's
size.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from runtime.errors import ImageError
from runtime.manifest import Bucket
from runtime.tasks import Resize, Task

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"

# What a folder is searched for. Not all that Pillow opens: EPS would start Ghostscript.
IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "avif", "tga"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an image of `height` x `width` lies in a bucket: resized to the content size, top left,
    edges repeated.
    """

    height: int
    width: int
    content_height: int
    content_width: int


def load(image: ImageLike) -> NDArray[np.uint8]:
    """Any picture as RGB uint8 [H,W,3]: EXIF rotation applied, grey, palette, CMYK and 16-bit
    converted, alpha dropped (as the reference does).

    Raises: ImageError for a missing, truncated, foreign, empty, non-finite or over-large picture.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, str | os.PathLike | Image.Image):
        raise ImageError(
            f"expected a path, a PIL image or a uint8 array [H,W,3], found {type(image).__name__}"
        )
    name = "the given PIL image" if isinstance(image, Image.Image) else str(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return (
                _from_pil(image, name)
                if isinstance(image, Image.Image)
                else _from_file(Path(image), name)
            )
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{name}: refused as a decompression bomb ({error}); pass a smaller copy"
        ) from error
    # Pillow's decoders raise many types for damaged data; this is the one place where they become
    # ours.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        ArithmeticError,
        LookupError,
        MemoryError,
    ) as error:
        raise ImageError(f"{name}: cannot be decoded: {error or type(error).__name__}") from error


def choose_bucket(buckets: Sequence[Bucket], height: int, width: int) -> Bucket:
    """The bucket nearest to the image's aspect ratio; among equals, the one that rescales the image
    least.
    """

    def distance(bucket: Bucket) -> tuple[float, float]:
        aspect = abs(math.log(bucket.width / bucket.height) - math.log(width / height))
        scale = min(bucket.height / height, bucket.width / width)
        return round(aspect, 6), abs(math.log(scale))

    return min(buckets, key=distance)


def fit_to_bucket(rgb: NDArray[np.uint8], bucket: Bucket) -> tuple[NDArray[np.uint8], Fit]:
    """Resize [H,W,3] keeping its aspect (bilinear, antialiased), then pad right and bottom by
    repeating the edge.
    """
    height, width = rgb.shape[:2]
    scale = min(bucket.height / height, bucket.width / width)
    content = (
        min(bucket.height, max(1, round(height * scale))),
        min(bucket.width, max(1, round(width * scale))),
    )
    if content != (height, width):
        resized = Image.fromarray(rgb).resize((content[1], content[0]), Image.Resampling.BILINEAR)
        rgb = np.asarray(resized, dtype=np.uint8)
    pad = (bucket.height - content[0], bucket.width - content[1])
    if any(pad):
        rgb = np.pad(rgb, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")
    return rgb, Fit(height=height, width=width, content_height=content[0], content_width=content[1])


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


def _from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"expected a non-empty uint8 array [H,W,3] in RGB order, found {array.dtype} "
            f"{list(array.shape)}"
        )
    return np.ascontiguousarray(array)


def _from_file(path: Path, name: str) -> NDArray[np.uint8]:
    if not path.is_file():
        raise ImageError(
            f"{name}: {'is a folder, not an image' if path.is_dir() else 'no such file'}"
        )
    # A stream, not the path: by path Pillow maps uncompressed TIFFs, and shears those that EXIF
    # turns.
    with path.open("rb") as stream, Image.open(stream) as opened:
        return _from_pil(opened, name)


def _from_pil(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if 0 in image.size:
        raise ImageError(f"{name}: the image is empty ({image.width}x{image.height})")
    image.load()
    with contextlib.suppress(
        SyntaxError, ValueError, LookupError, struct.error
    ):  # EXIF that says nothing turns nothing
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(np.asarray(image), name)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _from_deep(plane: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """A single-channel picture of more than 8 bits as RGB uint8: 16-bit integers, or floats in
    [0,1].
    """
    values = plane.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError(f"{name}: holds NaN or infinite pixels")
    full = 1.0 if np.issubdtype(plane.dtype, np.floating) else 65535.0
    if values.min() < 0 or values.max() > full:
        raise ImageError(
            f"{name}: pixels lie in [{values.min():g}, {values.max():g}], expected [0, {full:g}] "
            f"for {plane.dtype}"
        )
    grey = np.rint(values * (255.0 / full)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
