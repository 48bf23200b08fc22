"""What was opened belongs to one process: a forked child has a copy without the threads behind."""

from __future__ import annotations

import os

from runtime.errors import BackendError


class Home:
    """The process that made it."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """False in a child that was forked."""
        return os.getpid() == self._process

    def check(self, what: str) -> None:
        """Raises: BackendError in a child that was forked."""
        if not self.is_here:
            raise BackendError(
                f"{what} was opened before the process was forked, and what the inference engine "
                "started did not come along: open the bundle again in each process, or start "
                "processes with the method 'spawn'"
            )
