"""Which files a map has, whose they are, and writing them: all or none, and none of others'."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.encoding import FORMATS, encode_npy, texts_of
from runtime.errors import DamagedBundleError, OutputError
from runtime.extras import how_to_get
from runtime.files import sha256_of
from runtime.marker import FILES, PICTURE, TASK, UNCERTAINTY, marks
from runtime.writing import Content, write_together

if TYPE_CHECKING:
    from runtime.prediction import TaskMap

DEFAULT = ("npy", "png16", "color")
"""The formats that are written where none are named."""
_ARRAY = "npy"  # the format that carries no mark
_UNCERTAINTY_ENDING = "-uncertainty.npy"


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """These formats in the order of FORMATS, each once.

    Raises: OutputError for one that there is not, or whose package is not installed.
    """
    named = [formats] if isinstance(formats, str) else [*formats]
    unknown = [name for name in named if name not in FORMATS]
    if unknown or not named:
        what = ", ".join(map(repr, unknown)) or "none"
        raise OutputError(f"a result is saved as any of {', '.join(FORMATS)}; found {what}")
    for name in named:
        package = FORMATS[name].package
        if package and importlib.util.find_spec(package) is None:
            raise OutputError(f"cannot save as {name}: {how_to_get(package)}")
    return tuple(name for name in FORMATS if name in named)


def task_stems(stem: Path, tasks: Iterable[str]) -> dict[str, Path]:
    """The result of each task of one picture, named with the task."""
    return {task: stem.with_name(f"{stem.name}-{task}") for task in tasks}


def saved_paths(
    stem: Path, formats: Sequence[str] = DEFAULT, *, uncertain: bool = False
) -> list[Path]:
    """The files of the result `stem`, in the order of `formats`, and with `uncertain` the array of
    an ensemble's uncertainty, which goes with `npy`.
    """
    return [path for _, path in _files(stem, formats, uncertain)]


def save_together(
    maps: Mapping[Path, TaskMap],
    *,
    overwrite: bool = False,
    picture: str = "",
    formats: Sequence[str] = DEFAULT,
) -> None:
    """Write the files of maps of one picture, by their stems: all of them or none.

    `picture` is what the picture is known by; it is stored in the files. `formats` are those of
    `check_formats`. The uncertainty of an earlier result is removed where the new one has none.
    Raises: OutputError.
    """

    def check() -> None:
        for stem, each in maps.items():
            uncertain = each.uncertainty is not None
            check_free(
                stem,
                each.task,
                overwrite=overwrite,
                picture=picture,
                formats=formats,
                uncertain=uncertain,
            )

    contents: dict[Path, Content] = {}
    outdated: list[Path] = []
    for stem, each in maps.items():
        earlier = _owner(stem)
        files = _listed(earlier, each.task, picture, formats)
        texts = texts_of(each, picture, files)
        if _ARRAY in files and _ARRAY not in formats and UNCERTAINTY in earlier:
            texts.setdefault(UNCERTAINTY, earlier[UNCERTAINTY])  # it stays beside the array
        encoded = {name: FORMATS[name].encode(each, texts) for name in _marked_first(formats)}
        contents |= {_path(stem, name): content for name, content in encoded.items()}
        if _ARRAY not in formats:
            continue
        beside = stem.with_name(f"{stem.name}{_UNCERTAINTY_ENDING}")
        if each.uncertainty is not None:
            contents[beside] = encode_npy(each.uncertainty)
        elif UNCERTAINTY in earlier:
            outdated.append(beside)
    write_together(contents, check)
    for path in outdated:
        with contextlib.suppress(OSError):
            path.unlink()


def check_free(
    stem: Path,
    task: str,
    *,
    overwrite: bool = False,
    picture: str = "",
    formats: Sequence[str] = DEFAULT,
    uncertain: bool = False,
) -> None:
    """Refuse to write the result `stem` where it would replace what must stay; `formats` and
    `uncertain` as of `saved_paths`.

    An earlier result of the same task and picture may be replaced, anything else only with
    `overwrite`. An array belongs to the marked file of its name that lists it. Links are not
    followed: nobody but their owner knows what they stand for. Raises: OutputError.
    """
    owner = _owner(stem)
    for name, path in _files(stem, _marked_first(formats), uncertain):
        try:
            kind = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"cannot write {path}: {reason}") from error
        if stat.S_ISDIR(kind):
            raise OutputError(f"cannot write {path}: there is a folder of this name")
        if overwrite:
            continue
        ours = marks(path) if FORMATS[name].marked else owner
        if path.name.endswith(_UNCERTAINTY_ENDING) and UNCERTAINTY not in owner:
            ours = {}  # the array of a picture of that name, say
        if not ours or not stat.S_ISREG(kind):
            what = "it is not a result of lotus-edge"
            if not FORMATS[name].marked:
                what += ", as far as can be told (an array is known by a PNG, NPZ or EXR beside it)"
        elif ours.get(TASK, task) != task:
            what = f"it is the {ours[TASK]} of a picture, and this is its {task}"
        elif ours.get(PICTURE, "") != picture:
            what = "it is the result of another picture, or of this one before it was changed"
        else:
            continue
        raise OutputError(
            f"{path} exists, and {what}. Choose another name or folder, or replace it with "
            "--overwrite (in Python overwrite=True)."
        )


def result_marks(stem: Path) -> dict[str, str]:
    """The marks of the result `stem` that lies there already; empty where there is none of ours."""
    return next(iter(_results(stem)), {})


def fingerprint(path: Path) -> str:
    """By what a picture is known again: the beginning of its SHA-256; empty if it is no file."""
    try:
        return sha256_of(path)[:16]
    except (DamagedBundleError, ValueError):  # reading the picture says why
        return ""


def stem_of(path: str | os.PathLike[str], name: str | None) -> Path:
    """What `save(path, name)` calls its files, without their endings. Raises: OutputError."""
    if not isinstance(path, str | os.PathLike) or not isinstance(name, str | None):
        raise OutputError(f"expected the path of a result, found {path!r}, {name!r}")
    text = str(Path(path) / name) if name else str(os.fspath(path))
    if name:
        return _without_ending(text)
    is_folder = os.path.isdir(text or ".")  # noqa: PTH112  (False, no error, for any odd name)
    if is_folder or text.endswith(("/", os.sep)):
        return Path(text) / "prediction"
    return _without_ending(text)


def _without_ending(text: str) -> Path:
    endings = [each.ending for each in FORMATS.values()]
    for ending in sorted(endings, key=len, reverse=True):
        name = Path(text).name
        if name.endswith(ending) and name.removesuffix(ending) not in ("", ".", ".."):
            return Path(text.removesuffix(ending))
    return Path(text)


def _path(stem: Path, name: str) -> Path:
    return stem.with_name(f"{stem.name}{FORMATS[name].ending}")


def _files(stem: Path, formats: Sequence[str], uncertain: bool) -> list[tuple[str, Path]]:
    """The files with their formats."""
    files = [(name, _path(stem, name)) for name in formats]
    if uncertain and _ARRAY in formats:
        files.append((_ARRAY, stem.with_name(f"{stem.name}{_UNCERTAINTY_ENDING}")))
    return files


def _marked_first(formats: Sequence[str]) -> list[str]:
    """In the order in which files appear: an array is known as ours by a file beside it."""
    return sorted(formats, key=lambda name: not FORMATS[name].marked)


def _results(stem: Path) -> list[dict[str, str]]:
    """The marks of the files of ours that lie there, colours first."""
    names = ("color", *(name for name in FORMATS if name != "color" and FORMATS[name].marked))
    return [found for name in names if (found := marks(_path(stem, name)))]


def _owner(stem: Path) -> dict[str, str]:
    """The marks of the file of ours to which the array `stem` belongs; empty where there is
    none.
    """
    return next((each for each in _results(stem) if _ARRAY in _of_result(each)), {})


def _of_result(found: Mapping[str, str]) -> list[str]:
    return found.get(FILES, " ".join(DEFAULT)).split()


def _listed(
    owner: Mapping[str, str], task: str, picture: str, formats: Sequence[str]
) -> Sequence[str]:
    """The files of the result: those that are written now, and an array of the same picture and
    task that stays.
    """
    same = bool(owner) and (owner.get(TASK), owner.get(PICTURE, "")) == (task, picture)
    return [name for name in FORMATS if name in formats or (name == _ARRAY and same)]
