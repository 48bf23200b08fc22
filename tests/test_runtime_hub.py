"""A bundle by its id, with the hub's own client against a small hub on this machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_null_bundle

from runtime import LotusEngine
from runtime.errors import BundleError, SchemaError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys, numpy as np
from runtime import LotusEngine, LotusError
try:
    with LotusEngine(sys.argv[1]) as engine:
        print(engine.folder)
        print(engine(np.zeros((64, 96, 3), np.uint8)).values.shape)
except LotusError as error:
    print(type(error).__name__, error)
"""


class Hub(BaseHTTPRequestHandler):
    """What the client asks of a hub: a commit, the list of its files, and a file."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/user/bundle/tree/"):
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in sorted(self.folder.iterdir())
            ]
            self._send(json.dumps(entries).encode())
        elif path.startswith("/api/models/user/bundle"):
            files = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            self._send(json.dumps({"sha": COMMIT, "id": "user/bundle", "siblings": files}).encode())
        elif path.startswith("/user/bundle/resolve/"):
            content = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
            self._send(content, body=body)
        else:
            self.send_error(404)

    def _send(self, content: bytes, *, body: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    pytest.importorskip("huggingface_hub", reason="needs the package huggingface_hub")
    folder = write_null_bundle(tmp_path / "remote")
    (folder / "other.bin").write_bytes(b"not a file of the bundle")
    handler = type("Handler", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def opened(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_bundle_by_its_id(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    answer = opened("user/bundle")
    assert COMMIT in answer
    assert "(64, 96)" in answer
    assert not any("other.bin" in path for path in hub.asked), "only what the manifest names"
    hub.asked.clear()
    assert "(64, 96)" in opened("user/bundle@main")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    assert "(64, 96)" in opened("user/bundle"), "what was fetched before needs no network"
    start = time.monotonic()
    assert opened("user/other").startswith("BundleError there is no folder user/other")
    assert time.monotonic() - start < 20


def test_an_id_that_the_hub_does_not_know(hub: type[Hub]) -> None:
    answer = opened("user/nothing")
    assert answer.startswith("BundleError there is no folder user/nothing")
    assert "hub's repository" in answer


def test_a_folder_comes_first_and_a_path_is_no_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_null_bundle(tmp_path / "user" / "bundle")
    with LotusEngine("user/bundle") as engine:
        assert engine(np.zeros((64, 96, 3), np.uint8)).values.shape == (64, 96)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("./user/nothing", "/user/nothing", Path("user/nothing"), "nothing"):
        with pytest.raises(SchemaError, match="there is no folder"):
            LotusEngine(name)
    with pytest.raises(SchemaError, match="there is no folder user/nothing"):
        LotusEngine("user/nothing")  # beside user/bundle: misspelt
    for name in ("other/nothing", "user/nothing@main", f"{'x' * 300}/nothing"):
        with pytest.raises(BundleError, match="pip install huggingface-hub"):
            LotusEngine(name)
