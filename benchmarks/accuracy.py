"""Accuracy of a bundle: `python -m benchmarks.accuracy --bundle B [--data synthetic|FOLDER]`; with
`--what NAME --checkpoint C` of a baseline of `benchmarks.latency`, on the same pictures.

Predictions are kept in the output folder, so that a run that was stopped goes on where it was. The
result is metrics for each image, each group and all images, and a sheet with the best, the median
and the worst image; of each task that the data measures, where a bundle has several.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.baselines import BASELINES, Work
from benchmarks.datasets import Dataset, DatasetError, Sample, open_folder, synthetic
from benchmarks.ground_truth import GROUND_TRUTHS, GroundTruth
from benchmarks.rows import ROOT, parse_arguments, write_rows
from benchmarks.subjects import Subject, open_baseline, open_bundle
from runtime import LotusError, Prediction
from runtime.extras import require
from runtime.tasks import TASKS, Task


def main() -> int:
    """Evaluate, print, save. Status 1 when something cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--bundle", type=Path)
    subject.add_argument("--what", choices=BASELINES, help="a baseline, with --checkpoint")
    parser.add_argument("--backend")
    parser.add_argument("--checkpoint", default="tiny/disparity-d", help="of --what")
    parser.add_argument("--resolution", default="256x256", metavar="HxW", help="of --what")
    parser.add_argument(
        "--bundles", type=Path, default=ROOT / "engines", help="of --what: where its bundles lie"
    )
    parser.add_argument(
        "--data", default="synthetic", help="synthetic, or a folder with dataset.yaml"
    )
    parser.add_argument("--count", type=int, help="only the first images of each group")
    parser.add_argument("--seed", type=int, help="noise seed of mode G; default: the bundle's")
    parser.add_argument(
        "--mean-of",
        type=int,
        default=1,
        metavar="N",
        help="mode G: average over N seeds from --seed on",
    )
    parser.add_argument(
        "--ensemble",
        type=int,
        default=1,
        metavar="N",
        help="mode G: as `predict --ensemble`, the aligned median of N seeds",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out/accuracy"), help="predictions and sheet go here"
    )
    arguments = parse_arguments(parser)
    try:
        _evaluate(arguments)
    except LotusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _evaluate(arguments: argparse.Namespace) -> None:
    merged = {"mean_of": arguments.mean_of}
    if arguments.ensemble != 1:
        merged["ensemble"] = arguments.ensemble
    averaged = "".join(
        f"-{way.replace('_', '-')}-{count}" for way, count in merged.items() if count > 1
    )
    with _open_subject(arguments) as subject:
        bundle, tasks = subject.name, subject.tasks
        measured = _open_data(arguments.data, bundle, [TASKS[name] for name in tasks])
        first = next(iter(measured.values()))  # all have the same pictures
        names = list(_first_of_each_group(first.names, arguments.count))
        folder = arguments.output / f"{subject.folder}-{first.name}{averaged}"
        _claim(folder, {"files": subject.files, "seed": arguments.seed, **merged})
        # Each task's own, where there are several.
        places = {name: folder / name if len(tasks) > 1 else folder for name in measured}
        seeds = _seeds(subject, arguments)
        _predict(subject, first, names, places, seeds, arguments.ensemble)
    rows = []
    for name, data in measured.items():
        same: dict[str, Any] = {"bundle": bundle, **subject.about, **merged}
        same |= {"task": name} if len(tasks) > 1 else {}
        constant = not averaged and arguments.what is None  # it takes a minute, and is no other
        of_task = _rows_of(TASKS[name], data, names, places[name], constant=constant)
        print(_write_sheet(TASKS[name], data, names, of_task, places[name]))
        rows += [same | row for row in of_task]
    path = write_rows(f"accuracy-{bundle}-{first.name}{averaged}", rows, dirty=arguments.dirty)
    print(f"rows: {path.name}")


def _open_subject(arguments: argparse.Namespace) -> AbstractContextManager[Subject]:
    if arguments.what is None:
        return open_bundle(arguments.bundle, arguments.backend)
    if (arguments.backend, arguments.seed, arguments.ensemble) != (None, None, 1):
        raise DatasetError(
            f"--what {arguments.what} has a backend and noise of its own: --backend, --seed and "
            "--ensemble are for --bundle"
        )
    work = Work(checkpoint=arguments.checkpoint, resolution=arguments.resolution, trained=True)
    return open_baseline(arguments.what, work, arguments.bundles)


def _rows_of(
    task: Task, data: Dataset, names: list[str], folder: Path, *, constant: bool
) -> list[dict[str, Any]]:
    """The rows of `_score`, with those of a constant map where there is one; groups are printed."""

    def stored(name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32] = np.load(folder / f"{name}.npy", allow_pickle=False)
        return values

    rows = list(_score(task, data, names, stored))
    if data.constant is not None and constant:
        same = data.constant(task)
        guesses = [
            row for row in _score(task, data, names, lambda name: same) if row["images"] != 1
        ]
        rows += [row | {"name": f"constant map: {row['name']}"} for row in guesses]
    for row in rows:
        if row["images"] != 1:
            numbers = " ".join(f"{key} {value:.4f}" for key, value in row["metrics"].items())
            print(f"{task.name}: {row['name']} {numbers}")
    return rows


def _open_data(data: str, bundle: str, tasks: list[Task]) -> dict[str, Dataset]:
    """The data set for each task that it measures. Raises: DatasetError if it measures none."""
    truths = {task.name: task.truth for task in tasks if task.truth is not None}
    predicts = f"{bundle} predicts {' and '.join(task.name for task in tasks)}"
    if not truths:
        raise DatasetError(f"{predicts}, which no ground truth here measures")
    if data == "synthetic":
        require("torch")  # for the constant map, which comes last
        return {name: synthetic(truth) for name, truth in truths.items()}
    dataset = open_folder(Path(data))
    measured = {name: dataset for name, truth in truths.items() if truth == dataset.kind}
    if not measured:
        raise DatasetError(f"{predicts}, but {dataset.name} holds {dataset.kind}")
    return measured


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
    """Mark the folder as this run's. Raises: DatasetError where it holds predictions of another
    bundle or seed.
    """
    mark = folder / "run.json"
    if mark.exists() and json.loads(mark.read_text()) != identity:
        raise DatasetError(
            f"{folder} holds predictions of another build or seed; remove it or pass another "
            "--output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(identity))


def _seeds(subject: Subject, arguments: argparse.Namespace) -> list[int | None]:
    if arguments.mean_of > 1 and arguments.ensemble != 1:
        raise DatasetError("--mean-of and --ensemble are two ways to merge seeds: choose one")
    if arguments.mean_of == 1:
        return [arguments.seed]
    if subject.seed is None or arguments.mean_of < 1:
        raise DatasetError(
            f"--mean-of {arguments.mean_of}: only mode G answers differently for another seed"
        )
    first = subject.seed if arguments.seed is None else arguments.seed
    return list(range(first, first + arguments.mean_of))


def _predict(
    subject: Subject,
    data: Dataset,
    names: list[str],
    folders: Mapping[str, Path],
    seeds: list[int | None],
    ensemble: int,
) -> None:
    """The mean over the seeds of each task's map, or the ensemble's, into the task's folder."""
    start = time.perf_counter()
    for number, name in enumerate(names, start=1):
        if not all((folder / f"{name}.npy").exists() for folder in folders.values()):
            image = data.read(name).image
            predictions = [subject.predict(image, seed, ensemble) for seed in seeds]
            for task, folder in folders.items():
                maps = [_as_output(each[task].values, TASKS[task]) for each in predictions]
                values = TASKS[task].decode(np.mean(maps, axis=0, dtype=np.float32))
                Prediction({task: values}).save((folder / name).parent, Path(name).name)
        seconds = time.perf_counter() - start
        sys.stderr.write(
            f"\r[{number}/{len(names)}] {seconds:.0f} s, about {seconds / number * len(names):.0f} "
            "s in all "
        )
    sys.stderr.write("\n")


def _as_output(values: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """Values [H,W] or [H,W,C] in the order of a network's output, [C,H,W]."""
    return np.moveaxis(values.reshape(*values.shape[:2], task.channels), -1, 0)


def _score(
    task: Task, data: Dataset, names: list[str], predicted: Callable[[str], NDArray[np.float32]]
) -> Iterator[dict[str, Any]]:
    """A row for each image, then one for each group, then one for all."""
    groups = ("all", *sorted({_group(name) for name in names}))
    new = GROUND_TRUTHS[data.kind].accuracy
    accuracies = {group: new(task, data.nearest, data.farthest) for group in groups}
    for name in names:
        sample = data.read(name)
        prediction = predicted(name)
        for group in {"all", _group(name)}:
            metrics = accuracies[group].update(prediction, sample.truth, sample.mask)
        yield {"name": name, "images": 1, "metrics": metrics}
    for group, accuracy in accuracies.items():
        count = sum(group in ("all", _group(name)) for name in names)
        yield {"name": f"{group} ({count} images)", "images": count, "metrics": accuracy.compute()}


def _write_sheet(
    task: Task, data: Dataset, names: list[str], rows: list[dict[str, Any]], folder: Path
) -> Path:
    """A PNG of input, truth and prediction for the best, the median and the worst image, from top
    to bottom.
    """
    ground_truth = GROUND_TRUTHS[data.kind]
    key = ground_truth.ranked_by
    images = [row for row in rows if row["name"] in names and np.isfinite(row["metrics"][key])]
    ranked = sorted(images, key=lambda row: row["metrics"][key])
    lines = []
    for row in (ranked[0], ranked[len(ranked) // 2], ranked[-1]):
        sample = data.read(row["name"])
        values = np.load(folder / f"{row['name']}.npy", allow_pickle=False)
        prediction = Prediction({task.name: values})
        truth = _truth_colors(task, sample, ground_truth)
        lines.append(np.concatenate([sample.image, truth, prediction.colorize()], axis=1))
    width = max(line.shape[1] for line in lines)
    sheet = np.concatenate(
        [np.pad(line, ((0, 4), (0, width - line.shape[1]), (0, 0))) for line in lines]
    )
    Image.fromarray(sheet).save(folder / "sheet.png")
    return folder / "sheet.png"


def _truth_colors(task: Task, sample: Sample, ground_truth: GroundTruth) -> NDArray[np.uint8]:
    """The truth in the model's colours; black where it does not count."""
    values = ground_truth.as_prediction(task, sample.truth, sample.mask)
    colors = Prediction({task.name: values}).colorize()
    return np.where(sample.mask[..., None], colors, 0).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
