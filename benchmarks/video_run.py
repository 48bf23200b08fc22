"""What `lotus-edge video` costs beside the network: `python -m benchmarks.video_run BUNDLE`.

The null backend stands in for the network, with the bundle's sizes and tasks. Measured are, for
each form of a film of 1080p, the milliseconds a frame of the whole (its beginning left out), and
how much longer that is than the engine alone takes for its frames; and a film of 2,000 frames:
memory from frame 200 on, and whether a run that was killed twice and resumed writes the same bytes
as one that was not. `--parts` names one of the two.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import ROOT, parse_arguments, write_rows
from benchmarks.trial import resident_mb
from runtime.extras import explain_missing_packages, require

if __name__ == "__main__":
    explain_missing_packages()

from apps.__main__ import main as lotus_edge
from apps.video.convert import View
from apps.video.predict import Predictor
from apps.video.source import Choice, Film
from runtime import LotusEngine

_OVER = ["--backend", "null", "--overwrite"]
_FORMS = {
    "color": "a.mp4",
    "beside": "a.mp4",
    "over": "a.mp4",
    "deep": "a.mkv",
    "frames": "frames",
    "npz": "npz",
}
_SETTLED = 200  # frames after which memory must not grow


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=300, help="of the film of 1080p")
    parser.add_argument("--long", type=int, default=2000, help="frames of the long film")
    parser.add_argument("--parts", nargs="+", choices=("forms", "long"), default=("forms", "long"))
    arguments = parse_arguments(parser)
    require("av")
    os.environ |= {"LOTUS_EDGE_NULL": "1", "LOTUS_EDGE_PROVE": "0"}
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "forms": lambda: _speed(arguments.bundle, Path(folder), arguments.frames),
            "long": lambda: _long(arguments.bundle, Path(folder), arguments.long),
        }
        rows = [row for part in arguments.parts for row in parts[part]()]
    print(write_rows("video-run", rows, dirty=arguments.dirty).name)
    return 0


def _write_film(path: Path, count: int, height: int, width: int) -> Path:
    """Smooth waves that move, with some noise, as H.264 at 30 frames/s with a tone."""
    import av

    noise = np.random.default_rng(0).integers(0, 12, (8, height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, : width * 2].astype(np.float32)
    wide = 127 + 90 * np.sin(x[..., None] / (40 + 9 * np.arange(3)) + y[..., None] / 70)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(count):
            start = 4 * number % width
            rgb = wide[:, start : start + width].astype(np.uint8) + noise[number % 8]
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _speed(bundle: Path, folder: Path, count: int) -> Iterator[dict[str, Any]]:
    film = _write_film(folder / "hd.mp4", count, 1080, 1920)
    with LotusEngine(bundle, "null", prove=False) as engine:
        task = next(iter(engine.manifest.tasks))
        view = View(fit=Predictor(engine, (task,), "off").fit)
        frames = [*itertools.islice(Film(str(film), Choice()).frames(0, view), 20)]
        engine(frames[0].rgb)
        begin = time.perf_counter()
        for frame in frames * 3:
            engine(frame.rgb, resize=None)
        alone = (time.perf_counter() - begin) / len(frames * 3)
    for form, name in _FORMS.items():
        command = ["video", str(bundle), str(film), "--form", form, "--task", task, *_OVER]
        for steady in ("causal", "clip") if form == "color" else ("causal",):
            seconds = {}
            for frame_count in (count // 5, count):
                output = folder / f"{frame_count}-{name}"
                own = ["--output", str(output), "--steady", steady]
                begin = time.perf_counter()
                assert lotus_edge([*command, *own, "--duration", str(frame_count / 30)]) == 0
                seconds[frame_count] = time.perf_counter() - begin
                shutil.rmtree(output, ignore_errors=True)
            whole = (seconds[count] - seconds[count // 5]) / (count - count // 5)
            row = {
                "form": form,
                "steady": steady,
                "size": "1920x1080",
                "network": "x".join(map(str, frames[0].rgb.shape[1::-1])),
                "frames": count,
                "predicting_ms": 1000 * alone,
                "whole_ms": 1000 * whole,
                "beside_ms": 1000 * (whole - alone),
            }
            print(row)
            yield row


def _long(bundle: Path, folder: Path, count: int) -> Iterator[dict[str, Any]]:
    film = _write_film(folder / "long.mp4", count, 240, 320)
    for steady in ("causal", "clip"):
        options = [str(film), "--backend", "null", "--form", "beside", "--steady", steady]
        memory: list[tuple[int, float]] = []
        whole, killed = folder / f"whole-{steady}.mp4", folder / f"killed-{steady}.mp4"
        _run(bundle, whole, options, memory=memory)
        chooser, kills = random.Random(steady), 0
        for chunks in sorted(chooser.sample(range(5, count // 24 - 5), 2)):
            kills += _run(bundle, killed, [*options, "--resume"], kill_at=chunks) != 0
        _run(bundle, killed, [*options, "--resume"])
        settled = [used for done, used in memory if done >= _SETTLED]
        row = {
            "frames": count,
            "steady": steady,
            "memory_mb_from_frame_200": [min(settled), max(settled)],
            "memory_mb_at_frame_200": settled[0],
            "growth_mb": max(settled) - settled[0],
            "kills": kills,
            "same_bytes": _digest(whole) == _digest(killed),
        }
        print(row)
        yield row


def _run(
    bundle: Path,
    output: Path,
    options: list[str],
    *,
    kill_at: int | None = None,
    memory: list[tuple[int, float]] | None = None,
) -> int:
    """Run the command to its end, or until so many chunks are done. `memory` gets (frames done,
    megabytes). Returns the exit status.
    """
    command = [sys.executable, "-m", "apps", "video", str(bundle), *options]
    process = subprocess.Popen(
        [*command, "--output", str(output)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    work = output.with_name(f".{output.name}.lotus-video")
    while process.poll() is None:
        chunks = sum(1 for _ in work.glob("done-*.npz")) + sum(1 for _ in work.glob("spooled-*"))
        if memory is not None:
            memory.append((24 * chunks, resident_mb(process.pid)))
        if kill_at is not None and chunks >= kill_at:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    return process.returncode


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
