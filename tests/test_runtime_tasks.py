"""What a task knows: decoding, colours, error, resizing and blending; and a made-up task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import read_png16, write_null_bundle
from PIL import Image

from runtime import LotusEngine
from runtime.prediction import Prediction
from runtime.tasks import TASKS, AffineTask, NormalTask, Task

RGB = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
ALBEDO = Task(
    name="albedo", channels=3, low=0.0, high=1.0, near=None, meaning="diffuse colour, linear"
)
HEIGHT = Task(name="height", channels=1, low=-2.0, high=6.0, near=None, meaning="metres")


@pytest.fixture
def albedo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A null bundle of a made-up task, three channels in [0,1]."""
    monkeypatch.setitem(TASKS, "albedo", ALBEDO)
    return write_null_bundle(tmp_path / "albedo", task="albedo")


def tilted(degrees: float) -> np.ndarray:
    """A map [3,5,7] of normals, turned about the x axis."""
    angle = np.radians(degrees)
    vector = np.array([0, np.sin(angle), np.cos(angle)], np.float32)
    return np.broadcast_to(vector[:, None, None], (3, 5, 7)).copy()


def test_names_in_the_table_are_those_of_its_entries() -> None:
    assert all(task.name == name for name, task in TASKS.items())
    assert {task.space for task in TASKS.values()} == {"depth", "disparity", None}
    assert {task.truth for task in TASKS.values()} == {"depth", "normal", None}


def test_a_made_up_task_comes_back_in_its_own_range(albedo: Path, tmp_path: Path) -> None:
    """Three channels in [0,1] are colours, not unit vectors."""
    with LotusEngine(albedo) as engine:
        engine.verify()
        prediction = engine(RGB)
        halves = engine([RGB[:31, :77], RGB[:5, :5]])
    assert prediction.values.shape == (64, 96, 3)
    assert prediction.values.dtype == np.float32
    assert np.abs(prediction.values - RGB / 255).max() < 1e-6
    assert [half.values.shape for half in halves] == [(31, 77, 3), (5, 5, 3)]
    assert np.array_equal(prediction.colorize(), RGB)
    array, deep, color = prediction.save(tmp_path / "out")
    assert np.array_equal(np.load(array), prediction.values)
    with Image.open(color) as image:
        assert np.array_equal(np.asarray(image), RGB)
    assert np.array_equal(read_png16(deep), RGB.astype(int) * 257)  # 255 becomes 65535


def test_a_made_up_task_of_one_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "height", HEIGHT)
    with LotusEngine(write_null_bundle(tmp_path / "height", task="height")) as engine:
        prediction = engine(RGB)
    assert np.abs(prediction.values - (RGB.mean(axis=2) / 255 * 8 - 2)).max() < 1e-5
    assert prediction.colorize().shape == (64, 96, 3)
    ends = Prediction({"height": np.array([[-2, 2, 6, 9]], np.float32)})
    assert TASKS["height"].encode16(ends.values).tolist() == [[0, 32768, 65535, 65535]]


def test_null_backend_answers_normals_with_the_image_itself(tmp_path: Path) -> None:
    from runtime.backends import open_session
    from runtime.manifest import Manifest

    bundle = write_null_bundle(tmp_path / "n", task="normal")
    manifest = Manifest.load(bundle)
    image = manifest.preprocess.apply(RGB)
    with open_session("null", bundle, manifest, manifest.buckets[0]) as session:
        assert np.array_equal(session({"image": image})["normal"], image)


def test_error_of_a_plain_map_is_a_share_of_its_range() -> None:
    exact = np.zeros((1, 4, 4), np.float32)
    assert HEIGHT.error(exact + 2, exact) == pytest.approx(0.25)
    assert HEIGHT.error(exact, exact) == 0
    assert HEIGHT.error_unit == "of the range"


@pytest.mark.parametrize("name", ["depth", "disparity"])
def test_error_of_an_affine_map_is_absrel_after_alignment(name: str) -> None:
    task = TASKS[name]
    assert isinstance(task, AffineTask)
    exact = np.random.default_rng(0).uniform(0.2, 1, (1, 16, 16)).astype(np.float32)
    assert task.error(0.3 * exact + 0.1, exact) < 1e-6
    # A constant says nothing: the best alignment is the mean.
    flat = np.array([[[0.2, 0.6]]], np.float32)
    expected = np.mean([0.2 / 0.2, 0.2 / 0.6])
    assert task.error(np.full_like(flat, 0.9), flat) == pytest.approx(expected, rel=1e-6)
    low = np.array([[[0.0, 0.4]]], np.float32)  # 0 counts as 0.1
    expected = np.mean([0.2 / 0.1, 0.2 / 0.4])
    assert task.error(np.full_like(low, 0.9), low) == pytest.approx(expected, rel=1e-6)
    assert (task.error_unit, task.max_error) == ("AbsRel", 0.01)


def test_error_of_normals_is_an_angle_in_degrees() -> None:
    task = TASKS["normal"]
    assert isinstance(task, NormalTask)
    assert task.error(3 * tilted(20), tilted(0)) == pytest.approx(20, abs=1e-4)  # length is nothing
    half = np.concatenate([tilted(0), tilted(90)], axis=1)
    assert task.error(half, np.concatenate([tilted(0)] * 2, axis=1)) == pytest.approx(45, abs=1e-4)
    assert (task.error_unit, task.max_error) == ("degrees", 1.0)


def test_normals_are_resized_before_they_are_scaled_to_unit_length() -> None:
    task = TASKS["normal"]
    two = np.concatenate([tilted(-40), tilted(40)], axis=2)
    between = task.resize(two, 5, 28, "bilinear")
    assert np.linalg.norm(between, axis=0).min() < 0.9
    assert np.abs(np.linalg.norm(task.decode(between), axis=-1) - 1).max() < 1e-6
    assert task.resize(two, 10, 28, "nearest").tolist() == two.repeat(2, 1).repeat(2, 2).tolist()


def test_overlapping_maps_blend_by_their_weights() -> None:
    left, right = (np.full((1, 2, 3), value, np.float32) for value in (0.2, 0.6))
    weights = np.array([[1, 0.75, 0]] * 2, np.float32)
    blended = TASKS["disparity"].blend([left, right], [weights, 1 - weights])
    assert blended.dtype == np.float32
    assert np.abs(blended - np.array([0.2, 0.3, 0.6])).max() < 1e-7
    doubled = TASKS["disparity"].blend([left, right], [2 * weights, 2 - 2 * weights])
    assert np.abs(doubled - blended).max() < 1e-7, "only the ratio of the weights counts"


def test_blended_normals_lie_between_and_have_unit_length() -> None:
    task = TASKS["normal"]
    even = [np.ones((5, 7), np.float32)] * 2
    values = task.decode(task.blend([tilted(-30), tilted(50)], even))
    assert np.abs(values - task.decode(tilted(10))).max() < 1e-6


def test_pixels_that_no_map_covers_are_refused() -> None:
    maps, nothing = [np.zeros((1, 2, 2), np.float32)], [np.zeros((2, 2), np.float32)]
    with pytest.raises(ValueError, match="positive"):
        TASKS["depth"].blend(maps, nothing)
    with pytest.raises(ValueError):
        TASKS["depth"].blend(maps, [np.ones((2, 2), np.float32)] * 2)


@pytest.mark.parametrize("name", ["matting", "segmentation"])
def test_shares_are_grey_and_not_stretched(name: str, tmp_path: Path) -> None:
    """The same share is the same grey in every picture; the error is one of the range."""
    task = TASKS[name]
    values = np.array([[0.25, 0.5], [0.5, 0.75]], np.float32)
    assert task.colorize(values)[..., 0].tolist() == [[64, 128], [128, 191]]
    assert (task.colorize(values) == task.colorize(values)[..., :1]).all()
    assert task.colorize(np.array([[-1.0, 2.0]], np.float32))[..., 0].tolist() == [[0, 255]]
    assert task.error(values[None], values[None] + np.float32(0.1)) == pytest.approx(0.1, abs=1e-6)
    with LotusEngine(write_null_bundle(tmp_path / name, task=name)) as engine:
        prediction = engine(RGB)
    assert prediction.values.shape == (64, 96)
    assert [path.name for path in prediction.save(tmp_path / "out")][-1].endswith(".png")
