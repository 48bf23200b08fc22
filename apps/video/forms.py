"""What a video can become: a colour film, a lossless 16-bit film, a file a frame, arrays.

Frames are written in chunks. A chunk is finished or not there; a run that is killed goes on after
the last one that is finished.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from apps.video.convert import BT709, LIMITED, Scaler, film_frame, planes
from apps.video.frames import Answer, deep_range
from runtime.encoding import png
from runtime.marker import MARKER, TASK
from runtime.writing import write_together

TICK = 40
"""Milliseconds between the frames of a chunk's own film; their true times come with the join."""


class ChunkWriter(Protocol):
    """Takes the frames of one chunk. `close` finishes it; `abandon` removes what is there of it."""

    def add(self, answer: Answer) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all chunks have in common: where finished files go (`folder`; for films, the chunks'
    films), which tasks, whether their maps are made steady, the chunk's number of decimals.
    """

    folder: Path
    tasks: tuple[str, ...]
    steady: bool


@dataclass(frozen=True, kw_only=True)
class Form:
    """`suffixes` that the output may have (none: it is a folder). `picture`: whether it shows the
    frame itself. `open(settings, chunk)` starts a chunk. `film`: chunks are joined to one film.
    """

    name: str
    meaning: str
    suffixes: tuple[str, ...]
    open: Callable[[Settings, int], ChunkWriter]
    picture: bool = False

    @property
    def film(self) -> bool:
        """Whether the output is one file."""
        return bool(self.suffixes)


def segment(folder: Path, chunk: int) -> Path:
    """The film of a chunk."""
    return folder / f"{chunk:06d}.mkv"


class _FilmChunk:
    """One film of a chunk's frames, TICK apart."""

    def __init__(
        self,
        settings: Settings,
        chunk: int,
        codec: tuple[str, str, dict[str, str]],
        draw: Callable[[Answer], Any],
    ) -> None:
        import av

        self._final = segment(settings.folder, chunk)
        self._partial = self._final.with_suffix(".partial")
        self._codec, self._draw = codec, draw
        self._container = av.open(
            str(self._partial), "w", format="matroska", options={"fflags": "+bitexact"}
        )
        self._stream: Any = None
        self._count = 0

    def add(self, answer: Answer) -> None:
        frame = self._draw(answer)
        if self._stream is None:
            self._stream = self._start(frame)
        frame.pts, frame.time_base = self._count * TICK, Fraction(1, 1000)
        self._count += 1
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _start(self, frame: Any) -> Any:
        name, pixels, options = self._codec
        stream = self._container.add_stream(name, rate=1000 // TICK, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 2  # its number is in what comes out: not the machine's
        if pixels == "yuv420p":
            stream.codec_context.colorspace = BT709
            stream.codec_context.color_primaries = BT709
            stream.codec_context.color_trc = BT709
            stream.codec_context.color_range = LIMITED
        return stream

    def close(self) -> None:
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        with self._partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        self._partial.replace(self._final)

    def abandon(self) -> None:
        self._container.close()
        self._partial.unlink(missing_ok=True)


_H264 = ("libx264", "yuv420p", {"preset": "ultrafast", "qp": "18"})


def _color_film(settings: Settings, chunk: int) -> ChunkWriter:
    scaler = Scaler()

    def draw(answer: Answer) -> Any:
        return film_frame(scaler, answer.colors(settings.tasks[0]), answer.size)

    return _FilmChunk(settings, chunk, _H264, draw)


def _beside_film(settings: Settings, chunk: int) -> ChunkWriter:
    scaler = Scaler()

    def draw(answer: Answer) -> Any:
        colors = film_frame(scaler, answer.colors(settings.tasks[0]), answer.size)
        return _film_frame_of(
            (2 * colors.width, colors.height),
            lambda left, right, both: np.concatenate([left, right], axis=1, out=both),
            answer.picture,
            colors,
        )

    return _FilmChunk(settings, chunk, _H264, draw)


def _over_film(settings: Settings, chunk: int) -> ChunkWriter:
    scaler = Scaler()

    def mix(picture: NDArray[np.uint8], colors: NDArray[np.uint8], half: NDArray[np.uint8]) -> None:
        # Half of each. Shifted: a mean of larger numbers takes three times as long.
        np.right_shift(picture, 1, out=half)
        half += colors >> 1

    def draw(answer: Answer) -> Any:
        colors = film_frame(scaler, answer.colors(settings.tasks[0]), answer.size)
        return _film_frame_of((colors.width, colors.height), mix, answer.picture, colors)

    return _FilmChunk(settings, chunk, _H264, draw)


def _film_frame_of(size: tuple[int, int], fill: Callable[..., object], *frames: Any) -> Any:
    """A frame of a film of (width, height): `fill` gets the same plane of each of `frames`, and
    writes into the last array it is given.
    """
    import av

    made = av.VideoFrame(*size, "yuv420p")
    for each in zip(*map(planes, (*frames, made)), strict=True):
        fill(*each)
    return made


def _deep_film(settings: Settings, chunk: int) -> ChunkWriter:
    import av

    from runtime.tasks import TASKS

    grey = TASKS[settings.tasks[0]].channels == 1
    given, kept = ("gray16le", "gray16le") if grey else ("rgb48le", "gbrp16le")

    def draw(answer: Answer) -> Any:
        levels = answer.deep(settings.tasks[0], settings.steady)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(levels), format=given)
        return frame if given == kept else frame.reformat(format=kept)

    codec = ("ffv1", kept, {"level": "3", "slices": "4", "slicecrc": "1"})
    return _FilmChunk(settings, chunk, codec, draw)


class _FrameChunk:
    """A 16-bit PNG of each frame and task. Each is written whole; there is nothing to close."""

    def __init__(self, settings: Settings, chunk: int) -> None:
        self._settings = settings
        self._written: list[Path] = []

    def add(self, answer: Answer) -> None:
        contents = {}
        for task in self._settings.tasks:
            low, high = deep_range(task, self._settings.steady)
            texts = dict([MARKER]) | {TASK: task, "Lotus-Range": f"{low:g} {high:g}"}
            path = self._settings.folder / task / f"{answer.number:06d}.png"
            contents[path] = png(answer.deep(task, self._settings.steady), texts)
        write_together(contents)
        self._written += contents

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        for path in self._written:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in self._written}:
            with contextlib.suppress(OSError):  # something else is in it
                folder.rmdir()


class ArrayChunk:
    """An .npz a chunk and task: `values` float32 [N,H,W] or [N,H,W,C] at the frames' size, `times`
    [N] in seconds, `numbers` [N].
    """

    def __init__(self, settings: Settings, chunk: int) -> None:
        self._settings, self._chunk = settings, chunk
        self._answers: list[Answer] = []

    def add(self, answer: Answer) -> None:
        self._answers.append(answer)

    def close(self) -> None:
        folder, tasks = self._settings.folder, self._settings.tasks
        write_together(
            {
                folder / f"{task}-{self._chunk:06d}.npz": functools.partial(self._write, task)
                for task in tasks
            }
        )

    def _write(self, task: str, stream: BinaryIO) -> None:
        np.savez(
            stream,
            values=np.stack([answer.values(task) for answer in self._answers]),
            times=np.array([answer.time for answer in self._answers]),
            numbers=np.array([answer.number for answer in self._answers]),
        )

    def abandon(self) -> None:
        pass


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write an .npz whole or not at all. Raises: OutputError."""
    write_together({path: lambda stream: np.savez(stream, **cast(Any, arrays))})


_FILMS = (".mp4", ".mov", ".mkv")
FORMS = {
    form.name: form
    for form in (
        Form(name="color", meaning="colours, H.264", suffixes=_FILMS, open=_color_film),
        Form(
            name="beside",
            meaning="the picture, and its colours to the right",
            suffixes=_FILMS,
            open=_beside_film,
            picture=True,
        ),
        Form(
            name="over",
            meaning="colours over the picture, half and half",
            suffixes=_FILMS,
            open=_over_film,
            picture=True,
        ),
        Form(
            name="deep",
            meaning="16 bits, lossless: FFV1 in Matroska",
            suffixes=(".mkv",),
            open=_deep_film,
        ),
        Form(name="frames", meaning="a 16-bit PNG a frame", suffixes=(), open=_FrameChunk),
        Form(
            name="npz", meaning="float32 arrays of some frames each", suffixes=(), open=ArrayChunk
        ),
    )
}
