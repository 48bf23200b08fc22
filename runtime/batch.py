"""Predict for many pictures, and go on where one cannot be done.

What concerns one picture is that picture's outcome. What concerns the bundle or its backend ends
the batch. While the network runs for one picture, the next ones are read and earlier ones written,
in threads: `_Batch.overlapped`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from runtime import loops
from runtime.call import Call
from runtime.console import one_line, say
from runtime.engine import LotusEngine
from runtime.errors import ImageError, ImageWarning, OutputError
from runtime.found import Found, Names, Picture, in_words
from runtime.overlap import WORKERS, Behind, ahead
from runtime.prediction import Prediction
from runtime.running import Picture as Fitted
from runtime.saving import (
    DEFAULT,
    check_formats,
    check_free,
    fingerprint,
    save_together,
    saved_paths,
)
from runtime.tasks import Answer

_PAUSE = 5.0  # seconds between two lines of progress
_PASSES = 4  # over all pixels of a picture that compiled loops could do: fit, restore, two PNGs
_LARGE = 2**25  # pixels: results of more are written one at a time, since they take a gigabyte

T = TypeVar("T")


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
    report = _Report(names.pictures)
    batch = _Batch(
        engine=engine, names=names, overwrite=overwrite, call=Call.of(options), report=report
    )
    try:
        if batch.call.tiles:
            batch.one_by_one(options)
        else:
            batch.overlapped()
    finally:
        report.rest()
        if report.failed and len(names.pictures) > 1:
            say("failed:", *(f"  {one_line(reason)}" for reason in report.failed))
        left = len(names.pictures) - report.tried
        done = report.tried - len(report.failed)
        say(_summary(done, found.skipped, len(report.failed), left))
    return len(report.failed)


# What was written for a picture, in words, or why nothing was.
_Outcome: TypeAlias = "str | ImageError | OutputError"


class _Report:
    """Says in the order of the pictures what became of each, whichever thread knows it first.

    `tried` pictures were said, of which those in `failed` could not be done.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.failed: list[str] = []
        self.tried = 0
        self._pictures = pictures
        self._known: dict[int, tuple[_Outcome, float, Sequence[str]]] = {}
        self._next = 0
        self._lock = threading.Lock()

    def __call__(
        self, number: int, outcome: _Outcome, seconds: float = 0.0, notes: Sequence[str] = ()
    ) -> None:
        """The outcome of a picture, the seconds that it took, and what was odd about it."""
        with self._lock:
            self._known[number] = (outcome, seconds, notes)
            while self._next in self._known:
                self._say(self._next)
                self._next += 1

    def rest(self) -> None:
        """Say what waits for a picture before it, which will not be done."""
        with self._lock:
            for number in sorted(self._known):
                self._say(number)

    def _say(self, number: int) -> None:
        outcome, seconds, notes = self._known.pop(number)
        self.tried += 1
        if isinstance(outcome, Exception):
            self.failed.append(str(outcome))
            words = f"FAILED: {outcome}"
        else:
            words = f"{seconds:.2f} s -> {outcome}"
        path = self._pictures[number].path
        lines = [f"[{number + 1}/{len(self._pictures)}] {path}  {words}"]
        say(*map(one_line, [*lines, *(f"  warning: {note}" for note in notes)]))


class _TileProgress:
    """Says how many tiles of a picture are done, at most once in a few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last >= _PAUSE:
            self._last = now
            say(f"  {done} of {total} tiles")


@dataclass
class _Job:
    """A picture on its way: by its number, with what it is known by once it was checked, what the
    network takes (None where memory did not suffice to read it), and the seconds so far.
    """

    number: int
    picture: Picture
    known_by: str = ""
    fitted: Fitted | None = None
    seconds: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class _Batch:
    engine: LotusEngine
    names: Names
    overwrite: bool
    call: Call
    report: _Report

    def overlapped(self) -> None:
        """Read ahead, run the network in this thread, write behind. What was begun when an error
        ends the batch is finished: nothing is half written, and all that is written is said.
        """
        most = max(bucket.batch for bucket in self.engine.manifest.buckets)
        jobs = [_Job(number, picture) for number, picture in enumerate(self.names.pictures)]
        read = ahead(self._read, jobs, most=most + WORKERS)
        with contextlib.closing(read), Behind(most=most + WORKERS) as behind:
            for group in _groups(read, most):
                ready = [job for job in group if job is not None]
                for job in ready:
                    if job.fitted is None:  # nothing else takes memory then
                        behind.wait()
                        self._fit(job, last=True)
                for job, answers in self._run([job for job in ready if job.fitted is not None]):
                    self._write(job, answers, behind)

    def one_by_one(self, options: Mapping[str, Any]) -> None:
        """Each picture by itself, as a whole call of the engine with these options."""
        options = {**options, "progress": _TileProgress()}
        for number, picture in enumerate(self.names.pictures):
            job = _Job(number, picture)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ImageWarning)
                outcome = self._alone(job, options)
            self.report(number, outcome, job.seconds, [str(each.message) for each in caught])

    def _read(self, job: _Job) -> _Job | None:
        """The job, ready for the network; None where nothing can be done, which is said."""
        with job.timed():
            try:
                job.known_by = _check(job.picture, self.names, self.overwrite)
            except (ImageError, OutputError) as error:
                self.report(job.number, error)
                return None
            return job if self._fit(job) else None

    def _fit(self, job: _Job, *, last: bool = False) -> bool:
        """Whether there is hope. Without memory there is, unless this was the `last` try."""
        try:
            job.fitted = self.engine.prepare(job.picture.path, self.call, job.number)
        except ImageError as error:
            self.report(job.number, error)
            return False
        except MemoryError as error:
            if last:
                self.report(job.number, _no_memory(job.picture, error))
            return not last
        if job.number == 0:
            fit, pictures = job.fitted.fit, len(self.names.pictures)
            loops.expect(pictures * _PASSES * fit.height * fit.width)
        return True

    def _run(self, jobs: list[_Job]) -> Iterator[tuple[_Job, Mapping[str, Answer]]]:
        """Each job with its answers. Where memory does not suffice for several, each alone."""
        by_number = {job.number: job for job in jobs}
        start = time.perf_counter()
        try:
            fitted = [job.fitted for job in jobs if job.fitted is not None]
            found = list(self.engine.run(fitted, self.call))
        except MemoryError as error:
            if len(jobs) == 1:
                self.report(jobs[0].number, _no_memory(jobs[0].picture, error))
                return
            for job in jobs:
                yield from self._run([job])
            return
        share = (time.perf_counter() - start) / max(len(jobs), 1)
        for picture, answers in found:
            job = by_number[picture.position]
            job.seconds += share
            yield job, answers

    def _write(self, job: _Job, answers: Mapping[str, Answer], behind: Behind) -> None:
        fitted = job.fitted
        assert fitted is not None

        def work() -> None:
            with job.timed():
                outcome = self._saved(job, lambda: self.engine.finish(fitted, answers, self.call))
            self.report(job.number, outcome, job.seconds, fitted.notes)

        if fitted.fit.height * fitted.fit.width <= _LARGE:
            behind(work)
        else:
            behind.wait()
            work()

    def _alone(self, job: _Job, options: Mapping[str, Any]) -> _Outcome:
        with job.timed():
            try:
                job.known_by = _check(job.picture, self.names, self.overwrite)
                answer = self.engine(job.picture.path, **options)
            except (ImageError, OutputError) as error:
                return error
            except MemoryError as error:
                return _no_memory(job.picture, error)
            return self._saved(job, lambda: answer)

    def _saved(self, job: _Job, prediction: Callable[[], Prediction]) -> _Outcome:
        """What was written, or why nothing was."""
        stems, formats = self.names.stems(job.picture), self.names.formats
        try:
            answer = prediction()
            maps = {stems[task]: each for task, each in answer.items()}
            save_together(maps, overwrite=self.overwrite, picture=job.known_by, formats=formats)
        except OutputError as error:
            return error
        except MemoryError as error:
            return _no_memory(job.picture, error)
        return _words(stems, formats, answer)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


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
