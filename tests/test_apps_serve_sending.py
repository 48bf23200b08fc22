"""How answers of `lotus-edge serve` leave: in slices, in their place, within a time."""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from served import ask, png, serving, wait_until

from apps.serve.command import listen
from apps.serve.pool import Pool
from apps.serve.sending import SLICE, Sliced

SIZE = (1200, 1600)
LARGE = png(np.zeros((*SIZE, 3), np.uint8))
ANSWER = SIZE[0] * SIZE[1] * 4 * 4  # bytes of its maps: more than the sockets of both sides hold
NPZ = "application/x-npz"


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("serve"), task=("disparity", "normal"))


@contextmanager
def begun(port: int) -> Iterator[socket.socket]:
    """A client that has asked, and took only the first bytes of its answer."""
    head = f"POST /v1/predict HTTP/1.1\r\nHost: here\r\nAccept: {NPZ}\r\n"
    with socket.socket() as client:
        client.settimeout(30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)
        client.connect(("127.0.0.1", port))
        client.sendall(f"{head}Content-Length: {len(LARGE)}\r\n\r\n".encode() + LARGE)
        assert client.recv(12) == b"HTTP/1.1 200"
        yield client


def held(pool: Pool) -> float:
    return float(pool.metrics.held._value.get())


def test_what_a_client_does_not_take_keeps_its_place_and_then_ends(joint: Path) -> None:
    with serving(joint, queue=0, deadline=4.0) as (port, pool), begun(port) as client:
        busy = ask(port, "/v1/predict", png())
        assert (busy.status, busy.error["kind"]) == (503, "busy")
        wait_until(lambda: held(pool) == 0)
        assert ask(port, "/v1/predict", png()).status == 200
        taken = sum(map(len, iter(lambda: client.recv(2**20), b"")))
        assert taken < ANSWER, "the connection has ended"
        counted = 'lotus_edge_errors_total{kind="unread"} 1.0'
        assert counted in ask(port, "/metrics").body.decode()


def test_a_slow_client_gets_all_of_its_answer(joint: Path) -> None:
    deadline, pieces = 4.0, []
    with serving(joint, deadline=deadline) as (port, pool):
        wanted = ask(port, "/v1/predict", LARGE, Accept=NPZ).body
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/predict", LARGE, {"Accept": NPZ})
        answer = connection.getresponse()
        start = time.monotonic()
        while piece := answer.read(len(wanted) // 20 + 1):
            pieces.append(piece)
            time.sleep(1.1 * deadline / 20)
        assert time.monotonic() - start > deadline
        connection.close()
        assert len(wanted) > ANSWER
        assert b"".join(pieces) == wanted
        wait_until(lambda: held(pool) == 0)


def test_little_of_an_answer_is_under_way() -> None:
    """The kernel asks for more once a third of its buffer has left, which it lets grow: a client of
    50 KB a second would take longer than `--deadline` for that.
    """
    with listen("127.0.0.1", 0) as listening, socket.socket() as client:
        client.connect(listening.getsockname())
        served, _ = listening.accept()
        with served:
            assert SLICE <= served.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 4 * SLICE


def test_a_client_that_goes_away_gives_its_place_back(joint: Path) -> None:
    with serving(joint) as (port, pool):
        with begun(port):
            assert held(pool) == 1
        wait_until(lambda: held(pool) == 0, seconds=10)


async def _nothing() -> dict[str, Any]:
    return {}


def test_slices_are_the_body_and_then_the_place_is_free() -> None:
    content, sent = bytes(range(256)) * 700, list[Any]()
    place = ExitStack()
    place.callback(sent.append, "free")

    async def send(message: Any) -> None:
        sent.append(message)

    answer = Sliced(content, place, media_type="image/png", headers={"Server-Timing": "x"})
    asyncio.run(answer({"type": "http"}, _nothing, send))
    head, *bodies, last = sent
    assert last == "free"
    headers = dict(head["headers"])
    assert headers[b"content-length"] == str(len(content)).encode()
    assert headers[b"content-type"] == b"image/png"
    assert b"".join(each["body"] for each in bodies) == content
    assert max(len(each["body"]) for each in bodies) == SLICE
    assert [each.get("more_body", False) for each in bodies] == [True, True, True, False]


def test_a_cancelled_answer_gives_its_place_back() -> None:
    free, place = list[str](), ExitStack()
    place.callback(free.append, "free")

    async def send(message: Any) -> None:
        await asyncio.Event().wait()

    async def cancelled() -> None:
        answer = asyncio.create_task(Sliced(b"x", place)({"type": "http"}, _nothing, send))
        await asyncio.sleep(0.01)
        assert free == []
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)

    asyncio.run(cancelled())
    assert free == ["free"]
