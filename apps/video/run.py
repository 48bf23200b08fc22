"""One run of `lotus-edge video`: the stages, the chunks and the join, resumed or not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.video.convert import View
from apps.video.forms import Form, Settings
from apps.video.frames import Answer, deep_range
from apps.video.join import join
from apps.video.predict import Mode, Predictor, plan, with_steps
from apps.video.smooth import STATE, Smoothing
from apps.video.source import Choice, Source
from apps.video.stages import run_stages
from apps.video.work import Chunks, Records, SpoolChunk, Work, spooled
from runtime.console import say
from runtime.errors import ImageError
from runtime.tasks import TASKS
from runtime.writing import write_together

_OFTEN = 2.0  # seconds between two lines of progress on a terminal
_RARELY = 15.0  # elsewhere


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that one run needs. `job` is what its result depends on; `output` a file, or a folder."""

    source: Source
    choice: Choice
    form: Form
    mode: Mode
    tasks: tuple[str, ...]
    output: Path
    work: Work
    job: dict[str, Any]
    smooth: bool = False

    def __call__(self, predictor: Predictor) -> dict[str, Any]:
        """Do what is not done yet. Returns what is written beside the result."""
        settings = Settings(
            folder=self.work.folder if self.form.film else self.output,
            tasks=self.tasks,
            steady=self.mode != "off",
        )
        dropped = self._passes(predictor, lambda chunk: self.form.open(settings, chunk))
        records = self.work.records("done")
        if not len(records.numbers):
            raise ImageError(f"{self.source.name}: there is no frame in it")
        sound, notes = 0, list(dict.fromkeys(self.source.notes))
        if dropped:
            notes.append(f"{dropped} frames were dropped: the camera is faster than the engine")
        told = self._told(records, sound, notes)
        beside = self.output / "video.json"
        if self.form.film:
            joined = join(self.work, records, self.source, self.choice, self.output)
            told |= {"sound_tracks": joined.sound, "notes": notes + joined.notes}
            beside = self.output.with_name(f"{self.output.name}.json")
        write_together({beside: (json.dumps(told, indent=1) + "\n").encode()})
        self.work.remove()
        return told

    def _passes(self, predictor: Predictor, open_chunk: Callable[[int], Any]) -> int:
        view = View(fit=predictor.fit, picture=self.form.picture)
        if self.mode != "clip":
            predictor.restore(self.work.state("done"))
            done = len(self.work.records("done").numbers)
            frames = self.source.frames(done, view)
            return self._pass("", frames, predictor, Chunks(self.work, "done", open_chunk), done)
        small = View(fit=predictor.fit)
        done = len(self.work.records("spooled").numbers)
        spool = Chunks(self.work, "spooled", lambda chunk: SpoolChunk(self.work, chunk))
        self._pass("1 of 2: predict", self.source.frames(done, small), predictor, spool, done)
        steps = plan(lambda: spooled(self.work), self.tasks)
        done = len(self.work.records("done").numbers)
        pictures = self.source.frames(done, view) if self.form.picture else None
        answers = with_steps(spooled(self.work, done), steps, pictures)
        chunks = Chunks(self.work, "done", open_chunk)
        return self._pass("2 of 2: write", answers, self._last_step(), chunks, done)

    def _last_step(self) -> Callable[[Answer], Answer]:
        """What is done to steady answers of a whole clip."""
        if not self.smooth:
            return lambda answer: answer
        smoothing = Smoothing()
        smoothing.restore(self.work.state("done").get(STATE, {}))
        return smoothing

    def _pass(
        self,
        name: str,
        read: Iterable[Any],
        predict: Callable[[Any], Answer],
        chunks: Chunks,
        done: int,
    ) -> int:
        progress = _Progress(name=name, done=done, total=self.source.total)
        begun = False

        def work(item: Any) -> Answer:
            nonlocal begun
            answer = predict(item)
            if begun:
                progress(done + chunks.count)
            begun = True
            return answer

        try:
            dropped = run_stages(read, work, chunks, newest=self.source.live)
            chunks.finish()
        except BaseException:
            chunks.abandon()
            raise
        progress.end(done + chunks.count)
        return dropped

    def _told(self, records: Records, sound: int, notes: list[str]) -> dict[str, Any]:
        """What was done, for the file beside the result."""
        ranges = {task: deep_range(task, self.mode != "off") for task in self.tasks}
        shots = {
            task: [int(number) for number in records.numbers[rows[:, 4] > 0]]
            for task, rows in records.steps.items()
        }
        return {
            "generator": "lotus-edge video",
            "job": self.job,
            "frames": len(records.numbers),
            "meaning": {task: TASKS[task].meaning for task in self.tasks},
            "steady": _MEANINGS[self.mode] + (_SMOOTHED if self.smooth else ""),
            "values_of_0_and_65535": ranges,
            "first_frames_of_shots": shots,
            "sound_tracks": sound,
            "notes": notes,
            "times": [round(float(each), 6) for each in records.times],
            "steps": {
                task: {
                    name: [round(float(each), 7) for each in rows[:, column]]
                    for column, name in enumerate(("scale", "shift", "low", "high"))
                }
                for task, rows in records.steps.items()
            },
        }


_MEANINGS: dict[Mode, str] = {
    "off": "maps as predicted; colours in a range that follows slowly",
    "causal": "maps are scale * predicted + shift, from the frames before; colours in a range that "
    "follows slowly",
    "clip": "maps are scale * predicted + shift, from the whole clip; colours in one range a shot",
}

_SMOOTHED = "; then smoothed along motion, from the frames before"


@dataclass(kw_only=True)
class _Progress:
    """Says how far a pass is, now and then."""

    name: str
    done: int
    total: int | None
    _begin: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)
    _first: int = -1

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if now - self._last < (_OFTEN if sys.stderr and sys.stderr.isatty() else _RARELY):
            return
        self._last = now
        self._say(count, now)

    def end(self, count: int) -> None:
        self.total = None
        self._say(count, time.monotonic())

    def _say(self, count: int, now: float) -> None:
        of = f"/{self.total}" if self.total and self.total >= count else ""
        rate = (count - self.done) / max(now - self._begin, 1e-3)
        left = ""
        if of and self.total and rate:
            seconds = round((self.total - count) / rate)
            left = f", {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
        name = f"{self.name}: " if self.name else ""
        say(f"{name}{count}{of} frames, {rate:.1f} frames/s{left}")
