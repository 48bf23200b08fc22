"""What is being predicted, for a browser on this machine: a stream of JPEGs (MJPEG)."""

from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.errors import OutputError

HOST = "127.0.0.1"
"""Nobody else's machine is answered."""
_MOST = 8  # browsers at once; each has a thread
_BOUNDARY = "frame"
_PAGE = (
    b"<!doctype html><title>lotus-edge</title><body style='margin:0;background:#222'>"
    b"<img src='/stream' style='width:100%;height:100vh;object-fit:contain'>"
)


class Preview:
    """A server of the newest frame: `/` is a page, `/stream` the frames. A browser that is slow
    misses some; nothing waits for it. Raises: OutputError where the port is taken.
    """

    def __init__(self, port: int) -> None:
        self._newest: NDArray[np.uint8] | None = None
        self._jpeg, self._number, self._encoded = b"", 0, 0
        self._changed = threading.Condition()
        self._encoding = threading.Lock()
        self._closed = False
        self._places = threading.BoundedSemaphore(_MOST)
        try:
            self._server = _Server((HOST, port), self._handler())
        except (OSError, OverflowError) as error:
            raise OutputError(
                f"cannot serve the preview on port {port}: {error}. Choose another one"
            ) from error
        self.url = f"http://{HOST}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def show(self, rgb: NDArray[np.uint8]) -> None:
        """Make uint8 [H,W,3] the newest frame."""
        with self._changed:
            self._newest, self._number = rgb, self._number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop serving; browsers are let go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Preview:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _next(self, after: int) -> tuple[int, bytes]:
        """The newest frame as a JPEG, with its number, once it is newer; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._number > after)
            number, rgb = self._number, self._newest
            if self._closed or rgb is None:
                return number, b""
        with self._encoding:  # once for all browsers
            if self._encoded != number:
                buffer = io.BytesIO()
                Image.fromarray(rgb).save(buffer, format="JPEG", quality=85)
                self._jpeg, self._encoded = buffer.getvalue(), number
            return number, self._jpeg

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        preview = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 30  # seconds, for a browser that neither speaks nor listens

            def do_GET(self) -> None:
                if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
                    self.send_error(403, "only this machine is answered")
                elif self.path == "/":
                    self._send("text/html; charset=utf-8", str(len(_PAGE)))
                    self.wfile.write(_PAGE)
                elif self.path != "/stream":
                    self.send_error(404)
                elif not preview._places.acquire(blocking=False):
                    self.send_error(503, f"{_MOST} are watching already")
                else:
                    try:
                        self._stream()
                    finally:
                        preview._places.release()

            def _send(self, kind: str, length: str | None = None) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Cache-Control", "no-store")
                if length is not None:
                    self.send_header("Content-Length", length)
                self.end_headers()

            def _stream(self) -> None:
                self._send(f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
                number, jpeg = preview._next(0)
                while jpeg:
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                    length = f"Content-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write((head + length).encode() + jpeg + b"\r\n")
                    number, jpeg = preview._next(number)

            def log_message(self, format: str, *words: Any) -> None:
                """Nothing: the command speaks on stderr."""

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that goes away is no error."""
