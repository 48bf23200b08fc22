"""What tiles add to a large picture: `python -m benchmarks.tiles --bundle B [--edge 1024]`.

Held-out scenes are rendered larger than the bucket and predicted twice: the whole picture alone,
and with tiles. For each task, against the exact maps (the sky does not count):

- accuracy, as `benchmarks.accuracy` has it;
- `edges`: the error of the steps where the exact map jumps, see `edge_error`;
- `seams`: with tiles, the mean gradient across the lines where tiles begin and end, over that a
  tile's quarter beside; the same of the whole picture's map, which has no seams, stands beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ground_truth import GROUND_TRUTHS
from benchmarks.rows import parse_arguments, write_rows
from runtime import LotusEngine, LotusError, Prediction
from runtime.image import choose_bucket
from runtime.tasks import TASKS, Task
from runtime.tiles import Axis

_JUMP = 0.02  # between neighbours, of the range of the exact map


def main() -> int:
    """Render, predict, print, save. Status 1 when something cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--backend")
    parser.add_argument("--edge", type=int, default=1024, help="of the pictures, in pixels")
    parser.add_argument("--count", type=int, default=8, help="scenes")
    arguments = parse_arguments(parser)
    try:
        with LotusEngine(arguments.bundle, arguments.backend) as engine:
            rows = list(_rows(engine, arguments.edge, arguments.count))
            name = engine.manifest.name
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = write_rows(f"tiles-{name}-{arguments.edge}", rows, dirty=arguments.dirty)
    print(f"rows: {path.name}")
    return 0


def _rows(engine: LotusEngine, edge: int, count: int) -> Iterator[dict[str, Any]]:
    """A row for each scene, task and way, then the means."""
    from tiny.render import render
    from tiny.scene import HELD_OUT_SEEDS

    bucket = choose_bucket(engine.manifest.buckets, edge, edge)
    lines = [Axis.cover(edge, size) for size in (bucket.height, bucket.width)]
    rows = []
    for seed in HELD_OUT_SEEDS[:count]:
        scene = render(seed, edge, edge)
        start = time.perf_counter()
        whole = engine(scene.image)
        middle = time.perf_counter()
        tiled = engine(scene.image, tiles=True)
        seconds = (middle - start, time.perf_counter() - middle)
        for name in whole:
            task = TASKS[name]
            if task.truth is None:
                continue
            for way, prediction, spent in zip(
                ("whole", "tiles"), (whole, tiled), seconds, strict=True
            ):
                numbers = _measure(task, prediction, scene, lines)
                row = {"scene": seed, "task": name, "way": way, "seconds": spent, **numbers}
                if prediction.tiled is not None:
                    row["refused"] = prediction.tiled.refused[name] / prediction.tiled.tiles
                rows.append(row)
                yield row
    for name in dict.fromkeys(row["task"] for row in rows):
        for way in ("whole", "tiles"):
            same = [row for row in rows if (row["task"], row["way"]) == (name, way)]
            numbers = [key for key in same[0] if key not in ("scene", "task", "way")]
            known = {key: [row[key] for row in same if row[key] is not None] for key in numbers}
            mean = {key: float(np.mean(values)) for key, values in known.items() if values}
            print(f"{name} {way:<6}", *(f"{key} {value:.4f}" for key, value in mean.items()))
            yield {"scene": "mean", "task": name, "way": way, **mean}


def _measure(
    task: Task, prediction: Prediction, scene: Any, lines: list[Axis]
) -> dict[str, float | None]:
    truths = GROUND_TRUTHS[task.truth or ""]
    truth, mask = truths.from_scene(scene), ~scene.sky
    values = prediction[task.name].values
    accuracy = truths.accuracy(task, 0.1, float(scene.depth.max()))
    exact = truths.as_prediction(task, truth, mask)
    return {
        truths.ranked_by: accuracy.update(values, truth, mask)[truths.ranked_by],
        "edges": edge_error(task, values, exact, mask),
        "seams": seams(values, lines),
    }


def edge_error(
    task: Task, values: NDArray[np.float32], exact: NDArray[np.float32], mask: NDArray[np.bool_]
) -> float | None:
    """How far steps of a map are from those of `exact`, where the latter jumps from one pixel to
    the next: the mean length of their difference over their mean length. Blurred away is 1.

    A step is taken over 1/128 of the picture's edge, so that one a few pixels beside counts almost
    whole. Depth and disparity are aligned first. None where nothing jumps.
    """
    values, exact = (array.reshape(*mask.shape, -1) for array in (values, exact))
    if task.space is not None:
        x, y = (array[mask].astype(np.float64).ravel() for array in (values, exact))
        scale, shift = np.polyfit(x, y, 1)
        values = (values * scale + shift).astype(np.float32)
    low, high = np.quantile(exact[mask], (0.01, 0.99))
    half = max(1, max(mask.shape) // 256)
    wrong = right = 0.0
    for axis in (0, 1):
        found, wanted, seen = (np.moveaxis(array, axis, 0) for array in (values, exact, mask))
        jumps = np.linalg.norm(np.diff(wanted, axis=0), axis=-1) > _JUMP * (high - low)
        jumps[:half] = jumps[len(jumps) - half :] = False
        for shift in range(1 - half, half + 1):  # nothing of the sky between
            jumps &= np.roll(seen, -shift, axis=0)[:-1]
        y, x = np.nonzero(jumps)
        steps = [array[y + half, x] - array[y + 1 - half, x] for array in (found, wanted)]
        wrong += float(np.linalg.norm(steps[0] - steps[1], axis=-1).sum())
        right += float(np.linalg.norm(steps[1], axis=-1).sum())
    return wrong / right if right else None


def seams(values: NDArray[np.float32], lines: list[Axis]) -> float:
    """The mean gradient across the lines where tiles begin and end, over that a quarter of a tile
    to both sides; for rows and columns together. 1 without seams.
    """
    across: list[float] = []
    beside: list[float] = []
    for axis, line in enumerate(lines):
        steps = np.abs(np.diff(values, axis=axis)).reshape(*_without_one(values.shape, axis), -1)
        profile = steps.mean(axis=(1 - axis, 2))
        borders = {*line.starts, *(start + line.tile for start in line.starts)}
        borders -= {0, values.shape[axis]}
        for border in borders:
            across.append(float(profile[border - 1]))
            quarter = line.tile // 4
            near = [border - 1 - quarter, border - 1 + quarter]
            beside.append(float(np.mean([profile[at] for at in near if 0 <= at < len(profile)])))
    return float(np.mean(across) / np.mean(beside)) if across else 1.0


def _without_one(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    height, width = shape[:2]
    return (height - 1, width) if axis == 0 else (height, width - 1)


if __name__ == "__main__":
    sys.exit(main())
