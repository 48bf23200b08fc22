"""Samples of any depth and mode as 8 bits RGB: the rule of docs/concepts.md, with right values."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ImageError, ImageWarning
from runtime.image import load

GREY = np.random.default_rng(3).integers(0, 256, (20, 30), dtype=np.uint8)
GREY[0, :2] = 0, 255
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)


def grey(image: object, **options: object) -> np.ndarray:
    loaded = load(image, **options)  # type: ignore[arg-type]
    assert (loaded == loaded[..., :1]).all()
    return loaded[..., 0]


def tiff(path: Path, samples: np.ndarray, bits: int, form: int = 1, **tags: int) -> Path:
    """A minimal little-endian TIFF of one strip; `tags` as t281=4095."""
    height, width = samples.shape[:2]
    channels = samples.size // (height * width)
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    if bits == 12:  # two samples in three bytes, high bits first
        pairs = samples.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        data = packed.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    entries = {256: width, 257: height, 259: 1, 262: 2 if channels == 3 else 1, 273: 8}
    entries |= {277: channels, 278: height, 279: len(data), 339: form}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    entries[258] = bits
    start = 8 + len(data)
    table = b""
    for tag, value in sorted(entries.items()):
        if tag == 258 and channels == 3:
            table += struct.pack("<HHII", tag, 3, 3, start + 2 + 12 * len(entries) + 4)
        else:
            table += struct.pack("<HHII", tag, 4, 1, value)
    end = struct.pack("<I3H", 0, bits, bits, bits)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(entries)) + table + end
    )
    return path


def png16(path: Path, samples: np.ndarray, significant: int | None = None) -> Path:
    """A PNG of 16 bits, grey or RGB, with or without sBIT."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2] if samples.ndim == 3 else 1]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    sbit = b"" if significant is None else chunk(b"sBIT", bytes([significant] * (colour + 1)))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + sbit
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def test_eight_bit_values_in_mode_i_read_as_l() -> None:
    wide = Image.fromarray(GREY).convert("I")
    with pytest.warns(ImageWarning, match="read as 8 bits"):
        assert np.array_equal(grey(wide), GREY)
    with pytest.raises(ImageError, match="nothing says what white is"):
        load(wide, strict=True)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("carrier", ["png", "tif", "I;16", "I;16B", "I", "array", "int32"])
def test_fewer_bits_in_a_wide_sample_fill_the_range(
    tmp_path: Path, bits: int, carrier: str
) -> None:
    white = 2**bits - 1
    samples = np.rint(GREY / 255 * white).astype(np.uint16)
    source: object = {
        "I;16": Image.fromarray(samples),
        "I;16B": Image.frombytes("I;16B", (30, 20), samples.astype(">u2").tobytes()),
        "I": Image.fromarray(samples.astype(np.int32)),
        "array": samples,
        "int32": samples.astype(np.int32),
    }.get(carrier)
    if carrier in ("png", "tif"):
        source = tmp_path / f"a.{carrier}"
        Image.fromarray(samples).save(source)
    with pytest.warns(ImageWarning, match=f"read as {bits} bits"):
        assert np.array_equal(grey(source), GREY)


def test_what_the_file_says_goes_before_a_guess(tmp_path: Path) -> None:
    dark = GREY.astype(np.uint16) // 4  # at most 63: a guess would say 8 bits
    exact = np.rint(dark / 4095 * 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(grey(tiff(tmp_path / "t.tif", dark, 12)), exact), "12 bits, packed"
        assert np.array_equal(grey(tiff(tmp_path / "m.tif", dark, 16, t281=4095)), exact)
        assert np.array_equal(grey(tiff(tmp_path / "s.tif", dark, 16, t341=4095)), exact)
        assert np.array_equal(grey(png16(tmp_path / "s.png", dark, 12)), exact)
        assert np.array_equal(grey(png16(tmp_path / "f.png", dark, 16)), np.rint(dark / 257))
        (tmp_path / "a.pgm").write_bytes(b"P5 # 12\n30 20\n4095\n" + dark.astype(">u2").tobytes())
        assert np.array_equal(grey(tmp_path / "a.pgm"), exact)
        (tmp_path / "b.pgm").write_bytes(b"P5\n30 20\n63\n" + dark.astype(np.uint8).tobytes())
        assert np.array_equal(grey(tmp_path / "b.pgm"), np.rint(dark / 63 * 255))
        text = " ".join(map(str, dark.ravel()))
        (tmp_path / "c.pgm").write_text(f"P2\n30 20\n4095\n{text}\n")
        assert np.abs(grey(tmp_path / "c.pgm").astype(float) - exact).max() <= 1
    with pytest.warns(ImageWarning, match="read as 14 bits"):  # the file is wrong about itself
        grey(tiff(tmp_path / "w.tif", dark * 200, 16, t281=4095))


def test_samples_of_the_whole_range_are_no_guess(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = GREY.astype(np.uint16) * 257
        for path in (tiff(tmp_path / "a.tif", full, 16), png16(tmp_path / "a.png", full)):
            assert np.array_equal(grey(path), GREY)
        signed = np.rint(GREY / 255 * 32767).astype(np.int16)
        assert np.array_equal(grey(tiff(tmp_path / "b.tif", signed, 16, 2)), GREY)
        long = GREY.astype(np.uint32) * 0x01010101  # beyond 2^31: Pillow calls it negative
        assert np.array_equal(grey(tiff(tmp_path / "c.tif", long, 32)), GREY)
        assert np.array_equal(grey(np.zeros((3, 3), np.uint16)), np.zeros((3, 3))), "black is black"
        dark = tiff(tmp_path / "d.tif", full // 3, 16)  # beyond 14 bits: not made brighter
        assert np.array_equal(grey(dark), np.rint(full // 3 / 257))


def test_zero_is_white(tmp_path: Path) -> None:
    full = GREY.astype(np.uint16) * 257
    assert np.array_equal(grey(tiff(tmp_path / "a.tif", full, 16, t262=0)), 255 - GREY)


def test_negative_and_unbounded_samples_are_refused(tmp_path: Path) -> None:
    signed = GREY.astype(np.int16) - 5
    for source in (tiff(tmp_path / "a.tif", signed, 16, 2), Image.fromarray(signed.astype("i4"))):
        with pytest.raises(ImageError, match="pixels lie in"):
            load(source)
    for wrong, message in ((np.nan, "NaN"), (np.inf, "infinite"), (1.5, "expected"), (-1, "expec")):
        plane = np.full((4, 5), 0.5, np.float32)
        plane[3, 4] = wrong
        for source in (plane, Image.fromarray(plane), np.repeat(plane[..., None], 3, 2)):
            with pytest.raises(ImageError, match=message):
                load(source)


def test_float_tiff_with_a_white_of_its_own(tmp_path: Path) -> None:
    plane = GREY.astype(np.float32)
    with pytest.raises(ImageError, match=r"expected \[0, 1\]"):
        load(tiff(tmp_path / "a.tif", plane, 32, 3))
    assert np.array_equal(grey(tiff(tmp_path / "b.tif", plane, 32, 3, t341=255)), GREY)


def test_a_pgm_of_floats(tmp_path: Path) -> None:
    rows = (GREY.astype("<f4") / 255)[::-1]  # stored from below
    (tmp_path / "a.pfm").write_bytes(b"Pf\n30 20\n-1.0\n" + rows.tobytes())
    assert np.array_equal(grey(tmp_path / "a.pfm"), GREY)
    with Image.open(tmp_path / "a.pfm") as opened:
        assert np.array_equal(grey(opened), GREY)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("carrier", ["png", "tif", "ppm", "array"])
def test_colour_of_16_bits(tmp_path: Path, bits: int, carrier: str) -> None:
    """Pillow keeps the high bytes; where those alone would be black the low ones are read too."""
    samples = np.rint(RGB / 255 * (2**bits - 1)).astype(np.uint16)
    path = tmp_path / f"a.{carrier}"
    source: object = path
    if carrier == "png":
        png16(path, samples)
    elif carrier == "tif":
        tiff(path, samples, 16)
    elif carrier == "ppm":
        path.write_bytes(b"P6\n30 20\n%d\n" % (2**bits - 1) + samples.astype(">u2").tobytes())
    else:
        source = samples
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        assert np.array_equal(load(source), RGB)  # type: ignore[arg-type]


def test_16_bit_colour_keeps_the_high_byte(tmp_path: Path) -> None:
    """As Pillow, and so the reference, reads it; at most a level from the exact value."""
    samples = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    for path in (png16(tmp_path / "a.png", samples), tiff(tmp_path / "a.tif", samples, 16)):
        assert np.array_equal(load(path), samples >> 8)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_tiffs_of_12_bits(tmp_path: Path, compression: str) -> None:
    samples = np.rint(GREY / 255 * 4095).astype(np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.tif", compression=compression)
    with pytest.warns(ImageWarning, match="12 bits"):
        assert np.array_equal(grey(tmp_path / "a.tif"), GREY)


def test_colour_of_16_bits_as_a_pil_image(tmp_path: Path) -> None:
    """What Pillow has cut off cannot be had again."""
    alpha = np.dstack([RGB, GREY]), np.dstack([GREY, GREY])
    for samples in (RGB, *alpha):
        png16(tmp_path / "dark.png", np.rint(samples / 255 * 4095).astype(np.uint16))
        png16(tmp_path / "full.png", samples.astype(np.uint16) * 257)
        dark = Image.open(tmp_path / "dark.png")
        with dark, pytest.raises(ImageError, match="pass the path"):
            load(dark)
        with Image.open(tmp_path / "full.png") as opened:
            assert np.array_equal(load(opened), load(tmp_path / "full.png"))
    tiff(tmp_path / "dark.tif", np.rint(RGB / 255 * 4095).astype(np.uint16), 16)
    with Image.open(tmp_path / "dark.tif") as opened, pytest.raises(ImageError, match="pass the p"):
        load(opened)


def test_grey_and_alpha_of_12_bits_in_16(tmp_path: Path) -> None:
    png16(tmp_path / "a.png", np.rint(np.dstack([GREY, GREY]) / 255 * 4095).astype(np.uint16))
    with pytest.warns(ImageWarning, match="read as 12 bits"):
        assert np.array_equal(grey(tmp_path / "a.png"), GREY)


def test_12_bits_in_a_jpeg_2000_of_16(tmp_path: Path) -> None:
    samples = np.rint(GREY / 255 * 4095).astype(np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.jp2", irreversible=False)
    with pytest.warns(ImageWarning, match="read as 12 bits"):
        assert np.array_equal(grey(tmp_path / "a.jp2"), GREY)
    opened = Image.open(tmp_path / "a.jp2")
    with opened, pytest.warns(ImageWarning, match="read as 12 bits"):
        assert np.array_equal(grey(opened), GREY)


def j2k16(path: Path, samples: np.ndarray, **options: bool) -> Path:
    """Colour of 16 bits, which Pillow does not write: `samples` uint8 [H,W,C], times 256."""
    Image.fromarray(samples).save(path, irreversible=True, **options)
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\x4f\xff\x51") + 42
    for component in range(samples.shape[2]):  # the irreversible transform scales with the depth
        content[at + 3 * component] = 15
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("plain", [True, False])
def test_colour_of_12_bits_in_a_jpeg_2000_of_16(channels: int, plain: bool, tmp_path: Path) -> None:
    """Pillow has no low bytes of it: never dark in silence."""
    rgba = np.dstack([RGB, np.full_like(GREY, 255)])[..., 4 - channels :]
    full = j2k16(tmp_path / "full.jp2", rgba, no_jp2=plain)
    assert np.abs(load(full).astype(int)[..., :1] - rgba[..., :1]).max() < 12
    with Image.open(full) as opened:
        assert np.array_equal(load(opened), load(full))
    dark = j2k16(tmp_path / "dark.jp2", rgba // 16, no_jp2=plain)
    with pytest.raises(ImageError, match="nearly black; save it as PNG or TIFF"):
        load(dark)
    with Image.open(dark) as opened, pytest.raises(ImageError, match="nearly black; save it"):
        load(opened)


def test_signed_bytes_are_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", (GREY // 2).astype(np.int8), 8, 2)
    with pytest.raises(ImageError, match="signed samples of 8 bits"):
        load(path)
    with Image.open(path) as opened, pytest.raises(ImageError, match="signed samples of 8 bits"):
        load(opened)


def test_jpeg_2000_of_16_bits(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.jp2", irreversible=False)
    assert np.array_equal(grey(tmp_path / "a.jp2"), GREY)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "HSV"])
def test_modes_of_pil_images(mode: str) -> None:
    image = Image.fromarray(RGB)
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    expected = {
        "1": lambda: image.convert("L"),
        "LA": lambda: Image.fromarray(RGB).convert("L"),
        "La": lambda: Image.fromarray(RGB).convert("L"),
        "PA": lambda: Image.fromarray(RGB).convert("P").convert("RGB"),
        "RGBa": lambda: Image.fromarray(RGB),
        "RGBA": lambda: Image.fromarray(RGB),
        "RGBX": lambda: Image.fromarray(RGB),
    }.get(mode, lambda: image)()
    assert np.array_equal(load(image), np.asarray(expected.convert("RGB")))


def test_palette_with_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "a.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))
        with Image.open(tmp_path / "a.png") as opened:
            assert np.array_equal(load(opened), load(tmp_path / "a.png"))


def test_ycbcr_and_lab_tiffs(tmp_path: Path) -> None:
    flat = np.full((8, 9, 3), (200, 120, 40), np.uint8)
    Image.fromarray(flat).convert("YCbCr").save(tmp_path / "y.tif", compression="tiff_lzw")
    assert np.abs(load(tmp_path / "y.tif").astype(int) - flat).max() <= 2
    # CIE L*a*b* (D50) of sRGB (200, 120, 40), by the formulas of the standards: 57.8, 28.2, 52.9.
    lab = np.full((8, 9, 3), (round(57.8 * 2.55), 28, 53), np.uint8)
    image = Image.frombytes("LAB", (9, 8), lab.tobytes())
    image.save(tmp_path / "l.tif")
    for source in (image, tmp_path / "l.tif"):
        assert np.abs(load(source).astype(int) - flat).max() <= 3


def test_arrays_are_read_as_files_are(tmp_path: Path) -> None:
    alpha = np.dstack([RGB, GREY])
    for array in (GREY, GREY[..., None], alpha, GREY.astype(bool), RGB.astype(np.float32) / 255):
        if array.dtype == np.float32:
            assert np.array_equal(load(array), RGB)
            continue
        image = Image.fromarray(array.squeeze())
        image.save(tmp_path / "a.png")
        assert np.array_equal(load(array), load(tmp_path / "a.png"))
        assert np.array_equal(load(image), load(tmp_path / "a.png"))
