"""From pictures that fit a bucket to their maps: batches are filled, and ensembles split up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import loops
from runtime.backends.session import Arrays, Session
from runtime.filling import fill
from runtime.image import Fit, restore
from runtime.manifest import Bucket, Manifest
from runtime.tasks import TASKS, Answer

Lease = Callable[[Bucket], AbstractContextManager[Session]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A picture of a list: `rgb` uint8 [H,W,3] as it fits a bucket and all of its size.

    `noise` is its own, [M,C,h,w] for an ensemble of M answers; None where the bundle takes none.
    `notes` say what is odd about it.
    """

    position: int
    source: Path | None
    bucket: Bucket
    rgb: NDArray[np.uint8]
    fit: Fit
    noise: NDArray[np.float32] | None
    notes: Sequence[str] = ()

    @property
    def answers(self) -> int:
        """Maps of each task that are wanted."""
        return 1 if self.noise is None else len(self.noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """What one run does of a picture: some of its noises."""

    picture: Picture
    noise: NDArray[np.float32] | None

    @property
    def bucket(self) -> Bucket:
        return self.picture.bucket


def serving(buckets: Sequence[Bucket], ensemble: int) -> list[Bucket]:
    """The buckets that answer an ensemble of so many, 1 for an ordinary prediction.

    Of each size these are the plain ones, or for an ensemble the one with the most noises that are
    all needed, else the one with the fewest, where there is any.
    """
    chosen: list[Bucket] = []
    for size in dict.fromkeys((bucket.height, bucket.width) for bucket in buckets):
        same = [bucket for bucket in buckets if (bucket.height, bucket.width) == size]
        several = [bucket for bucket in same if bucket.noises > 1]
        if ensemble == 1 or not several:
            chosen += [bucket for bucket in same if bucket.noises == 1]
            continue
        fitting = [bucket for bucket in several if bucket.noises <= ensemble]
        chosen.append(max(fitting, key=_noises) if fitting else min(several, key=_noises))
    return chosen


def answer_all(
    pictures: Iterable[Picture], manifest: Manifest, buckets: Sequence[Bucket], lease: Lease
) -> Iterator[tuple[Picture, dict[str, Answer]]]:
    """Each picture with its answer for each task, at the size it has inside its bucket.

    `buckets` are those of `serving`. A picture comes out when its last run is done; those of one
    size in their order. Raises: BackendError, and what opening a bucket raises.
    """
    found: dict[int, list[Arrays]] = {}
    for bucket, group in fill(_parts(pictures, buckets), buckets):
        for part, maps in _run(bucket, group, manifest, lease):
            picture = part.picture
            so_far = found.setdefault(picture.position, [])
            so_far.append(maps)
            if len(so_far) == picture.answers:
                yield picture, _merged(picture, found.pop(picture.position))


def _parts(pictures: Iterable[Picture], buckets: Sequence[Bucket]) -> Iterator[_Part]:
    most = {(bucket.height, bucket.width): bucket.noises for bucket in buckets}
    for picture in pictures:
        if picture.noise is None:
            yield _Part(picture=picture, noise=None)
            continue
        step = most[picture.bucket.height, picture.bucket.width]
        for at in range(0, len(picture.noise), step):
            yield _Part(picture=picture, noise=picture.noise[at : at + step])


def _run(
    bucket: Bucket, group: list[_Part], manifest: Manifest, lease: Lease
) -> Iterator[tuple[_Part, Arrays]]:
    """Each part as often as it has answers, with the maps [C,H,W] by task. Where the bucket takes
    more pictures or noises than there are, the last one fills it.
    """
    full = group + group[-1:] * (bucket.batch - len(group))
    rgb = np.stack([part.picture.rgb for part in full])
    feeds = {"image": manifest.preprocess.apply(rgb, loops.ready(rgb.size // 3))}
    noises = [_filled(part.noise, bucket.noises) for part in full if part.noise is not None]
    if noises:
        feeds["noise"] = np.concatenate(noises)
    with lease(bucket) as session:
        outputs = session(feeds)
    for index, part in enumerate(group):
        for number in range(1 if part.noise is None else len(part.noise)):
            # A copy: one answer of a batch does not keep the others' maps.
            row = index * bucket.noises + number
            yield part, {name: outputs[name][row].copy() for name in manifest.tasks}


def _filled(noise: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return np.concatenate([noise, np.repeat(noise[-1:], count - len(noise), axis=0)])


def _merged(picture: Picture, maps: list[Arrays]) -> dict[str, Answer]:
    """One answer of several, by task, with the padding cut off."""
    answers = {}
    for name in maps[0]:
        task = TASKS[name]
        cut = [restore(task, each[name], picture.fit, None) for each in maps]
        answers[name] = task.merge(cut) if len(cut) > 1 else Answer(map=cut[0])
    return answers


def _noises(bucket: Bucket) -> int:
    return bucket.noises
