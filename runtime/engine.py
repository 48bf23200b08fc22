"""Open a bundle, predict, verify."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from runtime.backends import find_backend
from runtime.backends.session import Arrays, Session
from runtime.errors import BackendError, ImageError, SchemaError
from runtime.filling import fill
from runtime.golden import Verification, check_tolerance, golden_error
from runtime.hub import find_bundle
from runtime.image import Fit, ImageLike, choose_bucket, fit_to_bucket, load, restore
from runtime.manifest import Bucket, Manifest
from runtime.opening import Opening
from runtime.prediction import Prediction
from runtime.proof import remember_proof
from runtime.sessions import Sessions, within
from runtime.tasks import TASKS, Resize

_READING = frozenset(("strict", "icc", "max_pixels"))
_LARGEST_NOISE = 1e4  # standard normal noise stays below 10


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """A picture of a list: `rgb` uint8 [H,W,3] as it fits a bucket and all of its size, with its
    own `noise` [1,C,h,w] by name (empty without).
    """

    position: int
    source: Path | None
    bucket: Bucket
    rgb: NDArray[np.uint8]
    fit: Fit
    noise: Arrays


class LotusEngine:
    """A bundle, opened. One engine may be used by several threads.

    `bundle` is its folder, or the id of a repository on the Hugging Face hub ("user/bundle" or
    "user/bundle@revision"; needs `huggingface-hub`).
    `backend=None` takes what the manifest names as its target; there is no silent fall-back.
    Buckets are opened on first use. `max_open` of them stay open at most: each holds the weights.
    `parallel` predictions of a bucket run at once, each with memory of its own; others wait.

    Before its first answer a bucket's files are compared with their checksums, once for each state
    of a file (`check=False` or LOTUS_EDGE_CHECK=0 in the environment: never), and its golden sample
    runs, once for each library version, driver, device and CPU kind (`prove=False` or
    LOTUS_EDGE_PROVE=0: never). `deadline` bounds that, with opening, in seconds.

    Raises: BundleError for a bundle that cannot be used, BackendError when the backend is missing.

    >>> with LotusEngine("engines/disparity-d") as engine:
    ...     disparity = engine("photo.jpg").values
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        backend: str | None = None,
        *,
        max_open: int = 2,
        parallel: int = 1,
        check: bool = True,
        prove: bool = True,
        deadline: float | None = None,
    ) -> None:
        if not isinstance(bundle, str | os.PathLike):
            raise SchemaError(f"expected the path of a bundle, found {type(bundle).__name__}")
        for name, count in (("max_open", max_open), ("parallel", parallel)):
            if type(count) is not int or count < 1:
                raise BackendError(f"{name} is a number from 1 on, found {count!r}")
        real = isinstance(deadline, int | float) and not isinstance(deadline, bool)
        if deadline is not None and not (real and 0 < deadline < math.inf):
            raise BackendError(f"deadline is a number of seconds, found {deadline!r}")
        self.folder = find_bundle(bundle)
        self.manifest = Manifest.load(self.folder)
        self.backend = backend if backend is not None else self.manifest.target
        find_backend(self.backend)
        self._deadline = deadline
        self._opening = Opening(
            folder=self.folder,
            manifest=self.manifest,
            backend=self.backend,
            prove=prove,
            check=check,
            parallel=parallel,
        )
        self._sessions = Sessions(partial(self._open, self._opening), max_open)

    # A str is a Sequence too; the first match is the right one.
    @overload
    def __call__(
        self,
        image: ImageLike,
        seed: int | None = None,
        noise: NDArray[np.float32] | None = None,
        resize: Resize | None = "bilinear",
        **reading: Any,
    ) -> Prediction: ...

    @overload
    def __call__(
        self,
        image: Sequence[ImageLike],
        seed: int | None = None,
        noise: NDArray[np.float32] | None = None,
        resize: Resize | None = "bilinear",
        *,
        on_error: Literal["return"],
        **reading: Any,
    ) -> list[Prediction | ImageError]: ...

    @overload
    def __call__(
        self,
        image: Sequence[ImageLike],
        seed: int | None = None,
        noise: NDArray[np.float32] | None = None,
        resize: Resize | None = "bilinear",
        *,
        on_error: Literal["raise"] = "raise",
        **reading: Any,
    ) -> list[Prediction]: ...

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        seed: int | None = None,
        noise: NDArray[np.float32] | None = None,
        resize: Resize | None = "bilinear",
        *,
        on_error: Literal["raise", "return"] = "raise",
        **reading: Any,
    ) -> Prediction | Sequence[Prediction | ImageError]:
        """Predict for one image (path, PIL image, uint8 RGB array [H,W,3]) or for each image of a
        list. A prediction has a map for each task of the bundle.

        A list fills buckets with a batch, where the bundle has them: images of one size are
        gathered, in their order, and only the last of each size may share a run with copies of
        itself. No more than a batch of each size is held beside the answers.

        `seed` draws the noise of mode G (None: the manifest's `noise_seed`); `noise` float32
        [1,C,h/8,w/8] of the bucket replaces it. `resize` brings the map back to the image's size
        ("bilinear", or "nearest" as the reference does); None leaves it at the size the image has
        inside its bucket. `on_error="return"` puts the ImageError of a bad image into its place of
        the list, and goes on. The other keywords, `strict`, `icc` and `max_pixels`, are those of
        `runtime.image.load`.

        Raises: ImageError for an unusable image or noise, BackendError when the backend fails,
        BundleError and VerificationError when a bucket is opened for the first time.
        """
        if unknown := sorted(reading.keys() - _READING):
            raise TypeError(f"unexpected keywords {unknown}; load has {sorted(_READING)}")
        if on_error not in ("raise", "return"):
            raise ImageError(f"on_error must be 'raise' or 'return', found {on_error!r}")
        if isinstance(image, str | os.PathLike | np.ndarray) or not isinstance(image, Sequence):
            picture = self._fitted(0, image, seed, noise, resize, reading)
            ((bucket, group),) = fill([picture], self.manifest.buckets)
            return self._run(bucket, group, resize)[0]
        answers: dict[int, Prediction | ImageError] = {}

        def pictures() -> Iterator[_Picture]:
            for position, item in enumerate(image):
                try:
                    picture = self._fitted(position, item, seed, noise, resize, reading)
                except ImageError as error:
                    if on_error == "raise":
                        raise
                    answers[position] = error
                else:
                    yield picture

        for bucket, group in fill(pictures(), self.manifest.buckets):
            answers |= self._run(bucket, group, resize)
        return [answers[position] for position in sorted(answers)]

    def check_seed(self, seed: int | None) -> None:
        """Refuse a seed that would have no effect. Raises: ImageError."""
        if self.manifest.mode == "g" and not self.manifest.fixed_noise:
            return
        if self.manifest.fixed_noise and seed not in (None, self.manifest.noise_seed):
            raise ImageError(
                f"the noise of this bundle is fixed to seed {self.manifest.noise_seed}, found "
                f"{seed}; build it without --fixed-noise to choose seeds"
            )
        if not self.manifest.fixed_noise and seed is not None:
            raise ImageError(
                "this bundle is of mode D, which answers the same for every seed: leave the seed "
                "out"
            )

    def verify(self) -> Verification:
        """Check all checksums, then run the golden of every bucket on this machine and compare.

        Raises: DamagedBundleError, VerificationError, BackendError.
        """
        self.manifest.check_contents(self.folder)
        self._sessions.release_idle()  # a session holds the weights: one at a time is enough
        opening = dataclasses.replace(self._opening, check=False, prove=False)
        errors = {}
        for bucket in self.manifest.buckets:
            with self._open(opening, bucket) as session:
                errors[str(bucket)] = within(
                    self._deadline, f"the golden of {bucket}", partial(golden_error, session)
                )
        result = check_tolerance(errors, self.backend, self.manifest.golden)
        for bucket in self.manifest.buckets:
            remember_proof(self.manifest, bucket, find_backend(self.backend))
        return result

    def close(self) -> None:
        """Wait for predictions under way and release every opened bucket; safe to call twice."""
        self._sessions.close()

    def __enter__(self) -> LotusEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise BackendError(
            "an engine cannot be pickled or copied: pass the bundle's path, and open it in each "
            "process"
        )

    def _open(self, opening: Opening, bucket: Bucket) -> Session:
        return within(self._deadline, f"opening {self.folder} ({bucket})", partial(opening, bucket))

    def _fitted(
        self,
        position: int,
        image: ImageLike,
        seed: int | None,
        noise: NDArray[np.float32] | None,
        resize: Resize | None,
        reading: Mapping[str, Any],
    ) -> _Picture:
        """One picture of a list, ready to be run. Raises: ImageError."""
        if resize not in ("bilinear", "nearest", None):
            raise ImageError(f"resize must be 'bilinear', 'nearest' or None, found {resize!r}")
        rgb = load(image, **reading)
        bucket = choose_bucket(self.manifest.buckets, *rgb.shape[:2])
        fitted, fit = fit_to_bucket(rgb, bucket)
        return _Picture(
            position=position,
            source=Path(image) if isinstance(image, str | os.PathLike) else None,
            bucket=bucket,
            rgb=fitted,
            fit=fit,
            noise=self._noise(bucket, seed, noise),
        )

    def _run(
        self, bucket: Bucket, group: list[_Picture], resize: Resize | None
    ) -> dict[int, Prediction]:
        """The predictions for a group, by position. Where the bucket takes more pictures than that,
        the last one fills it.
        """
        full = group + group[-1:] * (bucket.batch - len(group))
        feeds = {"image": self.manifest.preprocess.apply(np.stack([each.rgb for each in full]))}
        for name in full[0].noise:
            feeds[name] = np.concatenate([each.noise[name] for each in full])
        with self._sessions.lease(bucket) as session:
            outputs = session(feeds)
        predictions = {}
        for index, picture in enumerate(group):
            values = {
                # A copy: one prediction of a batch does not keep the others' maps.
                name: TASKS[name].decode(
                    restore(TASKS[name], outputs[name][index].copy(), picture.fit, resize)
                )
                for name in self.manifest.tasks
            }
            predictions[picture.position] = Prediction(values, source=picture.source)
        return predictions

    def _noise(self, bucket: Bucket, seed: int | None, noise: NDArray[np.float32] | None) -> Arrays:
        shape = self.manifest.noise_shape(bucket)
        if "noise" not in self.manifest.input_shapes(bucket):
            if noise is not None:
                raise ImageError(
                    "this bundle takes no noise: it is of mode D, or was built with --fixed-noise, "
                    "which made the noise part of the graph"
                )
            self.check_seed(seed)
            return {}
        if noise is None:
            return {"noise": draw_noise(self.manifest.noise_seed if seed is None else seed, shape)}
        if seed is not None:
            raise ImageError("give a seed or the noise, not both")
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


def draw_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 of `shape` from NumPy's counter-based Philox: the same on every
    machine and backend.

    Raises: ImageError for a negative or non-integer seed.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ImageError(f"a seed is a non-negative integer, found {seed!r}")
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape, dtype=np.float32)
