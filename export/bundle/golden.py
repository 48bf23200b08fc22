"""The proof a bundle carries: for each bucket an input, and what the PyTorch reference answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.progress import say
from runtime.engine import draw_noise
from runtime.manifest import Bucket

if TYPE_CHECKING:
    from export.network.checkpoint import Checkpoint
    from export.plan import Plan

GOLDEN = "golden.npz"


def write_golden(checkpoints: Sequence[Checkpoint], plan: Plan, stage: Path) -> None:
    """Write `golden.npz` into the folder `stage`: `image_B`, `noise_B` (mode G) and `<task>_B` for
    each bucket B; of a bucket with a batch each array has its pictures one after the other, and of
    one with several noises these and the maps.

    Where a small autoencoder stands in, says how far that moves the reference. Raises:
    CheckpointError when the reference answers NaN; OSError.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    known: dict[tuple[object, ...], NDArray[np.float32]] = {}  # of buckets of the same size
    for bucket in plan.buckets:
        say(f"PyTorch reference at {bucket}")
        seeds = [plan.noise_seed + number for number in range(bucket.answers)]
        pictured = seeds[: bucket.batch] * bucket.noises  # the seed of each answer's image
        images = [golden_image(bucket.height, bucket.width, seed=seed) for seed in pictured]
        noises = _noises(plan, bucket, seeds)
        maps: dict[str, list[NDArray[np.float32]]] = {}
        for checkpoint, image, noise, pair in (
            (checkpoint, *one)
            for checkpoint in checkpoints
            for one in zip(images, noises, zip(pictured, seeds, strict=True), strict=True)
        ):
            key = (checkpoint.task.name, bucket.height, bucket.width, pair)
            if key not in known:
                known[key] = _reference(checkpoint, image, noise)
            maps.setdefault(checkpoint.task.name, []).append(known[key])
        stack = np.stack if bucket.answers > 1 else _only
        arrays[f"image_{bucket}"] = np.stack(images) if bucket.batch > 1 else images[0]
        if plan.noise_is_input:
            arrays[f"noise_{bucket}"] = np.concatenate(noises)
        arrays |= {f"{task}_{bucket}": stack(answers) for task, answers in maps.items()}
    np.savez_compressed(stage / GOLDEN, **arrays)  # type: ignore[arg-type]


def _noises(plan: Plan, bucket: Bucket, seeds: list[int]) -> list[NDArray[np.float32]]:
    """[1,C,h,w] for each picture; where the noise is part of the graph, the same for all."""
    drawn = [plan.noise_seed] * len(seeds) if plan.fixed_noise else seeds
    return [draw_noise(seed, plan.noise_shape(bucket)) for seed in drawn]


def _reference(
    checkpoint: Checkpoint, image: NDArray[np.uint8], noise: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The authors' computation of one picture, [channels,H,W]."""
    family, task = checkpoint.family, checkpoint.task
    taken = noise if family.takes_noise else None
    prediction = family.reference(checkpoint, image, taken)
    own_vae = checkpoint.with_own_vae()
    if own_vae is not None:
        difference = np.abs(prediction - family.reference(own_vae, image, taken))
        say(
            f"the small autoencoder moves the {task.name} of the golden by "
            f"{difference.mean():.2e} in the mean, {difference.max():.2e} at most; what it "
            "costs in accuracy: in a clone, python -m benchmarks.accuracy"
        )
    return prediction


def _only(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0]


def golden_image(height: int, width: int, *, seed: int) -> NDArray[np.uint8]:
    """A picture with the statistics of a photograph, RGB uint8 [H,W,3]: detail at every scale (its
    amplitude falls with frequency) and a few hard edges.
    """
    random = np.random.Generator(np.random.Philox(seed))
    picture = np.full((height, width, 3), 128.0)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        grid = random.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        octave = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        picture += (np.asarray(octave, dtype=np.float64) - 127.5) * (1.6 / np.sqrt(cells))
    for _ in range(6):
        top, left = random.integers(0, height), random.integers(0, width)
        bottom, right = random.integers(top, height + 1), random.integers(left, width + 1)
        picture[top:bottom, left:right] += random.uniform(-60, 60, 3)
    rounded: NDArray[np.uint8] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return rounded
