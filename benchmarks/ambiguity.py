"""Where mode G's seeds disagree: `python -m benchmarks.ambiguity --bundle B --output PNG`.

Predicts held-out scenes with several seeds. A network that knows where it is unsure spreads there.
So the pixels are sorted by their spread over the seeds, and the error of the mean is given for each
quarter of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets import synthetic
from benchmarks.ground_truth import GROUND_TRUTHS
from benchmarks.rows import parse_arguments, write_rows
from runtime import LotusEngine, Prediction
from runtime.tasks import TASKS

_SEEDS, _SHOWN = 8, 4


def main() -> int:
    """Measure, print, save the rows and a picture of a few scenes. Status 1 for a bundle without
    noise, or without ground truth for its task.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parse_arguments(parser)
    quarters, correlations, lines = [], [], []
    with LotusEngine(arguments.bundle) as engine:
        if engine.manifest.mode != "g":
            print("error: a bundle of mode D has no seeds", file=sys.stderr)
            return 1
        task = TASKS[engine.manifest.tasks[0]]
        if task.truth is None:
            print(f"error: no ground truth here measures {task.name}", file=sys.stderr)
            return 1
        data, pixel_errors = synthetic(task.truth), GROUND_TRUTHS[task.truth].pixel_errors
        for name in data.names[: arguments.count]:
            sample = data.read(name)
            drawn = np.stack([engine(sample.image, seed=seed).values for seed in range(_SEEDS)])
            counted = sample.mask
            spread = drawn.std(axis=0).reshape(*counted.shape, task.channels).mean(axis=-1)
            error = pixel_errors(task, drawn.mean(axis=0), sample.truth, counted)
            order = np.argsort(spread[counted])
            quarters.append(
                [float(part.mean()) for part in np.array_split(error[counted][order], 4)]
            )
            correlations.append(
                float(np.corrcoef(_ranks(spread[counted]), _ranks(error[counted]))[0, 1])
            )
            if len(lines) < _SHOWN:
                seeds = [Prediction({task.name: values}).colorize() for values in drawn[:2]]
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
    path = write_rows(f"ambiguity-{title}", [row], dirty=arguments.dirty)
    print(f"{arguments.output}\nrows: {path.name}")
    return 0


def _ranks(values: NDArray[np.floating]) -> NDArray[np.intp]:
    return values.argsort().argsort()


def _grey(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    scaled = np.clip(values / max(float(np.percentile(values, 98)), 1e-9), 0, 1)
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


if __name__ == "__main__":
    sys.exit(main())
