"""From frames to steady maps: as they come, or with the whole clip known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apps.video.frames import Answer
from apps.video.smooth import STATE, Smoothing
from apps.video.source import Frame
from runtime.engine import LotusEngine
from runtime.image import choose_bucket, fit_of
from runtime.motion import to_grey
from runtime.steady import Causal, Step, plan_clip, shrink
from runtime.tasks import TASKS

Mode: TypeAlias = Literal["off", "causal", "clip"]
Show: TypeAlias = Callable[[NDArray[np.uint8]], None]


class Predictor:
    """Answers frames one after the other. Mode G gets the same noise for each of them.

    `mode` "off" leaves maps as they are, "causal" makes them steady, "clip" keeps what a later pass
    needs. `smooth`: the maps are smoothed along motion, with "clip" by the later pass. `show` is
    given the colours of each frame.
    """

    def __init__(
        self,
        engine: LotusEngine,
        tasks: tuple[str, ...],
        mode: Mode,
        *,
        seed: int | None = None,
        smooth: bool = False,
        show: Show | None = None,
    ) -> None:
        self._engine, self._tasks, self._seed = engine, tasks, seed
        self._show = show
        self._keeps_thumb, self._keeps_grey = smooth or mode == "clip", smooth
        self._smoothing = Smoothing() if smooth and mode != "clip" else None
        self.causal = {
            task: Causal(fit=mode == "causal") for task in tasks if TASKS[task].space is not None
        }

    def __call__(self, frame: Frame) -> Answer:
        """The maps of a frame, at the size that the network gives."""
        prediction = self._engine(frame.rgb, seed=self._seed, resize=None)
        maps = {task: prediction[task].values for task in self._tasks}
        first = next(iter(maps.values()))
        plane = first if first.ndim == 2 else first[..., 0]
        thumb = shrink(plane, frame.rgb, frame.time).rgb
        steps = {
            task: causal(shrink(maps[task], thumb, frame.time))
            for task, causal in self.causal.items()
        }
        answer = Answer(
            number=frame.number,
            time=frame.time,
            pts=frame.pts,
            size=frame.size,
            maps=maps,
            steps=steps,
            picture=frame.picture,
            thumb=thumb if self._keeps_thumb else None,
            grey=to_grey(frame.rgb, *plane.shape) if self._keeps_grey else None,
            state={
                f"{task}/{name}": array
                for task, causal in self.causal.items()
                for name, array in causal.state().items()
            },
        )
        if self._smoothing is not None:
            answer = self._smoothing(answer)
        if self._show is not None:
            self._show(answer.colors(self._tasks[0]))
        return answer

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the network sees a frame of this height and width."""
        bucket = choose_bucket(self._engine.manifest.buckets, height, width)
        fit = fit_of(height, width, bucket)
        return fit.content_height, fit.content_width

    def restore(self, state: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Go on where another process stopped."""
        for task, arrays in state.items():
            if task in self.causal:
                self.causal[task].restore(arrays)
        if self._smoothing is not None:
            self._smoothing.restore(state.get(STATE, {}))


def plan(answers: Callable[[], Iterable[Answer]], tasks: tuple[str, ...]) -> dict[str, list[Step]]:
    """The steps of a whole clip, by task. `answers()` gives its frames, once for each task."""
    return {
        task: plan_clip(
            shrink(answer.maps[task], answer.thumb, answer.time)
            for answer in answers()
            if answer.thumb is not None
        )
        for task in tasks
        if TASKS[task].space is not None
    }


def with_steps(
    answers: Iterable[Answer], steps: Mapping[str, list[Step]], frames: Iterator[Frame] | None
) -> Iterator[Answer]:
    """The answers with their steps, and with their frames where these are needed."""
    for answer in answers:
        picture = None if frames is None else next(frames).picture
        own = {task: each[answer.number] for task, each in steps.items()}
        yield replace(answer, steps=own, picture=picture)
