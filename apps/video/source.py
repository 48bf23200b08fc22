"""Where frames come from: films (PyAV), pictures in a folder, cameras."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.video.convert import Scaler, View, as_picture, film_frame, to_rgb, turns_of
from apps.video.packets import Clock, open_film, readable, why
from runtime.errors import ImageError
from runtime.files import ending
from runtime.image import IMAGE_SUFFIXES, load
from runtime.there import exists, is_dir, is_file

_MARK = 1 << 20  # bytes at the beginning and the end, by which a film is known again
_SAFE_STEP = Fraction(1, 1000)
_WHOLE = View()


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame: the `number`-th that is used, from 0 on, at `time` in seconds and `pts` in units
    of its source's `time_base`. `size` is its height and width, upright. What a `View` makes of it:
    `rgb` uint8 [h,w,3], and `picture`, PyAV's frame of a film, where that is asked for.
    """

    number: int
    time: float
    pts: int
    size: tuple[int, int]
    rgb: NDArray[np.uint8]
    picture: Any = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which frames are used: every `every`-th of those from `start` on, for `duration` seconds,
    with at most `max_size` pixels along the longer edge.
    """

    every: int = 1
    start: float = 0.0
    duration: float | None = None
    max_size: int | None = None

    def ends(self, time: float) -> bool:
        """Whether a frame at this time, in seconds from the beginning, comes after the last."""
        return self.duration is not None and time >= self.start + self.duration - 1e-9

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a frame after shrinking."""
        scale = min(1.0, (self.max_size or max(height, width)) / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


class Source(Protocol):
    """Frames, one after the other. `total` is their number where it can be told beforehand;
    `notes` says what was odd. `live`: it does not wait for its reader. `path` has the sound,
    `files` is all that is read. `begin`: the first frame's time stamp, in seconds.
    """

    name: str
    time_base: Fraction
    begin: float
    total: int | None
    live: bool
    path: Path | None
    files: Sequence[Path]
    notes: list[str]

    def fingerprint(self) -> str:
        """By what it is known again."""

    def frames(self, skip: int = 0, view: View = _WHOLE) -> Iterator[Frame]:
        """The frames that are used, without the first `skip` of them. Raises: ImageError."""


def open_source(name: str, choice: Choice, rate: Fraction) -> Source:
    """What a person named: `camera:0`, a folder, a pattern with * or a film. `rate` is that of
    pictures in a folder. Raises: ImageError.
    """
    if name.startswith("camera:"):
        return Camera(name, choice)
    if is_dir(Path(name)) or (any(mark in name for mark in "*?[") and not exists(Path(name))):
        return Pictures(name, choice, rate)
    return Film(name, choice)


class Film:
    """A file that FFmpeg can read."""

    live = False

    def __init__(self, name: str, choice: Choice) -> None:
        self.name, self._choice = name, choice
        self.path: Path | None = Path(name)
        self.files: Sequence[Path] = (Path(name),)
        self.notes: list[str] = []
        self.damaged = 0
        with _opened(name) as container:
            stream = _video_of(container, name)
            self.time_base = Fraction(stream.time_base or _SAFE_STEP)
            self.rate = Fraction(stream.average_rate or stream.base_rate or 25)
            self.begin = float((stream.start_time or 0) * self.time_base)
            seconds = _seconds(container, stream)
            count = stream.frames or (round(seconds * self.rate) if seconds else 0)
            self.total = _count(count, self.rate, choice)

    def fingerprint(self) -> str:
        """Of its size, its beginning and its end: a film is too long to be read twice."""
        with Path(self.name).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(f"{size} ".encode() + stream.read(_MARK))
            stream.seek(max(0, size - _MARK))
            digest.update(stream.read(_MARK))
        return digest.hexdigest()[:16]

    def frames(self, skip: int = 0, view: View = _WHOLE) -> Iterator[Frame]:
        number, seen = 0, 0
        clock = Clock(max(1, round(1 / (self.rate * self.time_base))))
        look = _Look(view, self._choice)
        for frame in self._decoded():
            pts = clock(frame.pts)
            time = float(pts * self.time_base) - self.begin
            if time < self._choice.start - 1e-9:
                continue
            if self._choice.ends(time):
                break
            seen += 1
            if (seen - 1) % self._choice.every:
                continue
            if number >= skip:
                yield look(frame, number=number, time=time + self.begin, pts=pts)
            number += 1
        if self.damaged:
            self.notes.append(f"{self.damaged} packets could not be decoded and were left out")
        if clock.jumped:
            self.notes.append("its time stamps jump back: time goes on from there")
        if not number:
            raise ImageError(f"{self.name}: there is no frame{_where(self._choice)}")

    def _decoded(self) -> Iterator[Any]:
        import av

        self.damaged = 0
        with _opened(self.name) as container:
            stream = _video_of(container, self.name)
            stream.thread_type = "AUTO"
            if self._choice.start > 1:
                # One second before it, in case time stamps near it are out of order.
                target = round((self.begin + self._choice.start - 1) / self.time_base)
                container.seek(target, stream=stream)
            for packet in readable(container.demux(stream), self.notes, "it"):
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    self.damaged += 1
                    continue
                yield from decoded
            # `demux` flushes the decoder at its end, but not where it stops with an error.
            with contextlib.suppress(av.FFmpegError):
                yield from stream.decode(None)


class Camera:
    """A camera of this machine, which `--duration` or Ctrl-C ends."""

    live = True
    begin = 0.0
    path: Path | None = None
    files: Sequence[Path] = ()
    total: int | None = None
    time_base = _SAFE_STEP

    def __init__(self, name: str, choice: Choice) -> None:
        self.name, self._choice = name, choice
        self.notes: list[str] = []

    def fingerprint(self) -> str:
        return ""

    def frames(self, skip: int = 0, view: View = _WHOLE) -> Iterator[Frame]:
        number, seen, last, begin = 0, 0, -1, None
        look = _Look(view, self._choice)
        device, options = _device(self.name.partition(":")[2])
        with _opened(device, **options) as container:
            for frame in container.decode(_video_of(container, self.name)):
                begin = frame.time if begin is None else begin
                time = float(frame.time or 0) - float(begin or 0)
                if time < self._choice.start:
                    continue
                if self._choice.ends(time):
                    return
                seen += 1
                if (seen - 1) % self._choice.every:
                    continue
                last = max(round(time / self.time_base), last + 1)
                yield look(frame, number=number, time=time, pts=last)
                number += 1


class Pictures:
    """The pictures of a folder or a pattern, in the order of the numbers in their names."""

    live = False
    begin = 0.0
    path: Path | None = None

    def __init__(self, name: str, choice: Choice, rate: Fraction) -> None:
        self.name, self._choice = name, choice
        self.notes: list[str] = []
        self.rate, self.time_base = rate, 1 / rate
        found = (
            [path for path in Path(name).iterdir() if ending(path).lower() in IMAGE_SUFFIXES]
            if is_dir(Path(name))
            else [Path(path) for path in glob.glob(name)]  # noqa: PTH207  (of any folder)
        )
        self.files: Sequence[Path] = sorted(filter(is_file, found), key=_natural)
        if not self.files:
            raise ImageError(f"{name}: there are no pictures")
        self.total = _count(len(self.files), rate, choice)

    def fingerprint(self) -> str:
        """Of the pictures' names, sizes and times."""
        digest = hashlib.sha256()
        for path in self.files:
            state = path.stat()
            digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def frames(self, skip: int = 0, view: View = _WHOLE) -> Iterator[Frame]:
        used = [
            (pts, path)
            for pts, path in enumerate(self.files)
            if pts / self.rate >= self._choice.start - 1e-9
            and not self._choice.ends(float(pts / self.rate))
        ][:: self._choice.every]
        if not used:
            raise ImageError(f"{self.name}: there is no frame{_where(self._choice)}")
        first: tuple[int, ...] | None = None
        scaler = Scaler()
        for number, (pts, path) in enumerate(used):
            if number < skip and first is not None:
                continue
            rgb = load(path)
            if first is not None and rgb.shape != first:
                raise ImageError(
                    f"{path} has {rgb.shape[1]}x{rgb.shape[0]} pixels, the first picture "
                    f"{first[1]}x{first[0]}: the frames of a video are of one size"
                )
            first = rgb.shape
            if number < skip:
                continue
            size = self._choice.size(*rgb.shape[:2])
            yield Frame(
                number=number,
                time=float(pts / self.rate),
                pts=pts,
                size=size,
                rgb=_resized(rgb, *view.fit(*size)),
                picture=film_frame(scaler, _resized(rgb, *size)) if view.picture else None,
            )


def _resized(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if rgb.shape[:2] == (height, width):
        return rgb
    picture = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8)


class _Look:
    """Makes frames of decoded ones. All are of the size of the first."""

    def __init__(self, view: View, choice: Choice) -> None:
        self._view, self._choice = view, choice
        self._rgb, self._picture = Scaler(), Scaler()
        self._size: tuple[int, int] | None = None

    def __call__(self, decoded: Any, *, number: int, time: float, pts: int) -> Frame:
        self._size = self._size or self._choice.size(decoded.height, decoded.width)
        upright = -1 if turns_of(decoded) % 2 else 1
        height, width = self._size[::upright]
        return Frame(
            number=number,
            time=time,
            pts=pts,
            size=(height, width),
            rgb=to_rgb(self._rgb, decoded, *self._view.fit(height, width)[::upright]),
            picture=as_picture(self._picture, decoded, *self._size) if self._view.picture else None,
        )


def _opened(name: str, **options: Any) -> Any:
    import av

    try:
        return open_film(name, **options)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ImageError(
            f"cannot open {name} as a video: {why(error)}. A folder of pictures, a pattern such "
            "as 'frames/*.png' and camera:0 do as well"
        ) from error


def _video_of(container: Any, name: str) -> Any:
    films = [each for each in container.streams.video if each.codec_context is not None]
    # A cover is a picture of a sound file.
    films = [each for each in films if "attached_pic" not in _dispositions(each)]
    if not films:
        raise ImageError(f"{name}: there is no video in it that can be decoded")
    return films[0]


def _dispositions(stream: Any) -> str:
    return str(getattr(stream, "disposition", ""))


def _seconds(container: Any, stream: Any) -> float | None:
    import av

    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _count(count: int, rate: Fraction, choice: Choice) -> int | None:
    """About how many frames are used of so many."""
    if not count:
        return None
    left = max(0.0, float(count - choice.start * rate))
    if choice.duration is not None:
        left = min(left, float(choice.duration * rate))
    return max(1, -int(-left // choice.every))


def _where(choice: Choice) -> str:
    return f" from second {choice.start:g} on" if choice.start else " in it"


def _device(which: str) -> tuple[str, dict[str, Any]]:
    """What FFmpeg calls a camera on this system."""
    if sys.platform == "darwin":
        return which, {"format": "avfoundation"}
    if sys.platform == "win32":
        return f"video={which}", {"format": "dshow"}
    return (f"/dev/video{which}" if which.isdigit() else which), {"format": "v4l2"}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Numbers by their value: 2 comes before 10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"([0-9]+)", path.name)
    ]
