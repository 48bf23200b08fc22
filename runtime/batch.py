"""Predict for many pictures, and go on where one cannot be done.

What concerns one picture is that picture's outcome. What concerns the bundle or its backend ends
the batch.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from runtime.console import one_line, say
from runtime.engine import LotusEngine
from runtime.errors import ImageError, ImageWarning, OutputError
from runtime.found import Found, Names, Picture, in_words
from runtime.prediction import Prediction
from runtime.saving import (
    DEFAULT,
    check_formats,
    check_free,
    fingerprint,
    save_together,
    saved_paths,
)

_PAUSE = 5.0  # seconds between two lines of progress


def predict_all(
    engine: LotusEngine,
    found: Found,
    output: Path,
    *,
    overwrite: bool = False,
    formats: Sequence[str] = DEFAULT,
    options: Mapping[str, Any],
) -> int:
    """Predict for each picture, write the results below `output`, and say on stderr what came out.

    Pictures are done in their order, as many at once as the bundle's largest batch takes. `options`
    are those of a call of the engine; with `tiles` pictures are done alone, and it is said how far
    each is. `formats` are those of `Prediction.save`. The last line counts what was done, skipped
    and failed, also when an error ends the batch. Returns the number of pictures that failed.

    Raises: OutputError if nothing can be written there, BackendError, BundleError,
    VerificationError.
    """
    formats = check_formats(formats)
    _make_folder(output)
    names = Names.make(
        found.pictures,
        output,
        engine.manifest.tasks,
        formats=formats,
        uncertain=options.get("ensemble", 1) > 1,
    )
    failed: list[str] = []
    tried = 0
    tiles = options.get("tiles", False)
    most = 1 if tiles else max(bucket.batch for bucket in engine.manifest.buckets)
    if tiles:
        options = {**options, "progress": _TileProgress()}
    try:
        for at in range(0, len(names.pictures), most):
            group = names.pictures[at : at + most]
            start = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ImageWarning)
                outcomes = _predict_group(engine, group, names, overwrite, options)
            seconds = (time.perf_counter() - start) / len(group)
            for picture, outcome in zip(group, outcomes, strict=True):
                tried += 1
                if isinstance(outcome, Exception):
                    failed.append(str(outcome))
                    words = f"FAILED: {outcome}"
                else:
                    words = f"{seconds:.2f} s -> {outcome}"
                say(one_line(f"[{tried}/{len(names.pictures)}] {picture.path}  {words}"))
            say(*(one_line(f"  warning: {each.message}") for each in caught))
    finally:
        if failed and len(names.pictures) > 1:
            say("failed:", *(f"  {one_line(reason)}" for reason in failed))
        left = len(names.pictures) - tried
        say(_summary(tried - len(failed), found.skipped, len(failed), left))
    return len(failed)


# What was written for a picture, in words, or why nothing was.
_Outcome: TypeAlias = "str | ImageError | OutputError"


class _TileProgress:
    """Says how many tiles of a picture are done, at most once in a few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last >= _PAUSE:
            self._last = now
            say(f"  {done} of {total} tiles")


def _predict_group(
    engine: LotusEngine,
    pictures: list[Picture],
    names: Names,
    overwrite: bool,
    options: Mapping[str, Any],
) -> list[_Outcome]:
    """For each picture what was written, or why nothing was."""
    outcomes: dict[Picture, _Outcome] = {}
    known_by: dict[Picture, str] = {}
    for picture in pictures:  # before the work
        try:
            known_by[picture] = _check(picture, names, overwrite)
        except (ImageError, OutputError) as error:
            outcomes[picture] = error
    ready = [*known_by]
    for picture, answer in zip(ready, _answers(engine, ready, options), strict=True):
        if isinstance(answer, ImageError):
            outcomes[picture] = answer
            continue
        stems = names.stems(picture)
        maps = {stems[task]: each for task, each in answer.items()}
        try:
            save_together(
                maps, overwrite=overwrite, picture=known_by[picture], formats=names.formats
            )
            outcomes[picture] = _words(stems, names.formats, answer)
        except OutputError as error:
            outcomes[picture] = error
        except MemoryError as error:
            outcomes[picture] = _no_memory(picture, error)
    return [outcomes[picture] for picture in pictures]


def _words(stems: Mapping[str, Path], formats: Sequence[str], answer: Prediction) -> str:
    """A file of each task, the colours where they are saved, and what tiles did."""
    shown = [name for name in formats if name == "color"] or formats[:1]
    words = ", ".join(str(path) for stem in stems.values() for path in saved_paths(stem, shown))
    if answer.tiled is None or answer.tiled.tiles == 0:
        return words
    refused = "".join(
        f"; in {count} the {task} of the whole picture stands"
        for task, count in answer.tiled.refused.items()
        if count
    )
    return f"{words} ({answer.tiled.tiles} tiles{refused})"


def _check(picture: Picture, names: Names, overwrite: bool) -> str:
    """What the picture is known by. Raises: ImageError, OutputError where it cannot be done."""
    if picture.problem:
        raise ImageError(picture.problem)
    known_by = fingerprint(picture.path)
    for task, stem in names.stems(picture).items():
        check_free(
            stem,
            task,
            overwrite=overwrite,
            picture=known_by,
            formats=names.formats,
            uncertain=names.uncertain,
        )
    return known_by


def _answers(
    engine: LotusEngine, pictures: list[Picture], options: Mapping[str, Any]
) -> Sequence[Prediction | ImageError]:
    """Where memory does not suffice for several at once, each alone."""
    if not pictures:
        return []
    try:
        return engine([picture.path for picture in pictures], on_error="return", **options)
    except MemoryError as error:
        if len(pictures) == 1:
            return [_no_memory(pictures[0], error)]
    return [answer for picture in pictures for answer in _answers(engine, [picture], options)]


def _no_memory(picture: Picture, error: MemoryError) -> ImageError:
    return ImageError(f"{picture.path}: not enough memory ({error})")


def _make_folder(output: Path) -> None:
    """Raises: OutputError where results cannot be written, before any work is done."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"cannot write into {output}: it is a file; name a folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write into {output}: {reason}") from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {output}: no permission; name another folder")


def _summary(done: int, skipped: Counter[str], failed: int, left: int) -> str:
    parts = [f"{done} done"]
    if skipped:
        parts.append(f"{skipped.total()} skipped ({in_words(skipped)})")
    parts += [f"{failed} failed"] * bool(failed) + [f"{left} not tried"] * bool(left)
    return ", ".join(parts)
