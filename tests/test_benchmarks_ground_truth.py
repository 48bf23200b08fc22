"""Kinds of ground truth, and the values that PyTorch's pictures become, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.datasets import synthetic
from benchmarks.ground_truth import GROUND_TRUTHS
from benchmarks.metrics import SPACES
from runtime.tasks import TASKS

RANDOM = np.random.default_rng(0)
DEPTH = RANDOM.uniform(1, 10, (6, 5))
MASK = np.arange(30).reshape(6, 5) % 7 != 0


def test_every_task_is_measured_by_a_kind_that_is_there() -> None:
    for task in TASKS.values():
        assert task.truth in (None, *GROUND_TRUTHS)
        assert task.space in (None, *SPACES)


def test_errors_of_depth_are_in_the_space_of_the_task() -> None:
    wrong = RANDOM.normal(0, 0.02, DEPTH.shape)
    for name, exact in (("depth", DEPTH), ("disparity", 1 / DEPTH)):
        prediction = 0.3 * exact + 0.1 + wrong
        design = np.stack([prediction[MASK], np.ones(MASK.sum())], axis=1)
        scale, shift = np.linalg.lstsq(design, exact[MASK], rcond=None)[0]
        expected = np.where(MASK, np.abs(scale * prediction + shift - exact), 0)
        errors = GROUND_TRUTHS["depth"].pixel_errors(TASKS[name], prediction, DEPTH, MASK)
        assert np.allclose(errors, expected, atol=1e-9)


def test_truth_in_colours_spans_what_counts() -> None:
    depth = np.where(MASK, DEPTH, 1000).astype(np.float32)
    shown = GROUND_TRUTHS["depth"].as_prediction(TASKS["disparity"], depth, MASK)
    assert np.allclose(shown[MASK], 1 / depth[MASK])
    assert shown.min() == (1 / depth[MASK]).min()


def test_a_constant_map_is_the_mean_of_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import datasets
    from tiny.data import TASKS as LEARNED
    from tiny.render import render
    from tiny.scene import TRAIN_FIRST_SEED

    monkeypatch.setattr(datasets, "_CONSTANT_SCENES", 2)
    scenes = [render(TRAIN_FIRST_SEED + number, 256, 256) for number in range(2)]
    for name in ("disparity", "normal"):
        task = TASKS[name]
        constant = synthetic(str(task.truth)).constant
        assert constant is not None
        mean = np.mean([LEARNED[name](scene.depth, scene.normals) for scene in scenes], axis=0)
        if name == "normal":
            mean = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
            assert np.allclose(constant(task), mean, atol=1e-5)
        else:
            assert np.allclose(constant(task), (mean[..., 0] + 1) / 2, atol=1e-6)


def test_pictures_become_values_as_the_published_pipeline_makes_them() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.pytorch_baseline import values_of

    unit = torch.rand(2, 3, 6, 5)
    assert np.array_equal(values_of(unit, TASKS["depth"]), unit.mean(dim=1).numpy())
    vectors = (2 * unit - 1).permute(0, 2, 3, 1).numpy()
    expected = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert np.allclose(values_of(unit, TASKS["normal"]), expected, atol=1e-6)
