"""The opened buckets of an engine: shared by threads, bounded, opened once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from runtime.backends.process import Home
from runtime.backends.session import Session
from runtime.errors import BackendError, DeadlineError
from runtime.manifest import Bucket

T = TypeVar("T")


class Sessions:
    """Open sessions, the least recently used of which make room for a new one.

    `open_bucket` opens one; it is called by one thread at a time. `fits` tells whether a bucket
    may be opened beside those that stay open, once those that are given up are closed.
    """

    def __init__(
        self,
        open_bucket: Callable[[Bucket], Session],
        fits: Callable[[Bucket, Sequence[Bucket], Sequence[Bucket]], bool],
    ) -> None:
        self._open_bucket = open_bucket
        self._fits = fits
        self._sessions: OrderedDict[Bucket, Session] = OrderedDict()
        self._leases: list[tuple[Bucket, int]] = []  # with the thread that holds each
        self._changed = threading.Condition()
        self._opener: int | None = None  # the thread that opens a bucket
        self._blocked = 0  # threads whose bucket does not fit beside those in use
        self._closed = False
        self._given_up = ""  # why, once a deadline has passed
        self._home = Home()

    @contextmanager
    def lease(self, bucket: Bucket) -> Iterator[Session]:
        """The bucket's session, which stays open for as long as the block lasts.

        Raises: BackendError when closed, in a process that was forked, or where it would wait for
        itself: in a signal handler, say; what opening raises.
        """
        session = self._take(bucket)
        try:
            yield session
        finally:
            with self._changed:
                self._leases.remove((bucket, threading.get_ident()))
                self._changed.notify_all()

    def close(self) -> None:
        """Wait for the answers that are under way, then close every session. Safe to call twice.

        Raises: BackendError where it would wait for itself: in a signal handler, say. (A session
        refuses that too. But leases are waited for before any session is asked.)
        """
        if not self._home.is_here:  # what a fork copied is not ours to release
            return
        with self._changed:
            if self._holds_any():
                raise BackendError(
                    "the engine was asked to close by the thread that is predicting with it; close "
                    "it after the prediction"
                )
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._opener is None and not self._leases)
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.close()

    def release_idle(self) -> None:
        """Close the sessions that nobody uses; they are opened again when they are needed."""
        with self._changed:
            sessions = [self._sessions.pop(bucket) for bucket in self._idle()]
        for session in sessions:
            session.close()

    def _take(self, bucket: Bucket) -> Session:
        self._home.check("this engine")
        with self._changed:
            while True:
                if self._closed:
                    raise BackendError("the engine is closed; open the bundle again")
                if self._given_up:  # its thread still runs: do not start another
                    raise DeadlineError(self._given_up)
                is_open = bucket in self._sessions
                if is_open and (not self._blocked or self._holds_any()):
                    self._sessions.move_to_end(bucket)
                    self._leases.append((bucket, threading.get_ident()))
                    return self._sessions[bucket]
                blocked = not is_open and self._opener is None
                if blocked and (unwanted := self._unwanted(bucket)) is not None:
                    break
                if self._opener in (None, threading.get_ident()) and self._holds_any():
                    raise BackendError(
                        "this engine is predicting in this thread already, as in a handler of a "
                        "signal, and would wait for itself; predict again when that is done"
                    )
                # Those that come later wait too: they would keep what is in the way in use.
                self._blocked += blocked
                try:
                    self._changed.wait()
                except BaseException:  # an interruption: nobody need wait for this thread
                    self._changed.notify_all()
                    raise
                finally:
                    self._blocked -= blocked
            self._opener = threading.get_ident()
            surplus = [self._sessions.pop(old) for old in unwanted]
        session: Session | None = None
        try:
            for old in surplus:  # before the new one: both at once might not fit
                old.close()
            session = self._open_bucket(bucket)
        except DeadlineError as error:
            self._given_up = str(error)
            raise
        finally:
            with self._changed:
                self._opener = None
                if session is not None:
                    self._sessions[bucket] = session
                    self._leases.append((bucket, threading.get_ident()))
                self._changed.notify_all()
        return session

    def _holds_any(self) -> bool:
        """Whether this thread is predicting, or opens a bucket to do so."""
        return threading.get_ident() in (self._opener, *(thread for _, thread in self._leases))

    def _unwanted(self, bucket: Bucket) -> list[Bucket] | None:
        """Which to close so that this one fits; None where others must end their work first."""
        kept, given_up = [*self._sessions], list[Bucket]()
        idle = self._idle()
        while kept and not self._fits(bucket, kept, given_up):
            if not idle:
                return None
            given_up.append(idle.pop(0))
            kept.remove(given_up[-1])
        return given_up

    def _idle(self) -> list[Bucket]:
        """Opened buckets that nobody uses, the least recently used first."""
        used = {bucket for bucket, _ in self._leases}
        return [bucket for bucket in self._sessions if bucket not in used]


def within(deadline: float | None, what: str, work: Callable[[], T]) -> T:
    """The answer of `work`, or an error after `deadline` seconds (None: no deadline).

    An inference engine cannot be interrupted: its thread is left behind, and ends with the
    process. Raises: DeadlineError, and what `work` raises.
    """
    if deadline is None:
        return work()
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name=f"lotus-edge: {what}")
    thread.start()
    thread.join(min(deadline, threading.TIMEOUT_MAX))
    if errors:
        raise errors[0]
    if not answers:
        raise DeadlineError(
            f"{what} took more than {deadline:g} s. Its thread cannot be stopped and goes on; do "
            "not use this bundle, or end the process."
        )
    return answers[0]
