"""Steps of one contender: build its bundle, verify it, and measure it. Functions of the worker."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.on_device.facts import peak_gb
from benchmarks.on_device.kept import identity_of
from benchmarks.on_device.repeats import repeat, summary
from benchmarks.on_device.watch import watched
from runtime import LotusEngine
from runtime.backends import BACKENDS, open_session
from runtime.errors import LotusError
from runtime.golden import golden_on, worst
from runtime.image import fit_to_bucket, load
from runtime.layout import plain_folder
from runtime.manifest import Bucket, Manifest

_MOST_PROFILED = 20  # runs
_UNTIMED = 2  # the first prediction may be plain, the next one captures


def build(*, bundle: str, words: list[str]) -> dict[str, Any]:
    """Build the bundle with these `words`; without words it is there already.

    Raises: LotusError with what the builder says.
    """
    start = time.perf_counter()
    if words:
        _build([*words, "--output", bundle, "--overwrite"])
    return _built(bundle, start)


def engine(*, source: str, bundle: str, target: str) -> dict[str, Any]:
    """Make `bundle` of `source`, with the engine of `target`.

    Raises: LotusError with what the builder says.
    """
    start = time.perf_counter()
    _build(["--from-bundle", source, "--target", target, "--output", bundle, "--overwrite"])
    return _built(bundle, start)


def _built(bundle: str, start: float) -> dict[str, Any]:
    manifest = Manifest.load(Path(bundle))
    return {
        "bundle": bundle,
        "manifest": identity_of(Path(bundle)),
        "built_s": time.perf_counter() - start,
        "bytes": sum(file.bytes for file in manifest.files),
        "folds": manifest.folds,
        "bucket": str(manifest.buckets[0]),
        "precision": manifest.precision,
    }


def verify(*, bundle: str, backend: str, device: str | None) -> dict[str, Any]:
    """Checksums and golden, on this machine. Raises: LotusError."""
    start = time.perf_counter()
    with LotusEngine(bundle, backend, device=device) as engine:
        found = worst(engine.verify().errors)
        golden = golden_on(engine.manifest, engine.backend)
    return {
        "largest": found.largest,
        "mean": found.mean,
        "tolerance": golden.tolerance,
        "mean_tolerance": golden.mean_tolerance,
        "verified_s": time.perf_counter() - start,
    }


def latency(
    *, bundle: str, backend: str, device: str | None, image: str, seconds: float
) -> dict[str, Any]:
    """Opening, the first prediction, and for about `seconds` further ones, from a decoded picture
    to the finished map; memory, clocks and temperature meanwhile.
    """
    free = _gpu_free(backend)
    start = time.perf_counter()
    with LotusEngine(bundle, backend, device=device) as engine:
        picture = _fitted(image, engine.manifest.buckets[0])
        engine(picture, resize=None)
        opened = time.perf_counter() - start
        if BACKENDS[backend].replays:
            for _ in range(_UNTIMED):
                engine(picture, resize=None)
        with watched() as readings:
            taken = repeat(lambda: engine(picture, resize=None), seconds=seconds)
        used = None if free is None else free - (_gpu_free(backend) or 0)
    return summary(taken) | {
        "first_s": opened,
        "peak_gb": peak_gb(),
        "device_gb": None if used is None else used / 1e9,
        "readings": readings,
    }


def reference(
    *, name: str, checkpoint: str, task: str, resolution: str, image: str, seconds: float
) -> dict[str, Any]:
    """The same of PyTorch, with the seconds of each stage (on a GPU by CUDA events) and the name of
    the device that it computed on.
    """
    from benchmarks.baselines import Work, opened

    height, width = map(int, resolution.split("x"))
    images = _fitted(image, Bucket(height=height, width=width, graph=""))[None]
    work = Work(checkpoint=checkpoint, resolution=resolution, task=task)
    stages: dict[str, float] = {}
    rounds: list[dict[str, float]] = []
    start = time.perf_counter()
    with opened(name, work, [], stages) as predict:
        predict(images)
        first = time.perf_counter() - start

        def once() -> None:
            predict(images)
            rounds.append(dict(stages))

        with watched() as readings:
            taken = repeat(once, seconds=seconds)
    import torch

    on_gpu = torch.cuda.is_available()
    return summary(taken) | {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "first_s": first,
        "peak_gb": peak_gb(),
        "device_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "stages_s": {
            stage: float(np.median([each[stage] for each in rounds])) for stage in rounds[0]
        },
        "readings": readings,
    }


def stages(
    *,
    bundle: str,
    backend: str,
    device: str | None,
    seconds: float,
    latency: dict[str, Any] | None,
) -> dict[str, Any]:
    """Seconds of each stage, as the engine's own profiler counts them in about `seconds`; with
    TensorRT also the device's times by CUDA events. `latency` is what was measured of it before.
    Raises: LotusError where there is no such profiler.
    """
    from benchmarks.profile import PROFILERS, golden_feeds

    folder = Path(bundle)
    manifest = Manifest.load(folder)
    bucket = manifest.buckets[0]
    feeds = golden_feeds(folder, manifest, bucket)
    if BACKENDS[backend].replays:
        return _tensorrt_stages(folder, manifest, backend, feeds, seconds)
    if backend not in PROFILERS or device is not None:
        raise LotusError(
            f"no profiler tells the time of each stage with {device or backend}: by the clock the "
            "launches would count, not the work"
        )
    runs = 1 if latency is None else round(seconds / latency["p50_s"])
    times = PROFILERS[backend](folder, manifest, bucket, feeds, min(max(runs, 1), _MOST_PROFILED))
    by_stage: dict[str, float] = {}
    for (stage, _), each in times.items():
        by_stage[stage] = by_stage.get(stage, 0.0) + each
    return {"stages_s": by_stage, "by": "the engine's profiler"}


def _tensorrt_stages(
    folder: Path,
    manifest: Manifest,
    backend: str,
    feeds: dict[str, NDArray[np.float32]],
    seconds: float,
) -> dict[str, Any]:
    from benchmarks.on_device.events import device_times, layer_times

    bucket = manifest.buckets[0]
    with plain_folder(folder, manifest.files_of(bucket)) as plain:
        with open_session(backend, folder, manifest, bucket, model_folder=plain) as session:
            by_stage = layer_times(session, feeds)  # type: ignore[arg-type]
        with open_session(backend, folder, manifest, bucket, model_folder=plain) as session:
            device = device_times(session, feeds, seconds)  # type: ignore[arg-type]
    return {"stages_s": by_stage, "by": "TensorRT's profiler", "device_s": device}


def _build(words: list[str]) -> None:
    """`export/build_engine.py` with these words. Raises: LotusError with what it says."""
    from export.build_engine import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(words)
    sys.stderr.write(said.getvalue())
    if status != 0:
        raise LotusError(said.getvalue().rpartition("error: ")[2].strip() or f"status {status}")


def _fitted(image: str, bucket: Bucket) -> NDArray[np.uint8]:
    return fit_to_bucket(load(Path(image)), bucket)[0]


def _gpu_free(backend: str) -> int | None:
    """Bytes free on the GPU (on a Jetson of all memory); None where the backend has none."""
    if not BACKENDS[backend].on_gpu:
        return None
    from runtime.backends.cuda import Cuda

    try:
        return int(Cuda(backend).module.cudaMemGetInfo()[1])
    except LotusError:  # without the bindings
        return None
