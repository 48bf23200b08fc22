"""Any picture in; a map of the picture's size out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from runtime.errors import ImageError
from runtime.image import Levels, choose_bucket, fit_to_bucket, load, restore
from runtime.manifest import Bucket, Preprocess
from runtime.tasks import TASKS

RGB = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def bucket(height: int, width: int) -> Bucket:
    return Bucket(height=height, width=width, graph="g.onnx")


def save(tmp_path: Path, image: Image.Image, name: str = "i.png", **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_rgb_png_array_and_pil_are_the_same_pixels(tmp_path: Path) -> None:
    path = save(tmp_path, Image.fromarray(RGB))
    for source in (path, str(path), Image.fromarray(RGB), RGB):
        assert np.array_equal(load(source), RGB)


def test_grey_palette_and_alpha(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    assert np.array_equal(
        load(save(tmp_path, Image.fromarray(grey))), np.repeat(grey[..., None], 3, 2)
    )
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(load(save(tmp_path, palette)), np.asarray(palette.convert("RGB")))
    alpha = np.concatenate(
        [RGB, np.random.default_rng(2).integers(0, 256, (20, 30, 1), dtype=np.uint8)], 2
    )
    assert np.array_equal(load(save(tmp_path, Image.fromarray(alpha))), RGB), (
        "alpha is dropped, as the reference does"
    )
    bilevel = Image.fromarray(grey > 127)
    assert set(np.unique(load(save(tmp_path, bilevel)))) == {0, 255}


def test_cmyk(tmp_path: Path) -> None:
    path = save(tmp_path, Image.fromarray(RGB).convert("CMYK"), "i.tif")
    assert np.abs(load(path).astype(int) - RGB).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 128, 257, 40000, 65535])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, value: int) -> None:
    deep = np.full((4, 5), value, dtype=np.uint16)
    deep[0, 0] = 65535  # a picture of 16 bits, not one of fewer: see test_runtime_depth.py
    loaded = load(save(tmp_path, Image.fromarray(deep)))
    assert loaded.shape == (4, 5, 3)
    assert np.abs(loaded[1:].astype(float) - value / 257).max() <= 0.5


def test_float_tiff_in_unit_range_and_nan(tmp_path: Path) -> None:
    plane = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    assert np.array_equal(
        load(save(tmp_path, Image.fromarray(plane), "f.tif"))[..., 1], np.rint(plane * 255)
    )
    plane[0, 0] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        load(save(tmp_path, Image.fromarray(plane), "n.tif"))
    with pytest.raises(ImageError, match=r"expected \[0, 1\]"):
        load(save(tmp_path, Image.fromarray(np.full((3, 3), 7, np.float32)), "r.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load(save(tmp_path, Image.fromarray(RGB), exif=exif))
    # EXIF 2.3, table of tag 0x0112: 3 is half a turn, 6 and 8 quarter turns, 2/4/5/7 mirrored.
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: np.rot90(RGB, 2).transpose(1, 0, 2),
        8: np.rot90(RGB),
    }[orientation]
    assert np.array_equal(loaded, turned)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_of_several_bands_is_turned_as_pillow_does(
    tmp_path: Path, orientation: int
) -> None:
    """`load` works in bands of 2^18 pixels; the last one here is smaller."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = Image.fromarray(RGB).resize((900, 1001))
    path = save(tmp_path, large, "large.png", exif=exif, compress_level=1)
    with Image.open(path) as image:
        assert np.array_equal(load(path), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_turned_uncompressed_tiffs(tmp_path: Path, mode: str, orientation: int) -> None:
    """Opened by path, Pillow maps such files and shears the turned ones; a stream does not."""
    grey = RGB[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    plain = deep if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    upright = load(save(tmp_path, plain, "plain.tif"))
    turned = load(save(tmp_path, plain, "turned.tif", tiffinfo={0x0112: orientation}))
    assert np.array_equal(turned, np.rot90(upright, {3: 2, 6: -1, 8: 1}[orientation]))


def test_broken_exif_turns_nothing(tmp_path: Path) -> None:
    assert np.array_equal(load(save(tmp_path, Image.fromarray(RGB), exif=b"Exif\0\0nonsense")), RGB)


def test_pil_images_that_cannot_be_read(tmp_path: Path) -> None:
    noisy = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    )
    path = save(tmp_path, noisy, "cut.jpg")
    path.write_bytes(path.read_bytes()[:2000])
    closed = Image.fromarray(RGB)
    closed.close()
    for image in (Image.open(path), closed):
        with pytest.raises(ImageError, match="the given PIL image"):
            load(image)
        image.close()
    with pytest.raises(ImageError, match="cannot be decoded"):
        load(tmp_path / ("long" * 100 + ".png"))


@pytest.mark.parametrize("as_bytes", [False, True])
def test_too_little_memory_says_nothing_about_the_picture(
    tmp_path: Path, as_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`predict` tries such a picture again, alone."""
    path = save(tmp_path, Image.fromarray(RGB))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("1 GiB")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError, match="1 GiB"):
        load(path.read_bytes() if as_bytes else path)


def test_missing_folder_empty_truncated_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        load(tmp_path / "none.png")
    with pytest.raises(ImageError, match="folder"):
        load(tmp_path)
    noisy = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    )
    for name in ("cut.jpg", "cut.png"):
        path = save(tmp_path, noisy, name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=r"is cut short: \d+ of 200 rows are missing"):
            load(path)
    for content, message in (
        (b"", "not a picture of a known format"),
        (b"hello", "not a picture of a known format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "cannot be decoded"),
    ):
        (tmp_path / "odd.png").write_bytes(content)
        with pytest.raises(ImageError, match=message):
            load(tmp_path / "odd.png")


@pytest.mark.filterwarnings("ignore::runtime.errors.ImageWarning")
def test_every_single_flipped_byte_of_a_jpeg_is_an_image_or_our_error(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "JPEG")
    clean, outcomes = stream.getvalue(), set()
    for position in range(len(clean)):
        damaged = bytearray(clean)
        damaged[position] ^= 0xFF
        (tmp_path / "d.jpg").write_bytes(damaged)
        try:
            outcomes.add(load(tmp_path / "d.jpg").dtype)
        except ImageError:
            outcomes.add("refused")
    assert outcomes == {np.dtype(np.uint8), "refused"}


@pytest.mark.parametrize(
    "array",
    [
        RGB[..., :2],
        RGB[:0],
        RGB[None],
        RGB.astype(np.int8),
        RGB.astype(complex),
        RGB.astype(str),
        RGB[0, 0],
    ],
    ids=["two channels", "empty", "batch", "signed bytes", "complex", "text", "vector"],
)
def test_arrays_of_another_kind_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected a non-empty array \[H,W,3\]"):
        load(array)


def test_objects_of_another_kind_are_refused() -> None:
    with pytest.raises(ImageError, match="found int"):
        load(7)  # type: ignore[arg-type]


def test_bucket_nearest_in_aspect_then_in_scale() -> None:
    square, large, wide, tall = (
        bucket(256, 256),
        bucket(512, 512),
        bucket(256, 512),
        bucket(512, 256),
    )
    buckets = [square, large, wide, tall]
    assert choose_bucket(buckets, 300, 300) == square
    assert choose_bucket(buckets, 480, 500) == large
    assert choose_bucket(buckets, 480, 960) == wide
    assert choose_bucket(buckets, 4000, 1) == tall
    assert choose_bucket(buckets, 1, 4000) == wide


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 4000), (4000, 1), (37, 53), (64, 96), (63, 97), (500, 96), (3, 1000)]
)
def test_fit_and_restore_any_size(size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    fitted, fit = fit_to_bucket(rgb, bucket(64, 96))
    assert fitted.shape == (64, 96, 3)
    assert (fit.content_height == 64) or (fit.content_width == 96)
    assert (fitted[fit.content_height :] == fitted[fit.content_height - 1]).all(), (
        "padding repeats the last row"
    )
    assert (
        fitted[:, fit.content_width :] == fitted[:, fit.content_width - 1 : fit.content_width]
    ).all()
    planes = Preprocess().apply(fitted)[0, :1]
    for resize in ("bilinear", "nearest"):
        assert restore(TASKS["depth"], planes, fit, resize).shape == (1, *size)
    assert restore(TASKS["depth"], planes, fit, None).shape == (
        1,
        fit.content_height,
        fit.content_width,
    )


def test_an_image_of_the_buckets_size_is_untouched() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    fitted, fit = fit_to_bucket(rgb, bucket(64, 96))
    assert np.array_equal(fitted, rgb)
    values = np.random.default_rng(0).random((1, 64, 96), dtype=np.float32)
    assert np.array_equal(restore(TASKS["depth"], values, fit, "bilinear"), values)


def test_bilinear_restore_against_a_slow_loop() -> None:
    values = np.random.default_rng(0).random((1, 4, 6), dtype=np.float32)
    _, fit = fit_to_bucket(np.zeros((8, 12, 3), np.uint8), bucket(4, 6))
    slow = np.empty((8, 12))
    for y in range(8):
        for x in range(12):
            # Half-pixel centres: output pixel y lies at (y + 0.5) / 2 - 0.5 of the input.
            sy, sx = (y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5
            y0, x0 = int(np.floor(sy)), int(np.floor(sx))
            corners = [
                (
                    values[0, np.clip(y0 + dy, 0, 3), np.clip(x0 + dx, 0, 5)],
                    abs(1 - dy - (sy - y0)),
                    abs(1 - dx - (sx - x0)),
                )
                for dy in (0, 1)
                for dx in (0, 1)
            ]
            slow[y, x] = sum(value * wy * wx for value, wy, wx in corners)
    assert np.abs(restore(TASKS["depth"], values, fit, "bilinear")[0] - slow).max() < 1e-6
    assert np.array_equal(
        restore(TASKS["depth"], values, fit, "nearest")[0], values[0].repeat(2, 0).repeat(2, 1)
    )


def test_preprocess_maps_the_ends_of_the_range() -> None:
    pixels = np.array([[[0, 255, 51]]], dtype=np.uint8)
    assert np.allclose(Preprocess().apply(pixels)[0, :, 0, 0], [-1, 1, -0.6], atol=1e-7)


def test_levels_go_in_as_they_are_also_beyond_the_range() -> None:
    values = np.random.default_rng(0).uniform(-300, 400, (64, 96, 3)).astype(np.float32)
    assert load(Levels(values=values)) is values
    fitted, _ = fit_to_bucket(load(Levels(values=values)), bucket(64, 96))
    assert np.allclose(
        Preprocess().apply(fitted)[0], values.transpose(2, 0, 1) / 127.5 - 1, atol=1e-5
    )
    halved, fit = fit_to_bucket(np.full((128, 192, 3), -142.5, np.float32), bucket(64, 128))
    assert halved.dtype == np.float32
    assert halved.shape == (64, 128, 3)
    assert np.allclose(halved, -142.5)
    assert (fit.content_height, fit.content_width) == (64, 96)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.float32),
        np.zeros((0, 4, 3), np.float32),
        np.full((4, 4, 3), np.nan, np.float32),
    ],
)
def test_levels_that_are_none(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match="levels are"):
        load(Levels(values=values))


def test_the_content_of_a_file_is_read_as_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert np.array_equal(load(path.read_bytes()), load(path))
    with pytest.raises(ImageError, match=r"^the given bytes: is not a picture"):
        load(b"no picture")
