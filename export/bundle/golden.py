"""The proof a bundle carries: for each bucket an input, and what the PyTorch reference answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.progress import say
from runtime.engine import draw_noise

if TYPE_CHECKING:
    from export.network.checkpoint import Checkpoint
    from export.plan import Plan

GOLDEN = "golden.npz"


def write_golden(checkpoint: Checkpoint, plan: Plan, stage: Path) -> None:
    """Write `golden.npz` into the folder `stage`: `image_HxW`, `noise_HxW` (mode G) and
    `<task>_HxW` for each bucket.

    Where a small autoencoder stands in, says how far that moves the reference. Raises:
    CheckpointError when the reference answers NaN; OSError.
    """
    family, task = plan.family, plan.task
    own_vae = checkpoint.with_own_vae()
    arrays: dict[str, NDArray[np.generic]] = {}
    for bucket in plan.buckets:
        say(f"PyTorch reference at {bucket}")
        image = golden_image(bucket.height, bucket.width, seed=plan.noise_seed)
        noise = None
        if family.takes_noise:
            noise = draw_noise(plan.noise_seed, plan.noise_shape(bucket))
        prediction = family.reference(checkpoint, image, noise)
        arrays[f"image_{bucket}"] = image
        if noise is not None and plan.noise_is_input:
            arrays[f"noise_{bucket}"] = noise
        arrays[f"{task.name}_{bucket}"] = prediction
        if own_vae is not None:
            difference = np.abs(prediction - family.reference(own_vae, image, noise))
            say(
                f"the small autoencoder moves the {task.name} of the golden by "
                f"{difference.mean():.2e} in the mean, {difference.max():.2e} at most; what it "
                "costs in accuracy: in a clone, python -m benchmarks.accuracy"
            )
    np.savez_compressed(stage / GOLDEN, **arrays)  # type: ignore[arg-type]


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
