"""What `benchmarks.host` runs in each tree, as the text of `python -c`: it uses only what the
commit before the change has too. Prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def main(words: list[str]) -> None:
    """`stages PICTURE ROUNDS` or `predict BUNDLE FOLDER SECONDS`; `--plain`: no extra `fast`."""
    if "--plain" in words:
        words.remove("--plain")
        sys.modules["isal"] = sys.modules["numba"] = None  # type: ignore[assignment]
    kind, path, *rest = words
    work: dict[str, Callable[..., Any]] = {"stages": stages, "predict": predict}
    print(json.dumps(work[kind](path, *rest)))


def stages(path: str, rounds: str) -> dict[str, dict[str, float]]:
    """For each stage the least processor time and the least time by the clock, in milliseconds, and
    the bytes of the files.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    compiled = _loaded()
    if compiled == [None] and sys.modules.get("numba", sys) is not None:
        raise SystemExit("the compiled loops could not be loaded")
    found: dict[str, dict[str, float]] = {}
    for _ in range(int(rounds)):
        for stage, numbers in _once(path).items():
            best = found.setdefault(stage, numbers)
            found[stage] = {key: min(value, best[key]) for key, value in numbers.items()}
    return found


def _loaded() -> list[Any]:
    """The compiled loops, or None; before, there was no such thing."""
    try:
        from runtime import loops
    except ImportError:
        return []
    return [loops.load()]


def _once(path: str) -> dict[str, dict[str, float]]:
    import numpy as np

    from runtime import image
    from runtime.manifest import Bucket, Preprocess
    from runtime.prediction import Prediction
    from runtime.tasks import TASKS

    found: dict[str, dict[str, float]] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        clock, processor = time.perf_counter(), time.process_time()
        result = work()
        found[stage] = {
            "cpu_ms": (time.process_time() - processor) * 1e3,
            "wall_ms": (time.perf_counter() - clock) * 1e3,
        }
        return result

    # As the engine reads: before, `load` was all there was.
    read = getattr(image, "read", None)
    bucket = Bucket(height=512, width=512, graph="")
    pixels = timed("load", (lambda: read(path)[0]) if read else (lambda: image.load(path)))
    fitted, fit = timed("fit", lambda: image.fit_to_bucket(pixels, bucket))
    timed("normalise", lambda: Preprocess().apply(fitted, *_loaded()))
    task, answer = TASKS["disparity"], _answer(fitted)
    values = timed("restore", lambda: task.decode(image.restore(task, answer, fit, "bilinear")))
    colors = timed("colours", lambda: task.colorize(values))
    prediction = Prediction({"disparity": values})
    with tempfile.TemporaryDirectory() as folder, _given(task, colors):
        saved = timed("files", lambda: prediction.save(Path(folder, "a")))
        sizes = {path.name.removeprefix("a"): path.stat().st_size for path in saved}
    found["bytes"] = {name: float(size) for name, size in sizes.items()}
    found["check"] = {
        "values": float(np.sum(values, dtype=np.float64)),
        "colors": float(colors.sum()),
    }
    return found


@contextlib.contextmanager
def _given(task: Any, colors: Any) -> Iterator[None]:
    """Files that are written meanwhile have these colours."""
    from runtime.prediction import TaskMap

    kind, name = (type(task), "painter") if hasattr(task, "painter") else (TaskMap, "colorize")

    def painter(*_: Any) -> Callable[[Any], Any]:
        done = 0

        def paint(values: Any) -> Any:
            nonlocal done
            done += len(values)
            return colors[done - len(values) : done]

        return paint

    own = kind.__dict__.get(name)
    setattr(kind, name, painter if name == "painter" else lambda _: colors)
    try:
        yield
    finally:
        delattr(kind, name)
        if own is not None:
            setattr(kind, name, own)


def _answer(fitted: Any) -> Any:
    """A map like a network's: smooth, with a little noise in it."""
    import numpy as np
    from PIL import Image

    grey = Image.fromarray(fitted).convert("L")
    smooth = grey.reduce(8).resize(grey.size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 5e-4, (512, 512))
    return (np.asarray(smooth) / 255 + noise).clip(0, 1).astype(np.float32)[None]


def predict(bundle: str, folder: str, seconds: str) -> dict[str, float]:
    """`predict` on a folder with a network that takes so long: pictures a second, over the whole
    command.
    """
    os.environ["LOTUS_EDGE_NULL"] = "1"
    from runtime.__main__ import main as command
    from runtime.backends import null

    answers: dict[str, Any] = {}

    def run(self: Any, runner: Any, inputs: Any) -> Any:
        start = time.perf_counter()
        if not answers:
            middle = (inputs["image"][0].transpose(1, 2, 0) * 127.5 + 127.5).astype("uint8")
            answers["disparity"] = _answer(middle)[None]
        time.sleep(max(float(seconds) - (time.perf_counter() - start), 0))
        return dict(answers)

    null.BackendSession._run = run  # type: ignore[method-assign]
    count = len(list(Path(folder).iterdir()))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LOTUS_EDGE_CACHE"] = scratch + "/cache"
        clock, processor = time.perf_counter(), time.process_time()
        status = command(["predict", bundle, folder, "--output", scratch + "/o"])
        spent = time.perf_counter() - clock
        processor = time.process_time() - processor
    return {"pictures": count, "seconds": spent, "cpu_s": processor, "status": status}


if sys.argv[0] == "-c":
    main(sys.argv[1:])
