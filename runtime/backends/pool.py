"""A few things of one kind, lent to one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from runtime.errors import BackendError

Item = TypeVar("Item")


class Pool(Generic[Item]):
    """At most `limit` items, made on demand and used again. Safe for threads.

    `owner` is named in errors.
    """

    def __init__(self, *, limit: int, owner: str) -> None:
        self._limit = limit
        self._owner = owner
        self._idle: list[Item] = []
        self._borrowers: set[int] = set()  # threads that hold an item
        self._changed = threading.Condition()
        self._closed = False

    @contextmanager
    def borrow(self, make: Callable[[], Item]) -> Iterator[Item]:
        """An item for this thread alone, of `make` where none is idle; waits while all are lent.

        Raises: BackendError when the pool is closed, also while waiting, and in a thread that holds
        an item; what `make` raises.
        """
        thread = threading.get_ident()
        with self._changed:
            if thread in self._borrowers:  # it would wait for itself
                raise BackendError(
                    f"{self._owner} is predicting in this thread already, as in a handler of a "
                    "signal; predict again when that is done"
                )
            self._changed.wait_for(lambda: self._closed or len(self._borrowers) < self._limit)
            if self._closed:
                raise BackendError(f"{self._owner} is closed; open the bundle again")
            self._borrowers.add(thread)
            kept = [self._idle.pop()] if self._idle else []
        try:
            if not kept:
                kept.append(make())
            yield kept[0]
        finally:
            with self._changed:
                self._idle += kept
                self._borrowers.remove(thread)
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse further callers, wait for those that hold an item, and drop all items. Safe to
        call twice.

        Raises: BackendError in a thread that holds an item (say in a signal's handler): it would
        wait for itself.
        """
        with self._changed:
            if threading.get_ident() in self._borrowers:
                raise BackendError(
                    f"{self._owner} is predicting in the thread that closes it, as in a handler of "
                    "a signal; close it when the prediction is done"
                )
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._borrowers)
            self._idle.clear()
