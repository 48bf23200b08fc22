"""Smoothing of maps along motion, with OpenCV's optical flow (extra `flow`).

What a frame shows was shown by the frame before, a few pixels farther on. There the map of the
frame before is brought to this one and mixed in, so that noise of single frames averages out.
Without the motion the same mean would blur all that moves. It is taken only where both ways of the
flow agree, and so do both pictures and both maps: what was hidden is never mixed with what hid it.

The flow is DIS, preset "fast" (Kroeger, Timofte, Dai and Van Gool 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.tasks import TASKS

_PAST = 0.8  # of a pixel is what came before it
_AGREE = 1.0  # pixels: both ways of the flow lead back to within so much
_SAME = 20.0  # levels of 255, in the mean of 3 x 3 pixels: what changed more is something else
_NEAR = 8.0  # times the usual difference of two maps: what differs more is something else
_SEAM = 5  # pixels over which the past fades out
_LEAST = 0.05  # of a map's spread: as the usual difference may be 0
# OpenCV 5.0 reads beyond the pictures' memory where one is wide and less than 32 pixels high.
_SMALLEST = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """For each pixel of a frame where it was in the frame before: `x` (columns) and `y` (rows),
    float32 [H,W]; and `trust` float32 [H,W], from 0, where it was not seen there, to 1.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    trust: NDArray[np.float32]

    def bring(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values [H,W] or [H,W,C] of the frame before, moved to where they are now. Bicubic: a mean
        of means must not blur.
        """
        import cv2

        moved: NDArray[np.float32] = cv2.remap(
            values, self.x, self.y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        return moved


def find_motion(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> Motion:
    """The motion between two grey pictures uint8 [H,W] of any size."""
    import cv2

    height, width = now.shape
    there, back = _flow(now, before), _flow(before, now)
    columns = np.arange(width, dtype=np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None]
    x, y = columns + there[..., 0], rows + there[..., 1]
    back = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    off = there + back
    known = (off * off).sum(-1) < _AGREE * _AGREE
    # Where a thing appears both ways may agree that nothing moves: the flow of it is a guess.
    shown = cv2.remap(before.astype(np.float32), x, y, cv2.INTER_LINEAR)
    known &= np.abs(cv2.blur(shown - now, (3, 3))) < _SAME
    known &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return Motion(x=x, y=y, trust=_fading(known))


def to_grey(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A picture uint8 [h,w,3] as grey levels uint8 [height,width], the size of its map."""
    grey = Image.fromarray(rgb).convert("L")
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.BOX)
    return np.asarray(grey, np.uint8)


@dataclass(kw_only=True)
class Smoother:
    """Smooths the maps of frames, one frame after the other, from what came before."""

    _grey: NDArray[np.uint8] | None = None
    _maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __call__(
        self, grey: NDArray[np.uint8], maps: Mapping[str, NDArray[np.float32]], *, cut: bool
    ) -> dict[str, NDArray[np.float32]]:
        """The smoothed maps of the next frame, by task: values float32 [H,W] or [H,W,C], as they
        are given. `grey` uint8 [H,W] is its picture. With `cut` nothing before it counts.
        """
        before, smoothed = self._grey, dict(maps)
        if before is not None and before.shape == grey.shape and not cut:
            motion = find_motion(before, grey)
            for task, values in maps.items():
                smoothed[task] = _mixed(task, motion, self._maps[task], values)
        self._grey, self._maps = grey, smoothed
        return dict(smoothed)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that is remembered, as arrays by name, so that another process can go on."""
        if self._grey is None:
            return {}
        return {"grey": self._grey} | {f"map-{task}": each for task, each in self._maps.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave."""
        self._grey = arrays.get("grey")
        self._maps = {
            name.removeprefix("map-"): each
            for name, each in arrays.items()
            if name.startswith("map-")
        }


def _flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """By how many columns and rows the pixels of the first picture lie farther on in the second,
    float32 [H,W,2].
    """
    import cv2

    height, width = first.shape
    room = (0, max(0, _SMALLEST - height)), (0, max(0, _SMALLEST - width))
    both = [np.ascontiguousarray(np.pad(each, room, mode="edge")) for each in (first, second)]
    # A new one each time: one that has seen a picture treats the next of its size otherwise.
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow: NDArray[np.float32] = search.calc(*both, None)
    return flow[:height, :width]


def _mixed(
    task: str, motion: Motion, before: NDArray[np.float32], now: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The map `now`, with the smoothed one `before` where that shows the same."""
    change = motion.bring(before) - now
    far = np.abs(change) if change.ndim == 2 else np.sqrt((change * change).sum(-1))
    agreeing = far[motion.trust > 0]
    if not agreeing.size:
        return now
    spread = float(np.sqrt(now.var((0, 1), dtype=np.float64).sum()))
    limit = max(_NEAR * float(np.median(agreeing)), _LEAST * spread, 1e-9)
    # All of it up to half the limit, none from the limit on.
    weight = np.clip(2 - far * np.float32(2 / limit), 0, 1) * motion.trust * np.float32(_PAST)
    if now.ndim == 3:
        weight = weight[..., None]
    mean = now + weight * change
    each = TASKS[task]
    if each.space is None:  # bicubic goes beyond; what is affine has no range any more
        np.clip(mean, each.low, each.high, out=mean)
    planes = mean[None] if now.ndim == 2 else mean.transpose(2, 0, 1)
    decoded = each.decode(np.ascontiguousarray(planes))  # vectors: of unit length again
    return np.where(weight > 0, decoded, now)


def _fading(known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """0 where nothing is known, and slowly 1 from there: else the end of the past would be seen as
    a line.
    """
    import cv2

    inner = cv2.erode(known.astype(np.float32), np.ones((_SEAM, _SEAM), np.uint8))
    fading: NDArray[np.float32] = cv2.blur(inner, (_SEAM, _SEAM))
    fading[~known] = 0  # and not what rounding leaves
    return fading
