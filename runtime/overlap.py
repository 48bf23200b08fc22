"""Work ahead of those who need it, and behind those who made it, in threads and within bounds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

WORKERS = min(2, os.cpu_count() or 1)
"""Threads that read pictures. More would hold more large pictures in memory at once."""

WRITERS = WORKERS + 1
"""Threads that write results: each waits for the disk for a third of its time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, most: int, workers: int = WORKERS
) -> Generator[Result, None, None]:
    """`work` of each item, in their order. At most `most` are done or under way before they are
    asked for.

    What `work` raises is raised at its place. When the generator is closed, what was begun is
    finished, and nothing more is begun.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="lotus-read") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class Behind:
    """Runs work in threads, while the caller goes on: at most `most` at once and waiting.

    As a context manager it waits at the end for all that was given, whatever happens. What the work
    raises is raised by a later call, or at the end where nothing else is.
    """

    def __init__(self, *, most: int, workers: int = WRITERS) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="lotus-write")
        self._pending: deque[Future[None]] = deque()
        self._most = most

    def __call__(self, work: Callable[[], None]) -> None:
        """Give it work; waits where there is enough already."""
        while len(self._pending) >= self._most:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work))

    def wait(self) -> None:
        """Until all is done."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()
