"""Which pictures some paths hold, and what the results of each are called."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ImageError, OutputError
from runtime.files import ending
from runtime.image import IMAGE_SUFFIXES, why_not_read
from runtime.marker import TASK, made_by_us
from runtime.saving import DEFAULT, result_marks, saved_paths, task_stems

# Why files in a folder are left out.
_RESULT = "results of an earlier run"
_IN_OUTPUT = "in the --output folder"
_LINK = "links to folders: name those folders"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture to predict for. `name` is that of its result, without ending and output folder.

    `problem` says why it cannot be done, where that is known beforehand.
    """

    path: Path
    name: Path
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What some paths hold: pictures, and the number of files left out for each reason."""

    pictures: list[Picture]
    skipped: Counter[str]


def find_pictures(paths: Sequence[Path], output: Path) -> Found:
    """The pictures among these files, and in these folders with their subfolders.

    A file that is named is tried, whatever its ending. In a folder the endings decide: of those
    that are no picture's nothing is said. Results of an earlier run are left out, wherever they
    lie, and so is the output folder. Links to folders are not followed.

    Raises: ImageError without pictures, OutputError if `output` is one of the folders.
    """
    pictures: list[Picture] = []
    skipped: Counter[str] = Counter()
    for path in paths:
        is_folder = os.path.isdir(path)  # noqa: PTH112  (False, no error, for any odd name)
        for item in _walk(path, output) if is_folder else _named(path):
            if isinstance(item, Picture):
                pictures.append(item)
            else:
                skipped[item] += 1
    if not pictures:
        left_out = f" ({in_words(skipped)} left out)" if skipped else ""
        raise ImageError(f"no images found in what was given{left_out}")
    return Found(pictures=pictures, skipped=skipped)


@dataclass(frozen=True, kw_only=True)
class Names:
    """The pictures with the final names of their results; the formats in which these are saved,
    whether they end with the task, and whether an uncertainty is written.
    """

    pictures: list[Picture]
    output: Path
    tasks: list[str]
    uncertain: bool
    formats: Sequence[str] = DEFAULT
    with_task: bool = False

    @classmethod
    def make(
        cls,
        pictures: list[Picture],
        output: Path,
        tasks: list[str],
        *,
        formats: Sequence[str] = DEFAULT,
        uncertain: bool = False,
    ) -> Names:
        """Names under which no result replaces another, an image, or another task's result.

        `a.jpg` beside `a.png` become `a-jpg` and `a-png`, and those of two named folders lie below
        the folders' names. The task is part of all names where a
        bundle has several, or where one would be that of an earlier result of another task. What
        collides all the same gets a problem, all but the first.
        """
        plan = cls(
            pictures=_apart(pictures),
            output=output,
            tasks=tasks,
            formats=formats,
            uncertain=uncertain,
        )
        if len(tasks) > 1 or plan._meets_another_task():
            plan = dataclasses.replace(plan, with_task=True)
        return dataclasses.replace(plan, pictures=[*plan._checked()])

    def stems(self, picture: Picture) -> dict[str, Path]:
        """The result of each task: its path without ending."""
        stem = self.output / picture.name
        named = self.with_task
        return task_stems(stem, self.tasks) if named else dict.fromkeys(self.tasks, stem)

    def _meets_another_task(self) -> bool:
        return any(
            result_marks(stem).get(TASK, task) != task
            for picture in self.pictures
            if not picture.problem
            for task, stem in self.stems(picture).items()
        )

    def _checked(self) -> Iterator[Picture]:
        owners: dict[str, str] = {}
        for picture in self.pictures:
            # Where the picture lies, and where it is named: that may be a link to it.
            owners[_same(os.path.realpath(picture.path))] = f"the image {picture.path}"
            owners[_same(_place(picture.path))] = f"the image {picture.path}"
        for picture in self.pictures:
            if picture.problem:
                yield picture
                continue
            targets = [
                path
                for stem in self.stems(picture).values()
                for path in saved_paths(stem, self.formats, uncertain=self.uncertain)
            ]
            keys = [_same(_place(path)) for path in targets]
            owner = next((owners[key] for key in keys if key in owners), None)
            if owner is None:
                owners |= dict.fromkeys(keys, f"that of {picture.path}")
                yield picture
                continue
            yield dataclasses.replace(
                picture,
                problem=f"the result of {picture.path} would overwrite {owner}; predict it into "
                "another --output folder",
            )


def _apart(pictures: list[Picture]) -> list[Picture]:
    """Each picture once. Where names of results are equal they get what tells them apart: the
    folder that was named, and then the ending.
    """
    once = {(os.path.realpath(picture.path), picture.name): picture for picture in pictures}
    return _renamed(_renamed([*once.values()], _with_folder), _with_ending)


def _renamed(pictures: list[Picture], new_name: Callable[[Picture], Path]) -> list[Picture]:
    """Pictures of one name get new names, if those are not all the same again."""
    names: dict[str, set[str]] = {}
    for picture in pictures:
        if not picture.problem:
            names.setdefault(_same(picture.name), set()).add(_same(new_name(picture)))
    return [
        dataclasses.replace(picture, name=new_name(picture))
        if len(names.get(_same(picture.name), ())) > 1
        else picture
        for picture in pictures
    ]


def _with_folder(picture: Picture) -> Path:
    """Below the name of the folder that was named, or in which the named picture lies."""
    folder = os.path.realpath(picture.path.parents[len(picture.name.parts) - 1])
    return Path(Path(folder).name, picture.name)


def _with_ending(picture: Picture) -> Path:
    kind = ending(picture.path)[1:]
    return picture.name.with_name(f"{picture.name.name}-{kind}") if kind else picture.name


def _named(path: Path) -> Iterator[Picture | str]:
    yield _RESULT if made_by_us(path) else Picture(path=path, name=_without_ending(Path(path.name)))


def _without_ending(path: Path) -> Path:
    """The rest of `..png` and `...png` would be a folder: these keep their ending."""
    stem = path.name.removesuffix(ending(path))
    return path if stem in ("", ".", "..") else path.with_name(stem)


def _walk(folder: Path, output: Path) -> Iterator[Picture | str]:
    """The pictures in a folder, in the order of their names, and why others are left out."""
    root, results = (Path(os.path.realpath(path)) for path in (folder, output))
    if root == results:
        raise OutputError(
            f"--output {output} is the folder of the images; name another, or a folder inside it"
        )
    unlisted: list[OSError] = []
    for here, folders, names in os.walk(folder, onerror=unlisted.append):
        folders.sort()
        for name in folders:
            if os.path.islink(Path(here, name)):  # noqa: PTH114  (no error where it may not look)
                yield _LINK
        real = Path(os.path.realpath(here))
        in_output = results.is_relative_to(root) and real.is_relative_to(results)
        for path in (Path(here, name) for name in sorted(names)):
            if reason := _why_not(path, in_output):
                yield reason
            elif reason is None:
                yield Picture(path=path, name=_without_ending(path.relative_to(folder)))
    for error in unlisted:
        path = Path(error.filename)
        reason = f"{path}: the folder cannot be listed: {error.strerror}"
        yield Picture(path=path, name=Path(), problem=reason)


def _why_not(path: Path, in_output: bool) -> str | None:
    """Why a file in a folder is left out; None for a picture, empty for what is none."""
    suffix = ending(path).lower()
    if path.name.startswith("._"):  # what macOS writes beside a file on foreign disks
        return ""
    if suffix not in IMAGE_SUFFIXES:
        reason = why_not_read(suffix)
        return f"{suffix}: {reason}" if reason else ""
    if made_by_us(path):
        return _RESULT
    return _IN_OUTPUT if in_output else None


def _place(path: Path) -> Path:
    """Where a file of this name lies or would lie, the links of its folder followed."""
    return Path(os.path.realpath(path.parent), path.name)


def _same(path: str | Path) -> str:
    """Equal for names that some file system does not tell apart: by case, or by how an accent is
    written.
    """
    composed = unicodedata.normalize("NFC", str(path))
    return unicodedata.normalize("NFC", composed.casefold())


def in_words(skipped: Counter[str]) -> str:
    """Why files were left out, with a number for each where there are several."""
    if len(skipped) == 1:
        return next(iter(skipped))
    return "; ".join(f"{count} {reason}" for reason, count in skipped.most_common())
