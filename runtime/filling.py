"""Which bucket answers which pictures: those of one size fill the buckets with a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from runtime.manifest import Bucket


class Sized(Protocol):
    """Something that is fitted to a bucket, and so to all of its size."""

    @property
    def bucket(self) -> Bucket:
        """Any bucket of that size."""


T = TypeVar("T", bound=Sized)


def fill(items: Iterable[T], buckets: Sequence[Bucket]) -> Iterator[tuple[Bucket, list[T]]]:
    """Groups of items in their order, each with the bucket that answers it.

    The largest batch of a size is waited for. At the end what is left goes through smaller ones;
    only the last group of a size may have fewer items than its bucket's batch, where there is no
    smaller. So at most one batch of each size waits, and `items` is read no further.
    """
    waiting: dict[tuple[int, int], list[T]] = {}
    for item in items:
        size = _size(item.bucket)
        group = waiting.setdefault(size, [])
        group.append(item)
        largest = max(_of_size(buckets, size), key=_batch)
        if len(group) == largest.batch:
            yield largest, waiting.pop(size)
    for size, rest in waiting.items():
        sizes = _of_size(buckets, size)
        while rest:
            full = [bucket for bucket in sizes if bucket.batch <= len(rest)]
            bucket = max(full, key=_batch) if full else min(sizes, key=_batch)
            yield bucket, rest[: bucket.batch]
            rest = rest[bucket.batch :]


def _of_size(buckets: Sequence[Bucket], size: tuple[int, int]) -> list[Bucket]:
    return [bucket for bucket in buckets if _size(bucket) == size]


def _size(bucket: Bucket) -> tuple[int, int]:
    return bucket.height, bucket.width


def _batch(bucket: Bucket) -> int:
    return bucket.batch
