"""Open a bundle, predict, verify."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import overload

import numpy as np
from numpy.typing import NDArray

from runtime.backends import find_backend, open_session
from runtime.backends.session import Arrays, Session
from runtime.errors import BackendError, ImageError, SchemaError
from runtime.golden import Verification, check_tolerance, golden_error
from runtime.image import ImageLike, choose_bucket, fit_to_bucket, load, restore
from runtime.manifest import Bucket, Manifest
from runtime.prediction import Prediction
from runtime.tasks import Resize

_LARGEST_NOISE = 1e4  # standard normal noise stays below 10


class LotusEngine:
    """A bundle, opened.

    `backend=None` takes what the manifest names as its target; there is no silent fall-back.
    Buckets are opened on first use and stay open until `close()`. Not safe for use by several
    threads at once.

    Raises: BundleError for a bundle that cannot be used, BackendError when the backend is missing.

    >>> with LotusEngine("engines/disparity-d") as engine:
    ...     disparity = engine("photo.jpg").values
    """

    def __init__(self, path: str | os.PathLike[str], backend: str | None = None) -> None:
        if not isinstance(path, str | os.PathLike):
            raise SchemaError(f"expected the path of a bundle, found {type(path).__name__}")
        self.folder = Path(path)
        self.manifest = Manifest.load(self.folder)
        self.backend = backend if backend is not None else self.manifest.target
        find_backend(self.backend)
        self._sessions: dict[Bucket, Session] = {}
        self._closed = False

    # A str is a Sequence too; the first match is the right one.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        image: ImageLike,
        seed: int | None = None,
        noise: NDArray[np.float32] | None = None,
        resize: Resize | None = "bilinear",
    ) -> Prediction: ...

    @overload
    def __call__(
        self,
        image: Sequence[ImageLike],
        seed: int | None = None,
        noise: NDArray[np.float32] | None = None,
        resize: Resize | None = "bilinear",
    ) -> list[Prediction]: ...

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        seed: int | None = None,
        noise: NDArray[np.float32] | None = None,
        resize: Resize | None = "bilinear",
    ) -> Prediction | list[Prediction]:
        """Predict for one image (path, PIL image, uint8 RGB array [H,W,3]) or for each image of a
        list.

        `seed` draws the noise of mode G (None: the manifest's `noise_seed`); `noise` float32
        [1,C,h/8,w/8] of the bucket replaces it. `resize` brings the map back to the image's size
        ("bilinear", or "nearest" as the reference does); None leaves it at the size the image has
        inside its bucket.

        Raises: ImageError for an unusable image or noise, BackendError when the backend fails.
        """
        if isinstance(image, str | os.PathLike | np.ndarray) or not isinstance(image, Sequence):
            return self._predict(image, seed, noise, resize)
        return [self._predict(item, seed, noise, resize) for item in image]

    def verify(self) -> Verification:
        """Check all checksums, then run the golden of every bucket on this machine and compare.

        Raises: DamagedBundleError, VerificationError, BackendError.
        """
        self.manifest.check_contents(self.folder)
        errors = {}
        for bucket in self.manifest.buckets:
            was_open = bucket in self._sessions
            errors[str(bucket)] = golden_error(self._session(bucket))
            if not was_open:  # a session holds the weights: do not keep one for every bucket
                self._sessions.pop(bucket).close()
        return check_tolerance(errors, self.backend, self.manifest.golden)

    def close(self) -> None:
        """Release every opened bucket; safe to call twice."""
        self._closed = True
        while self._sessions:
            self._sessions.popitem()[1].close()

    def __enter__(self) -> LotusEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _predict(
        self,
        image: ImageLike,
        seed: int | None,
        noise: NDArray[np.float32] | None,
        resize: Resize | None,
    ) -> Prediction:
        if resize not in ("bilinear", "nearest", None):
            raise ImageError(f"resize must be 'bilinear', 'nearest' or None, found {resize!r}")
        rgb = load(image)
        bucket = choose_bucket(self.manifest.buckets, *rgb.shape[:2])
        fitted, fit = fit_to_bucket(rgb, bucket)
        feeds = {"image": self.manifest.preprocess.apply(fitted)} | self._noise(bucket, seed, noise)
        task = self.manifest.task
        output = self._session(bucket)(feeds)[task.name][0]
        return Prediction(task=task.name, values=task.decode(restore(task, output, fit, resize)))

    def _noise(self, bucket: Bucket, seed: int | None, noise: NDArray[np.float32] | None) -> Arrays:
        shape = self.manifest.input_shapes(bucket).get("noise")
        if shape is None:
            if noise is not None:
                raise ImageError(
                    "this bundle takes no noise: it is of mode D, or was built with --fixed-noise, "
                    "which made the noise part of the graph"
                )
            if self.manifest.fixed_noise and seed not in (None, self.manifest.noise_seed):
                raise ImageError(
                    f"the noise of this bundle is fixed to seed {self.manifest.noise_seed}, found "
                    f"{seed}; build it without --fixed-noise to choose seeds"
                )
            return {}
        if noise is None:
            return {"noise": draw_noise(self.manifest.noise_seed if seed is None else seed, shape)}
        if (
            not isinstance(noise, np.ndarray)
            or noise.dtype.kind not in "fiu"
            or noise.shape != shape
        ):
            given = (
                f"{noise.dtype} {list(noise.shape)}"
                if isinstance(noise, np.ndarray)
                else type(noise).__name__
            )
            raise ImageError(
                f"bucket {bucket} takes noise as a float array of shape {list(shape)}, found "
                f"{given}"
            )
        if not (np.abs(noise) < _LARGEST_NOISE).all():
            raise ImageError(
                f"the noise holds NaN, infinite or absurd values (beyond {_LARGEST_NOISE:g})"
            )
        return {"noise": np.ascontiguousarray(noise, dtype=np.float32)}

    def _session(self, bucket: Bucket) -> Session:
        if self._closed:
            raise BackendError(f"the engine of {self.folder} is closed; open the bundle again")
        if bucket not in self._sessions:
            self._sessions[bucket] = open_session(self.backend, self.folder, self.manifest, bucket)
        return self._sessions[bucket]


def draw_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 of `shape` from NumPy's counter-based Philox: the same on every
    machine and backend.

    Raises: ImageError for a negative or non-integer seed.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ImageError(f"a seed is a non-negative integer, found {seed!r}")
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape, dtype=np.float32)
