"""Accuracy of a checkpoint on held-out scenes, beside the best constant prediction.

Depth and disparity are aligned to the truth by least squares (a scale and a shift for each picture), as in Lotus's
evaluation; disparity in disparity space, then clipped at 1e-3 and inverted. The sky counts neither for the fit nor for
the errors: real data sets have no truth there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiny.data import SCENE_SIZE, TASKS, image_map, load_scenes
from tiny.models import load_checkpoint
from tiny.render import Rendered, render
from tiny.scene import HELD_OUT_SEEDS

_MEAN_SCENES = 256
_SHEET_COLUMNS = 12


def evaluate(
    checkpoint: Path, cache: Path, sheet: Path | None = None, task: str = "disparity", count: int = 64
) -> dict[str, dict[str, float]]:
    """AbsRel and delta1 of "model" and "constant" on the first held-out scenes, at 256x256.

    The constant is the training set's mean map. `sheet` is a PNG to write with some inputs, truths and predictions.
    """
    scenes = [render(seed, SCENE_SIZE, SCENE_SIZE) for seed in HELD_OUT_SEEDS[:count]]
    predictions = predict(checkpoint, scenes)
    if sheet is not None:
        write_sheet(sheet, scenes, predictions, task)
    constant = _mean_map(cache, task)
    return {
        "model": accuracy(task, predictions, scenes),
        "constant": accuracy(task, [constant] * count, scenes),
    }


def predict(checkpoint: Path, scenes: list[Rendered]) -> list[np.ndarray]:
    """Depth or disparity maps float32 [H, W] in [0, 1] of rendered scenes."""
    model = load_checkpoint(checkpoint)
    with torch.no_grad():
        images = [torch.from_numpy(image_map(scene.image)).permute(2, 0, 1)[None] for scene in scenes]
        return [model(image)[0].mean(0).numpy() for image in images]


def truth(task: str, scene: Rendered) -> np.ndarray:
    """The map that the model is to answer for depth or disparity, float32 [H, W] in [0, 1]."""
    return TASKS[task](scene.depth, scene.normals)[..., 0] / 2 + 0.5


def accuracy(task: str, predictions: list[np.ndarray], scenes: list[Rendered]) -> dict[str, float]:
    """Means over pictures of AbsRel (the mean of |z - z*| / z*) and delta1 (the share with max(z/z*, z*/z) < 1.25)."""
    errors, shares = [], []
    for prediction, scene in zip(predictions, scenes, strict=True):
        depth = scene.depth[~scene.sky]
        aligned = align(task, prediction[~scene.sky], depth)
        errors.append(np.mean(np.abs(aligned - depth) / depth))
        shares.append(np.mean(np.maximum(aligned / depth, depth / aligned) < 1.25))
    return {"abs_rel": float(np.mean(errors)), "delta1": float(np.mean(shares))}


def align(task: str, prediction: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Depth in metres from values in [0, 1]: scaled and shifted to the truth, clipped to the truth's range."""
    wanted = 1 / depth if task == "disparity" else depth
    design = np.stack([prediction.ravel(), np.ones(prediction.size)], axis=1).astype(np.float64)
    (scale, shift), *_ = np.linalg.lstsq(design, wanted.ravel().astype(np.float64), rcond=None)
    fitted = np.maximum(scale * prediction + shift, 1e-3)
    return np.clip(1 / fitted if task == "disparity" else fitted, depth.min(), depth.max())


def write_sheet(path: Path, scenes: list[Rendered], predictions: list[np.ndarray], task: str) -> None:
    """A PNG of three rows, input, truth and prediction, repeated for every dozen scenes."""
    rows = []
    for first in range(0, len(scenes), _SHEET_COLUMNS):
        group = slice(first, first + _SHEET_COLUMNS)
        pairs = list(zip(scenes[group], predictions[group], strict=True))
        rows.append(np.concatenate([scene.image for scene, _ in pairs], axis=1))
        rows.append(np.concatenate([_grey(truth(task, scene)) for scene, _ in pairs], axis=1))
        rows.append(np.concatenate([_grey(prediction) for _, prediction in pairs], axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    Image.fromarray(np.concatenate(padded)).reduce(2).save(path)


def _grey(values: np.ndarray) -> np.ndarray:
    """A map [H, W] in [0, 1] as uint8 [H, W, 3]."""
    return np.repeat((values[..., None] * 255).round().astype(np.uint8), 3, axis=2)


def _mean_map(cache: Path, task: str) -> np.ndarray:
    """The mean map of training scenes, float32 [256, 256] in [0, 1]: what can be said without looking at a picture."""
    scenes = load_scenes(cache)
    maps = [TASKS[task](scenes.depth[i], scenes.normals[i])[..., 0] for i in range(_MEAN_SCENES)]
    return np.mean(maps, axis=0) / 2 + 0.5
