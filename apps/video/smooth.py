"""Maps smoothed along motion, after they are made steady: `--smooth`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.video.frames import Answer
from runtime.motion import Smoother
from runtime.steady import Thumbnail, is_other_scene

STATE = "smooth"
"""Under this name an answer's state has what is remembered."""


@dataclass(kw_only=True)
class Smoothing:
    """Smooths answers, one after the other; they have `grey` and `thumb`. A cut begins anew, for
    all tasks alike.
    """

    _smoother: Smoother = field(default_factory=Smoother)
    _thumb: NDArray[np.uint8] | None = None

    def __call__(self, answer: Answer) -> Answer:
        """The answer with `smoothed`, and with the state to go on from."""
        if answer.grey is None or answer.thumb is None:
            raise ValueError("an answer without pictures cannot be smoothed")
        cut = any(step.cut for step in answer.steps.values()) or self._is_cut(answer.thumb)
        self._thumb = answer.thumb
        steady = {task: answer.steady(task) for task in answer.maps}
        smoothed = self._smoother(answer.grey, steady, cut=cut)
        state = {"thumb": answer.thumb, **self._smoother.state()}
        own = {f"{STATE}/{name}": array for name, array in state.items()}
        return replace(answer, smoothed=smoothed, state=answer.state | own)

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on where another process stopped."""
        self._thumb = arrays.get("thumb")
        self._smoother.restore(arrays)

    def _is_cut(self, thumb: NDArray[np.uint8]) -> bool:
        """By the colours: maps that need no step, as normals, have nothing else to tell it."""
        if self._thumb is None or self._thumb.shape != thumb.shape:
            return True
        before, now = (
            Thumbnail(values=np.zeros(each.shape[:2], np.float32), rgb=each, time=0.0)
            for each in (self._thumb, thumb)
        )
        return is_other_scene(before, now)
