"""Where the pictures of published data sets lie: under a root, in a folder or an uncompressed tar.

`LAYOUTS` is the list. The benchmark that measures on these sets (`benchmarks/evaluation`) and the
calibration of a build read them through `Source`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from runtime.errors import LotusError
from runtime.there import exists, is_dir, is_file

T = TypeVar("T")
_BLOCK = 512  # bytes; a tar ends with two such blocks of zeros


class DataSetError(LotusError):
    """A data set is missing, half unpacked, or holds what cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One data set as people have it.

    `places` are paths under the root, the first one is the published one; each may be a folder, or
    a file of this name with ".tar". `rules` say which files are pictures of the test split: a
    pattern for the whole name, and what its groups make of it, the names of the picture's truth (a
    map, or a map and its mask). Of several rules for one picture the first counts whose files are
    there. `training` is such a rule for pictures that no benchmark measures. `gaps`: the published
    set has pictures without truth, which do not count.
    """

    name: str
    kind: str
    places: tuple[str, ...]
    rules: tuple[tuple[str, ...], ...]
    training: tuple[str, ...] | None = None
    gaps: bool = False


class Source(Protocol):
    """The files of a folder or a tar, by their POSIX path in it."""

    path: Path

    def names(self) -> list[str]:
        """Every file, sorted."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def size(self, name: str) -> int:
        """Its bytes, of one that is there."""

    def read(self, name: str) -> bytes:
        """Its content. Raises: DataSetError."""


class FolderSource:
    """Files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Every file, sorted."""
        return sorted(
            Path(folder, file).relative_to(self.path).as_posix()
            for folder, _, files in os.walk(self.path)
            for file in files
        )

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return is_file(self.path / name)

    def size(self, name: str) -> int:
        """Its bytes, of one that is there."""
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        """Its content. Raises: DataSetError."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise DataSetError(f"cannot read {self.path / name}: {reason}") from error


class TarSource:
    """Members of an uncompressed tar, which stays packed. "./" before a name does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._where = dict(_members(path))

    def names(self) -> list[str]:
        """Every file, sorted."""
        return sorted(self._where)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._where

    def size(self, name: str) -> int:
        """Its bytes, of one that is there."""
        return self._where[name][1]

    def read(self, name: str) -> bytes:
        """Its content. Raises: DataSetError."""
        if name not in self._where:
            raise DataSetError(f"{self.path} holds no {name}")
        start, size = self._where[name]
        try:
            with self.path.open("rb") as stream:
                stream.seek(start)
                content = stream.read(size)
        except OSError as error:
            reason = error.strerror or error
            raise DataSetError(f"cannot read {self.path}: {reason}") from error
        if len(content) != size:
            raise DataSetError(f"{self.path} ends inside {name}: it was copied in part")
        return content


def open_source(path: Path) -> Source:
    """The files of a folder, or of a tar. Raises: DataSetError."""
    return FolderSource(path) if is_dir(path) else TarSource(path)


def find_layout(name: str, kind: str) -> Layout:
    """The entry of LAYOUTS."""
    return next(each for each in LAYOUTS if (each.name, each.kind) == (name, kind))


def find_source(root: Path, layout: Layout) -> Source | None:
    """The set under a root: the first of its places that has something in it. None where there is
    none. Raises: DataSetError for a damaged tar.
    """
    for place in layout.places:
        folder = root / place
        tar = folder.with_name(f"{folder.name}.tar")
        for path in (folder, tar):
            if is_file(path) or (is_dir(path) and _holds_data(path)):
                return open_source(path)
    return None


def find_pictures(
    names: list[str], rules: tuple[tuple[str, ...], ...], has: Callable[[str], bool]
) -> dict[str, tuple[str, ...]]:
    """The pictures among the names, each with the files of its truth: those that are there, as
    `has` says, else those that the first rule would have.
    """
    found: dict[str, tuple[str, ...]] = {}
    whole: set[str] = set()
    for pattern, *truths in rules:
        rule = re.compile(pattern, re.IGNORECASE)
        for name in names:
            if name in whole or not (match := rule.fullmatch(name)):
                continue
            files = tuple(match.expand(truth) for truth in truths)
            if all(map(has, files)):
                found[name] = files
                whole.add(name)
            else:
                found.setdefault(name, files)
    return dict(sorted(found.items()))


def calibration_pictures(path: Path) -> tuple[Source, list[str]] | None:
    """The pictures of the data set that lies at `path`: its folder, its tar, or the folder that
    holds one of these. Those of a training split come before those that a benchmark measures. None
    where it is no known set. Raises: DataSetError for a damaged tar.
    """
    candidates = [path]
    if is_dir(path):
        lasts = dict.fromkeys(Path(place).name for layout in LAYOUTS for place in layout.places)
        candidates += [path / f"{last}{ending}" for last in lasts for ending in ("", ".tar")]
    for candidate in filter(exists, candidates):
        source = open_source(candidate)
        names = source.names()
        for layout in LAYOUTS:
            for rules in ((layout.training,) if layout.training else (), layout.rules):
                found = find_pictures(names, rules, source.has)
                if pictures := [name for name, files in found.items() if source.has(files[0])]:
                    return source, pictures
    return None


def spread(items: list[T], count: int | None) -> list[T]:
    """`count` of the items, evenly over all of them and in their order; all where None."""
    if count is None or count >= len(items):
        return items
    return [items[number * len(items) // count] for number in range(count)]


def _members(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each regular file of a tar, with where its content begins and how long it is."""
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                blocks = -(-member.size // _BLOCK) if member.isreg() else 0
                end = max(end, member.offset_data + blocks * _BLOCK)
                if member.isreg():
                    yield member.name.removeprefix("./"), (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise DataSetError(
            f"{path} is no complete, uncompressed tar ({error}). Copy it again; unpack one that is "
            "compressed"
        ) from error
    if path.stat().st_size < end + _BLOCK:
        raise DataSetError(f"{path} has no end: it was copied in part. Copy it again")


def _holds_data(folder: Path) -> bool:
    """Whether there is more in a folder than tars and text, which may lie beside it."""
    return any(is_dir(path) or path.suffix not in (".tar", ".txt") for path in folder.iterdir())


_ENDING = r"\.(?:png|jpe?g)"
_NORMALS = {"nyuv2": "png", "scannet": "png", "ibims": "exr", "sintel": "exr", "oasis": "pkl"}
LAYOUTS = (
    Layout(
        name="nyuv2",
        kind="depth",
        places=("nyuv2/nyu_labeled_extracted", "nyuv2"),
        rules=((rf"(test/(?:.+/)?)rgb_([^/]+){_ENDING}", r"\1depth_\2.png"),),
        training=(rf"(train/(?:.+/)?)rgb_([^/]+){_ENDING}", r"\1depth_\2.png"),
    ),
    Layout(
        name="kitti",
        kind="depth",
        places=("kitti/kitti_eigen_split_test", "kitti"),
        rules=(
            (
                rf"[^/]+/([^/]+)/image_02/data/([^/]+){_ENDING}",
                r"\1/proj_depth/groundtruth/image_02/\2.png",
            ),
        ),
        gaps=True,
    ),
    Layout(
        name="eth3d",
        kind="depth",
        places=("eth3d/eth3d", "eth3d"),
        rules=(
            (
                rf"rgb/([^/]+)/images/(.+{_ENDING})",
                r"depth/\1_dslr_depth/\1/ground_truth_depth/\2",
            ),
            (rf"rgb/(.+{_ENDING})", r"depth/\1"),
        ),
    ),
    Layout(
        name="scannet",
        kind="depth",
        places=("scannet/scannet_val_sampled_800_1", "scannet"),
        rules=((rf"(.+/)color/([^/]+){_ENDING}", r"\1depth/\2.png"),),
    ),
    *(
        Layout(
            name=name,
            kind="normal",
            places=(f"dsine_eval/{name}",),
            rules=((rf"(.+)_img{_ENDING}", rf"\1_normal.{ending}"),),
        )
        for name, ending in _NORMALS.items()
    ),
    Layout(
        name="diode",
        kind="depth",
        places=("diode/diode_val", "diode"),
        rules=((r"(.+)\.png", r"\1_depth.npy", r"\1_depth_mask.npy"),),
    ),
)
"""Source: the evaluation code of Lotus, whose depth sets are Marigold's and whose normals are
DSINE's.
"""
