"""Accuracy of a bundle: `python -m benchmarks.accuracy --bundle B [--data synthetic|FOLDER]`.

Predictions are kept in the output folder, so that a run that was stopped goes on where it was. In the end: metrics for
each image, each group and in all, and a sheet with the best, the median and the worst image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets import Dataset, DatasetError, Sample, open_folder, synthetic
from benchmarks.metrics import DepthAccuracy, NormalAccuracy
from benchmarks.rows import write_rows
from runtime import LotusEngine, LotusError, Prediction
from runtime.engine import unit_vectors
from runtime.tasks import TASKS, Task

_RANKED_BY = {"depth": "abs_rel", "normal": "mean"}  # smaller is better


def main() -> int:
    """Evaluate, print, save. Status 1 when something cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--backend")
    parser.add_argument("--data", default="synthetic", help="synthetic, or a folder with dataset.yaml")
    parser.add_argument("--count", type=int, help="only the first images of each group")
    parser.add_argument("--seed", type=int, help="noise seed of mode G; default: the bundle's")
    parser.add_argument(
        "--mean-of", type=int, default=1, metavar="N", help="mode G: average over N seeds from --seed on"
    )
    parser.add_argument("--output", type=Path, default=Path("out/accuracy"), help="predictions and sheet go here")
    arguments = parser.parse_args()
    try:
        _evaluate(arguments)
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _evaluate(arguments: argparse.Namespace) -> None:
    with LotusEngine(arguments.bundle, arguments.backend) as engine:
        task = engine.manifest.task
        kind = "normal" if task.channels == 3 else "depth"
        data = synthetic(kind) if arguments.data == "synthetic" else open_folder(Path(arguments.data))
        if data.kind != kind:
            raise DatasetError(f"{arguments.bundle} predicts {task.name}, but {data.name} holds {data.kind}")
        names = list(_first_of_each_group(data.names, arguments.count))
        folder = arguments.output / f"{engine.manifest.name}-{engine.backend}-{data.name}"
        folder = folder.with_name(f"{folder.name}-mean-of-{arguments.mean_of}") if arguments.mean_of > 1 else folder
        identity = {"files": [file.sha256 for file in engine.manifest.files], "seed": arguments.seed}
        _claim(folder, identity | {"mean_of": arguments.mean_of})
        _predict(engine, data, names, folder, _seeds(engine, arguments))
        bundle = engine.manifest.name
        title = f"accuracy-{bundle}-{data.name}"
        title += f"-mean-of-{arguments.mean_of}" if arguments.mean_of > 1 else ""
    rows = list(_score(task, data, names, lambda name: np.load(folder / f"{name}.npy", allow_pickle=False)))
    if data.constant is not None and arguments.mean_of == 1:
        constant = data.constant(task.name)
        guesses = [row for row in _score(task, data, names, lambda name: constant) if row["images"] != 1]
        rows += [row | {"name": f"constant map: {row['name']}"} for row in guesses]
    rows = [{"bundle": bundle, "mean_of": arguments.mean_of} | row for row in rows]
    for row in rows:
        if row["images"] != 1:
            print(row["name"], " ".join(f"{key} {value:.4f}" for key, value in row["metrics"].items()))
    print(_write_sheet(task, data, rows, folder))
    print(f"rows: {write_rows(title, rows).name}")


def _first_of_each_group(names: list[str], count: int | None) -> Iterator[str]:
    seen: dict[str, int] = {}
    for name in names:
        group = _group(name)
        seen[group] = seen.get(group, 0) + 1
        if count is None or seen[group] <= count:
            yield name


def _group(name: str) -> str:
    return name.rpartition("/")[0] or "all"


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder this run's, or refuse one whose predictions come from another bundle or seed."""
    mark = folder / "run.json"
    if mark.exists() and json.loads(mark.read_text()) != identity:
        raise DatasetError(f"{folder} holds predictions of another build or seed; remove it or pass another --output")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(identity))


def _seeds(engine: LotusEngine, arguments: argparse.Namespace) -> list[int | None]:
    if arguments.mean_of == 1:
        return [arguments.seed]
    if engine.manifest.mode != "g" or arguments.mean_of < 1:
        raise DatasetError(f"--mean-of {arguments.mean_of}: only mode G answers differently for another seed")
    first = engine.manifest.noise_seed if arguments.seed is None else arguments.seed
    return list(range(first, first + arguments.mean_of))


def _predict(engine: LotusEngine, data: Dataset, names: list[str], folder: Path, seeds: list[int | None]) -> None:
    start = time.perf_counter()
    for number, name in enumerate(names, start=1):
        if not (folder / f"{name}.npy").exists():
            image = data.read(name).image
            values = np.mean([engine(image, seed=seed).values for seed in seeds], axis=0, dtype=np.float32)
            if engine.manifest.task.channels == 3:
                values = unit_vectors(values)
            Prediction(task=engine.manifest.task.name, values=values).save((folder / name).parent, Path(name).name)
        seconds = time.perf_counter() - start
        sys.stderr.write(
            f"\r[{number}/{len(names)}] {seconds:.0f} s, about {seconds / number * len(names):.0f} s in all "
        )
    sys.stderr.write("\n")


def _score(
    task: Task, data: Dataset, names: list[str], predicted: Callable[[str], NDArray[np.float32]]
) -> Iterator[dict[str, Any]]:
    """A row for each image, then one for each group, then one for all."""
    meters = {group: _meter(task, data) for group in ("all", *sorted({_group(name) for name in names}))}
    for name in names:
        sample = data.read(name)
        prediction = predicted(name)
        for group in {"all", _group(name)}:
            metrics = meters[group].update(prediction, sample.truth, sample.mask)
        yield {"name": name, "images": 1, "metrics": metrics}
    for group, meter in meters.items():
        count = sum(group in ("all", _group(name)) for name in names)
        yield {"name": f"{group} ({count} images)", "images": count, "metrics": meter.compute()}


def _meter(task: Task, data: Dataset) -> DepthAccuracy | NormalAccuracy:
    if task.channels == 3:
        return NormalAccuracy()
    return DepthAccuracy(space=task.name, nearest=data.nearest, farthest=data.farthest)


def _write_sheet(task: Task, data: Dataset, rows: list[dict[str, Any]], folder: Path) -> Path:
    """A PNG of input, truth and prediction for the best, the median and the worst image, from top to bottom."""
    key = _RANKED_BY[data.kind]
    images = [row for row in rows if row["images"] == 1 and np.isfinite(row["metrics"][key])]
    ranked = sorted(images, key=lambda row: row["metrics"][key])
    lines = []
    for row in (ranked[0], ranked[len(ranked) // 2], ranked[-1]):
        sample = data.read(row["name"])
        prediction = Prediction(task=task.name, values=np.load(folder / f"{row['name']}.npy", allow_pickle=False))
        lines.append(np.concatenate([sample.image, _truth_colors(task, sample), prediction.colorize()], axis=1))
    width = max(line.shape[1] for line in lines)
    sheet = np.concatenate([np.pad(line, ((0, 4), (0, width - line.shape[1]), (0, 0))) for line in lines])
    Image.fromarray(sheet).save(folder / "sheet.png")
    return folder / "sheet.png"


def _truth_colors(task: Task, sample: Sample) -> NDArray[np.uint8]:
    """The truth in the model's colours; black where it does not count."""
    values = sample.truth
    if task is TASKS["disparity"]:
        values = 1 / np.maximum(values, 1e-6)
    if task.channels == 1:
        counted = values[sample.mask]
        values = np.clip(values, counted.min(initial=np.inf), counted.max(initial=-np.inf)) if counted.size else values
    return np.where(sample.mask[..., None], Prediction(task=task.name, values=values).colorize(), 0).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
