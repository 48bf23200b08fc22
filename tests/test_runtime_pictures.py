"""Files as they come: cut short, foreign, hostile, large; nothing but a picture or ImageError."""

from __future__ import annotations

import ctypes
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from runtime.errors import ImageError, ImageWarning
from runtime.image import IMAGE_SUFFIXES, load, why_not_read
from runtime.pictures.decode import decode_file
from runtime.pictures.jpeg import MOST_SCANS

COARSE = np.random.default_rng(5).integers(0, 256, (12, 16, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COARSE).resize((320, 240), Image.Resampling.BICUBIC)
RGB = np.asarray(PICTURE)


def encoded(name: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


CUT = {
    "baseline": encoded("JPEG", quality=90),
    "grey": encoded("JPEG", PICTURE.convert("L"), quality=90),
    "restarts": encoded("JPEG", restart_marker_rows=1),
    "progressive": encoded("JPEG", progressive=True, quality=90),
    "cmyk": encoded("JPEG", PICTURE.convert("CMYK")),
    "two pictures": encoded("MPO", save_all=True, append_images=[PICTURE]),
    "png": encoded("PNG"),
    "palette png": encoded("PNG", PICTURE.quantize(64)),
    "bilevel png": encoded("PNG", PICTURE.convert("1")),
}


def first_picture(data: bytes) -> bytes:
    """A phone's file has two; cut inside the first."""
    return data[: data.index(b"\xff\xd8", 4)] if b"MPF\0" in data else data


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("lost", [1, 2, 13, 200])
def test_the_last_bytes_are_missing(tmp_path: Path, kind: str, lost: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(CUT[kind])
    whole = load(path, strict=True)
    data = first_picture(CUT[kind])
    path.write_bytes(data[:-lost])
    with pytest.warns(ImageWarning, match="the end is missing") as caught:
        found = load(path)
    assert len(caught) == 1
    differ = np.flatnonzero((found != whole).any(axis=(1, 2)))
    if kind != "progressive":  # there the last bits of some coefficients are missing
        assert len(differ) <= 32
        assert lost > 2 or not len(differ), "nothing but the end mark was lost"
        assert (found[differ] == found[min(differ, default=1) - 1]).all(), "no grey, no black"
    assert np.abs(found[:200].astype(int) - whole[:200]).mean() < 1
    with pytest.raises(ImageError, match="the end is missing"):
        load(path, strict=True)


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("filled", [b"", b"\0"], ids=["cut", "filled with zeros"])
def test_half_a_picture_is_refused(tmp_path: Path, kind: str, filled: bytes) -> None:
    data = first_picture(CUT[kind])
    half = len(data) // 2
    (tmp_path / "a").write_bytes(data[:half] + filled * (len(data) - half))
    with pytest.raises(ImageError, match="is cut short"):
        load(tmp_path / "a")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "png"])
def test_half_a_picture_where_the_process_reads_truncated_ones(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "a"
    path.write_bytes(CUT[kind])
    assert load(path, strict=True).shape == RGB.shape
    for half in (CUT[kind][: len(CUT[kind]) // 2], encoded("BMP")[:-5_000]):
        path.write_bytes(half)
        with pytest.raises(ImageError, match="is cut short"):
            load(path)


@pytest.mark.parametrize("time", [1, 2])
def test_memory_that_ends_says_nothing_of_a_picture_without_its_end(
    tmp_path: Path, time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decoded twice."""
    path = tmp_path / "a"
    path.write_bytes(CUT["baseline"][:-200])
    real, seen = ImageFile.ImageFile.load, list[Image.Image]()

    def load_once(image: ImageFile.ImageFile) -> object:
        if not any(image is each for each in seen):
            seen.append(image)
            if len(seen) == time:
                raise MemoryError
        return real(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_once)
    with pytest.raises(MemoryError):
        decode_file(path, strict=False, max_pixels=None)


@pytest.mark.parametrize("packed", [True, False])
def test_a_png_with_a_large_text(tmp_path: Path, packed: bool) -> None:
    for add in ("add_text", "add_itxt"):
        info = PngImagePlugin.PngInfo()
        words = {"zip": packed} if add == "add_text" else {"zip": packed, "lang": "en"}
        getattr(info, add)("Comment", "word " * 500_000, **words)
        PICTURE.save(tmp_path / "a.png", pnginfo=info)
        with pytest.warns(ImageWarning, match="a text of more than"):
            assert np.array_equal(load(tmp_path / "a.png"), RGB)
        with pytest.raises(ImageError, match="a text of more than"):
            load(tmp_path / "a.png", strict=True)


def test_what_is_damaged_beside_the_pixels_does_no_harm(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0"  # cut in its only entry
    names = ["JPEG", "PNG", "WEBP"] + (["AVIF"] if ".avif" in IMAGE_SUFFIXES else [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an encoder may complain
        pairs = [(encoded(name), encoded(name, exif=exif)) for name in names]
    animated = bytearray(encoded("PNG", save_all=True, append_images=[PICTURE.rotate(9)]))
    start = animated.index(b"acTL") + 4
    animated[start : start + 4] = bytes(4)  # no frames
    file = tmp_path / "a"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for clean, damaged in [*pairs, (encoded("PNG"), animated)]:
            file.write_bytes(clean)
            expected = load(file)
            file.write_bytes(damaged)
            assert np.array_equal(load(file, strict=True), expected)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_cut_by_a_byte_is_refused(tmp_path: Path, big: bool) -> None:
    """Nothing that stands behind the pixels is taken for those that are missing."""
    data = encoded("TIFF", big_tiff=big)
    assert data[-1:] == RGB[-1, -1, 2:].tobytes(), "the pixels lie at the end"
    for cut in (1, 50, 5000):
        (tmp_path / "a.tif").write_bytes(data[:-cut])
        with pytest.raises(ImageError, match="cut short"):
            load(tmp_path / "a.tif")


def test_xmp_turns_where_exif_says_nothing(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    PICTURE.save(tmp_path / "a.webp", xmp=xmp, lossless=True)
    assert np.array_equal(load(tmp_path / "a.webp"), np.rot90(RGB, -1))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "content",
    [
        POSTSCRIPT,
        encoded("DDS"),
        encoded("SGI"),
        encoded("ICO"),
        b"\0" * 100,
        b"8BPS\0\1" + bytes(90),
    ],
    ids=["postscript", "dds", "sgi", "ico", "zeros", "psd"],
)
def test_only_known_formats_are_opened(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    for name in ("Popen", "run", "check_call"):
        monkeypatch.setattr(subprocess, name, started)
    for name in ("holiday.jpg", "holiday.eps", "holiday"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match="not a picture of a known format"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA", "AVIF", "MPO"],
)
def test_the_content_says_what_it_is_not_the_name(tmp_path: Path, name: str) -> None:
    if name == "AVIF" and ".avif" not in IMAGE_SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    (tmp_path / "a.txt").write_bytes(encoded(name))
    assert load(tmp_path / "a.txt").shape == RGB.shape


def test_heic_with_its_plugin(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(PICTURE).save(tmp_path / "a.heic", quality=90)
    assert np.abs(load(tmp_path / "a.heic").astype(int) - RGB).mean() < 3
    assert ".heic" in IMAGE_SUFFIXES


def test_suffixes_and_reasons(tmp_path: Path) -> None:
    assert {".jpg", ".jpe", ".jfif", ".png", ".tif", ".webp", ".pgm", ".jp2"} <= IMAGE_SUFFIXES
    assert not {".eps", ".ps", ".wmf", ".emf", ".pfm", ".npy"} & IMAGE_SUFFIXES
    assert why_not_read(".JPG") is None
    assert why_not_read(".txt") is None
    assert "camera raw" in str(why_not_read(".CR2"))
    Image.init()
    opened = {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN}
    no_pictures = {".apng", ".mpo", ".bufr", ".grib", ".h5", ".hdf", ".mpg", ".mpeg", ".pdf"}
    for suffix in opened - IMAGE_SUFFIXES - no_pictures:
        assert why_not_read(suffix), f"{suffix}: a folder with it is skipped without a word"
    if ".heic" not in IMAGE_SUFFIXES:
        assert "pip install pillow-heif" in str(why_not_read(".heic"))
        (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
        with pytest.raises(ImageError, match="pip install pillow-heif"):
            load(tmp_path / "a.jpg")


def test_the_preview_of_a_camera_raw_file_is_not_the_picture(tmp_path: Path) -> None:
    small = PICTURE.resize((32, 24))
    small.save(tmp_path / "a.dng", "TIFF", tiffinfo={50706: b"\1\4\0\0"})
    small.save(tmp_path / "b.nef", "TIFF", tiffinfo={254: 1})
    for name in ("a.dng", "b.nef"):
        with pytest.raises(ImageError, match="camera raw"):
            load(tmp_path / name)


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", "/dev/zero", "/dev/null"):
        with pytest.raises(ImageError, match="no regular file"):
            load(path)


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded("JPEG", PICTURE.convert("L"), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def test_scans_are_limited(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(many_scans(MOST_SCANS))
    assert load(tmp_path / "a.jpg").shape == RGB.shape
    (tmp_path / "a.jpg").write_bytes(many_scans(1000))
    with pytest.raises(ImageError, match=f"has 1000 scans, the limit is {MOST_SCANS}"):
        load(tmp_path / "a.jpg")


def test_damaged_pictures_say_nothing_and_change_no_switch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bits flipped in each format; what comes out is a picture or ImageError."""
    kinds = [
        encoded(name) for name in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "TGA")
    ]
    for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        kinds.append(encoded("TIFF", PICTURE.resize((80, 60)), compression=packing))
    if ".avif" in IMAGE_SUFFIXES and int(PIL.__version__.split(".")[0]) >= 12:  # dav1d spoke before
        kinds.append(encoded("AVIF", PICTURE.resize((80, 60))))
    before = (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    generator, refused, said = np.random.default_rng(0), 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: said.append(message)
        filters = list(warnings.filters)
        for number in range(40 * len(kinds)):
            data = bytearray(kinds[number % len(kinds)])
            for _ in range(3):
                near = min(len(data), 400) if number % 2 else len(data)
                data[generator.integers(near)] ^= 1 << generator.integers(8)
            if number % 5 == 0:
                del data[generator.integers(len(data)) :]
            (tmp_path / "a").write_bytes(data)
            try:
                assert load(tmp_path / "a", max_pixels=10**6).dtype == np.uint8
            except ImageError:
                refused += 1
        assert warnings.filters == filters
    assert {type(message) for message in said} <= {ImageWarning}
    assert 50 < refused < 40 * len(kinds) - 50
    assert capfd.readouterr() == ("", "")
    assert before == (
        list(warnings.filters),
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
    )


def test_libtiff_is_quiet_and_speaks_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(encoded("TIFF", compression="tiff_lzw"))
    data[2000:60_000] = b"\xff" * 58_000
    tagged = encoded("TIFF").replace(
        struct.pack("<HHII", 277, 3, 1, 3), b"\x15\1\3\0\1\0\0\0\t\0\0\0"
    )
    for content in (data, tagged):
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(ImageError, match="cannot be decoded"):
            load(tmp_path / "a.tif")
    assert capfd.readouterr() == ("", "")
    (tmp_path / "a.tif").write_bytes(data)
    with Image.open(tmp_path / "a.tif") as image, pytest.raises(OSError, match=r"decoder error|-2"):
        image.load()
    if hasattr(ctypes.CDLL(Image.core.__file__), "TIFFSetErrorHandler"):
        assert capfd.readouterr().err, "others hear of their own errors"


def test_threads_get_their_own_pictures(tmp_path: Path) -> None:
    kinds = {}
    for kind, data in {**CUT, "tiff": encoded("TIFF", compression="tiff_lzw")}.items():
        path = tmp_path / kind
        path.write_bytes(first_picture(data)[: -2 if "JFIF" in str(data[:20]) else None])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kinds[path] = load(path)
    wrong = []

    def work() -> None:
        for path, expected in kinds.items():
            for _ in range(3):
                if not np.array_equal(load(path), expected):
                    wrong.append(path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
