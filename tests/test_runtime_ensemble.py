"""Ensembles of mode G: how tasks merge answers, how runs are shared, and what is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import bucket, pictures, write_null_bundle
from PIL import Image

from runtime import LotusEngine
from runtime.__main__ import main
from runtime.backends.null import BackendSession
from runtime.backends.session import Arrays
from runtime.errors import ImageError, OutputError, SchemaError
from runtime.manifest import Bucket, Manifest
from runtime.marker import marks
from runtime.running import serving
from runtime.tasks import TASKS, Task

BOTH = ("disparity", "normal")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each run of the null backend how many images and noises it took."""
    counts: list[tuple[int, int]] = []
    real = BackendSession._run

    def run(self: BackendSession, runner: None, inputs: Arrays) -> Arrays:
        counts.append((len(inputs["image"]), len(inputs["noise"])))
        return real(self, runner, inputs)

    monkeypatch.setattr(BackendSession, "_run", run)
    return counts


def maps(count: int, channels: int = 1) -> np.ndarray:
    """[N,C,9,11] in [0.2,1]."""
    random = np.random.default_rng(1)
    return random.uniform(0.2, 1, (count, channels, 9, 11)).astype(np.float32)


# Tasks


@pytest.mark.parametrize("name", ["depth", "disparity"])
def test_affine_maps_are_aligned_to_the_first_before_their_median(name: str) -> None:
    """Against a slow computation, pixel by pixel."""
    task, found = TASKS[name], maps(5)
    found[1:] = 0.7 * found[:1] + 0.3 * found[1:]
    answer = task.merge([found[0], 3 * found[1] - 2, *found[2:]])
    aligned = [found[0].ravel()]
    for each in found[1:]:
        design = np.stack([each.ravel(), np.ones(each.size)], axis=1).astype(np.float64)
        aligned.append(design @ np.linalg.lstsq(design, found[0].ravel(), rcond=None)[0])
    for pixel, column in enumerate(np.stack(aligned, axis=1)):
        middle = sorted(column)[2]
        assert answer.map.ravel()[pixel] == pytest.approx(middle, abs=1e-5)
        distance = sorted(abs(column - middle))[2]
        assert answer.spread.ravel()[pixel] == pytest.approx(distance, abs=1e-5)
    assert (answer.map.shape, answer.spread.shape) == ((1, 9, 11), (1, 9, 11))
    uncertainty = task.uncertainty(np.float32([0.5, 0.01]), np.float32([0.1, 0.01]))
    assert uncertainty == pytest.approx([0.2, 0.1])  # 0.01 counts as 0.1


def test_what_says_nothing_or_the_opposite_becomes_the_mean() -> None:
    first = maps(1)[0]
    for each in (1 - first, np.full_like(first, 0.3)):
        alignment = TASKS["depth"].align(each, first)
        assert (alignment.scale, alignment.r_squared) == (0, 0)
        assert np.abs(alignment.apply(each) - first.mean()).max() < 1e-6
    half = TASKS["depth"].align(first + maps(2)[1], first)
    assert 0.3 < half.r_squared < 0.7
    assert TASKS["depth"].align(5 * first - 1, first).r_squared == pytest.approx(1)


def test_normals_have_a_mean_direction_and_an_angle() -> None:
    angles = np.radians([-10, 0, 10, 40, -40])
    vectors = np.stack([np.zeros(5), np.sin(angles), np.cos(angles)], axis=1)
    found = [np.broadcast_to(each[:, None, None], (3, 2, 3)).astype(np.float32) for each in vectors]
    answer = TASKS["normal"].merge([found[0] * 0.2, *found[1:]])  # length is nothing
    assert np.abs(answer.map - np.float32([0, 0, 1])[:, None, None]).max() < 1e-6
    assert answer.spread == pytest.approx(np.full((1, 2, 3), 10), abs=1e-3)
    assert TASKS["normal"].uncertainty(answer.map, answer.spread) is answer.spread


def test_other_maps_are_merged_as_they_are() -> None:
    task = Task(name="height", channels=1, low=-2, high=6, near=None, meaning="metres")
    found = np.float32([0, 1, 5]).reshape(3, 1, 1, 1)
    answer = task.merge(list(found))
    assert (answer.map.item(), answer.spread.item()) == (1, 1)
    assert task.uncertainty(answer.map, answer.spread).item() == pytest.approx(1 / 8)
    assert task.align(maps(1)[0], maps(1)[0]).r_squared == pytest.approx(1)
    assert task.align(maps(2)[1], maps(1)[0]).r_squared < 0


# Runs


def test_shapes_with_several_noises(tmp_path: Path) -> None:
    several = bucket(noises=4)
    bundle = write_null_bundle(tmp_path / "b", task=BOTH, mode="g", buckets=[bucket(), several])
    manifest = Manifest.load(bundle)
    assert [str(each) for each in manifest.buckets] == ["64x96", "64x96-noises4"]
    assert manifest.requires == ["beside", "buckets.noises"]
    assert manifest.input_shapes(several) == {"image": (1, 3, 64, 96), "noise": (4, 4, 8, 12)}
    assert manifest.output_shapes(several) == {
        "disparity": (4, 1, 64, 96),
        "normal": (4, 3, 64, 96),
    }
    with np.load(bundle / "golden.npz") as golden:
        assert golden["image_64x96-noises4"].shape == (64, 96, 3)
        assert golden["noise_64x96-noises4"].shape == (4, 4, 8, 12)
        assert golden["normal_64x96-noises4"].shape == (4, 3, 64, 96)
    with LotusEngine(bundle) as engine:
        assert [*engine.verify().errors] == ["64x96", "64x96-noises4"]


@pytest.mark.parametrize(
    ("buckets", "changes", "message"),
    [
        ([bucket(noises=4)], {}, "no bucket of its size with one noise beside it"),
        ([bucket(), bucket(2, noises=4)], {}, "several noises, and a batch"),
        ([bucket(), bucket(noises=65)], {}, "noises must lie in 1 to 64"),
        ([bucket(), bucket(noises=4)], {"mode": "d"}, "no noise to take"),
        ([bucket(), bucket(noises=4)], {"fixed_noise": True}, "no noise to take"),
    ],
)
def test_odd_buckets_are_refused(
    null_bundle: Path, buckets: list[Bucket], changes: dict, message: str
) -> None:
    manifest = Manifest.load(null_bundle)
    fields: dict = {"mode": "g", "buckets": buckets} | changes
    odd = dataclasses.replace(manifest, **fields)
    listed = [
        dataclasses.replace(manifest.files[0], path=path)
        for path in {"golden.npz", *(each.graph for each in buckets)}
    ]
    dataclasses.replace(odd, files=listed).save(null_bundle)
    with pytest.raises(SchemaError, match=message):
        Manifest.read(null_bundle)


def test_which_bucket_serves_an_ensemble() -> None:
    plain, four, two, high = bucket(), bucket(noises=4), bucket(noises=2), bucket(1, 96, 64)
    everything = [plain, four, two, high]
    assert serving(everything, 1) == [plain, high]
    assert serving(everything, 2) == [two, high]
    assert serving(everything, 9) == [four, high]
    assert serving([plain, four], 2) == [four]


@pytest.mark.parametrize(
    ("buckets", "count", "expected"),
    [
        ([bucket()], 3, [(1, 1)] * 3),
        ([bucket(), bucket(4)], 5, [(4, 4), (1, 1)]),
        ([bucket(), bucket(noises=4)], 4, [(1, 4)]),
        ([bucket(), bucket(noises=4)], 6, [(1, 4), (1, 4)]),
        ([bucket(), bucket(4), bucket(noises=4)], 1, [(1, 1)]),
    ],
)
def test_an_ensemble_equals_its_members(
    tmp_path: Path,
    runs: list[tuple[int, int]],
    buckets: list[Bucket],
    count: int,
    expected: list[tuple[int, int]],
) -> None:
    """However it is run, it is what its seeds answer one by one."""
    (picture,) = pictures(1)
    bundle = write_null_bundle(tmp_path / "b", task=BOTH, mode="g", buckets=buckets)
    with LotusEngine(bundle, prove=False) as engine:
        runs.clear()
        found = engine(picture, seed=5, ensemble=count)
        assert runs == expected
        members = [engine(picture, seed=5 + number) for number in range(count)]
    for name in BOTH:
        task = TASKS[name]
        of_task = [
            np.moveaxis(each[name].values.reshape(64, 96, task.channels), -1, 0) for each in members
        ]
        if count == 1:
            assert found[name].uncertainty is None
            assert np.array_equal(found[name].values, members[0][name].values)
            continue
        answer = task.merge(of_task)
        assert np.abs(found[name].values - task.decode(answer.map)).max() < 1e-5
        expected_spread = task.uncertainty(found[name].values, answer.spread[0])
        tolerance = 0.1 if name == "normal" else 1e-5  # degrees, where an angle is all rounding
        assert np.abs(found[name].uncertainty - expected_spread).max() < tolerance
        assert found[name].uncertainty.shape == (64, 96)


def test_a_list_of_sizes_and_an_uncertainty_of_each(tmp_path: Path) -> None:
    buckets = [bucket(), bucket(2), bucket(noises=3), bucket(1, 96, 64)]
    bundle = write_null_bundle(tmp_path / "b", mode="g", buckets=buckets)
    images = [*pictures(2, 50, 70), *pictures(1, 100, 60), "nowhere.png"]
    with LotusEngine(bundle) as engine:
        answers = engine(images, ensemble=3, on_error="return")
        for image, answer in zip(images[:3], answers, strict=False):
            alone = engine(image, ensemble=3)
            assert answer.values.shape == answer.uncertainty.shape == image.shape[:2]
            assert np.abs(answer.values - alone.values).max() < 1e-6
            assert np.abs(answer.uncertainty - alone.uncertainty).max() < 1e-6
        assert isinstance(answers[3], ImageError)
        at_bucket = engine(images[0], ensemble=3, resize=None)
        assert at_bucket.values.shape == at_bucket.uncertainty.shape == (64, 90)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"mode": "d"}, {"ensemble": 2}, "of mode D"),
        ({"mode": "g", "fixed_noise": True}, {"ensemble": 2}, "its noise is fixed"),
        ({"mode": "g"}, {"ensemble": 0}, "1 to 1024 answers, found 0"),
        ({"mode": "g"}, {"ensemble": True}, "found True"),
        ({"mode": "g"}, {"ensemble": 2.0}, "found 2.0"),
        ({"mode": "g"}, {"ensemble": 2, "seed": -1}, "non-negative"),
        ({"mode": "g"}, {"ensemble": 2, "noise": np.zeros(1)}, "leave the noise out"),
    ],
)
def test_what_makes_no_ensemble(tmp_path: Path, changes: dict, options: dict, message: str) -> None:
    bundle = write_null_bundle(tmp_path / "b", **changes)
    with LotusEngine(bundle) as engine, pytest.raises(ImageError, match=message):
        engine(pictures(1)[0], **options)


# Files


def test_predict_writes_the_uncertainty_and_takes_it_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(write_null_bundle(tmp_path / "b", mode="g", task=BOTH))
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    output = tmp_path / "o"
    command = ["predict", bundle, str(tmp_path / "a.png"), "--output", str(output)]
    assert main([*command, "--ensemble", "3"]) == 0
    for task, unit in (("disparity", "of the value"), ("normal", "degrees")):
        uncertainty = np.load(output / f"a-{task}-uncertainty.npy")
        assert (uncertainty.shape, uncertainty.dtype) == ((64, 96), np.float32)
        assert marks(output / f"a-{task}.png")["Lotus-Uncertainty"] == unit
    assert main([*command, "--ensemble", "2"]) == 0  # replaces its own
    assert main(command) == 0
    assert len(list(output.iterdir())) == 6, "that of the earlier result is gone"


def test_only_our_own_uncertainty_is_replaced(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "b", mode="g")
    output = tmp_path / "o"
    with LotusEngine(bundle) as engine:
        several, plain = engine(pictures(1)[0], ensemble=2), engine(pictures(1)[0])
    output.mkdir()
    (output / "a-uncertainty.npy").write_bytes(b"mine")
    plain.save(output / "a")
    with pytest.raises(OutputError, match=r"a-uncertainty\.npy exists, and it is not a result"):
        several.save(output / "a")
    assert (output / "a-uncertainty.npy").read_bytes() == b"mine"
    files = several.save(output / "a", overwrite=True)
    assert [path.name for path in files][-1] == "a-uncertainty.npy"
    assert np.array_equal(np.load(files[-1]), several.uncertainty)
    # The result of a picture "b-uncertainty" is not the uncertainty of a picture "b".
    plain.save(output / "b-uncertainty")
    with pytest.raises(OutputError, match=r"b-uncertainty\.npy exists"):
        several.save(output / "b")
    plain.save(output / "b")
    assert (output / "b-uncertainty.npy").exists()


def test_two_pictures_whose_results_would_meet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(write_null_bundle(tmp_path / "b", mode="g"))
    images = [str(tmp_path / name) for name in ("a.png", "a-uncertainty.png")]
    for path in images:
        Image.fromarray(pictures(1)[0]).save(path)
    for options, status in (([], 0), (["--ensemble", "2"], 1)):
        output = str(tmp_path / f"o{len(options)}")
        assert main(["predict", bundle, *images, "--output", output, *options]) == status
    assert "would overwrite that of" in capsys.readouterr().err
