"""The calibration images: a folder of the user's photographs, a published data set or, by default,
rendered scenes.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.data_sets import LAYOUTS, Source, calibration_pictures, spread
from export.embedded import rendered_scenes
from export.errors import BuildError
from runtime.engine import draw_noise
from runtime.errors import ImageError
from runtime.files import ending
from runtime.image import IMAGE_SUFFIXES, fit_to_bucket, load
from runtime.manifest import Bucket
from runtime.marker import made_by_us
from runtime.there import exists, is_dir

if TYPE_CHECKING:
    from torch import Tensor

    from export.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """At most `count` images: the first of `folder` by name, results of predictions aside; where it
    is a data set of `export.data_sets`, folder or tar, pictures spread over it, of its training
    split where it has one; or, without a folder, scenes of the tiny renderer.

    Images are read when they are needed and never kept.
    """

    count: int
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BuildError(f"calibration needs at least one image, found {self.count}")
        if self.folder is not None and not self._found:
            raise BuildError(
                f"{self.folder} holds no images to calibrate with "
                f"({' '.join(sorted(IMAGE_SUFFIXES))}), and is no data set that is known "
                f"({', '.join(dict.fromkeys(layout.name for layout in LAYOUTS))})"
            )

    def __str__(self) -> str:
        kind = "rendered scenes" if self.folder is None else f"images of {self.folder.name}"
        return f"{len(self)} {kind}"

    def __len__(self) -> int:
        return self.count if self.folder is None else len(self._found)

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
            return (fit_to_bucket(open_picture(), bucket)[0] for open_picture in self._found)
        return rendered_scenes(self.count, bucket.height, bucket.width)

    @functools.cached_property
    def _found(self) -> list[Callable[[], NDArray[np.uint8]]]:
        """What reads each picture."""
        assert self.folder is not None
        if not exists(self.folder):
            raise BuildError(f"no folder {self.folder} to calibrate with")
        images = (
            sorted(
                path
                for path in self.folder.iterdir()
                if ending(path).lower() in IMAGE_SUFFIXES and not made_by_us(path)
            )
            if is_dir(self.folder)
            else []
        )
        if images:
            return [functools.partial(load, path) for path in images[: self.count]]
        found = calibration_pictures(self.folder)
        if found is None:
            return []
        source, names = found
        return [functools.partial(_read, source, name) for name in spread(names, self.count)]


def _read(source: Source, name: str) -> NDArray[np.uint8]:
    """A picture of a data set. Raises: BuildError."""
    try:
        return load(Image.open(io.BytesIO(source.read(name))))
    except (OSError, ImageError) as error:
        raise BuildError(f"cannot calibrate with {name} of {source.path}: {error}") from error
