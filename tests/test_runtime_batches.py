"""Buckets with a batch: how lists fill them, and what each backend answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import bucket, pictures, write_null_bundle
from PIL import Image

from runtime import LotusEngine
from runtime.__main__ import main
from runtime.backends import installed
from runtime.backends.null import BackendSession
from runtime.backends.session import Arrays
from runtime.engine import draw_noise
from runtime.errors import (
    BackendError,
    ImageError,
)
from runtime.filling import fill
from runtime.manifest import Bucket, Manifest

TASKS = ("disparity", "normal")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each run of the null backend took."""
    counts: list[int] = []
    real = BackendSession._run

    def run(self: BackendSession, runner: None, inputs: Arrays) -> Arrays:
        counts.append(len(inputs["image"]))
        return real(self, runner, inputs)

    monkeypatch.setattr(BackendSession, "_run", run)
    return counts


def test_shapes_with_a_batch(tmp_path: Path) -> None:
    four = bucket(4)
    manifest = Manifest.load(
        write_null_bundle(tmp_path / "b", task=TASKS, mode="g", buckets=[four, bucket()])
    )
    assert [str(each) for each in manifest.buckets] == ["4x64x96", "64x96"]
    assert manifest.input_shapes(four) == {"image": (4, 3, 64, 96), "noise": (4, 4, 8, 12)}
    assert manifest.noise_shape(four) == (1, 4, 8, 12)
    assert manifest.output_shapes(four) == {"disparity": (4, 1, 64, 96), "normal": (4, 3, 64, 96)}
    with np.load(tmp_path / "b" / "golden.npz") as golden:
        shapes = {name: golden[name].shape for name in golden}
    assert shapes == {
        "image_4x64x96": (4, 64, 96, 3),
        "noise_4x64x96": (4, 4, 8, 12),
        "disparity_4x64x96": (4, 1, 64, 96),
        "normal_4x64x96": (4, 3, 64, 96),
        "image_64x96": (64, 96, 3),
        "noise_64x96": (1, 4, 8, 12),
        "disparity_64x96": (1, 64, 96),
        "normal_64x96": (3, 64, 96),
    }


# Filling buckets


@dataclasses.dataclass(frozen=True)
class Item:
    number: int
    bucket: Bucket


@pytest.mark.parametrize(
    ("batches", "count", "expected"),
    [
        ((1,), 3, [(1, 1), (1, 1), (1, 1)]),
        ((1, 4), 9, [(4, 4), (4, 4), (1, 1)]),
        ((1, 2, 4), 7, [(4, 4), (2, 2), (1, 1)]),
        ((4,), 6, [(4, 4), (4, 2)]),
        ((2, 8), 13, [(8, 8), (2, 2), (2, 2), (2, 1)]),
        ((4, 1), 0, []),
    ],
)
def test_only_the_last_group_is_not_full(
    batches: Iterable[int], count: int, expected: list[tuple[int, int]]
) -> None:
    buckets = [bucket(batch) for batch in batches]
    groups = list(fill((Item(number, buckets[0]) for number in range(count)), buckets))
    assert [(one.batch, len(group)) for one, group in groups] == expected
    assert [item.number for _, group in groups for item in group] == list(range(count))


def test_sizes_wait_apart_and_no_longer_than_they_must() -> None:
    wide, high = bucket(2), bucket(3, 96, 64)
    taken: list[int] = []

    def items() -> Iterable[Item]:
        for number, one in enumerate((wide, high, high, wide, wide, high, wide)):
            taken.append(number)
            yield Item(number, one)

    seen = [
        (str(one), [item.number for item in group], len(taken))
        for one, group in fill(items(), [wide, high])
    ]
    assert seen == [("2x64x96", [0, 3], 4), ("3x96x64", [1, 2, 5], 6), ("2x64x96", [4, 6], 7)]


@pytest.mark.parametrize("mode", ["d", "g"])
def test_a_list_equals_one_at_a_time(tmp_path: Path, mode: str, runs: list[int]) -> None:
    """In its order, whatever the sizes, with errors in their places."""
    buckets = [bucket(1), bucket(4), bucket(2, 96, 64)]
    batched = write_null_bundle(tmp_path / "b", task=TASKS, mode=mode, buckets=buckets)
    wide, high = pictures(6), pictures(3, 33, 20)
    images = [*wide[:2], high[0], "nowhere.png", *wide[2:5], high[1], wide[5], high[2]]
    plain = write_null_bundle(tmp_path / "p", task=TASKS, mode=mode)
    with LotusEngine(batched) as engine, LotusEngine(plain) as alone:
        runs.clear()
        answers = engine(images, on_error="return")
        assert runs == [4, 2, 1, 1, 2]
        with pytest.raises(ImageError, match="nowhere"):
            engine(images)
        for image, answer in zip(images, answers, strict=True):
            if isinstance(image, str):
                assert isinstance(answer, ImageError)
                continue
            for task, each in alone(image).items():
                assert np.abs(answer[task].values - each.values).max() < 1e-6
                assert answer[task].values.base is None or answer[task].values.base.size < 1e5


def test_noise_of_a_list_is_that_of_each_picture(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "g", mode="g", buckets=[bucket(2)])
    with LotusEngine(bundle) as engine:
        noise = draw_noise(7, (1, 4, 8, 12))
        first, second, third = engine([pictures(1)[0]] * 3, noise=noise)
        assert np.array_equal(first.values, second.values)
        assert np.array_equal(first.values, third.values)
        assert np.array_equal(first.values, engine(pictures(1)[0], seed=7).values)
        with pytest.raises(ImageError, match=r"shape \[1, 4, 8, 12\]"):
            engine(pictures(2), noise=np.concatenate([noise, noise]))


def test_one_picture_fills_a_bucket_that_has_only_batches(tmp_path: Path, runs: list[int]) -> None:
    (image,) = pictures(1)
    bundle = write_null_bundle(tmp_path / "b", buckets=[bucket(4), bucket(3)])
    with LotusEngine(bundle) as engine:
        runs.clear()
        values = engine(image).values
        assert runs == [3]
    assert np.abs(values - image.mean(axis=2) / 255).max() < 1e-6


def test_a_list_is_not_loaded_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    bundle = write_null_bundle(tmp_path / "b", buckets=[bucket(2)])
    real_load, real_run = LotusEngine._fitted, BackendSession._run
    monkeypatch.setattr(
        LotusEngine, "_fitted", lambda *words: events.append("load") or real_load(*words)
    )
    monkeypatch.setattr(
        BackendSession, "_run", lambda *words: events.append("run") or real_run(*words)
    )
    with LotusEngine(bundle, prove=False) as engine:
        engine(pictures(5))
    assert events == ["load", "load", "run"] * 2 + ["load", "run"]


# Commands


def test_predict_writes_all_maps_of_each_image(
    tmp_path: Path, runs: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    buckets = [bucket(1), bucket(2)]
    bundle = str(write_null_bundle(tmp_path / "b", task=TASKS, buckets=buckets))
    folder = tmp_path / "in"
    folder.mkdir()
    for name, image in zip("abc", pictures(3), strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "aa.jpg").write_bytes(b"no image")
    runs.clear()
    output = tmp_path / "out"
    assert main(["predict", bundle, str(folder), "--output", str(output)]) == 1
    said = capsys.readouterr().err
    assert "3 done, 1 failed" in said.splitlines()[-1]
    assert [line.split("]")[0] for line in said.splitlines()[:4]] == [
        f"[{number}/4" for number in (1, 2, 3, 4)
    ]
    assert runs == [1, 2]  # a.png alone, as aa.jpg fails; then b.png and c.png
    names = sorted(path.name for path in output.iterdir())
    assert names == sorted(
        f"{name}-{task}{ending}"
        for name in "abc"
        for task in TASKS
        for ending in (".npy", "-16bit.png", ".png")
    )
    (output / "b-normal.png").unlink()
    Image.new("RGB", (2, 2)).save(output / "b-normal.png")
    before = (output / "b-disparity.npy").stat().st_mtime_ns
    assert main(["predict", bundle, str(folder / "b.png"), "--output", str(output)]) == 1
    assert (output / "b-disparity.npy").stat().st_mtime_ns == before


def test_where_memory_is_short_for_several_each_is_tried_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(write_null_bundle(tmp_path / "b", buckets=[bucket(1), bucket(2)]))
    for name, image in zip("ab", pictures(2), strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    real = LotusEngine.run

    def run(engine: LotusEngine, pictures: list[Any], call: Any) -> Any:
        if len(pictures) > 1 or pictures[0].source.name == "a.png":
            raise MemoryError("too large")
        return real(engine, pictures, call)

    monkeypatch.setattr(LotusEngine, "run", run)
    images = [str(tmp_path / f"{name}.png") for name in "ab"]
    assert main(["predict", bundle, *images, "--output", str(tmp_path / "o")]) == 1
    said = capsys.readouterr().err
    assert "a.png: not enough memory (too large)" in said
    assert said.splitlines()[-1] == "1 done, 1 failed"


# Vendors

OPEN_GRAPHS = [
    "null",
    "onnxruntime",
    pytest.param("onnxruntime-cuda", marks=pytest.mark.gpu),
    "openvino",
]


def write_graph(path: Path, one: Bucket) -> None:
    """image and noise -> disparity and normal; a mean over each picture couples its pixels."""
    onnx = pytest.importorskip("onnx")
    helper, random = onnx.helper, np.random.default_rng(0)
    shapes = {
        "image": [one.batch, 3, one.height, one.width],
        "noise": [one.batch, 4, one.height // 8, one.width // 8],
        "disparity": [one.batch, 1, one.height, one.width],
        "normal": [one.batch, 3, one.height, one.width],
    }
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    weights = {
        "first": random.normal(0, 0.3, (8, 3, 3, 3)),
        "drawn": random.normal(0, 0.3, (8, 4, 1, 1)),
        "near": random.normal(0, 0.5, (1, 8, 1, 1)),
        "facing": random.normal(0, 0.5, (3, 8, 1, 1)),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "first"], ["a"], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["a"], ["b"]),
        node("GlobalAveragePool", ["noise"], ["c"]),
        node("Conv", ["c", "drawn"], ["d"]),
        node("Sub", ["a", "b"], ["e"]),
        node("Add", ["e", "d"], ["f"]),
        node("Conv", ["f", "near"], ["g"]),
        node("Sigmoid", ["g"], ["disparity"]),
        node("Conv", ["f", "facing"], ["h"]),
        node("Tanh", ["h"], ["normal"]),
    ]
    graph = helper.make_graph(
        nodes,
        "joint",
        ends[:2],
        ends[2:],
        [
            onnx.numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in weights.items()
        ],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@pytest.mark.parametrize("backend", OPEN_GRAPHS)
def test_a_joint_bundle_with_batches_on_each_backend(tmp_path: Path, backend: str) -> None:
    """It verifies, a list equals one at a time, and each output is its own."""
    if backend not in installed():
        pytest.skip(f"the package of {backend} is not installed")
    buckets = [bucket(1), bucket(3)]
    for one in buckets if backend != "null" else ():
        write_graph(tmp_path / one.graph, one)
    try:
        write_null_bundle(tmp_path, task=TASKS, mode="g", backend=backend, buckets=buckets)
    except BackendError as error:
        if "has no CUDAExecutionProvider" not in str(error):
            raise
        pytest.skip(f"never run here: {error}")
    with LotusEngine(tmp_path) as engine:
        errors = engine.verify().errors
        assert [*errors] == ["64x96", "3x64x96"]
        assert [*errors["3x64x96"].by_task] == [*TASKS]
        images = pictures(4)
        together, alone = engine(images), [engine(image) for image in images]
    for first, second in zip(together, alone, strict=True):
        for task in TASKS:
            assert np.abs(first[task].values - second[task].values).max() < 1e-5
    assert together[0]["disparity"].values.shape == (64, 96)
    assert np.abs(together[0]["normal"].values - together[1]["normal"].values).max() > 0.01
    assert np.abs(np.linalg.norm(together[2]["normal"].values, axis=-1) - 1).max() < 1e-5
