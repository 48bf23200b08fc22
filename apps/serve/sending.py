"""How an answer leaves: in slices, so that what a client has not taken yet lies in memory once, and
within a time for each.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from apps.serve.metrics import Metrics

SLICE = 2**16
"""Bytes that are given to a connection at once."""


class Sliced(Response):
    """An answer whose body is sent slice by slice, as the client takes it. `held` is closed once
    the last one is taken, or the client is gone.
    """

    def __init__(self, content: bytes, held: ExitStack, **how: Any) -> None:
        super().__init__(content, **how)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it. A server's `send` waits until what was sent before has left."""
        head = {"status": self.status_code, "headers": self.raw_headers}
        with self._held:
            await send({"type": "http.response.start", **head})
            for at in range(0, len(self.body), SLICE):
                piece = self.body[at : at + SLICE]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def protocol(patience: float, metrics: Metrics) -> type[H11Protocol]:
    """uvicorn's connections, which end where a client does not take a slice within `patience`
    seconds. `metrics` count them as errors of the kind "unread".
    """

    class Patient(H11Protocol):
        _end: asyncio.TimerHandle

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # writing pauses until everything has left

        def pause_writing(self) -> None:
            super().pause_writing()
            self._end = self.loop.call_later(patience, self._give_up)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._end.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.flow.write_paused:
                self._end.cancel()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            metrics.errors.labels("unread").inc()
            self.transport.abort()  # closing it would wait for the client

    return Patient
