"""Counts answers by route and status, around everything else."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.serve.metrics import Metrics


class Counting:
    """A middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A path that is no route is not told apart: clients could make up millions.
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
