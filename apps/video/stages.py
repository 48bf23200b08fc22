"""Reading, predicting and writing at the same time, with a few frames between them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Read = TypeVar("Read")
Done = TypeVar("Done")
T = TypeVar("T")

_DEPTH = 4  # frames between two stages


class Channel(Generic[T]):
    """A bounded queue with one giver and one taker, either of which may stop.

    `newest`: where it is full the oldest is dropped for the newest, as a camera wants it. `dropped`
    counts them.
    """

    def __init__(self, depth: int = _DEPTH, *, newest: bool = False) -> None:
        self.dropped = 0
        self._depth, self._newest = depth, newest
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._left = False

    def put(self, item: T) -> bool:
        """Wait for room and hand over. False where nobody takes any more."""
        with self._changed:
            if self._newest and len(self._items) == self._depth:
                self._items.popleft()
                self.dropped += 1
            while len(self._items) == self._depth and not self._left:
                self._changed.wait()
            if self._left:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def end(self) -> None:
        """The giver has no more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def leave(self) -> None:
        """The taker takes no more."""
        with self._changed:
            self._left = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait(0.5)  # so that Ctrl-C is heard on every system
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


def run_stages(
    read: Iterable[Read],
    work: Callable[[Read], Done],
    write: Callable[[Done], None],
    *,
    newest: bool = False,
) -> int:
    """Read in one thread, work in the calling one, write in a third. Returns what was dropped
    between reading and working, where `newest` allows it.

    Ctrl-C ends the reading, and what was read is finished where `newest` (a camera has no other
    end); else it goes on to the caller, at once. What any stage raises goes on to the caller when
    all have stopped.
    """
    taken: Channel[Read] = Channel(newest=newest)
    made: Channel[Done] = Channel()
    failures: list[BaseException] = []

    def reading() -> None:
        try:
            for item in read:
                if not taken.put(item):
                    break
        except BaseException as error:
            failures.append(error)
        finally:
            taken.end()

    def writing() -> None:
        try:
            for item in made:
                write(item)
        except BaseException as error:
            failures.append(error)
        finally:
            made.leave()

    threads = [threading.Thread(target=reading), threading.Thread(target=writing)]
    for thread in threads:
        thread.start()
    try:
        for item in taken:
            if not made.put(work(item)):
                break
    except KeyboardInterrupt:
        if not newest:
            made.leave()
            raise
    except BaseException:
        made.leave()
        raise
    finally:
        taken.leave()
        made.end()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return taken.dropped
