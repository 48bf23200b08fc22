"""Decoded pictures of any mode as RGB uint8, in bands: no second whole picture is in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.pictures.decode import Picture, bands
from runtime.pictures.depth import Scale, find_scale

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FROM_BELOW = {3, 4, 6, 7}  # orientations of which the stored first row comes last
_GREY = {"1", "L", "LA", "La"}
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of an ICC profile: the mode it describes

Convert = Callable[[Image.Image], Image.Image]


def to_rgb(picture: Picture, icc: bool, notes: list[str]) -> NDArray[np.uint8] | Image.Image:
    """RGB uint8 [H,W,3], upright, in sRGB if `icc`; alpha is dropped. What is odd goes to `notes`.

    Where there is nothing to change, Pillow's image itself: an array would be a copy.

    Raises: ImageError for samples that no range fits.
    """
    image, turn = picture.image, picture.orientation
    scale = _scale(picture)
    if scale is not None and scale.note:
        notes.append(scale.note)
    mode = "L" if image.mode in _GREY or _is_deep(image) else image.mode
    mode = mode if mode in ("L", "CMYK", "LAB") else "RGB"
    convert = _plain if mode != "LAB" else _from_lab()
    if icc and picture.icc and mode != "LAB":
        convert = _from_profile(picture.icc, mode, notes) or _plain
    if image.mode == "RGB" and scale is None and convert is _plain and turn not in _TURNS:
        return image
    return _in_bands(picture, lambda box: convert(_eight_bits(picture, scale, mode, box)))


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """An image of mode RGB as uint8 [H,W,3]."""
    return _in_bands(Picture(image=image), image.crop)


def _in_bands(
    picture: Picture, piece_of: Callable[[tuple[int, int, int, int]], Image.Image]
) -> NDArray[np.uint8]:
    """RGB uint8 [H,W,3], upright, of the pieces as they are stored: boxes from left to right."""
    image, turn = picture.image, picture.orientation
    width, height = image.size
    size = (width, height) if turn >= 5 else (height, width)
    rgb = np.empty((*size, 3), dtype=np.uint8)
    for top, bottom in bands(image):
        piece = piece_of((0, top, width, bottom))
        if turn in _TURNS:
            piece = piece.transpose(_TURNS[turn])
        rows = slice(height - bottom, height - top) if turn in _FROM_BELOW else slice(top, bottom)
        (rgb[:, rows] if turn >= 5 else rgb[rows])[...] = np.asarray(piece)
    return rgb


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _scale(picture: Picture) -> Scale | None:
    """None for 8 bits as they are."""
    samples = picture.samples
    if _is_deep(picture.image) or picture.low is not None:
        planes = (
            _values(picture, (0, top, picture.image.width, bottom))
            for top, bottom in bands(picture.image)
        )
        return find_scale(planes, full=samples.full, inverted=samples.inverted)
    if samples.full is not None and samples.full < 255:
        return Scale(white=samples.full)
    return None


def _values(picture: Picture, box: tuple[int, int, int, int]) -> NDArray[Any]:
    """Samples of a deep picture, [h,w] or [h,w,3]."""
    values: NDArray[Any] = np.asarray(picture.image.crop(box))
    if picture.low is not None:
        low: NDArray[Any] = np.asarray(picture.low.crop(box))
        values = (values.astype(np.uint16) << 8 | low)[..., :3]  # alpha is no sample to scale
    kind = picture.samples.kind
    return values if kind is None or values.dtype.kind == "f" else values.astype(kind)


def _eight_bits(
    picture: Picture, scale: Scale | None, mode: str, box: tuple[int, int, int, int]
) -> Image.Image:
    """A band in `mode`: L, RGB, CMYK or LAB."""
    if scale is not None and (_is_deep(picture.image) or picture.low is not None):
        return Image.fromarray(scale.apply(_values(picture, box)))
    piece = picture.image.crop(box)
    piece.info.pop("transparency", None)  # alpha is dropped; Pillow warns of some
    premultiplied = {"RGBa": "RGBA", "La": "LA"}.get(piece.mode)
    if premultiplied:
        piece = piece.convert(premultiplied)
    if piece.mode == "PA":
        piece = piece.convert("RGBA")
    if piece.mode != mode:
        piece = piece.convert(mode)
    return piece if scale is None else Image.fromarray(scale.apply(np.asarray(piece)))


def _plain(piece: Image.Image) -> Image.Image:
    return piece if piece.mode == "RGB" else piece.convert("RGB")


def _from_lab() -> Convert:
    from PIL import ImageCms

    space = ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(space, ImageCms.createProfile("sRGB"), "LAB", "RGB")
    return transform.apply


def _from_profile(profile: bytes, mode: str, notes: list[str]) -> Convert | None:
    """The conversion from an embedded ICC profile to sRGB, perceptual; None if the values are sRGB
    as they are, or where a note says why the profile is ignored.
    """
    try:
        from PIL import ImageCms

        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        given = _SPACES.get(space, "")
        # Programs leave the profile of RGB in grey pictures; harmless where its greys are sRGB's.
        if given != mode and (given, mode) != ("RGB", "L"):
            notes.append(f"its ICC profile is for {space}, the picture is {mode}: ignored")
            return None
        transform = ImageCms.buildTransform(
            opened, ImageCms.createProfile("sRGB"), given, "RGB", ImageCms.Intent.PERCEPTUAL
        )
        if mode != "CMYK":
            probe = _probe(mode).convert(given)
            change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(_plain(probe))
            # One of the many profiles of sRGB, up to rounding: the bits stay as they are.
            if np.abs(change).max() <= 1:
                return None
        if given != mode:
            notes.append(f"its ICC profile is for {space}, the picture is {mode}: ignored")
            return None
        return transform.apply
    except MemoryError:  # says nothing about the profile
        raise
    except Exception as error:  # LittleCMS missing or refusing: the picture is as good as without
        notes.append(f"its ICC profile cannot be used ({error}): ignored")
        return None


def _probe(mode: str) -> Image.Image:
    """Colours to try a conversion on: all greys, or a grid of RGB."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return Image.fromarray(grid.reshape(18, -1, 3))


def array_to_rgb(array: NDArray[Any], notes: list[str]) -> NDArray[np.uint8]:
    """[H,W], [H,W,1], [H,W,3] or [H,W,4] of any depth as RGB uint8 [H,W,3], as a file of the same
    samples is read.

    Raises: ImageError for samples that no range fits.
    """
    array = array[..., None] if array.ndim == 2 else array
    array = array[..., :3]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        spans = list(_spans(array))
        scale = find_scale(array[top:bottom] for top, bottom in spans)
        notes.extend([scale.note] if scale.note else [])
        deep, array = array, np.empty(array.shape, np.uint8)
        for top, bottom in spans:
            array[top:bottom] = scale.apply(deep[top:bottom])
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array)


def _spans(array: NDArray[Any]) -> Iterator[tuple[int, int]]:
    rows = max(1, 2**18 // array.shape[1])
    for top in range(0, len(array), rows):
        yield top, min(top + rows, len(array))
