"""What was made fast answers the bits of the plain formula, and holds no copies."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, picture
from PIL import Image

from runtime import __main__ as command
from runtime import deflate
from runtime.colors import _quickest, _Ramp, spectral_table
from runtime.encoding import encode_png, png
from runtime.enlarge import enlarge, is_larger, is_pillows
from runtime.image import fit_to_bucket, load, read
from runtime.manifest import Bucket
from runtime.pixels import ONE_BLOCK, memory_of
from runtime.tasks import TASKS, Task
from runtime.vectors import unit_vectors

RANDOM = np.random.default_rng(0)
BUCKETS = [Bucket(height=64, width=96, graph=""), Bucket(height=64, width=64, graph="")]
SHAPES = [(1, 1), (7, 5), (300, 901), (3, 70_000), (1200, 60)]


def maps(shape: tuple[int, int]) -> list[np.ndarray]:
    """Noise beyond the range, values on the edges between two colours, and one value only."""
    edges = (np.arange(shape[0] * shape[1], dtype=np.float32) % 511 / 510).reshape(shape)
    return [
        RANDOM.random(shape, dtype=np.float32) * np.float32(1.4) - np.float32(0.2),
        edges,
        np.full(shape, 0.3, np.float32),
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["depth", "disparity"])
def test_colours_are_those_of_the_plain_formula(name: str, shape: tuple[int, int]) -> None:
    for values in maps(shape):
        low, high = float(values.min()), float(values.max())
        unit = (values.astype(np.float64) - low) / max(high - low, 1e-12)
        index = np.rint((1 - unit if name == "disparity" else unit) * 255).astype(int)
        assert np.array_equal(TASKS[name].colorize(values), spectral_table()[index])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_parts_of_a_map_have_the_colours_of_the_whole(task: Task) -> None:
    values = RANDOM.random((60, 50) + (3,) * (task.channels > 1), dtype=np.float32)
    values[20:40] *= np.float32(0.3)
    whole, paint = task.colorize(values), task.painter(values)
    for top, bottom in ((0, 0), (0, 20), (20, 40), (41, 60)):
        assert np.array_equal(paint(values[top:bottom]), whole[top:bottom])


@pytest.mark.parametrize("down", [True, False])
def test_the_quick_index_is_taken_where_it_is_the_exact_one(down: bool) -> None:
    """Of -1 to 1 the middle lies on an edge, where the quick one rounds to the other side."""
    random, quick = np.random.default_rng(1), 0
    ends = [np.sort(random.random(2).astype(np.float32) * np.float32(9)) for _ in range(60)]
    for low, high in ([-1, 1], [0, 0], [0, 510 / 512], [0.3, 0.30000004], *ends):
        ramp = _Ramp(float(np.float32(low)), float(np.float32(high)), down)
        steps = _quickest(ramp)
        levels = ramp.low + np.arange(511) / 510 * (ramp.high - ramp.low)
        values = np.repeat(levels.astype(np.float32), 5).reshape(-1, 5)
        for column, end in ((0, -np.inf), (1, -np.inf), (3, np.inf), (4, np.inf)):
            for _ in range(abs(column - 2)):
                values[:, column] = np.nextafter(values[:, column], np.float32(end))
        values[0], values[-1] = -np.inf, 2 * abs(ramp.high)
        found, exact = np.empty((2, *values.shape))
        steps(values, found)
        ramp.exact(values, exact)
        assert np.array_equal(found, exact)
        quick += steps == ramp.quick
        if (low, high) == (-1, 1):
            assert steps == ramp.exact
    assert quick > 50


@pytest.mark.parametrize("shape", SHAPES)
def test_16_bits_and_greys_are_those_of_the_plain_formula(shape: tuple[int, int]) -> None:
    for values in maps(shape):
        exact = values.astype(np.float64)
        codes = np.rint(exact * 65535).clip(0, 65535)
        assert np.array_equal(TASKS["disparity"].encode16(values), codes)
        both = TASKS["normal"].encode16(np.stack([values] * 3, axis=-1))
        assert np.array_equal(both[..., 1], np.rint((exact + 1) / 2 * 65535).clip(0, 65535))
        grey = np.rint(exact * 255).clip(0, 255)
        assert np.array_equal(TASKS["matting"].colorize(values)[..., 2], grey)


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_vectors_are_those_of_the_plain_formula(shape: tuple[int, int]) -> None:
    vectors = RANDOM.normal(size=(*shape, 3)).astype(np.float32)
    vectors[0, 0] = 0
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    expected = vectors / np.maximum(length, np.float32(1e-6))
    planes = np.ascontiguousarray(vectors.transpose(2, 0, 1)).transpose(1, 2, 0)
    for given in (vectors, planes):
        found = unit_vectors(given)
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
        assert found.flags.c_contiguous


@pytest.mark.parametrize("seed", range(4))
def test_a_map_is_enlarged_as_pillow_does_it(seed: int) -> None:
    """All sizes, and boxes of tiles; on ARM Pillow's compiler rounds once where two are due."""
    random = np.random.default_rng(seed)
    assert is_pillows() or platform.machine().lower() not in ("x86_64", "amd64")
    for number in range(150):
        height, width = (int(each) for each in random.integers(1, 40, 2))
        large = height + int(random.integers(0, 90)), width + int(random.integers(0, 90))
        plane = random.random((height, width), dtype=np.float32) * 2 - 1
        box = None
        if number % 3 == 0:
            left, top = random.random() * width * 0.6, random.random() * height * 0.6
            right = left + (width - left) * random.uniform(0.3, 1)
            box = (left, top, right, top + (height - top) * random.uniform(0.3, 1))
        if number % 6 == 0 and height > 2:  # whole rows, as many as there will be
            box = (0, number % 4 // 2, width, height - 1 + number % 4 // 2)
            large = height - 1, width + 5
        if number % 5 == 0:
            box = None
            large = height, width * 3  # one edge stays, steps are whole
        assert is_larger((height, width), *large, box)
        found = np.empty(large, np.float32)
        enlarge(plane, found, box)
        wanted = np.asarray(
            Image.fromarray(plane).resize(large[::-1], Image.Resampling.BILINEAR, box)
        )
        assert np.array_equal(found, wanted) or not is_pillows()
        assert np.abs(found - wanted).max() < 1e-6


def test_maps_are_restored_by_it_and_what_becomes_smaller_by_pillow() -> None:
    task = TASKS["normal"]
    maps = RANDOM.random((3, 30, 40), dtype=np.float32)
    for size, method in (((60, 90), "bilinear"), ((20, 90), "bilinear"), ((60, 90), "nearest")):
        filters = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
        found = task.resize(maps, *size, method)  # type: ignore[arg-type]
        assert found.shape == (3, *size)
        assert found.flags.writeable
        for plane, wanted in zip(maps, found, strict=True):
            expected = Image.fromarray(plane).resize(size[::-1], filters[method])
            assert np.abs(np.asarray(expected) - wanted).max() < 1e-6


def test_the_memory_of_an_image_outlives_it() -> None:
    """Also where Pillow holds it in several blocks, which are copied."""
    values = RANDOM.random((300, 400), dtype=np.float32)
    for shape in ((300, 400), (1, 1), (2, ONE_BLOCK)):
        size = shape[::-1]
        large = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
        expected = np.array(large)
        found = memory_of(large)
        del large
        gc.collect()
        other = Image.new("F", size, 5.0)  # would lie in the same place
        assert np.array_equal(found, expected)
        assert found.flags.writeable
        assert found.dtype == np.float32
        del other


def test_what_one_block_holds_is_not_copied() -> None:
    image = Image.new("F", (2048, ONE_BLOCK // 2048))
    memory_of(image)[7, 5] = 2.5
    assert image.getpixel((5, 7)) == 2.5


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_picture_that_stays_with_pillow_is_the_same_picture(
    mode: str, turn: int, tmp_path: Path
) -> None:
    rgb = RANDOM.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    deep = mode == "I;16"
    image = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257) if deep else Image.fromarray(rgb)
    image = image if deep else image.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(path, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array, pixels = load(path), read(path)[0]
    assert isinstance(pixels, Image.Image) == ((mode, turn) == ("RGB", 1))
    assert array.shape == ((90, 130, 3) if turn == 1 else (130, 90, 3))
    assert np.array_equal(np.asarray(pixels), array)
    for one in BUCKETS:
        (found, fit), (expected, same) = (fit_to_bucket(each, one) for each in (pixels, array))
        assert fit == same
        assert np.array_equal(found, expected)


def test_a_pillow_image_is_not_changed() -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (90, 130, 3), dtype=np.uint8))
    before = image.tobytes()
    pixels, notes = read(image)
    assert pixels is image
    assert notes == []
    fit_to_bucket(pixels, BUCKETS[0])
    assert image.tobytes() == before
    rgb = load(image)
    rgb[:] = 0  # the caller's own
    assert image.tobytes() == before


def peak(work: object) -> int:
    """Bytes that NumPy and Python take at most while it works, beyond those taken before."""
    tracemalloc.start()
    try:
        work()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_step_takes_more_than_its_result_and_some_bands() -> None:
    """Bytes a pixel of a megapixel map; the rest is for the bands that are worked on."""
    values = RANDOM.random((1000, 1000), dtype=np.float32)
    vectors = RANDOM.normal(size=(1000, 1000, 3)).astype(np.float32)
    bands = 3.0
    assert peak(lambda: TASKS["depth"].colorize(values)) / 1e6 <= 3 + bands
    assert peak(lambda: TASKS["depth"].encode16(values)) / 1e6 <= 2 + bands
    assert peak(lambda: encode_png(values, {}, TASKS["depth"].encode16)) / 1e6 <= 2 + bands
    assert peak(lambda: TASKS["normal"].colorize(vectors)) / 1e6 <= 3 + bands
    assert peak(lambda: unit_vectors(vectors)) / 1e6 <= 12 + bands


def test_pngs_of_a_smooth_map_are_small_with_isal() -> None:
    """A smooth map, as networks answer. 16 bits are stored as they are."""
    pytest.importorskip("isal")
    small = RANDOM.random((4, 5), dtype=np.float32)
    smooth = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
    values = np.asarray(smooth) * np.float32(0.8) + np.float32(0.1)
    assert len(png(TASKS["depth"].encode16(values), {})) < 1.01 * 2 * values.size
    assert len(png(TASKS["depth"].colorize(values), {})) < 0.3 * 3 * values.size


@pytest.mark.parametrize("sizes", [[], [0], [1], [65_535], [65_536], [200_000, 3, 70_000]])
@pytest.mark.parametrize("with_isal", [True, False])
def test_stored_data_is_what_zlib_unpacks(
    sizes: list[int], with_isal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_isal:
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(deflate, "_isal", lambda: None)
    parts = [RANDOM.integers(0, 256, size, dtype=np.uint8).tobytes() for size in sizes]
    pack = deflate.packer(noisy=True)
    packed = b"".join([*(pack.compress(memoryview(part)) for part in parts), pack.flush()])
    assert zlib.decompress(packed) == b"".join(parts)


CHURN = """
import resource, numpy
from runtime.reuse import keep_memory
keep_memory()
for round in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for array in [numpy.ones(2**21, numpy.float32) for _ in range(3)]:
        array += 1
    del array
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries give the memory")
def test_what_was_freed_is_taken_again_unless_the_environment_says_how() -> None:
    """Pages that were touched for the first time, in the last of six rounds of 24 MB."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    found = []
    for environment in (plain, plain | {"MALLOC_TRIM_THRESHOLD_": "0"}):
        words = [sys.executable, "-c", CHURN]
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        found.append(int(done.stdout))
    assert found[0] < 50 < found[1]


@pytest.mark.parametrize(("count", "kept"), [(1, 0), (2, 1)])
def test_predict_keeps_memory_for_the_next_picture(
    count: int, kept: int, null_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(command, "keep_memory", lambda: calls.append(None))
    for seed in range(count):
        picture(tmp_path / "in" / f"{seed}.png", seed)
    words = ["predict", str(null_bundle), str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert command.main(words) == 0
    assert len(calls) == kept
