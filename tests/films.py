"""Small films for tests, written with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

BASE = Fraction(1, 600)  # of the times of a film's frames


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures that move, uint8 [T,H,W,3]; each has its number in its upper left corner."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    frames = [
        127
        + 60 * np.sin((x + 2 * number)[..., None] / (9 + np.arange(3)) + y[..., None] / 17 + seed)
        for number in range(count)
    ]
    stack = np.clip(np.stack(frames), 0, 255).astype(np.uint8)
    stack[:, :8, :8] = (40 + 5 * np.arange(count) % 200)[:, None, None, None]
    return stack


def write_film(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: list[int] | None = None,
    sound: bool = False,
    options: dict[str, str] | None = None,
    title: str = "",
) -> Path:
    """A film of RGB frames [T,H,W,3] (or what `pixels` has of them), at `times` in units of BASE
    (default: 30 frames/s); with a tone where `sound` says so. The film and its tracks have this
    `title`. No random ids are in the file, so that damage at the same places takes the same.
    """
    import av

    times = times or [20 * number for number in range(len(frames))]
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.codec_context.time_base = BASE
        tone = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for named in (container, stream, *filter(None, [tone])) if title else ():
            named.metadata["title"] = title
        for time, rgb in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(rgb), format="rgb24" if rgb.shape[-1] == 3 else "rgba"
            ).reformat(format=pixels)
            frame.pts, frame.time_base = time, BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            seconds = float(times[-1] * BASE)
            samples = np.sin(np.arange(int(16000 * seconds)) / 9).astype(np.float32)
            for start in range(0, len(samples) - 1024, 1024):
                sample = av.AudioFrame.from_ndarray(
                    samples[None, start : start + 1024], format="fltp", layout="mono"
                )
                sample.sample_rate, sample.pts = 16000, start
                container.mux(tone.encode(sample))
            container.mux(tone.encode(None))
    return path


def turned(path: Path, quarter: int) -> Path:
    """The film with its header saying that it is shown turned by quarters, clockwise. The matrix is
    that of a track in an MP4 (ISO 14496-12, 8.3.2).
    """
    one = 1 << 16
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][quarter % 4]
    matrix = np.array([a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8
    data[place : place + 36] = matrix
    path.write_bytes(data)
    return path


def read_film(path: Path, pixels: str = "rgb24") -> tuple[np.ndarray, list[float]]:
    """All frames of a film, and their times in seconds."""
    import av

    frames, times = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format=pixels))
            times.append(float(frame.time))
    return np.stack(frames), times
