"""Bundles with several tasks, and buckets with a batch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import bucket, pictures, write_null_bundle
from PIL import Image

from runtime import LotusEngine, Prediction, manifest_json
from runtime.__main__ import main
from runtime.errors import (
    LotusError,
    OutputError,
    SchemaError,
    TaskError,
    VerificationError,
)
from runtime.manifest import MANIFEST, Checkpoint, Manifest, Quantisation, Source, Spent
from runtime.manifest_json import check_requires, checksum
from runtime.marker import marks

TASKS = ("disparity", "normal")


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads((bundle / MANIFEST).read_text())
    body.pop("manifest_sha256")
    change(body)
    (bundle / MANIFEST).write_text(json.dumps(body | {"manifest_sha256": checksum(body)}))


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    return write_null_bundle(tmp_path / "joint", task=TASKS)


# One prediction, several maps


def test_a_joint_bundle_answers_what_the_single_ones_answer(joint: Path, tmp_path: Path) -> None:
    (image,) = pictures(1, 50, 70)
    with LotusEngine(joint) as engine:
        prediction = engine(image)
    assert (list(prediction), len(prediction)) == ([*TASKS], 2)
    assert list(prediction.keys()) == [name for name, _ in prediction.items()] == [*TASKS]
    assert "normal" in prediction
    assert "depth" not in prediction
    for task in TASKS:
        with LotusEngine(write_null_bundle(tmp_path / task, task=task)) as engine:
            alone = engine(image)
        each = prediction[task]
        assert each.task == alone.task == task
        assert np.array_equal(each.values, alone.values)
        assert np.array_equal(each.colorize(), alone.colorize())
        assert alone[task].values is alone.values


def test_what_only_one_map_can_answer_names_the_tasks() -> None:
    maps = {"depth": np.zeros((2, 2), np.float32), "normal": np.zeros((2, 2, 3), np.float32)}
    several = Prediction(maps)
    for ask in (lambda: several.values, lambda: several.task, several.colorize):
        with pytest.raises(TaskError, match=r"depth and normal.*prediction\['depth'\]"):
            ask()
    with pytest.raises(TaskError, match="no map of 'disparity' here, only of depth, normal"):
        several["disparity"]
    assert issubclass(TaskError, KeyError)
    assert issubclass(TaskError, LotusError)
    assert repr(several) == "<Prediction: depth [2, 2], normal [2, 2, 3]>"


def test_all_maps_are_saved_or_none(joint: Path, tmp_path: Path) -> None:
    with LotusEngine(joint) as engine:
        prediction = engine(pictures(1)[0])
    saved = prediction.save(tmp_path / "out" / "room")
    endings = (".npy", "-16bit.png", ".png")
    names = [f"room-{task}{ending}" for task in TASKS for ending in endings]
    assert [path.name for path in saved] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for task, array in zip(TASKS, saved[::3], strict=True):
        assert np.array_equal(np.load(array), prediction[task].values)
        assert marks(array.with_suffix(".png"))["Lotus-Task"] == task
    (tmp_path / "in-the-way").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "in-the-way" / "a-normal.png")
    with pytest.raises(OutputError, match="not a result of lotus-edge"):
        prediction.save(tmp_path / "in-the-way" / "a")
    assert [path.name for path in (tmp_path / "in-the-way").iterdir()] == ["a-normal.png"]
    folder = prediction.save(tmp_path / "in-the-way")
    assert folder[0].name == "prediction-disparity.npy"


# The manifest


def test_the_manifest_says_where_each_network_came_from(tmp_path: Path) -> None:
    other = Source(checkpoint=Checkpoint(id="b", sha256="b" * 64), family="x", licence="mit")
    bundle = write_null_bundle(
        tmp_path / "b", task=TASKS, licence="apache-2.0", beside={"normal": other}
    )
    manifest = Manifest.load(bundle)
    assert list(manifest.sources) == [*TASKS]
    assert manifest.sources["disparity"].licence == "apache-2.0"
    assert manifest.sources["normal"] == other


def test_an_older_release_refuses_what_it_would_misread(
    joint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batched = write_null_bundle(tmp_path / "batched", buckets=[bucket(4)])
    plain = write_null_bundle(tmp_path / "plain")
    required = [Manifest.load(path).requires for path in (joint, batched, plain)]
    assert required == [["beside"], ["buckets.batch"], []]
    monkeypatch.setattr(manifest_json, "FEATURES", frozenset())
    older = [field.name for field in dataclasses.fields(Manifest) if field.name != "beside"]
    for requires in required[:2]:
        with pytest.raises(SchemaError, match="does not know"):
            check_requires(requires, older, joint)


QUANTISATION = Quantisation(
    policy="golden.npz",
    calibration_sha256="0" * 64,
    images=1,
    max_error=1.0,
    error=0.5,
    unit="AbsRel",
    multiply_adds=1,
    beside={"normal": Spent(max_error=1.0, error=0.2, unit="degrees")},
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.update(beside={}), r"`beside` has the sources of \[\]"),
        (lambda body: body["beside"].update(depth=body["beside"]["normal"]), "`beside` has"),
        (lambda body: body["beside"]["normal"].pop("checkpoint"), "missing fields"),
        (lambda body: body["quantisation"].update(beside={}), r"`quantisation\.beside` has"),
        (lambda body: body["buckets"][0].update(batch=0), "1 to 64, found 0"),
        (lambda body: body["buckets"][0].update(batch=65), "1 to 64, found 65"),
        (lambda body: body["buckets"][0].update(batch=True), "expected int"),
        (lambda body: body["buckets"][0].update(height=8192, width=8192, batch=2), "67108864"),
    ],
)
def test_manifests_that_contradict_themselves(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    bundle = write_null_bundle(tmp_path / "b", task=TASKS, quantisation=QUANTISATION)
    assert Manifest.load(bundle).quantisation == QUANTISATION
    edit(bundle, change)
    with pytest.raises(SchemaError, match=message):
        Manifest.load(bundle)


# Commands


def test_info_and_verify_show_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Source(checkpoint=Checkpoint(id="b", sha256="b" * 64), licence="mit")
    bundle = write_null_bundle(
        tmp_path / "b",
        task=TASKS,
        buckets=[bucket(), bucket(4)],
        licence="apache-2.0",
        beside={"normal": other},
    )
    assert main(["info", str(bundle)]) == 0
    shown = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    rows = {key: value.strip() for key, value in shown}
    assert rows["checkpoint disparity"] == "none (sha256 000000000000)"
    assert rows["checkpoint normal"] == "b (sha256 bbbbbbbbbbbb)"
    assert (rows["licence disparity"], rows["licence normal"]) == ("apache-2.0", "mit")
    assert rows["buckets"] == "64x96, 4x64x96 (4 images at once)"
    assert main(["verify", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [
        "64x96 disparity", "64x96 normal", "4x64x96 disparity", "4x64x96 normal",
    ]  # fmt: skip


@pytest.mark.parametrize("index", [0, 3])
def test_a_wrong_task_of_any_picture_is_named(
    tmp_path: Path, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_null_bundle(tmp_path / "b", task=TASKS, buckets=[bucket(4)])
    with np.load(bundle / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["normal_4x64x96"][index, 0, 5, 5] += 0.25
    np.savez(bundle / "golden.npz", **arrays)
    monkeypatch.setattr(Manifest, "check_contents", lambda manifest, folder: None)
    wrong = r"disparity 0\.00e\+00.*normal 2\.50e-01"
    with LotusEngine(bundle) as engine, pytest.raises(VerificationError, match=wrong):
        engine.verify()
