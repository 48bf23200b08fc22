"""Where mode G's seeds disagree: `python -m benchmarks.ambiguity --bundle B --output PNG`.

Predicts held-out scenes with several seeds. A network that knows where it is unsure spreads there.
So the pixels are sorted by their spread over the seeds, and the error of the mean is given for each
quarter of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets import synthetic
from benchmarks.ground_truth import GROUND_TRUTHS
from benchmarks.rows import parse_arguments, write_rows
from runtime import LotusEngine, Prediction
from runtime.tasks import TASKS, Task

_SEEDS, _SHOWN = 8, 4


def main() -> int:
    """Measure, print, save the rows and a picture of a few scenes. Status 1 for a bundle without
    noise, or without ground truth for any of its tasks.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parse_arguments(parser)
    with LotusEngine(arguments.bundle) as engine:
        title, tasks = engine.manifest.name, engine.manifest.tasks
        if engine.manifest.mode != "g":
            print("error: a bundle of mode D has no seeds", file=sys.stderr)
            return 1
        measured = [_Measured(TASKS[name], truth) for name in tasks if (truth := TASKS[name].truth)]
        if not measured:
            names = " and ".join(tasks)
            print(f"error: no ground truth here measures {names}", file=sys.stderr)
            return 1
        for name in measured[0].data.names[: arguments.count]:  # all have the same pictures
            image = measured[0].data.read(name).image
            predictions = [engine(image, seed=seed) for seed in range(_SEEDS)]
            for each in measured:
                each.add(name, predictions)
    rows = [
        {"bundle": title, **({"task": each.task.name} if len(tasks) > 1 else {}), **each.row()}
        for each in measured
    ]
    print(*rows, sep="\n")
    lines = [line for each in measured for line in each.lines]
    Image.fromarray(np.concatenate(lines)).save(arguments.output, optimize=True)
    path = write_rows(f"ambiguity-{title}", rows, dirty=arguments.dirty)
    print(f"{arguments.output}\nrows: {path.name}")
    return 0


class _Measured:
    """What is collected of one task."""

    def __init__(self, task: Task, truth: str) -> None:
        self.task, self.data = task, synthetic(truth)
        self._pixel_errors = GROUND_TRUTHS[truth].pixel_errors
        self._quarters: list[list[float]] = []
        self._correlations: list[float] = []
        self.lines: list[NDArray[np.uint8]] = []

    def add(self, name: str, predictions: list[Prediction]) -> None:
        """One scene, as each seed predicted it."""
        sample, task = self.data.read(name), self.task
        drawn = np.stack([prediction[task.name].values for prediction in predictions])
        counted = sample.mask
        spread = drawn.std(axis=0).reshape(*counted.shape, task.channels).mean(axis=-1)
        error = self._pixel_errors(task, drawn.mean(axis=0), sample.truth, counted)
        order = np.argsort(spread[counted])
        quarters = np.array_split(error[counted][order], 4)
        self._quarters.append([float(part.mean()) for part in quarters])
        ranks = _ranks(spread[counted]), _ranks(error[counted])
        self._correlations.append(float(np.corrcoef(*ranks)[0, 1]))
        if len(self.lines) < _SHOWN:
            seeds = [task.colorize(values) for values in drawn[:2]]
            tiles = [sample.image, *seeds, _grey(spread), _grey(np.where(counted, error, 0))]
            self.lines.append(np.concatenate(tiles, axis=1))

    def row(self) -> dict[str, Any]:
        """The means over the scenes."""
        return {
            "images": len(self._quarters),
            "seeds": _SEEDS,
            "error_by_quarter_of_spread": np.mean(self._quarters, axis=0).tolist(),
            "rank_correlation": float(np.mean(self._correlations)),
        }


def _ranks(values: NDArray[np.floating]) -> NDArray[np.intp]:
    return values.argsort().argsort()


def _grey(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    scaled = np.clip(values / max(float(np.percentile(values, 98)), 1e-9), 0, 1)
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


if __name__ == "__main__":
    sys.exit(main())
