"""One engine, the threads that work with it, and a bound on what is held at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from apps.serve.errors import BusyError
from apps.serve.metrics import Metrics
from apps.serve.work import Work
from runtime.engine import LotusEngine

_FIRST_GUESS = 1.0  # seconds of a prediction, before there was one


class Pool:
    """`workers` threads that do one thing after the other with `engine`, in the order in which they
    came. `queue` more wait at most. `accepted` counts those that got a place.
    """

    def __init__(
        self, engine: LotusEngine, metrics: Metrics, *, workers: int = 1, queue: int = 16
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self._workers = workers
        self._room = workers + queue
        self._held = 0
        self.accepted = 0
        self._seconds = _FIRST_GUESS  # of the last prediction
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="lotus-edge")
        self._proof: Future[None] | None = None

    def start(self) -> Future[None]:
        """Check the files, run the golden sample of every bucket; what comes out is the future's.
        Until it passed, the pool is not ready.
        """
        self._proof = self._threads.submit(self._prove)
        return self._proof

    def _prove(self) -> None:
        self.engine.verify()
        for bucket in self.engine.manifest.buckets:  # opened now, not by the first client
            self.engine(np.zeros((bucket.height, bucket.width, 3), np.uint8))
        self.metrics.ready.set(1)

    @property
    def problem(self) -> str | None:
        """Why there are no predictions yet, or any more; None when ready."""
        if self._proof is None or not self._proof.done():
            return "the bundle is being opened, and proves itself with its golden sample"
        error = self._proof.exception()
        return None if error is None else f"the bundle cannot be used: {error}"

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one prediction, from its first byte to its last. Raises: BusyError."""
        if self.problem is not None:
            raise BusyError(self.problem, Retry_After="1")
        if self._held >= self._room:
            wait = math.ceil(self._held * self._seconds / self._workers)
            raise BusyError(
                f"{self._held} predictions are held, as many as there is room for",
                Retry_After=str(max(1, wait)),
            )
        self._held += 1
        self.accepted += 1
        self.metrics.held.inc()
        try:
            yield
        finally:
            self._held -= 1
            self.metrics.held.dec()

    async def run(self, work: Work) -> bytes:
        """What `work` answers, done by one of the threads. Where nobody waits for it any more it is
        not begun.
        """
        came = time.perf_counter()

        def timed() -> bytes:
            start = time.perf_counter()
            self.metrics.waiting.dec()
            work.note("queue", start - came)
            answer = work(self.engine)
            self._seconds = time.perf_counter() - start
            return answer

        self.metrics.waiting.inc()
        future = self._threads.submit(timed)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancel():
                self.metrics.waiting.dec()
                work.drop()  # the queue has it until its turn comes
            raise

    def close(self) -> None:
        """Finish what is running, and close the engine."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.engine.close()
