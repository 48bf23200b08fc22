"""Files that end in good order, but before the last row that their header promises."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.fuzzing.layouts import find_layout
from runtime.errors import ImageError, ImageWarning
from runtime.image import load

HEIGHT = 96
RANDOM = np.random.default_rng(0).integers(0, 256, (HEIGHT, 64, 3), dtype=np.uint8)
FORMS: dict[str, tuple[str, str, dict[str, object]]] = {
    "png": ("PNG", "RGB", {}),
    "palette png": ("PNG", "P", {}),
    "grey jpeg": ("JPEG", "L", {}),
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg with restarts": ("JPEG", "RGB", {"restart_marker_rows": 1}),
    "jpeg with many restarts": ("JPEG", "RGB", {"restart_marker_blocks": 3}),
    "progressive jpeg": ("JPEG", "RGB", {"progressive": True}),
    "cmyk jpeg": ("JPEG", "CMYK", {}),
    "tiff": ("TIFF", "RGB", {}),
    "grey tiff": ("TIFF", "L", {}),
    "jpeg 2000": ("JPEG2000", "RGB", {}),
}


def encoded(form: str, picture: np.ndarray) -> bytes:
    name, mode, options = FORMS[form]
    stream = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(stream, name, **options)
    return stream.getvalue()


def promise(data: bytes, height: int) -> bytes:
    """The file with another height in its header."""
    layout = find_layout(data)
    damaged = bytearray(data)
    for place in layout.fields:
        span = slice(place.offset, place.offset + place.size)
        named = place.name in ("dimension", "tag 257")
        if named and int.from_bytes(data[span], place.order) == HEIGHT:
            damaged[span] = height.to_bytes(place.size, place.order)
    assert damaged != data
    return layout.repair(damaged)


@pytest.mark.parametrize("form", FORMS)
def test_most_rows_are_missing(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(promise(encoded(form, RANDOM), 4 * HEIGHT))
    with pytest.raises(ImageError, match=r"is cut short|cannot be decoded"):
        load(path)


@pytest.mark.parametrize("form", ["png", "tiff", "jpeg", "jpeg with restarts"])
def test_some_rows_are_missing(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(promise(encoded(form, RANDOM), HEIGHT + 16))
    # Where chroma is coarser, the last row that is there has a share in the first that is not.
    with pytest.warns(ImageWarning, match=r"1[67] of 112 rows repeat the one above"):
        rgb = load(path)
    assert (rgb[HEIGHT:] == rgb[HEIGHT - 1]).all()
    with pytest.raises(ImageError, match="rows"):
        load(path, strict=True)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("form", FORMS)
def test_a_plain_end_is_no_missing_end(tmp_path: Path, form: str, value: int) -> None:
    """A dark floor, a white page, a border."""
    picture = RANDOM.copy()
    picture[40:] = value
    path = tmp_path / "a"
    path.write_bytes(encoded(form, picture))
    expected = np.asarray(Image.open(path).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load(path, strict=True), expected)
