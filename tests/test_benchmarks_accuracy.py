"""The accuracy command on a folder of the user's own and on the rendered scenes, with the null
backend as the model.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_null_bundle
from PIL import Image

from benchmarks import accuracy, datasets, rows, subjects
from benchmarks.baselines import BASELINES, Baseline
from benchmarks.datasets import DatasetError, open_folder, synthetic
from runtime.tasks import TASKS

SETTINGS = """
kind: depth
image: rgb/{name}.png
truth: depth/{name}.png
mask: mask/{name}.png
scale: 0.001
valid: [0.1, 80]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three grey images whose depth in millimetres is an affine function of the grey, save for a
    masked corner.
    """
    random = np.random.default_rng(0)
    for name in ("rgb", "depth", "mask"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index in range(3):
        grey = random.integers(0, 256, (64, 96), dtype=np.uint8)
        depth = (grey.astype(np.uint16) * 100 + 1000) + np.uint16(index) * random.integers(
            0, 400, grey.shape, np.uint16
        )
        depth[:8, :8] = 60000
        mask = np.full(grey.shape, 255, np.uint8)
        mask[:8, :8] = 0
        for kind, values in (("rgb", grey), ("depth", depth), ("mask", mask)):
            Image.fromarray(values).save(tmp_path / "data" / kind / f"{index}.png")
    (tmp_path / "data" / "dataset.yaml").write_text(SETTINGS)
    return tmp_path / "data"


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path, *arguments: str) -> int:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    words = [
        "accuracy",
        "--dirty",
        "--bundle",
        str(bundle),
        "--output",
        str(tmp_path / "out"),
        *arguments,
    ]
    monkeypatch.setattr(sys, "argv", words)
    return accuracy.main()


def test_folder_gives_metrics_rows_and_a_sheet(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = write_null_bundle(tmp_path / "null", task="depth")
    assert run(monkeypatch, tmp_path, bundle, "--data", str(folder)) == 0
    saved = json.loads((tmp_path / "results" / "accuracy-null-data.json").read_text())["rows"]
    by_name = {row["name"]: row["metrics"] for row in saved}
    assert by_name["0"]["abs_rel"] < 1e-5, (
        "affine in the grey: perfect after alignment, the masked corner left out"
    )
    assert by_name["0"]["abs_rel"] < by_name["1"]["abs_rel"] < by_name["2"]["abs_rel"]
    assert by_name["all (3 images)"]["abs_rel"] == pytest.approx(
        np.mean([by_name[n]["abs_rel"] for n in "012"])
    )
    assert "all (3 images)" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "null-null-data" / "sheet.png") as sheet:
        assert sheet.size == (3 * 96, 3 * 68)


def test_each_task_that_the_data_measures_has_its_rows(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The rows of a joint bundle are those of single ones; what the data does not measure has
    none.
    """
    tasks = ("normal", "depth", "disparity")
    joint = write_null_bundle(tmp_path / "joint", name="joint", task=tasks)
    assert run(monkeypatch, tmp_path, joint, "--data", str(folder)) == 0
    saved = json.loads((tmp_path / "results" / "accuracy-joint-data.json").read_text())["rows"]
    assert [row["task"] for row in saved if row["images"] == 3] == ["depth", "disparity"]
    for task in tasks[1:]:
        alone = write_null_bundle(tmp_path / task, name=task, task=task)
        assert run(monkeypatch, tmp_path, alone, "--data", str(folder)) == 0
        rows = json.loads((tmp_path / "results" / f"accuracy-{task}-data.json").read_text())["rows"]
        of_task = [row for row in saved if row["task"] == task]
        assert [row["metrics"] for row in of_task] == [row["metrics"] for row in rows]
        sheet = tmp_path / "out" / "joint-null-data" / task / "sheet.png"
        assert sheet.is_file()
    assert "depth: all (3 images)" in capsys.readouterr().out
    normals = write_null_bundle(tmp_path / "n", task="normal")
    assert run(monkeypatch, tmp_path, normals, "--data", str(folder)) == 1
    assert "predicts normal, but data holds depth" in capsys.readouterr().err


def test_a_second_run_reads_the_predictions_of_the_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_null_bundle(tmp_path / "null", task="depth")
    assert run(monkeypatch, tmp_path, bundle, "--data", str(folder), "--count", "2") == 0
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    assert len(stamps) == 2
    assert run(monkeypatch, tmp_path, bundle, "--data", str(folder)) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert run(monkeypatch, tmp_path, bundle, "--data", str(folder), "--seed", "9") == 1, (
        "another seed, other predictions"
    )


@pytest.mark.slow
def test_rendered_scenes_for_depth_and_normals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_CONSTANT_SCENES", 4)
    for task in ("disparity", "normal"):
        bundle = write_null_bundle(tmp_path / task, task=task, name=task)
        assert run(monkeypatch, tmp_path, bundle, "--count", "2") == 0
    depth, normal = synthetic("depth"), synthetic("normal")
    assert depth.names == normal.names
    sample = normal.read(normal.names[0])
    assert np.abs(np.linalg.norm(sample.truth, axis=-1) - 1).max() < 1e-3
    assert np.array_equal(sample.image, depth.read(depth.names[0]).image)


def test_bundle_and_data_of_different_kinds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_null_bundle(tmp_path / "null", task="normal")
    assert run(monkeypatch, tmp_path, bundle, "--data", str(folder)) == 1


def test_a_task_that_nothing_measures_is_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_up = dataclasses.replace(TASKS["depth"], name="confidence", truth=None)
    monkeypatch.setitem(TASKS, "confidence", made_up)
    bundle = write_null_bundle(tmp_path / "null", task="confidence")
    assert run(monkeypatch, tmp_path, bundle, "--data", str(folder)) == 1
    assert "predicts confidence, which no ground truth" in capsys.readouterr().err


def test_a_made_up_task_is_measured_by_the_kind_it_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "distance", dataclasses.replace(TASKS["depth"], name="distance"))
    bundle = write_null_bundle(tmp_path / "null", task="distance")
    assert run(monkeypatch, tmp_path, bundle, "--data", str(folder)) == 0
    saved = json.loads((tmp_path / "results" / "accuracy-null-data.json").read_text())["rows"]
    assert saved[0]["metrics"]["abs_rel"] < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "[1, 2]",
        "kind: depth",
        "{",
        SETTINGS.replace("kind: depth", "kind: flow"),
        SETTINGS.replace("rgb/{name}", "rgb/name"),
        SETTINGS.replace("valid: [0.1, 80]", "valid: [80, 0.1]"),
        SETTINGS.replace("valid: [0.1, 80]", "valid: [1, 2, 3]"),
        SETTINGS.replace("scale: 0.001", "scale: -1"),
        SETTINGS.replace("rgb/", "nowhere/"),
    ],
)
def test_settings_that_cannot_be_used(folder: Path, settings: str) -> None:
    (folder / "dataset.yaml").write_text(settings)
    with pytest.raises(DatasetError):
        open_folder(folder)


def test_missing_and_foreign_truth(folder: Path) -> None:
    data = open_folder(folder)
    (folder / "depth" / "1.png").unlink()
    with pytest.raises(DatasetError, match="cannot read"):
        data.read("1")
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(folder / "depth" / "2.png")
    with pytest.raises(DatasetError, match="not a depth map"):
        data.read("2")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "mask" / "0.png")
    with pytest.raises(DatasetError, match="its truth"):
        data.read("0")


def test_a_baseline_is_measured_as_a_bundle_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bundle, opened both ways, has the same metrics to the last bit."""
    bundle = write_null_bundle(tmp_path / "null", task="depth")
    baseline = Baseline(meaning="the null backend", backend="null")
    monkeypatch.setitem(BASELINES, "none", baseline)
    monkeypatch.setattr(subjects, "built", lambda *_: [bundle])
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    same = ["accuracy", "--dirty", "--data", str(folder), "--output", str(tmp_path / "out")]
    baseline_words = ["--what", "none", "--checkpoint", "tiny/depth-d", "--resolution", "64x96"]
    found = {}
    for name, words in (
        ("null", ["--bundle", str(bundle)]),
        ("depth-d-64x96-none", baseline_words),
    ):
        monkeypatch.setattr(sys, "argv", [*same, *words])
        assert accuracy.main() == 0
        saved = json.loads((tmp_path / "results" / f"accuracy-{name}-data.json").read_text())
        found[name] = saved["rows"]
    first, second = ({row["name"]: row["metrics"] for row in each} for each in found.values())
    assert first == second
    monkeypatch.setattr(sys, "argv", [*same, *baseline_words, "--seed", "1"])
    assert accuracy.main() == 1, "its noise cannot be chosen"
    row = found["depth-d-64x96-none"][0]
    assert (row["meaning"], row["checkpoint"]) == ("the null backend", "tiny/depth-d")


def test_one_picture_of_a_group_is_enough(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_null_bundle(tmp_path / "null", task="depth")
    assert run(monkeypatch, tmp_path, bundle, "--data", str(folder), "--count", "1") == 0
