"""Open a bundle, predict, verify."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from runtime.backends import find_backend
from runtime.backends.session import Session, check_placement
from runtime.call import Call, draw_noise
from runtime.errors import BackendError, ImageError, SchemaError
from runtime.golden import Verification, check_tolerance, golden_on
from runtime.hub import find_bundle
from runtime.image import (
    ImageLike,
    Pixels,
    choose_bucket,
    fit_to_bucket,
    load,
    read,
    restore,
    size_of,
    warn,
)
from runtime.manifest import Bucket, Manifest
from runtime.opening import Opening
from runtime.prediction import Prediction
from runtime.proof import remember_proof
from runtime.running import Picture, answer_all, serving
from runtime.sessions import Sessions, within
from runtime.tasks import TASKS, Answer, Resize
from runtime.tiles import Progress, predict_tiles

__all__ = ["LotusEngine", "draw_noise"]

T = TypeVar("T")


class LotusEngine:
    """A bundle, opened. One engine may be used by several threads.

    `bundle` is its folder, or the id of a repository on the Hugging Face hub ("user/bundle" or
    "user/bundle@revision"; needs `huggingface-hub`).
    `backend=None` takes what the manifest names as its target; there is no silent fall-back.
    Buckets are opened on first use. `max_open` of them stay open at most, since each holds the
    weights; None is as many as memory holds (`runtime.memory.Room`).
    `parallel` predictions of a bucket run at once, each with memory of its own; others wait.
    `device` is one of the backend's own ("CPU", "GPU", "NPU" of OpenVINO, the number of a GPU of
    `onnxruntime-cuda`); None is its default. `threads` are those of a run on the CPU; None is all
    cores that this process may use, by its affinity and the quota of its container.

    Before its first answer a bucket's files are compared with their checksums, once for each state
    of a file (`check=False` or LOTUS_EDGE_CHECK=0 in the environment: never), and its golden sample
    runs, once for each library version, driver, device and CPU kind, and each time on a device that
    is not described (`prove=False` or LOTUS_EDGE_PROVE=0: never). `deadline` bounds that, with
    opening, in seconds. What a backend compiles of a large bundle is kept in the user's cache
    folder (`keep=False` or LOTUS_EDGE_COMPILED=0: neither kept nor used), see `runtime.compiled`.

    Raises: BundleError for a bundle that cannot be used, BackendError when the backend is missing.

    >>> with LotusEngine("engines/disparity-d") as engine:
    ...     disparity = engine("photo.jpg").values
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        backend: str | None = None,
        *,
        max_open: int | None = None,
        parallel: int = 1,
        device: str | None = None,
        threads: int | None = None,
        check: bool = True,
        prove: bool = True,
        keep: bool = True,
        deadline: float | None = None,
    ) -> None:
        if not isinstance(bundle, str | os.PathLike):
            raise SchemaError(f"expected the path of a bundle, found {type(bundle).__name__}")
        if type(parallel) is not int or parallel < 1:
            raise BackendError(f"parallel is a number from 1 on, found {parallel!r}")
        real = isinstance(deadline, int | float) and not isinstance(deadline, bool)
        if deadline is not None and not (real and 0 < deadline < math.inf):
            raise BackendError(f"deadline is a number of seconds, found {deadline!r}")
        self.folder = find_bundle(bundle)
        self.manifest = Manifest.load(self.folder)
        self.backend = backend if backend is not None else self.manifest.target
        check_placement(find_backend(self.backend), device, threads)
        self._deadline = deadline
        self._opening = Opening(
            folder=self.folder,
            manifest=self.manifest,
            backend=self.backend,
            prove=prove,
            check=check,
            keep=keep,
            make=deadline is None,  # it might never be long enough
            parallel=parallel,
            device=device,
            threads=threads,
        )
        room = self._opening.room(max_open)
        self._sessions = Sessions(partial(self._open, self._opening), room)

    # A str is a Sequence too; the first match is the right one.
    @overload
    def __call__(
        self,
        image: ImageLike,
        seed: int | None = None,
        noise: NDArray[np.float32] | None = None,
        resize: Resize | None = "bilinear",
        *,
        ensemble: int = 1,
        tiles: bool = False,
        progress: Progress | None = None,
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
        ensemble: int = 1,
        tiles: bool = False,
        progress: Progress | None = None,
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
        ensemble: int = 1,
        tiles: bool = False,
        progress: Progress | None = None,
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
        ensemble: int = 1,
        tiles: bool = False,
        progress: Progress | None = None,
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
        inside its bucket.

        `ensemble=N` (mode G) answers N times, with the seeds from `seed` on, and merges the answers
        by `Task.merge`: the map of each task is their middle, and has an `uncertainty`. One run
        does it where the bundle has a bucket with N noises.

        `tiles=True` is for pictures larger than a bucket: first the whole picture, then overlapping
        tiles of the bucket's size at the resolution of the picture, see `runtime.tiles`.
        `progress(done, total)` is called as tiles of a picture are done.

        `on_error="return"` puts the ImageError of a bad image into its place of
        the list, and goes on. The other keywords, `strict`, `icc` and `max_pixels`, are those of
        `runtime.image.load`.

        Raises: ImageError for an unusable image or noise, BackendError when the backend fails,
        BundleError and VerificationError when a bucket is opened for the first time.
        """
        call = Call(
            seed=seed,
            noise=noise,
            resize=resize,
            ensemble=ensemble,
            tiles=tiles,
            progress=progress,
            on_error=on_error,
            reading=reading,
        )
        self.check_seed(seed, ensemble)
        if isinstance(image, str | os.PathLike | np.ndarray) or not isinstance(image, Sequence):
            ((_, answer),) = self._predict([image], dataclasses.replace(call, on_error="raise"))
            assert isinstance(answer, Prediction)
            return answer
        answers = dict(self._predict(image, call))
        return [answers[position] for position in sorted(answers)]

    def check_seed(self, seed: int | None, ensemble: int = 1) -> None:
        """Refuse a seed, or an ensemble, that would have no effect. Raises: ImageError."""
        if self.manifest.mode == "g" and not self.manifest.fixed_noise:
            return
        if ensemble > 1:
            why = "its noise is fixed" if self.manifest.fixed_noise else "it is of mode D"
            raise ImageError(
                f"an ensemble of {ensemble} needs a bundle that takes noise: this one answers the "
                f"same each time, since {why}. Leave the ensemble out, or build a bundle of mode G "
                "without --fixed-noise"
            )
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
        opening = dataclasses.replace(self._opening, check=False, prove=False, make=False)
        errors, kept = {}, dict[Bucket, str]()
        for bucket in self.manifest.buckets:
            what = f"opening {self.folder} ({bucket}) and its golden"
            found = within(self._deadline, what, partial(opening.measure, bucket))
            errors[str(bucket)], kept[bucket] = found
        golden = golden_on(self.manifest, self.backend)
        result = check_tolerance(errors, self.backend, golden)
        backend = find_backend(self.backend)
        for bucket in self.manifest.buckets:
            remember_proof(self.manifest, bucket, backend, opening.device, kept=kept[bucket])
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

    # The three steps of a call without tiles, for those who overlap them (runtime/batch.py).

    def prepare(self, image: ImageLike, call: Call, position: int = 0) -> Picture:
        """Step one: a picture, read and fitted to its bucket. Any thread may do it, and no backend
        takes part. It has its `notes`: what `load` warns of. Raises: ImageError.
        """
        pixels, notes = read(image, **call.reading)
        bucket = choose_bucket(self.manifest.buckets, *size_of(pixels))
        source = Path(image) if isinstance(image, str | os.PathLike) else None
        return self._fitted(position, source, pixels, call, bucket, notes)

    def run(
        self, pictures: Iterable[Picture], call: Call
    ) -> Iterator[tuple[Picture, dict[str, Answer]]]:
        """Step two: the network. A picture comes out, with its answers at the size it has in its
        bucket, when its last run is done; those of one size in their order. Raises: BackendError,
        and what opening a bucket raises.
        """
        buckets = serving(self.manifest.buckets, call.ensemble)
        return answer_all(pictures, self.manifest, buckets, self._sessions.lease)

    def finish(self, picture: Picture, answers: Mapping[str, Answer], call: Call) -> Prediction:
        """Step three: the answers brought back to the picture's size. Any thread may do it."""
        values, uncertainty = {}, {}
        for name, answer in answers.items():
            task = TASKS[name]
            values[name] = task.decode(restore(task, answer.map, picture.fit, call.resize))
            if answer.spread is not None:
                (spread,) = restore(task, answer.spread, picture.fit, call.resize)
                uncertainty[name] = task.uncertainty(values[name], spread)
        return Prediction(
            values,
            source=picture.source,
            uncertainty=uncertainty,
            meanings=self.manifest.outputs,
        )

    def _predict(
        self, images: Sequence[ImageLike], call: Call
    ) -> Iterator[tuple[int, Prediction | ImageError]]:
        """The answer for each image, by its position; images are loaded as they are needed."""
        errors: dict[int, ImageError] = {}

        def each(work: Callable[[ImageLike, Call, int], T]) -> Iterator[T]:
            for position, image in enumerate(images):
                try:
                    done = work(image, call, position)
                except ImageError as error:
                    if call.on_error == "raise":
                        raise
                    errors[position] = error
                else:
                    yield done

        if call.tiles:
            yield from each(self._tiled)
        else:
            for picture, answers in self.run(each(self._prepared), call):
                yield picture.position, self.finish(picture, answers, call)
        yield from errors.items()

    def _prepared(self, image: ImageLike, call: Call, position: int) -> Picture:
        picture = self.prepare(image, call, position)
        warn(picture.notes)
        return picture

    def _fitted(
        self,
        position: int,
        source: Path | None,
        pixels: Pixels,
        call: Call,
        bucket: Bucket,
        notes: Sequence[str] = (),
    ) -> Picture:
        fitted, fit = fit_to_bucket(pixels, bucket)
        return Picture(
            position=position,
            source=source,
            bucket=bucket,
            rgb=fitted,
            fit=fit,
            noise=call.noises(self.manifest, bucket),
            notes=notes,
        )

    def _tiled(self, image: ImageLike, call: Call, position: int) -> tuple[int, Prediction]:
        """The prediction for a picture in tiles, with its position."""
        rgb = load(image, **call.reading)
        bucket = choose_bucket(self.manifest.buckets, *rgb.shape[:2])
        size = (bucket.height, bucket.width)

        def predict(crops: list[NDArray[np.uint8]]) -> list[dict[str, Answer]]:
            pictures = [self._fitted(at, None, crop, call, bucket) for at, crop in enumerate(crops)]
            return [answers for _, answers in self.run(pictures, call)]  # all have one size

        same = [each for each in self.manifest.buckets if (each.height, each.width) == size]
        answer = predict_tiles(
            rgb,
            size,
            predict,
            resize=call.resize or "bilinear",
            at_once=max(each.batch for each in same),
            progress=call.progress or (lambda done, total: None),
        )
        return position, Prediction(
            answer.values,
            source=Path(image) if isinstance(image, str | os.PathLike) else None,
            uncertainty=answer.uncertainty,
            tiled=answer.tiled,
            meanings=self.manifest.outputs,
        )
