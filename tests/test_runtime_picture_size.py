"""Sizes: how many pixels are read, and headers that say another size than the picture has."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image
from test_runtime_pictures import PICTURE, RGB, encoded

from runtime.errors import ImageError, ImageWarning
from runtime.image import IMAGE_SUFFIXES, MAX_PIXELS, load
from runtime.pictures import formats

# Headers alone. WebP: 34 bytes that cost 3.5 GB; GIF: a picture larger than its screen.
BOMBS = {
    "webp": bytes.fromhex("524946461a000000574542505650384c0e0000002fb7e42d09071011fd0f4444ff03"),
    "webp canvas": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2,
    "gif": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\1\0;",
    "bmp": b"BM" + bytes(12) + b"\x28\0\0\0" + b"\xff\xff\0\0" * 2 + b"\1\0\x18\0" + bytes(24),
    "tga": bytes([0, 0, 2, *bytes(9), 0xFF, 0xFF, 0xFF, 0xFF, 24, 0]) + bytes(10),
    "pgm": b"P5 60000 60000 255\n",
    "png": encoded("PNG")[:16] + (60_000).to_bytes(4, "big") * 2 + encoded("PNG")[24:],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, kind: str) -> None:
    data = BOMBS[kind]
    if kind == "png":
        data = data[:29] + zlib.crc32(data[12:29]).to_bytes(4, "big") + data[33:]
    (tmp_path / "a").write_bytes(data)
    said = r"the limit( for WEBP is 87,500,000| is 200,000,000): pass a smaller copy, or raise"
    with pytest.raises(ImageError, match=said):
        load(tmp_path / "a")


def with_bytes(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def test_an_avif_whose_header_has_another_size(tmp_path: Path) -> None:
    """The decoder stretches it without a word."""
    if ".avif" not in IMAGE_SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    for unit, options in ((1, {}), (2**16, {"save_all": True, "append_images": [PICTURE]})):
        data = encoded("AVIF", **options)
        (tmp_path / "a").write_bytes(data)
        assert load(tmp_path / "a", strict=True).shape == RGB.shape
        at = data.rindex(struct.pack(">II", 320 * unit, 240 * unit))  # of the item, of the track
        size = struct.pack(">II", 640 * unit, 240 * unit)
        (tmp_path / "a").write_bytes(with_bytes(data, at, size))
        with pytest.warns(ImageWarning, match="holds 320x240 pixels, stretched to the 640x240 of"):
            assert load(tmp_path / "a").shape == (240, 640, 3)
        with pytest.raises(ImageError, match="stretched"):
            load(tmp_path / "a", strict=True)


@pytest.mark.parametrize(
    ("where", "size"),
    [("screen", (300, 240)), ("screen", (400, 240)), ("picture", (320, 200))],
)
def test_a_gif_whose_header_has_another_size(
    where: str, size: tuple[int, int], tmp_path: Path
) -> None:
    data = encoded("GIF", PICTURE.quantize(256))
    place = 6 if where == "screen" else data.index(b",\0\0\0\0") + 5
    (tmp_path / "a").write_bytes(data)
    assert load(tmp_path / "a", strict=True).shape == RGB.shape
    (tmp_path / "a").write_bytes(with_bytes(data, place, struct.pack("<HH", *size)))
    with pytest.warns(ImageWarning, match="is not the .* of its header"):
        load(tmp_path / "a")
    with pytest.raises(ImageError, match="of its header"):
        load(tmp_path / "a", strict=True)


def test_the_limit_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    pixels = 320 * 240
    assert load(tmp_path / "a.png", max_pixels=pixels).shape == RGB.shape
    with Image.open(tmp_path / "a.png") as opened:
        for source in (tmp_path / "a.png", opened):
            with pytest.raises(ImageError, match="320x240 = 76,800 pixels; the limit is 76,799"):
                load(source, max_pixels=pixels - 1)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ImageError, match="max_pixels is a positive integer"):
            load(tmp_path / "a.png", max_pixels=wrong)  # type: ignore[arg-type]
    assert MAX_PIXELS >= 16320 * 12240, "the largest sensors of phones"


def test_formats_that_take_more_memory_have_a_lower_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded alike; `max_pixels` is pixels, whatever the format."""
    monkeypatch.setattr(formats, "MAX_PIXELS", 120_000)
    (tmp_path / "a.webp").write_bytes(encoded("WEBP"))
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    assert load(tmp_path / "a.jpg").shape == RGB.shape
    with pytest.raises(ImageError, match=r"the limit for WEBP is 52,500: .* takes 0\.0012 GB"):
        load(tmp_path / "a.webp")
    assert load(tmp_path / "a.webp", max_pixels=320 * 240).shape == RGB.shape
    for name, kind in formats.FORMATS.items():
        assert kind.most_pixels * kind.memory <= 120_000 * 7, name


def test_a_large_jpeg_is_read_in_a_smaller_size(tmp_path: Path) -> None:
    """What the documents advise for a JPEG beyond the limit."""
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft("RGB", (160, 120))
        assert load(image, max_pixels=160 * 120).shape == (120, 160, 3)


def test_pillows_own_limit_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = Image.linear_gradient("L").resize((1200, 900)).convert("RGB")  # 1.08 megapixels
    for name in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000"):
        (tmp_path / name).write_bytes(encoded(name, large))
    (tmp_path / "packed").write_bytes(encoded("TIFF", large, compression="tiff_lzw"))
    for limit in (400_000, 600_000):  # Pillow raises for the first and warns for the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for path in tmp_path.iterdir():
                assert load(path).shape == (900, 1200, 3)
