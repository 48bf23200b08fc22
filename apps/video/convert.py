"""From decoded frames to what the network reads and to what a film shows, by FFmpeg's scaler.

A frame of 1080p is never made RGB as a whole, unless it is turned or of an odd size: the network
reads a small picture, and a film holds YUV.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HD = 720  # rows from which on a film that does not say so has the colours of HD
_UNSPECIFIED, BT709 = 2, 1  # colour space, primaries and transfer, as FFmpeg counts them
LIMITED = 1  # 16..235
_FILM: dict[str, Any] = {"format": "yuv420p", "dst_colorspace": BT709, "dst_color_range": LIMITED}


def _as_it_is(height: int, width: int) -> tuple[int, int]:
    return height, width


@dataclass(frozen=True, kw_only=True)
class View:
    """What is made of each frame: RGB of the size (height, width) that `fit` gives for the frame's
    own, and, with `picture`, a frame of a film (see `as_picture`).
    """

    fit: Callable[[int, int], tuple[int, int]] = _as_it_is
    picture: bool = False


class Scaler:
    """Brings frames to another size and format; it is for one thread, and keeps its tables."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any, height: int, width: int, **format: Any) -> Any:
        """A frame of that size. What a film does not say of its colours is as it usually is."""
        if frame.colorspace == _UNSPECIFIED and frame.height >= _HD:
            format.setdefault("src_colorspace", BT709)
        return self._reformatter.reformat(
            frame, width=width, height=height, interpolation="BILINEAR", **format
        )


def to_rgb(scaler: Scaler, frame: Any, height: int, width: int) -> NDArray[np.uint8]:
    """A decoded frame as RGB uint8, turned upright; `height` and `width` are those before that.
    Deep samples are scaled to 8 bits, alpha is dropped.
    """
    # With a fourth byte, FFmpeg takes half the time, and rounds better.
    (plane,) = planes(scaler(frame, height, width, format="rgba"), 4)
    rgb = plane.reshape(height, width, 4)[..., :3]
    return np.ascontiguousarray(np.rot90(rgb, turns_of(frame)))


def turns_of(frame: Any) -> int:
    """By how many quarters a frame must be turned counter-clockwise to be upright."""
    turns: int = round(frame.rotation / 90) % 4
    return turns


def as_picture(scaler: Scaler, frame: Any, height: int, width: int) -> Any:
    """A decoded frame as one of a film: YUV 4:2:0 of HD's colours, upright, and one row or column
    more where their number is odd, since there is one colour for each 2 x 2 pixels. `height` and
    `width` are those before it is turned.
    """
    if turns_of(frame) or height % 2 or width % 2:
        return film_frame(scaler, to_rgb(scaler, frame, height, width))
    return scaler(frame, height, width, **_FILM)


def film_frame(scaler: Scaler, rgb: NDArray[np.uint8], size: tuple[int, int] | None = None) -> Any:
    """RGB [h,w,3] as a frame of a film, of another size (height, width) where it is given. Of odd
    sizes the last row or column is there twice, or stretched.
    """
    import av

    if size is None:
        rgb = np.pad(rgb, ((0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)), mode="edge")
        size = (rgb.shape[0], rgb.shape[1])
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return scaler(frame, *map(_even, size), **_FILM)


def _even(length: int) -> int:
    return length + length % 2


def planes(frame: Any, samples: int = 1) -> list[NDArray[np.uint8]]:
    """The bytes of each plane [h, w * samples], without copying; those of a frame of our own can be
    written. `samples`: bytes of a pixel.
    """
    return [
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width * samples]
        for plane in frame.planes
    ]
