"""Whether memory, descriptors and threads stay what they are over thousands of different pictures:
`python -m benchmarks.soak` (`make soak`).

Each backend is a process of its own. Sizes and contents of the pictures are random; they come as
arrays, Pillow images and JPEG files in turn, the largest ones first. Samples before WARM_UP are not
judged: the network is compiled there, and allocators grow to what the largest pictures need. It
fails where the resident memory of the last quarter (median) is beyond `--bound` of that of the
quarter after the warm-up, or where descriptors or threads change after it.

glibc keeps free pages of large arrays, now more, now less, in which a leak would hide. So another
process makes the pictures, which takes ten times their memory, and FIXED_THRESHOLD makes glibc give
free pages back.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.rows import parse_arguments, write_rows
from benchmarks.trial import build_small, resident_mb

WARM_UP = 0.1  # of the pictures
SAMPLES = 400
SMALLEST, LARGEST = 16, 1024  # pixels along an edge
# glibc raises this threshold, from which on arrays have pages of their own, to 32 MB by itself.
FIXED_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "131072"}
LARGE = 9  # pictures of the largest size
BACKENDS = ("onnxruntime", "openvino")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the process holds at one moment."""

    rss_mb: float
    descriptors: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Soak:
    """One backend's run. `growth` is the last quarter against the quarter after the warm-up;
    `descriptors` and `threads` are the numbers seen after the warm-up, `highest_mb` the most
    resident memory.
    """

    backend: str
    pictures: int
    seconds: float
    rss_mb: float
    last_rss_mb: float
    growth: float
    highest_mb: float
    descriptors: list[int]
    threads: list[int]

    def problems(self, bound: float) -> list[str]:
        """Why it failed, in words; empty where all is flat."""
        found = []
        if self.growth > bound:
            found.append(f"memory grew by {self.growth:.1%}, the bound is {bound:.1%}")
        for name, seen in (("descriptors", self.descriptors), ("threads", self.threads)):
            if len(seen) > 1:
                found.append(f"the number of {name} changed: {seen}")
        return found


def main() -> int:
    """Run, print a table and save it; status 1 when something is not flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: tiny/disparity-d, built at 64x64")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), metavar="NAME")
    parser.add_argument("--count", type=int, default=5000, help="pictures for each backend")
    parser.add_argument("--bound", type=float, default=0.02, help="of growth; 0.02 is 2 %%")
    arguments = parse_arguments(parser)
    if not Path("/proc/self/statm").exists():
        parser.error("memory, descriptors and threads are read from /proc, as Linux has it")
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or build_small(Path(folder) / "bundle")
        runs = [soak(bundle, backend, arguments.count) for backend in arguments.backends]
    _print_table(runs)
    print(f"rows: {write_rows('soak', [asdict(run) for run in runs], dirty=arguments.dirty).name}")
    problems = {run.backend: run.problems(arguments.bound) for run in runs}
    for backend, found in problems.items():
        for problem in found:
            print(f"{backend}: {problem}", file=sys.stderr)
    return int(any(problems.values()))


def _print_table(runs: list[Soak]) -> None:
    heads = ("pictures", "RSS, MB", "last, MB", "growth", "highest")
    print(
        f"{'backend':<14}{''.join(f'{head:>10}' for head in heads)}  descriptors  threads  seconds"
    )
    for run in runs:
        print(
            f"{run.backend:<14}{run.pictures:>10}{run.rss_mb:>10.1f}{run.last_rss_mb:>10.1f}"
            f"{run.growth:>10.2%}{run.highest_mb:>10.1f}  {run.descriptors!s:<13}"
            f"{run.threads!s:<9}{run.seconds:.0f}"
        )


def soak(bundle: Path, backend: str, count: int) -> Soak:
    """Predict for `count` pictures in a process of its own."""
    os.environ.update(FIXED_THRESHOLD)  # of the process to come: glibc reads it once
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as processes:
        return processes.submit(_soak_here, bundle, backend, count).result()


def judge(backend: str, samples: list[Sample], pictures: int, seconds: float) -> Soak:
    """What the samples of a run (evenly spaced) say."""
    steady = samples[round(len(samples) * WARM_UP) :]
    quarter = max(len(samples) // 4, 1)
    before, after = (
        statistics.median(sample.rss_mb for sample in part)
        for part in (steady[:quarter], steady[-quarter:])
    )
    return Soak(
        backend=backend,
        pictures=pictures,
        seconds=round(seconds, 1),
        rss_mb=round(before, 1),
        last_rss_mb=round(after, 1),
        growth=round(after / before - 1, 5),
        highest_mb=round(max(sample.rss_mb for sample in steady), 1),
        descriptors=sorted({sample.descriptors for sample in steady}),
        threads=sorted({sample.threads for sample in steady}),
    )


def picture(index: int) -> NDArray[np.uint8]:
    """RGB uint8 [H,W,3] of a size and content of its own; the first LARGE are the largest."""
    random = np.random.default_rng(index)
    smallest = SMALLEST if index >= LARGE else LARGEST - 1
    height, width = np.exp(random.uniform(np.log(smallest), np.log(LARGEST), 2)).astype(int)
    slope = random.uniform(-1, 1, (2, 3))
    plane = np.linspace(0, slope[0], height)[:, None] + np.linspace(0, slope[1], width)
    noise = random.standard_normal((height, width, 3), dtype=np.float32) * random.uniform(0, 60)
    rgb: NDArray[np.uint8] = (128 + 127 * plane + noise).clip(0, 255).astype(np.uint8)
    return rgb


def write_picture(index: int, folder: Path) -> None:
    """The picture as an array and as a JPEG."""
    rgb = picture(index)
    np.save(folder / "picture.npy", rgb)
    Image.fromarray(rgb).save(folder / "picture.jpg")


def _soak_here(bundle: Path, backend: str, count: int) -> Soak:
    from runtime import LotusEngine

    samples, start, step = [], time.monotonic(), max(count // SAMPLES, 1)
    fresh = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(1, mp_context=fresh) as maker,
        LotusEngine(bundle, backend=backend) as engine,
    ):
        folder = Path(name)
        for index in range(count):
            maker.submit(write_picture, index, folder).result()
            if index % 3 == 0:
                engine(np.load(folder / "picture.npy"))
            elif index % 3 == 1:
                engine(Image.fromarray(np.load(folder / "picture.npy")))
            else:
                engine(folder / "picture.jpg")
            if index % step == step - 1:
                samples.append(_sample())
            if (index + 1) % max(count // 10, 1) == 0:
                print(f"{backend}: {index + 1} of {count}, {samples[-1]}", file=sys.stderr)
    return judge(backend, samples, count, time.monotonic() - start)


def _sample() -> Sample:
    return Sample(
        rss_mb=resident_mb(),
        descriptors=len(os.listdir("/proc/self/fd")) - 1,  # that of the list itself
        threads=len(os.listdir("/proc/self/task")),
    )


if __name__ == "__main__":
    sys.exit(main())
