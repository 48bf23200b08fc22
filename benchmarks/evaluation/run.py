"""A bundle on data sets: picture by picture, and what came of each set."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation.dataset import DataSet, Item, OpenSet, open_set, where_expected
from benchmarks.evaluation.journal import Journal
from benchmarks.evaluation.protocol import Fed, Keys, Map, Record
from benchmarks.evaluation.sets import SETS
from export.data_sets import DataSetError, spread
from runtime import LotusEngine
from runtime.console import say
from runtime.image import choose_bucket, fit_of
from runtime.tasks import TASKS, Task

_VERSION = 1  # of the records; another one does not go on where this one was
_EVERY = 30.0  # seconds between lines of progress where nobody watches


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured: sets by name (empty: all that are under `root`), `count` pictures of each
    (None: all), how mode G draws its noise, and the folder of what is kept.
    """

    root: Path
    output: Path
    sets: tuple[str, ...] = ()
    lists: Path | None = None
    count: int | None = None
    seed: int | None = None
    ensemble: int = 1

    def __post_init__(self) -> None:
        names = {data.name for data in SETS}
        if unknown := [name for name in self.sets if name not in names]:
            raise DataSetError(
                f"--sets {','.join(unknown)}: no such set; known: {', '.join(sorted(names))}"
            )
        for option, number in (("--count", self.count), ("--ensemble", self.ensemble)):
            if number is not None and number < 1:
                raise DataSetError(f"{option} is a number from 1 on, found {number}")
        for option, folder in (("--data", self.root), ("--lists", self.lists)):
            if folder is not None and not folder.is_dir():
                raise DataSetError(f"{option} {folder}: there is no such folder")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One set, measured for one task. `records` are in the set's order, `metrics` are those of the
    whole; `load_keys` gives the keys of a record's angles.
    """

    data: DataSet
    task: Task
    opened: OpenSet
    records: list[Record]
    metrics: dict[str, float]
    folder: Path
    load_keys: Callable[[Record], Keys]

    @property
    def seconds(self) -> dict[str, float]:
        """Of all pictures together, by stage."""
        stages = self.records[0]["seconds"]
        return {stage: sum(record["seconds"][stage] for record in self.records) for stage in stages}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a bundle reached; `missing` are sets that are not under the root."""

    engine: LotusEngine
    settings: Settings
    folder: Path
    results: list[Result]
    missing: list[DataSet]


def evaluate(engine: LotusEngine, settings: Settings) -> Evaluation:
    """Measure a bundle on every set that its tasks can be measured with.

    Raises: DataSetError for a set that was asked for and is not there, or has a missing file;
    LotusError of the engine.
    """
    engine.check_seed(settings.seed, settings.ensemble)
    tasks = [TASKS[name] for name in engine.manifest.tasks]
    opened, missing = _open_sets(tasks, settings)
    manifest = engine.manifest
    parts = [manifest.name, manifest.precision, engine.backend]
    parts += [] if settings.seed is None else [f"seed-{settings.seed}"]
    parts += [] if settings.ensemble == 1 else [f"ensemble-{settings.ensemble}"]
    folder = settings.output / "-".join(parts)
    results = []
    for each in opened:
        results += _measure_set(engine, each, tasks, settings, folder)
    return Evaluation(
        engine=engine, settings=settings, folder=folder, results=results, missing=missing
    )


def predict(engine: LotusEngine, settings: Settings, fed: Fed) -> dict[str, Map]:
    """The values of each task at the pixels of the truth."""
    prediction = engine(fed.picture, seed=settings.seed, ensemble=settings.ensemble)
    return {task: fed.restore(each.values) for task, each in prediction.items()}


def _open_sets(tasks: Sequence[Task], settings: Settings) -> tuple[list[OpenSet], list[DataSet]]:
    kinds = {task.truth for task in tasks}
    wanted = [
        data
        for data in SETS
        if data.kind in kinds and (not settings.sets or data.name in settings.sets)
    ]
    predicts = f"the bundle predicts {' and '.join(task.name for task in tasks)}"
    if not wanted:
        asked = ", ".join(settings.sets) or "the data sets"
        raise DataSetError(f"{predicts}, which no truth of {asked} measures")
    opened, missing = [], []
    for data in wanted:
        found = open_set(data, settings.root, settings.lists)
        if found is not None:
            opened.append(found)
        else:
            missing.append(data)
    found_names = {each.data.name for each in opened}
    if not opened or not set(settings.sets) <= found_names:
        there = [where_expected(data, settings.root) for data in missing]
        raise DataSetError(
            f"{predicts}; there is no {'; nor '.join(there)}. `python -m benchmarks.evaluate "
            "--list` says where people get them"
        )
    return opened, missing


def _measure_set(
    engine: LotusEngine, opened: OpenSet, tasks: Sequence[Task], settings: Settings, folder: Path
) -> Iterator[Result]:
    """A result for each task that the set measures; pictures are predicted once for all."""
    data = opened.data
    measured = [task for task in tasks if task.truth == data.kind]
    items = spread(opened.items, settings.count)
    identity = {
        "version": _VERSION,
        "files": [file.sha256 for file in engine.manifest.files],
        "backend": engine.backend,
        "seed": settings.seed,
        "ensemble": settings.ensemble,
    }
    with ExitStack() as stack:
        journals = {}
        for task in measured:
            place = folder / f"{data.name}-{task.name}"
            journals[task.name] = Journal(place, identity | {"task": task.name, "set": data.key})
            stack.callback(journals[task.name].close)
        rows = list(_records(engine, opened, items, journals, settings))
        for task in measured:
            records = [row[task.name] for row in rows]
            journal = journals[task.name]
            yield Result(
                data=data,
                task=task,
                opened=opened,
                records=records,
                metrics=data.protocol.pool(records, journal.load_keys),
                folder=journal.folder,
                load_keys=journal.load_keys,
            )


def _records(
    engine: LotusEngine,
    opened: OpenSet,
    items: Sequence[Item],
    journals: Mapping[str, Journal],
    settings: Settings,
) -> Iterator[dict[str, Record]]:
    """The records of each picture by task: those that are kept, else made now."""
    progress = _Progress(f"{opened.data.title} ({opened.data.kind})", len(items))
    for item in items:
        sizes = [opened.source.size(name) for name in (item.name, *item.files)]
        kept = {task: journal.get(item.name, sizes) for task, journal in journals.items()}
        found = {task: record for task, record in kept.items() if record is not None}
        if len(found) < len(journals):
            found = _measure(engine, opened, item, sizes, journals, settings)
            progress.measured()
        progress.step()
        yield found
    progress.end()


def _measure(
    engine: LotusEngine,
    opened: OpenSet,
    item: Item,
    sizes: list[int],
    journals: Mapping[str, Journal],
    settings: Settings,
) -> dict[str, Record]:
    start = time.perf_counter()
    sample = opened.read(item)
    fed = opened.data.protocol.feed(sample.image)
    read = time.perf_counter()
    values = predict(engine, settings, fed)
    predicted = time.perf_counter()
    same = {
        "name": item.name,
        "bytes": sizes,
        "size": [*sample.image.shape[:2]],
        **_how(engine, fed),
    }
    records = {}
    for name, journal in journals.items():
        begin = time.perf_counter()
        measured = opened.data.protocol.measure(
            TASKS[name], values[name], sample.truth, sample.mask
        )
        records[name] = same | {
            "pixels": measured.pixels,
            "metrics": measured.metrics,
            "counts": measured.counts.tolist(),
            "seconds": {
                "read": read - start,
                "predict": predicted - read,
                "measure": time.perf_counter() - begin,
            },
        }
        journal.add(records[name], measured)
    return records


def _how(engine: LotusEngine, fed: Fed) -> dict[str, Any]:
    """How a picture lies in its bucket."""
    bucket = choose_bucket(engine.manifest.buckets, fed.height, fed.width)
    fit = fit_of(fed.height, fed.width, bucket)
    content = (fit.content_height, fit.content_width)
    words = ["resized"] if content != (fed.height, fed.width) else []
    words += ["padded"] if content != (bucket.height, bucket.width) else []
    return {
        "fed": [fed.height, fed.width],
        "bucket": f"{bucket.height}x{bucket.width}",
        "how": " and ".join(words) or "as it is",
    }


class _Progress:
    """A line on stderr: rewritten where a terminal shows it, else one from time to time."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done, self._new = title, total, 0, 0
        self._start = self._said = time.monotonic()
        self._watched = sys.stderr is not None and sys.stderr.isatty()

    def measured(self) -> None:
        self._new += 1

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if self._watched:
            sys.stderr.write(f"\r{self._line(now)} ")
        elif now - self._said > _EVERY:
            say(self._line(now))
            self._said = now

    def end(self) -> None:
        if self._watched:
            sys.stderr.write("\n")
        else:
            say(self._line(time.monotonic()))

    def _line(self, now: float) -> str:
        seconds = now - self._start
        left = seconds / max(self._new, 1) * (self._total - self._done)
        known = self._done - self._new
        return (
            f"{self._title}: {self._done} of {self._total}, {seconds:.0f} s"
            + (f", {known} from before" if known else "")
            + (f", about {left:.0f} s to go" if self._new and left >= 1 else "")
        )


def ranked(result: Result) -> list[Record]:
    """The records with a pixel that counts, the best first."""
    key = result.data.protocol.ranked_by
    counted = [record for record in result.records if record["pixels"]]
    return sorted(counted, key=lambda record: (record["metrics"][key], record["name"]))


def pixel_counts(result: Result) -> np.ndarray:
    """Pixels of the whole set in each bin of errors."""
    return np.sum([record["counts"] for record in result.records], axis=0)
