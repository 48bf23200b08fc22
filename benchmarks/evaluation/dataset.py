"""What a data set is, and how the one on a disk is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.protocol import Protocol
from export.data_sets import DataSetError, Layout, Source, find_pictures, find_source

_BELOW = ("", "depth", "normal")  # of the root; the authors' code has two roots


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line of a set's list: the picture's file, and those of its truth."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture uint8 [H,W,3] with its truth: depth float32 [H,W] in metres, or normals float32
    [H,W,3] as the file has them; `mask` [H,W]: what counts.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set of the paper.

    `count` is the number of pictures in the paper's split. `lists` are names of the authors' list:
    the part after `data_split/`, or for normals after `dataset_normal/`. `read` may raise
    DataSetError. `examples` are names of one picture and its truth; they, `origin`, `licence`,
    `size` and `checksum` are for people.
    """

    name: str
    title: str
    layout: Layout
    count: int
    list_name: str
    read: Callable[[Source, Item], Sample]
    protocol: Protocol
    examples: tuple[str, ...]
    origin: str
    licence: str
    size: str
    checksum: str = "none is published"

    @property
    def kind(self) -> str:
        """Of its truth: "depth" or "normal"."""
        return self.layout.kind

    @property
    def key(self) -> str:
        """The name, and what tells it from the other set of this name."""
        return f"{self.name}-{self.kind}"


@dataclass(frozen=True, kw_only=True)
class OpenSet:
    """A data set on a disk. `listed` is the authors' list where it was found, `left_out` how many
    pictures do not count, by the reason.
    """

    data: DataSet
    source: Source
    items: list[Item]
    listed: str | None
    left_out: dict[str, int] = field(default_factory=dict)

    def read(self, item: Item) -> Sample:
        """Raises: DataSetError, also where picture, truth and mask differ in size."""
        sample = self.data.read(self.source, item)
        sizes = [array.shape[:2] for array in (sample.image, sample.truth, sample.mask)]
        if len(set(sizes)) != 1:
            raise DataSetError(
                f"{item.name} of {self.source.path}: picture, truth and mask differ in size: "
                f"{', '.join(f'{height} x {width}' for height, width in sizes)}"
            )
        return sample


def open_set(data: DataSet, root: Path, lists: Path | None = None) -> OpenSet | None:
    """The set under a root; None where there is none. `lists` is the folder of the authors' lists.

    Raises: DataSetError where a file is missing; it names the first one.
    """
    places = (root / below for below in _BELOW)
    source = next(filter(None, (find_source(place, data.layout) for place in places)), None)
    if source is None:
        return None
    names = source.names()
    by_rule = find_pictures(names, data.layout.rules, source.has)
    found = _find_list(data, root, source, lists)
    if found is None:
        items = [Item(name=name, files=files) for name, files in by_rule.items()]
        listed = None
    else:
        listed, text = found
        items = _parse(data, by_rule, text, listed)
    kept, left_out = [], {}
    for item in items:
        known = "None" not in item.files and (
            found is not None or not data.layout.gaps or all(map(source.has, item.files))
        )
        kept += [item] if known else []
    if len(kept) < len(items):
        left_out["no truth in the published set"] = len(items) - len(kept)
    _check_files(data, source, kept)
    return OpenSet(data=data, source=source, items=kept, listed=listed, left_out=left_out)


def where_expected(data: DataSet, root: Path) -> str:
    """Where a set that is missing would be."""
    place = root / data.layout.places[0]
    return f"{data.title} ({data.kind}): expected {place}.tar, or the folder {place} unpacked"


def _find_list(
    data: DataSet, root: Path, source: Source, lists: Path | None
) -> tuple[str, str] | None:
    """The authors' list, where it is at hand: its path and its text."""
    beside = source.path if source.path.is_dir() else source.path.parent
    relative = Path(data.list_name)
    candidates = [lists / relative] if lists else []
    candidates += [root / below / "data_split" / relative for below in _BELOW]
    candidates += [beside / Path(*relative.parts[1:])]
    if relative.name != "test.txt":  # two sets have such a list
        candidates += [lists / relative.name] if lists else []
        candidates += [beside / relative.name, beside.parent / relative.name]
    for path in candidates:
        if path.is_file():
            try:
                return str(path), path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise DataSetError(f"cannot read the list {path}: {error}") from error
    for name in (relative.name, Path(*relative.parts[1:]).as_posix()):
        if source.has(name):
            text = source.read(name).decode("utf-8", "replace")
            return f"{name} of {source.path}", text
    return None


def _parse(
    data: DataSet, by_rule: dict[str, tuple[str, ...]], text: str, listed: str
) -> list[Item]:
    """A line is the picture and, for depth, its truth and what else there is."""
    count = len(data.layout.rules[0]) - 1
    items: dict[str, Item] = {}
    for line in text.splitlines():
        name, *files = (word.removeprefix("./") for word in line.split()) if line.split() else ("",)
        if not name:
            continue
        if not files:
            absent = find_pictures([name], data.layout.rules, lambda file: False)
            files = list((absent | by_rule).get(name, ()))
        if len(files) < count or any(".." in Path(word).parts for word in (name, *files)):
            raise DataSetError(f"{listed}: cannot use the line {line[:200]!r}")
        items[name] = Item(name=name, files=tuple(files[:count]))
    return list(items.values())


def _check_files(data: DataSet, source: Source, items: list[Item]) -> None:
    files = [name for item in items for name in (item.name, *item.files)]
    missing = [name for name in files if not source.has(name)]
    if missing:
        raise DataSetError(
            f"{data.title} in {source.path} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more of {len(files)} files" if len(missing) > 1 else "")
            + ". It was copied or unpacked in part: do that again. `python -m benchmarks.evaluate "
            "--list` says what it holds"
        )
    if not items:
        pattern = data.layout.rules[0][0]
        raise DataSetError(
            f"{data.title} in {source.path} has no pictures (names like {pattern}). `python -m "
            "benchmarks.evaluate --list` says what it holds"
        )
