"""The compiled loops (extra `fast`) answer the bits of the plain ways, and come when they pay."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, write_null_bundle
from PIL import Image

from runtime import __main__ as command
from runtime import loops
from runtime.colors import ends, in_range, scaled, spectral
from runtime.enlarge import _Taps, enlarge, is_pillows
from runtime.image import fit_to_bucket
from runtime.loops import Loops
from runtime.loops.proof import differences
from runtime.manifest import Bucket, Preprocess
from runtime.pixels import ONE_BLOCK, words_of
from runtime.shrink import _taps, shrink
from runtime.tasks import TASKS
from runtime.vectors import unit_vectors

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def compiled() -> Loops:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(loops.OFF)
        found = loops._State().load()
    assert found is not None
    return found


@pytest.fixture
def loaded(compiled: Loops, monkeypatch: pytest.MonkeyPatch) -> Loops:
    """All of the process uses them."""
    monkeypatch.setattr(loops._state, "_loops", compiled)
    return compiled


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Values from -0.2 to 1.2."""
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return values * np.float32(1.4) - np.float32(0.2)


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("seed", range(6))
def test_a_photo_becomes_what_pillow_makes_of_it(seed: int, compiled: Loops) -> None:
    """Larger, smaller, and one edge as it was; white too, which must not run over."""
    random = np.random.default_rng(seed)
    for number in range(40):
        height, width = (int(each) for each in random.integers(1, 400, 2))
        size = [int(each) for each in random.integers(1, 200, 2)]
        size = [height, size[1]] if number % 7 == 0 else size
        image = photo(height, width, number)
        image = Image.new("RGB", image.size, "white") if number % 9 == 0 else image
        plain = np.asarray(image.resize(tuple(size[::-1]), Image.Resampling.BILINEAR))
        before = image.tobytes()
        assert np.array_equal(shrink(image, *size, compiled), plain), (height, width, size)
        assert image.tobytes() == before


def test_no_pixel_beyond_a_row_is_read() -> None:
    """Four at once are read, also where fewer are left, which then weigh nothing."""
    random = np.random.default_rng(0)
    for size, length in random.integers(1, 300, (400, 2)).tolist():
        for multiple in (1, 4):
            first, weights = _taps(size, length, multiple)
            assert weights.shape[1] % multiple == 0
            assert (weights.sum(axis=1) > 0.9999 * 2**22).all()
            if weights.shape[1] <= size:  # else the photo stays with Pillow
                assert first.min() >= 0
                assert first.max() + weights.shape[1] <= size


@pytest.mark.parametrize("size", [(1100, 4200), (4200, 1100), (65_536, 70), (70, 65_536)])
def test_a_photo_in_several_blocks(size: tuple[int, int], compiled: Loops) -> None:
    """Pillow holds more than 16 MB in blocks."""
    image = photo(*size)
    assert size[0] * size[1] > ONE_BLOCK
    plain = np.asarray(image.resize((130, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(shrink(image, 64, 130, compiled), plain)


@pytest.mark.parametrize("size", [(1, 800_000), (2_000_000, 2), (1, 65_537), (9, 3), (400, 5)])
def test_a_photo_that_is_too_long_or_too_narrow_stays_with_pillow(
    size: tuple[int, int], compiled: Loops
) -> None:
    """Of 800,000 weights white would run over, and their table would be larger than the photo; of
    five pixels of a row the loops would read eight.
    """

    def no(*_: object) -> None:
        raise AssertionError("the loops were used")

    image = Image.new("RGB", size[::-1], "white")
    found = shrink(image, 1, 1, dataclasses.replace(compiled, shrink_rows=no))
    assert found.tolist() == [[[255, 255, 255]]]


def test_rows_that_pillow_holds_apart_stay_with_it(
    compiled: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo(90, 130)
    plain = np.asarray(image.resize((40, 30), Image.Resampling.BILINEAR))
    monkeypatch.setattr(Image.core, "get_alignment", lambda: 64)
    assert np.array_equal(shrink(image, 30, 40, compiled), plain)
    with pytest.raises(ValueError, match="between the rows"):
        words_of(image)


@pytest.mark.parametrize("box", [(0, 10, 96, 110), (0, 1e8, 96, 1e8 + 64), (0, -1, 96, 40)])
def test_a_box_beyond_the_map_is_refused(
    box: tuple[float, float, float, float], loaded: Loops
) -> None:
    with pytest.raises(ValueError, match=r"[Bb]ox"):
        TASKS["depth"].resize(noise(1, 64, 96), 200, 300, "bilinear", box)


def test_what_a_photo_is_given_as_does_not_matter(loaded: Loops) -> None:
    image = photo(90, 130)
    plain = np.asarray(image.resize((64, 44), Image.Resampling.BILINEAR))
    for given in (image, np.array(image)):
        found, fit = fit_to_bucket(given, Bucket(height=64, width=64, graph=""))
        assert (fit.content_height, fit.content_width) == (44, 64)
        assert np.array_equal(found[:44], plain)
    levels = np.array(image, np.float32)
    found, _ = fit_to_bucket(levels, Bucket(height=90, width=130, graph=""))
    assert np.array_equal(found, levels)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 70_001), (1201, 59)])
@pytest.mark.parametrize("bounds", [None, (0.2, 0.7), (-1.0, 1.0), (0.5, 0.5)])
def test_colours_and_steps(
    shape: tuple[int, int], bounds: tuple[float, float] | None, compiled: Loops
) -> None:
    """Of -1 to 1 the quick index is not the exact one, so the plain way is taken."""
    edges = (np.arange(shape[0] * shape[1], dtype=np.float32) % 511 / 510).reshape(shape)
    for values in (noise(*shape), edges, np.full(shape, 0.3, np.float32)):
        for red_is_high in (True, False):
            plain, quick = (
                spectral(bounds or ends(values), red_is_high=red_is_high, loops=each)(values)
                for each in (None, compiled)
            )
            assert np.array_equal(plain, quick)
        for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 7.3)):
            three = np.stack([values, values * 2, 1 - values], axis=-1)
            assert np.array_equal(in_range(low, high)(three), in_range(low, high, compiled)(three))
            codes, same = (
                scaled(values, low, high, 65535, np.uint16, each) for each in (None, compiled)
            )
            assert np.array_equal(codes, same)
            assert same.dtype == np.uint16


@pytest.mark.parametrize("seed", range(3))
def test_maps_are_enlarged_to_the_same_bits(seed: int, compiled: Loops) -> None:
    random = np.random.default_rng(seed)
    for number in range(60):
        height, width = (int(each) for each in random.integers(1, 40, 2))
        plane, box = noise(height, width, seed=number), None
        if number % 3 == 0:
            left, top = random.random() * width * 0.6, random.random() * height * 0.6
            box = (left, top, left + (width - left) * 0.7, top + (height - top) * 0.9)
        size = height + int(random.integers(0, 90)), width + int(random.integers(0, 90))
        first, second = np.empty((2, *size), np.float32)
        enlarge(plane, first, box)
        enlarge(plane, second, box, compiled)
        assert np.array_equal(first.view(np.uint32), second.view(np.uint32))


def fused(plane: np.ndarray, height: int) -> np.ndarray:
    """What Pillow answers on ARM where the rows alone become more: the second product and the sum
    are rounded once.
    """
    taps = _Taps.of(len(plane), 0, len(plane), height)
    large = np.empty((height, plane.shape[1]), np.float32)
    for y, (weight, other) in enumerate(zip(taps.weight, taps.other, strict=True)):
        first = plane[taps.first[y]].astype(np.float64) * weight
        second, other = map(Fraction, plane[taps.second[y]].tolist()), Fraction(float(other))
        large[y] = [float(b * other + Fraction(a)) for a, b in zip(first, second, strict=True)]
    return large


def test_pillow_does_the_maps_where_it_rounds_otherwise(
    loaded: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that maps are the same whether the loops are loaded yet or not."""
    own = Image.Image.resize

    def on_arm(image: Image.Image, size: tuple[int, int], *given: object) -> Image.Image:
        if image.width != size[0]:
            return own(image, size, *given)  # type: ignore[arg-type]
        return Image.fromarray(fused(np.asarray(image), size[1]))

    monkeypatch.setattr(Image.Image, "resize", on_arm)
    is_pillows.cache_clear()
    try:
        assert not is_pillows()
        plane = noise(60, 200)
        found = TASKS["depth"].resize(plane[None], 333, 200, "bilinear")[0]
        assert np.array_equal(found, fused(plane, 333))
    finally:
        is_pillows.cache_clear()


def test_vectors_have_the_same_bits(compiled: Loops) -> None:
    for seed, shape in enumerate([(1, 1), (61, 83), (500, 3)]):
        planes = noise(3, *shape, seed=seed) - np.float32(0.5)
        planes[:, 0, 0] = 0
        for given in (planes.transpose(1, 2, 0), np.ascontiguousarray(planes.transpose(1, 2, 0))):
            plain, quick = (unit_vectors(given, each) for each in (None, compiled))
            assert np.array_equal(plain.view(np.uint32), quick.view(np.uint32))


@pytest.mark.parametrize(("scale", "offset"), [(1 / 127.5, -1.0), (0.0171, 0.3)])
def test_the_network_gets_the_same_bits(scale: float, offset: float, compiled: Loops) -> None:
    process = Preprocess(scale=scale, offset=offset)
    rgb = np.random.default_rng(3).integers(0, 256, (2, 40, 41, 3), dtype=np.uint8)
    for given in (rgb, rgb[0], rgb[:, ::2], rgb[:1]):
        plain, quick = process.apply(given), process.apply(given, compiled)
        assert plain.shape == quick.shape
        assert np.array_equal(plain.view(np.uint32), quick.view(np.uint32))


def test_arrays_that_are_read_only_strided_or_of_another_type(
    compiled: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = noise(64, 96)
    locked = values.copy()
    locked.flags.writeable = False
    wide, strided = values.astype(np.float64), noise(64, 192)[:, ::2]
    for given in (locked, np.asfortranarray(values), strided, wide):
        found = []
        for each in (None, compiled):
            monkeypatch.setattr(loops._state, "_loops", each)
            task = TASKS["depth"]
            found.append([task.colorize(given), task.encode16(given)])
        assert all(map(np.array_equal, *found))
    rgb = np.random.default_rng(0).random((6, 7, 3), dtype=np.float32) * 300
    levels = (Preprocess().apply(rgb, each) for each in (None, compiled))  # type: ignore[arg-type]
    assert np.array_equal(*levels)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -0.0, 1e-40, 3e38])
def test_odd_values(odd: float, compiled: Loops) -> None:
    """What is no number may become any colour, but ends nothing; all else has the same bits."""
    values = noise(20, 30)
    values[3:5, 7] = odd
    with np.errstate(all="ignore"):
        plain, quick = (
            spectral((0.0, 1.0), red_is_high=True, loops=each)(values) for each in (None, compiled)
        )
        here = np.ones(values.shape, bool)
        here[3:5, 7] = not np.isnan(odd)
        assert np.array_equal(plain[here], quick[here])
        codes, same = (
            scaled(values, 0.0, 1.0, 65535, np.uint16, each) for each in (None, compiled)
        )
        assert np.array_equal(codes[here], same[here])


def test_predict_writes_the_same_files(
    compiled: Loops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loop is called, and whole files are equal."""
    bundle = write_null_bundle(tmp_path / "bundle", task=("depth", "normal"))
    picture(tmp_path / "a.png", size=(700, 900))
    calls: list[str] = []

    def counted(name: str) -> loops.Loop:
        def call(*given: object) -> None:
            calls.append(name)
            getattr(compiled, name)(*given)

        return call

    names = [field.name for field in dataclasses.fields(Loops)]
    for folder in ("plain", "quick"):
        words = ["predict", str(bundle), str(tmp_path / "a.png")]
        assert command.main([*words, "--output", str(tmp_path / folder)]) == 0
        assert bool(calls) == (folder == "quick")
        monkeypatch.setattr(
            loops._state, "_loops", Loops(**{name: counted(name) for name in names})
        )
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files
    assert files == sorted(path.name for path in (tmp_path / "quick").iterdir())
    for name in files:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "quick" / name).read_bytes()
    pillows = set() if is_pillows() else {"enlarge_columns"}
    assert set(calls) == set(names) - pillows


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Loops)])
def test_a_loop_that_answers_otherwise_is_not_used(
    name: str, compiled: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_one(*given: object) -> None:
        getattr(compiled, name)(*given)
        out = given[-1]
        assert isinstance(out, np.ndarray)
        out.reshape(-1)[-1:] += 1

    wrong = dataclasses.replace(compiled, **{name: off_by_one})
    assert differences(compiled) == []
    assert len(differences(wrong)) == 1
    monkeypatch.delenv(loops.OFF)
    monkeypatch.setattr(loops, "_compiled", lambda: wrong)
    assert loops._State().load() is None
