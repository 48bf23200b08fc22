"""The calibration images: a folder of the user's photographs or, by default, rendered scenes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.embedded import embedded_checkpoints, rendered_scenes
from export.errors import BuildError
from runtime.engine import draw_noise
from runtime.image import IMAGE_SUFFIXES, fit_to_bucket, load
from runtime.manifest import Bucket
from runtime.marker import made_by_us

if TYPE_CHECKING:
    from torch import Tensor

    from export.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """At most `count` images: the first of `folder` by name, results of predictions aside, or,
    without a folder, scenes of the tiny renderer.

    Images are read when they are needed and never kept.
    """

    count: int
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BuildError(f"calibration needs at least one image, found {self.count}")
        if self.folder is None:
            embedded_checkpoints()  # the renderer lies beside them
        elif not self._files():
            raise BuildError(
                f"{self.folder} holds no images to calibrate with "
                f"({' '.join(sorted(IMAGE_SUFFIXES))})"
            )

    def __str__(self) -> str:
        kind = "rendered scenes" if self.folder is None else f"images of {self.folder.name}"
        return f"{len(self)} {kind}"

    def __len__(self) -> int:
        return self.count if self.folder is None else len(self._files())

    def feeds(
        self, plan: Plan, bucket: Bucket, more: Sequence[NDArray[np.uint8]] = ()
    ) -> Iterator[tuple[Tensor, ...]]:
        """The network's inputs for each image at the bucket's size, or for each batch of images:
        image and, where the graph takes it, noise. The last batch is filled up with its last image;
        a bucket with several noises has them for each image.

        The images `more`, RGB uint8 [H,W,3] of that size, come last.
        """
        import torch

        numbered = enumerate(itertools.chain(self._images(bucket), more))
        while batch := list(itertools.islice(numbered, bucket.batch)):
            batch += batch[-1:] * (bucket.batch - len(batch))
            inputs = [np.concatenate([plan.preprocess.apply(rgb) for _, rgb in batch])]
            if plan.noise_is_input:
                shape = plan.noise_shape(bucket)
                seeds = [
                    plan.noise_seed + bucket.noises * number + each
                    for number, _ in batch
                    for each in range(bucket.noises)
                ]
                noises = [draw_noise(seed, shape) for seed in seeds]
                inputs.append(np.concatenate(noises))
            yield tuple(map(torch.from_numpy, inputs))

    def batches(self, bucket: Bucket) -> int:
        """How often `feeds` yields, without more images."""
        return -(-len(self) // bucket.batch)

    def sha256(self, bucket: Bucket) -> str:
        """Over the pixels of every image at the bucket's size."""
        digest = hashlib.sha256()
        for rgb in self._images(bucket):
            digest.update(np.ascontiguousarray(rgb).data)
        return digest.hexdigest()

    def _images(self, bucket: Bucket) -> Iterable[NDArray[np.uint8]]:
        if self.folder is not None:
            return (fit_to_bucket(load(path), bucket)[0] for path in self._files())
        return rendered_scenes(self.count, bucket.height, bucket.width)

    def _files(self) -> list[Path]:
        assert self.folder is not None
        if not self.folder.is_dir():
            raise BuildError(f"no folder {self.folder} to calibrate with")
        images = sorted(
            path
            for path in self.folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not made_by_us(path)
        )
        return images[: self.count]
