"""Where mode G's seeds disagree: `python -m benchmarks.ambiguity --bundle B --output PNG [--count N]`.

Predicts held-out scenes with several seeds. A network that knows what it does not know spreads where it errs: pixels
are sorted by their spread over the seeds, and the error of the mean is given for each quarter of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets import synthetic
from benchmarks.metrics import angle_between, fit_depth
from benchmarks.rows import write_rows
from runtime import LotusEngine, Prediction

_SEEDS, _SHOWN = 8, 4


def main() -> int:
    """Measure, print, save the rows and a picture of a few scenes. Status 1 for a bundle without noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    quarters, correlations, lines = [], [], []
    with LotusEngine(arguments.bundle) as engine:
        if engine.manifest.mode != "g":
            print("error: a bundle of mode D has no seeds", file=sys.stderr)
            return 1
        task = engine.manifest.task
        data = synthetic("normal" if task.channels == 3 else "depth")
        for name in data.names[: arguments.count]:
            sample = data.read(name)
            drawn = np.stack([engine(sample.image, seed=seed).values for seed in range(_SEEDS)])
            spread = drawn.std(axis=0) if task.channels == 1 else drawn.std(axis=0).mean(axis=-1)
            error = _error(task.name, drawn.mean(axis=0), sample.truth, sample.mask)
            counted = sample.mask
            order = np.argsort(spread[counted])
            quarters.append([float(part.mean()) for part in np.array_split(error[counted][order], 4)])
            correlations.append(float(np.corrcoef(_ranks(spread[counted]), _ranks(error[counted]))[0, 1]))
            if len(lines) < _SHOWN:
                seeds = [Prediction(task=task.name, values=values).colorize() for values in drawn[:2]]
                tiles = [sample.image, *seeds, _grey(spread), _grey(np.where(counted, error, 0))]
                lines.append(np.concatenate(tiles, axis=1))
        title = engine.manifest.name
    row = {
        "bundle": title,
        "images": len(quarters),
        "seeds": _SEEDS,
        "error_by_quarter_of_spread": np.mean(quarters, axis=0).tolist(),
        "rank_correlation": float(np.mean(correlations)),
    }
    print(row)
    Image.fromarray(np.concatenate(lines)).save(arguments.output, optimize=True)
    print(f"{arguments.output}\nrows: {write_rows(f'ambiguity-{title}', [row]).name}")
    return 0


def _error(
    task: str, mean: NDArray[np.float32], truth: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Per pixel, in the space that the seeds spread in: |d - d*| of aligned disparity or depth, or degrees."""
    if mean.ndim == 3:
        return angle_between(mean, truth)
    error = np.zeros(truth.shape)
    aligned = fit_depth(mean[mask].astype(np.float64), truth[mask].astype(np.float64), task)
    power = -1 if task == "disparity" else 1
    error[mask] = np.abs(aligned**power - truth[mask] ** power)
    return error


def _ranks(values: NDArray[np.floating]) -> NDArray[np.intp]:
    return values.argsort().argsort()


def _grey(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    scaled = np.clip(values / max(float(np.percentile(values, 98)), 1e-9), 0, 1)
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


if __name__ == "__main__":
    sys.exit(main())
