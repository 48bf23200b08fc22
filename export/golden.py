"""The proof a bundle carries: for each bucket an input, and what the PyTorch reference answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.checkpoint import Checkpoint
from export.reference import predict_reference
from runtime.engine import draw_noise
from runtime.manifest import Manifest


def write_golden(checkpoint: Checkpoint, manifest: Manifest, folder: Path, progress: Callable[[str], None]) -> None:
    """Write `manifest.golden.file` into `folder`: `image_HxW`, `noise_HxW` (mode G) and `<task>_HxW` for each bucket.

    Where a small autoencoder stands in, says how far that moves the reference. Raises: CheckpointError when the
    reference answers NaN; OSError.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for bucket in manifest.buckets:
        progress(f"PyTorch reference at {bucket}")
        image = golden_image(bucket.height, bucket.width, seed=manifest.noise_seed)
        noise = draw_noise(manifest.noise_seed, manifest.noise_shape(bucket)) if manifest.mode == "g" else None
        arrays[f"image_{bucket}"] = image
        if "noise" in manifest.input_shapes(bucket):
            arrays[f"noise_{bucket}"] = noise
        arrays[f"{checkpoint.task}_{bucket}"] = answer = predict_reference(checkpoint, image, noise)
        if checkpoint.small_encoder or checkpoint.small_decoder:
            own = dataclasses.replace(checkpoint, small_encoder=None, small_decoder=None)
            moved = np.abs(answer - predict_reference(own, image, noise))
            progress(
                f"the small autoencoder moves the {checkpoint.task} of the golden by {moved.mean():.2e} in the mean, "
                f"{moved.max():.2e} at most; what it costs in accuracy: python -m benchmarks.accuracy"
            )
    np.savez_compressed(folder / manifest.golden.file, **arrays)


def golden_image(height: int, width: int, *, seed: int) -> NDArray[np.uint8]:
    """A picture with the statistics of a photograph, RGB uint8 [H,W,3]: detail at every scale (its amplitude falls with
    frequency) and a few hard edges."""
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
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
