"""A server of `apps.serve` in this process, and requests to it."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from runtime.engine import LotusEngine

uvicorn = pytest.importorskip("uvicorn", reason="extra `serve`")
pytest.importorskip("fastapi_offline", reason="extra `serve`")

from apps.serve.app import Limits, create_app  # noqa: E402
from apps.serve.command import listen  # noqa: E402
from apps.serve.metrics import Metrics  # noqa: E402
from apps.serve.pool import Pool  # noqa: E402
from apps.serve.sending import protocol  # noqa: E402

RGB = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)


class Reply(NamedTuple):
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.body)["error"]
        return found


def ask(port: int, path: str, body: Any = None, method: str = "", **headers: str) -> Reply:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(
            method or ("GET" if body is None else "POST"),
            path,
            body,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()


def png(rgb: np.ndarray = RGB) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return file.getvalue()


@contextmanager
def serving(bundle: Path, queue: int = 16, **limits: Any) -> Iterator[tuple[int, Pool]]:
    """The port of a server in a thread, ready, and its pool."""
    metrics = Metrics()
    pool = Pool(LotusEngine(bundle), metrics, queue=queue)
    taken = Limits(**limits)
    connections = protocol(taken.deadline, metrics)
    app = create_app(pool, taken, metrics)
    server = uvicorn.Server(uvicorn.Config(app, http=connections, log_level="error"))
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        pool.start().result()
        yield listening.getsockname()[1], pool
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        pool.close()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Fails where that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)
