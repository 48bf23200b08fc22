"""What `accuracy` measures: a bundle, or a baseline of `latency`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines import BASELINES, Work, built, opened
from runtime import LotusEngine, Prediction
from runtime.image import fit_to_bucket, restore
from runtime.manifest import Bucket, sha256_of

Predict = Callable[[NDArray[np.uint8], int | None, int], Prediction]
"""RGB uint8 [H,W,3], the seed of the noise (None is its own) and how many noises to merge."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """`name` is that of its rows, `folder` that of its predictions, `tasks` what it predicts.
    `files` change with what it is. `seed` is its own noise's, None where noise cannot be chosen.
    `about` goes into each row.
    """

    name: str
    folder: str
    tasks: list[str]
    files: list[str]
    predict: Predict
    seed: int | None = None
    about: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def open_bundle(bundle: Path, backend: str | None) -> Iterator[Subject]:
    """A bundle. Raises: BundleError, BackendError."""
    with LotusEngine(bundle, backend) as engine:
        manifest = engine.manifest
        yield Subject(
            name=manifest.name,
            folder=f"{manifest.name}-{engine.backend}",
            tasks=manifest.tasks,
            files=[file.sha256 for file in manifest.files],
            seed=manifest.noise_seed if manifest.mode == "g" else None,
            predict=lambda image, seed, ensemble: engine(image, seed=seed, ensemble=ensemble),
        )


@contextlib.contextmanager
def open_baseline(what: str, work: Work, folder: Path) -> Iterator[Subject]:
    """A baseline of one checkpoint, on single pictures; its bundles lie in `folder`.

    Raises: BuildError, CheckpointError, BundleError, BackendError, and what libraries raise.
    """
    from export.network.checkpoint import describe

    bundles = built(what, work, folder)
    ((checkpoint, named),) = work.checkpoints
    task = describe(checkpoint, task=named or None).task
    height, width = map(int, work.resolution.split("x"))
    bucket = Bucket(height=height, width=width, graph="")
    with opened(what, work, bundles, {}) as network:

        def predict(image: NDArray[np.uint8], seed: int | None, ensemble: int) -> Prediction:
            pixels, fit = fit_to_bucket(image, bucket)
            values = network(pixels[None])[0]
            output = np.moveaxis(values.reshape(*values.shape[:2], task.channels), -1, 0)
            resized = restore(task, np.ascontiguousarray(output), fit, "bilinear")
            return Prediction({task.name: task.decode(resized)})

        yield Subject(
            name=f"{work.name}-{what}",
            folder=f"{work.name}-{what}",
            tasks=[task.name],
            files=[sha256_of(path) for bundle in bundles for path in sorted(bundle.iterdir())],
            predict=predict,
            about={"what": what, "meaning": BASELINES[what].meaning, "checkpoint": work.checkpoint},
        )
