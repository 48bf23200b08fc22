"""Large pictures in tiles: with a made-up predictor that knows the truth, and with null bundles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import bucket, pictures, write_null_bundle
from PIL import Image

from runtime import LotusEngine
from runtime.__main__ import main
from runtime.errors import ImageError
from runtime.tasks import TASKS, Answer
from runtime.tiles import Axis, Predict, TiledAnswer, predict_tiles

TILE, HEIGHT, WIDTH = 64, 200, 251
# Each pixel says where it is, so that a predictor knows which crop it got.
PLACES = np.stack([*np.indices((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH), int)], axis=-1).astype(
    np.uint8
)


def truth(channels: int = 1) -> np.ndarray:
    """A map [C,HEIGHT,WIDTH] in [0.1,0.9]: structure, and fine detail that the whole picture at a
    tile's size does not show.
    """
    y, x = np.indices((HEIGHT, WIDTH))
    random = np.random.default_rng(0)
    planes = []
    for number in range(channels):
        coarse = np.sin(x / 31 + number) + np.cos(y / 23) + (x > 130) * 0.7
        planes.append(coarse + 0.3 * np.sin(x * 0.9) * np.sin(y * 0.8))
    noise = random.normal(0, 0.02, (channels, HEIGHT, WIDTH))
    return (0.5 + 0.12 * (np.stack(planes) + noise)).astype(np.float32)


def knowing(
    exact: np.ndarray, name: str, change: Callable[[np.ndarray, int], np.ndarray]
) -> Predict:
    """Answers the truth, scaled down for the whole picture, and changed for the nth tile."""
    seen = [0]

    def predict(crops: list[np.ndarray]) -> list[dict[str, Answer]]:
        answers = []
        for crop in crops:
            top, left, (height, width) = int(crop[0, 0, 0]), int(crop[0, 0, 1]), crop.shape[:2]
            part = exact[:, top : top + height, left : left + width]
            if (height, width) == (HEIGHT, WIDTH):
                part = TASKS[name].resize(part, 51, 64, "bilinear")
            else:
                part = change(part, seen[0])
                seen[0] += 1
            answers.append({name: Answer(map=np.ascontiguousarray(part, np.float32))})
        return answers

    return predict


def tiled(exact: np.ndarray, name: str, change: Callable, **options: int) -> TiledAnswer:
    return predict_tiles(PLACES, (TILE, TILE), knowing(exact, name, change), **options)


def whole_alone(exact: np.ndarray) -> np.ndarray:
    """The map of the whole picture, enlarged."""
    task = TASKS["depth"]
    return task.resize(task.resize(exact, 51, 64, "bilinear"), HEIGHT, WIDTH, "bilinear")


def rescaled(part: np.ndarray, number: int) -> np.ndarray:
    """Another scale and shift for each tile."""
    random = np.random.default_rng(number)
    return random.uniform(0.2, 4) * part + random.uniform(-2, 2)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 112, 113, 128, 1000, 4001])
def test_tiles_cover_an_axis_with_overlap_and_weights_of_one(length: int) -> None:
    axis = Axis.cover(length, 64)
    total = np.zeros(length)
    for number, weights in enumerate(axis.weights):
        total[axis.at(number)] += weights
        assert (weights > 0).all()
    assert np.abs(total - 1).max() < 1e-5
    assert (axis.starts[0], axis.starts[-1] + axis.tile) == (0, length)
    steps = np.diff(axis.starts)
    assert all(0 < step <= 48 for step in steps)
    assert len(axis) <= 2 + length // 48


def test_detail_comes_from_tiles_whatever_their_scale_and_shift() -> None:
    exact = truth()
    answer = tiled(exact, "depth", rescaled)
    assert answer.tiled.tiles == 4 * 5
    assert answer.tiled.refused == {"depth": 0}
    found = answer.values["depth"]
    alone = whole_alone(exact)[0]
    error, error_alone = (np.abs(each - exact[0]).mean() for each in (found, alone))
    assert error < 0.15 * error_alone, (error, error_alone)
    # All of the detail: none is lost to the fit.
    fine, fine_alone, wanted = (each - np.roll(each, 3, 1) for each in (found, alone, exact[0]))
    assert (fine * wanted).sum() / (wanted**2).sum() == pytest.approx(1, abs=0.03)
    assert (fine_alone * wanted).sum() / (wanted**2).sum() < 0.7


def test_there_are_no_seams() -> None:
    """The gradient across the lines where tiles begin or end, against that elsewhere."""
    smooth = np.sin(np.indices((HEIGHT, WIDTH)) / 40).sum(axis=0)[None].astype(np.float32)
    found = tiled(0.5 + 0.2 * smooth, "depth", rescaled).values["depth"]
    for axis, length in enumerate((HEIGHT, WIDTH)):
        line = Axis.cover(length, TILE)
        borders = sorted({*line.starts, *(start + TILE for start in line.starts)} - {0, length})
        steps = np.abs(np.diff(found, axis=axis)).mean(axis=1 - axis)
        exact = np.abs(np.diff(0.2 * smooth[0], axis=axis)).mean(axis=1 - axis)
        at = np.array(borders) - 1
        assert steps[at].mean() / exact[at].mean() < 1.02
        assert np.abs(steps - exact).max() < 0.1 * exact.mean()


def test_tiles_that_disagree_leave_the_whole_picture() -> None:
    """Upside down, or noise: for each the map of the whole picture stands."""
    exact = truth()
    alone = whole_alone(exact)[0]
    answer = tiled(exact, "disparity", lambda part, number: 1 - part)
    assert answer.tiled.refused == {"disparity": 20}
    assert np.abs(answer.values["disparity"] - alone).max() < 1e-5
    random = np.random.default_rng(0)
    answer = tiled(exact, "disparity", lambda part, number: random.random(part.shape))
    assert answer.tiled.refused == {"disparity": 20}
    answer = tiled(exact, "disparity", lambda part, number: part if number else part * 0)
    assert answer.tiled.refused == {"disparity": 1}
    found = answer.values["disparity"]
    assert np.abs(found[:16, :16] - alone[:16, :16]).max() < 1e-5, "that tile alone"
    assert np.abs(found[60:, 80:] - exact[0, 60:, 80:]).mean() < 0.01


def test_normals_are_blended_to_unit_length_and_refused_where_they_disagree() -> None:
    exact = TASKS["normal"].canonical(truth(3) - 0.4)
    answer = tiled(exact, "normal", lambda part, number: part * (0.5 + number % 3))
    assert answer.tiled.refused == {"normal": 0}
    found = answer.values["normal"]
    assert np.abs(np.linalg.norm(found, axis=-1) - 1).max() < 1e-5
    error = TASKS["normal"].error(found.transpose(2, 0, 1), exact)
    assert error < 0.25 * TASKS["normal"].error(whole_alone(exact), exact)
    turned = tiled(exact, "normal", lambda part, number: part[[1, 2, 0]])
    assert turned.tiled.refused["normal"] > 15


def test_groups_and_progress() -> None:
    exact, seen, counts = truth(), [], []
    predict = knowing(exact, "depth", rescaled)

    def counted(crops: list[np.ndarray]) -> list[dict[str, Answer]]:
        counts.append(len(crops))
        return predict(crops)

    answer = predict_tiles(
        PLACES, (TILE, TILE), counted, at_once=8, progress=lambda *words: seen.append(words)
    )
    assert counts == [1, 8, 8, 4]
    assert seen == [(8, 20), (16, 20), (20, 20)]
    alone = tiled(exact, "depth", rescaled)
    assert np.array_equal(answer.values["depth"], alone.values["depth"])


# With an engine

BOTH = ("disparity", "normal")


def scene(height: int, width: int) -> np.ndarray:
    """A picture whose null answers agree at every resolution."""
    y, x = np.indices((height, width))
    waves = [np.sin(x / 40 + k) * np.cos(y / 50) for k in range(3)]
    return np.rint(127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("height", "width"), [(200, 333), (64, 500), (30, 120), (300, 50)])
def test_an_engine_answers_large_pictures_of_any_shape(
    tmp_path: Path, batch: int, height: int, width: int
) -> None:
    """Where tiles are right, the null backend's answer is the picture itself."""
    buckets = [bucket(), *([bucket(batch)] if batch > 1 else []), bucket(1, 96, 64)]
    picture = scene(height, width)
    with LotusEngine(write_null_bundle(tmp_path / "b", task=BOTH, buckets=buckets)) as engine:
        found, alone = engine(picture, tiles=True), engine(picture)
    assert found.tiled is not None
    assert found.tiled.tiles > 1
    assert found["normal"].values.shape == (height, width, 3)
    exact = picture.mean(axis=2) / 255
    error = np.abs(found["disparity"].values - exact).mean()
    assert error <= np.abs(alone["disparity"].values - exact).mean() + 1e-4
    assert error < 0.01


def test_a_picture_that_fits_needs_no_tiles(tmp_path: Path) -> None:
    with LotusEngine(write_null_bundle(tmp_path / "b", task=BOTH)) as engine:
        for picture in (*pictures(1), *pictures(1, 40, 31)):
            found, alone = engine(picture, tiles=True), engine(picture)
            assert found.tiled is not None
            assert (found.tiled.tiles, alone.tiled) == (0, None)
            for task in BOTH:
                assert np.abs(found[task].values - alone[task].values).max() < 1e-6


def test_a_list_with_tiles_and_a_bad_image(tmp_path: Path) -> None:
    images = [scene(100, 200), "nowhere.png", scene(64, 96)]
    with LotusEngine(write_null_bundle(tmp_path / "b")) as engine:
        first, bad, last = engine(images, tiles=True, on_error="return")
        assert isinstance(bad, ImageError)
        assert np.array_equal(first.values, engine(images[0], tiles=True).values)
        assert last.values.shape == (64, 96)
        with pytest.raises(ImageError, match="resize=None"):
            engine(images[0], tiles=True, resize=None)


def test_tiles_of_an_ensemble_have_an_uncertainty(tmp_path: Path) -> None:
    buckets = [bucket(), bucket(noises=4)]
    bundle = write_null_bundle(tmp_path / "g", task=BOTH, mode="g", buckets=buckets)
    with LotusEngine(bundle) as engine:
        found = engine(scene(150, 200), tiles=True, ensemble=4)
        assert found.tiled is not None
        assert found.tiled.tiles > 1
        for task in BOTH:
            uncertainty = found[task].uncertainty
            assert uncertainty is not None
            assert uncertainty.shape == (150, 200)
            assert np.isfinite(uncertainty).all()
            assert uncertainty.min() >= 0
        assert found["normal"].uncertainty.max() > 0.1


def test_a_predictor_that_is_uncertain_stays_so() -> None:
    """The spread is scaled with its tile: an uncertainty of a value is the same in every unit."""
    exact = truth()

    def predict(crops: list[np.ndarray]) -> list[dict[str, Answer]]:
        answers = knowing(exact, "depth", lambda part, number: 3 * part)(crops)
        for (answer,), crop in zip((each.values() for each in answers), crops, strict=True):
            factor = 1 if crop.shape[:2] == (HEIGHT, WIDTH) else 3
            spread = np.full((1, *answer.map.shape[1:]), 0.05 * factor, np.float32)
            answers[0]["depth"] = dataclasses.replace(answer, spread=spread)
        return answers

    found = predict_tiles(PLACES, (TILE, TILE), predict)
    expected = 0.05 / np.maximum(found.values["depth"], 0.1)
    assert np.abs(found.uncertainty["depth"] / expected - 1).max() < 0.05


def test_predict_says_what_tiles_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(write_null_bundle(tmp_path / "b"))
    for name, height in (("a", 150), ("b", 60)):
        Image.fromarray(scene(height, 90)).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in "ab"]
    assert main(["predict", bundle, *images, "--output", str(tmp_path / "o"), "--tiles"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "a.png (" in lines[-3]
    assert " tiles" in lines[-3]
    assert " tiles" not in lines[-2]
    assert lines[-1] == "2 done"
    assert np.load(tmp_path / "o" / "a.npy").shape == (150, 90)
