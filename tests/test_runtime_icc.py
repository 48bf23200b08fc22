"""Embedded ICC profiles become sRGB, by an independent float computation. Then orientation and
lost data.
"""

from __future__ import annotations

import re
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from runtime.errors import ImageError, ImageWarning
from runtime.image import load
from runtime.pictures.colour import _from_profile

RGB = np.random.default_rng(4).integers(0, 256, (24, 32, 3), dtype=np.uint8)
# XYZ (D50) of the primaries, as the profiles of Adobe RGB (1998) and sRGB have them.
ADOBE = np.array(
    [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
)
SRGB = np.array(
    [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)]
)


def profile(space: bytes, gamma: float, primaries: np.ndarray | None = None) -> bytes:
    """A minimal ICC profile (version 2.1): a gamma curve, and a matrix for RGB."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    white = (0.9642, 1.0, 0.8249)
    curve = b"curv" + struct.pack(">IIHH", 0, 1, round(gamma * 256), 0)
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(79),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(*white),
    }
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        for name, xyz in zip(b"rgb", primaries, strict=True):
            tags[bytes([name]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*xyz)
            tags[bytes([name]) + b"TRC"] = curve
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s6H4s28x12s", start + len(body), b"", 0x02100000, b"mntr", space, b"XYZ ",
        2024, 1, 1, 0, 0, 0, b"acsp", fixed(*white),
    )  # fmt: skip
    return head.ljust(128, b"\0") + table + body


ADOBE_RGB = profile(b"RGB ", 563 / 256, ADOBE)


def srgb_of(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: from linear light in [0,1] to levels."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def save(path: Path, image: Image.Image, icc: bytes, **options: object) -> Path:
    image.save(path, icc_profile=icc, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "avif", "jpg"])
def test_adobe_rgb_becomes_srgb(tmp_path: Path, suffix: str) -> None:
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    if suffix == "avif":
        pytest.importorskip("PIL._avif")
        lossless["avif"] = {"quality": 100, "subsampling": "4:4:4"}
    path = save(
        tmp_path / f"a.{suffix}", Image.fromarray(RGB), ADOBE_RGB, **lossless.get(suffix, {})
    )
    raw = load(path, icc=False)
    with Image.open(path) as opened:
        assert np.array_equal(raw, np.asarray(opened.convert("RGB"))), "as the reference reads it"
        assert np.array_equal(load(opened), load(path))
    exact = srgb_of((raw / 255) ** (563 / 256) @ ADOBE @ np.linalg.inv(SRGB))
    assert np.abs(load(path) - exact).max() < 1.5
    assert np.abs(load(path).astype(int) - raw).mean() > 5, "the profile matters"


def test_the_profile_of_a_turned_and_of_a_palette_picture(tmp_path: Path) -> None:
    upright = load(save(tmp_path / "a.png", Image.fromarray(RGB), ADOBE_RGB))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = load(save(tmp_path / "b.png", Image.fromarray(RGB), ADOBE_RGB, exif=exif))
    assert np.array_equal(turned, np.rot90(upright, -1))
    palette = Image.fromarray(RGB).quantize(16)
    plain = save(tmp_path / "c.png", palette.convert("RGB"), ADOBE_RGB)
    assert np.array_equal(load(save(tmp_path / "d.png", palette, ADOBE_RGB)), load(plain))


def test_profiles_of_srgb_change_no_bit(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load(save(tmp_path / "a.png", Image.fromarray(RGB), srgb)), RGB)
        grey = Image.fromarray(RGB[..., 0])  # programs leave it in grey pictures
        assert np.array_equal(load(save(tmp_path / "b.png", grey, srgb))[..., 1], RGB[..., 0])


@pytest.mark.parametrize("deep", [False, True])
def test_a_grey_profile(tmp_path: Path, deep: bool) -> None:
    samples = RGB[..., 0].astype(np.uint16) * 257 if deep else RGB[..., 0]
    path = save(tmp_path / "a.png", Image.fromarray(samples), profile(b"GRAY", 1.8))
    exact = srgb_of((RGB[..., 0] / 255) ** (round(1.8 * 256) / 256))
    loaded = load(path)
    assert np.abs(loaded - exact[..., None]).max() < 1.5


@pytest.mark.parametrize(
    ("icc", "message"),
    [
        (profile(b"GRAY", 2.2), "for GRAY, the picture is RGB: ignored"),
        (ADOBE_RGB[:300], "cannot be used"),
        (b"no profile" * 20, "cannot be used"),
    ],
    ids=["another space", "cut", "junk"],
)
def test_a_profile_that_cannot_be_used(tmp_path: Path, icc: bytes, message: str) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), icc)
    with pytest.warns(ImageWarning, match=message):
        assert np.array_equal(load(path), RGB)
    with pytest.raises(ImageError, match=message):
        load(path, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load(path, icc=False, strict=True), RGB)


def test_a_pillow_without_littlecms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), ADOBE_RGB)
    monkeypatch.setitem(sys.modules, "PIL.ImageCms", None)
    monkeypatch.delattr("PIL.ImageCms")
    with pytest.warns(ImageWarning, match="cannot be used"):
        assert np.array_equal(load(path), RGB)


def test_cmyk_without_a_profile_is_pillows(tmp_path: Path) -> None:
    """A CMYK JPEG is taken to be inverted, as Adobe writes it, with its marker or without."""
    image = Image.fromarray(np.full((16, 16, 3), (200, 120, 40), np.uint8)).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=100)
    marked = (tmp_path / "a.jpg").read_bytes()
    start = marked.index(b"\xff\xee")
    length = int.from_bytes(marked[start + 2 : start + 4], "big")
    (tmp_path / "b.jpg").write_bytes(marked[:start] + marked[start + 2 + length :])
    for name in ("a.jpg", "b.jpg"):
        assert np.abs(load(tmp_path / name)[0, 0].astype(int) - (200, 120, 40)).max() <= 2


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
def test_orientation_in_any_type_of_integer(tmp_path: Path, kind: int, order: str) -> None:
    """Types by their EXIF codes; what Pillow turns by turns."""
    form = {1: "B3x", 3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i"}[kind]
    head = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    entry = struct.pack(f"{order}HHHI{form}I", 1, 0x0112, kind, 1, 6, 0)
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path, exif=b"Exif\0\0" + head + entry)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(load(path), expected)


@pytest.mark.filterwarnings("ignore::runtime.errors.ImageWarning")
def test_a_jpeg_cut_inside_a_stuffed_pair(tmp_path: Path) -> None:
    """0xFF alone at the end must make no marker with what is put behind it."""
    noise = np.random.default_rng(1).integers(0, 256, (240, 160, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(noise).save(path, quality=95, subsampling=0)
    data = path.read_bytes()
    whole = load(path)
    pairs = [match.end() - 1 for match in re.finditer(rb"\xff\0", data)]
    used = 0
    for end in [*pairs[len(pairs) // 2 :: len(pairs) // 20], *pairs[-8:]]:
        path.write_bytes(data[:end])
        try:
            found = load(path)
        except ImageError:
            continue
        used += 1
        differ = np.flatnonzero((found != whole).any(axis=(1, 2)))
        assert len(differ) <= 24
        assert (found[differ] == found[min(differ, default=1) - 1]).all(), "no grey, no black"
    assert used >= 8


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (240, 160, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "options", "start"),
    [
        ("a.jpg", {}, 5_000),  # anywhere
        ("a.jpg", {"progressive": True}, 5_120),  # whole sectors
        ("a.jpg", {"optimize": True}, 5_120),
        ("a.webp", {}, 5_000),
        ("a.webp", {"lossless": True}, 5_120),
    ],
)
def test_lost_sectors_are_told(
    tmp_path: Path, name: str, options: dict[str, object], start: int
) -> None:
    path = tmp_path / name
    NOISE.save(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, strict=True)
    data = bytearray(path.read_bytes())
    data[start : start + 1024] = bytes(1024)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="zero bytes in a row: a part may be lost"):
        load(path, strict=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            load(path)
        except ImageError:
            return  # its decoder has found it
    assert ["a part may be lost" in str(each.message) for each in caught] == [True]


@pytest.mark.parametrize("colour", [0, 0x808080, 0xFFFFFF, 0x030201])
def test_flat_pictures_and_metadata_have_lost_nothing(tmp_path: Path, colour: int) -> None:
    image = Image.new("RGB", (900, 700), colour)
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(9_000)
    for number in range(6):
        options = [{}, {"progressive": True}, {"optimize": True}, {"quality": 100}, {}, {}][number]
        path = tmp_path / f"a.{'jpg' if number < 5 else 'webp'}"
        image.convert("L" if number == 4 else "RGB").save(path, exif=exif, **options)
        load(path, strict=True)


def test_memory_that_ends_says_nothing_of_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageCms, "buildTransform", full)
    with pytest.raises(MemoryError):
        _from_profile(profile(b"RGB ", 2.2, ADOBE), "RGB", [])
