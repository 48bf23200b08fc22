"""HTTP requests to `lotus-edge serve` that are none, and pictures for those that are."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image


def png(seed: int) -> bytes:
    """A PNG of a size and content of its own."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(40, 160, 2)
    file = io.BytesIO()
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _post(body: bytes, path: str = "/v1/predict", **headers: str) -> bytes:
    lines = {"Host": "x", "Content-Length": str(len(body)), "Connection": "close"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def _garbage(dice: random.Random) -> tuple[str, bytes]:
    return "garbage", dice.randbytes(dice.randint(1, 3000)) + b"\r\n\r\n"


def _text(dice: random.Random) -> tuple[str, bytes]:
    return "text", _post(b"no picture " * dice.randint(0, 500))


def _damaged(dice: random.Random) -> tuple[str, bytes]:
    body = bytearray(png(dice.randint(0, 99)))
    for _ in range(200):
        body[dice.randrange(8, len(body))] = dice.randrange(256)
    return "damaged picture", _post(bytes(body[: dice.randint(9, len(body) // 2)]))


def _large(dice: random.Random) -> tuple[str, bytes]:
    return "too large", _post(b"x", Content_Length=str(dice.randint(10**8, 10**15)))


def _form(dice: random.Random) -> tuple[str, bytes]:
    body = dice.choice((b"--b\r\n", b"--b\r\nContent-Disposition: form-data\r\n\r\n", b"x"))
    kind = dice.choice(("multipart/form-data; boundary=b", "multipart/form-data", "multipart/x"))
    return "form", _post(body + dice.randbytes(dice.randint(0, 500)), Content_Type=kind)


def _question(dice: random.Random) -> tuple[str, bytes]:
    query = dice.choice(("task=%00", "seed=-1", "seed=1e9", "seed=" + "9" * 400, "resize=../../x"))
    return "parameter", _post(png(1), f"/v1/predict?{query}")


def _header(dice: random.Random) -> tuple[str, bytes]:
    name, value = dice.choice(
        (
            ("Accept", "text/" + "x" * dice.randint(1, 5000)),
            ("Accept", "image/png;q=0, */*;q=nan"),
            ("Content_Length", "-5"),
            ("Content_Length", "five"),
            ("Transfer_Encoding", "gzip"),
            ("X_Long", "x" * 100_000),
        )
    )
    return "header", _post(b"x", **{name: value})


def _path(dice: random.Random) -> tuple[str, bytes]:
    path = dice.choice(
        ("/../../etc/passwd", "/v1/predict/..", "/%ff%fe", "//", "/v1/" + "a" * 9000)
    )
    return "path", _post(b"", path)


def _method(dice: random.Random) -> tuple[str, bytes]:
    method = dice.choice((b"GET", b"PUT", b"TRACE", b"BREW"))
    return "method", _post(b"").replace(b"POST", method, 1)


def _chunks(dice: random.Random) -> tuple[str, bytes]:
    head = _post(b"", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    return "chunks", head + dice.choice((b"zz\r\nx\r\n", b"-1\r\n", b"5\r\nno pi\r\n0\r\n\r\n"))


MALFORMED = (
    *(_garbage, _text, _damaged, _large, _form),
    *(_question, _header, _path, _method, _chunks),
)
"""Makers of requests that are none: a name and the bytes."""
