"""`lotus-edge serve`: over real sockets, with the null backend."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, write_null_bundle
from PIL import Image
from served import RGB, ask, png, serving, wait_until

from apps.serve.answers import choose_form
from apps.serve.errors import NotAcceptableError
from runtime.backends.null import BackendSession
from runtime.engine import LotusEngine
from runtime.tasks import TASKS

BOUNDARY = "----lotus"


def multipart(content: bytes, name: str = "image", kind: str = '; filename="a.png"') -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{kind}\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


AS_FORM = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("serve"), task=("disparity", "normal"))


@pytest.fixture(scope="module")
def port(joint: Path) -> Iterator[int]:
    with serving(joint, max_bytes=50_000, max_pixels=100_000) as (port, _):
        yield port


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Predictions wait for this event, the golden samples do not."""
    gate = threading.Event()
    run = BackendSession._run

    def waiting(session: BackendSession, runner: None, inputs: Any) -> Any:
        if threading.current_thread().name.startswith("lotus-edge") and gate.waits:  # type: ignore[attr-defined]
            gate.wait(20)
        return run(session, runner, inputs)

    gate.waits = False  # type: ignore[attr-defined]
    monkeypatch.setattr(BackendSession, "_run", waiting)
    return gate


def test_each_form_is_the_engines_answer(port: int, joint: Path) -> None:
    with LotusEngine(joint) as engine:
        wanted = engine(RGB)
    for body, headers in ((png(), {}), (multipart(png()), AS_FORM)):
        answer = ask(port, "/v1/predict", body, **headers)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer
        found = json.loads(answer.body)
        assert (found["bundle"], found["height"], found["width"]) == ("null", 40, 70)
        for task, each in found["maps"].items():
            values = np.frombuffer(base64.b64decode(each["data"]), "<f4").reshape(each["shape"])
            assert np.array_equal(values, wanted[task].values)
        assert re.search(r"read;dur=.*queue;dur=.*total;dur=", answer.headers["server-timing"])
    arrays = ask(port, "/v1/predict", png(), Accept="application/x-npz")
    with np.load(io.BytesIO(arrays.body)) as found:
        assert found.files == ["disparity", "normal"]
        for task in found.files:
            assert np.array_equal(found[task], wanted[task].values)
    colors = ask(port, "/v1/predict?task=normal", png(), Accept="image/png")
    assert np.array_equal(Image.open(io.BytesIO(colors.body)), wanted["normal"].colorize())
    deep = ask(port, "/v1/predict?task=disparity", png(), Accept="image/png;depth=16")
    levels = np.asarray(Image.open(io.BytesIO(deep.body)))
    assert np.array_equal(levels, TASKS["disparity"].encode16(wanted["disparity"].values))


def test_the_size_of_the_network(port: int, joint: Path) -> None:
    answer = ask(port, "/v1/predict?resize=none", png(), Accept="application/x-npz")
    with LotusEngine(joint) as engine, np.load(io.BytesIO(answer.body)) as found:
        wanted = engine(RGB, resize=None)["normal"].values
        assert np.array_equal(found["normal"], wanted)
        assert wanted.shape != RGB.shape


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("image/*", "image/png"),
        ("image/png; depth=16", "image/png;depth=16"),
        ("image/avif,image/webp,*/*;q=0.8", "application/json"),
        ("image/png;q=0.2, application/x-npz;q=0.9", "application/x-npz"),
        ("image/png;q=x, application/json", "application/json"),
        ("image/gif", None),
        ("image/png;q=0", None),
        (",;,=", None),
    ],
)
def test_accept(accept: str | None, chosen: str | None) -> None:
    if chosen is None:
        with pytest.raises(NotAcceptableError, match="written are"):
            choose_form(accept)
    else:
        assert choose_form(accept).media_type == chosen


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "said"),
    [
        ("", b"hello", {}, 422, "not a picture of a known format"),
        ("", b"", {}, 422, "the body is empty"),
        ("", png()[:60], {}, 422, "the given bytes"),
        ("", png(np.zeros((400, 400, 3), np.uint8)), {}, 422, "160,000 pixels"),
        ("", b"x" * 50_001, {}, 413, "50,000 bytes"),
        ("", [b"x" * 30_000] * 2, {}, 413, "50,000 bytes"),
        ("", multipart(b"x" * 60_000), AS_FORM, 413, "50,000 bytes"),
        ("", multipart(png(), name="photo"), AS_FORM, 422, "in the field 'image'"),
        ("", multipart(b"text", kind=""), AS_FORM, 422, "in the field 'image'"),
        ("", multipart(b""), AS_FORM, 422, "the body is empty"),
        ("", b"nonsense", AS_FORM, 400, "the multipart form cannot be read"),
        ("", b"nonsense", {"Content_Type": "multipart/form-data"}, 400, "cannot be read"),
        ("?task=depth", png(), {}, 422, "answers disparity, normal"),
        ("", png(), {"Accept": "image/png"}, 422, "add ?task=disparity"),
        ("", png(), {"Accept": "text/html"}, 406, "written are"),
        ("?seed=1", png(), {}, 422, "mode D"),
        ("?seed=x", png(), {}, 422, "seed: "),
        ("?resize=cubic", png(), {}, 422, "resize: "),
    ],
)
def test_what_is_refused(
    port: int, path: str, body: Any, headers: dict[str, str], status: int, said: str
) -> None:
    answer = ask(port, f"/v1/predict{path}", body, **headers)
    assert answer.status == status, answer.body
    assert said in answer.error["message"]
    assert str(ROOT) not in answer.error["message"]


@pytest.mark.parametrize(
    ("where", "body", "headers"),
    [
        ("apps.serve.work.load", png(), {}),
        ("apps.serve.reading.UploadFile.read", multipart(png()), AS_FORM),
    ],
)
def test_too_little_memory_is_no_fault_of_the_picture(
    port: int, where: str, body: bytes, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("1 GiB")

    monkeypatch.setattr(where, fail)
    answer = ask(port, "/v1/predict", body, **headers)
    assert (answer.status, answer.error["kind"]) == (503, "memory")
    assert int(answer.headers["retry-after"]) >= 1
    assert "send a smaller one" in answer.error["message"]


def test_other_paths_and_methods(port: int) -> None:
    assert ask(port, "/nothing").status == 404
    assert ask(port, "/v1/predict").status == 405
    assert ask(port, "/v1/predict", b"", method="DELETE").error["kind"] == "http"


def test_what_it_says_about_itself(port: int) -> None:
    bundle = json.loads(ask(port, "/v1/bundle").body)
    assert [*bundle["tasks"]] == ["disparity", "normal"]
    assert bundle["sizes"] == ["64x96", "96x64"]
    assert bundle["limits"]["bytes"] == 50_000
    assert (ask(port, "/healthz").body, ask(port, "/readyz").body) == (b"ok\n", b"ready\n")
    api = json.loads(ask(port, "/openapi.json").body)
    post = api["paths"]["/v1/predict"]["post"]
    assert {"multipart/form-data", "image/*"} == set(post["requestBody"]["content"])
    assert "image/png;depth=16" in post["responses"]["200"]["content"]
    page = ask(port, "/docs").body.decode()
    assert "swagger" in page
    for script in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert script.startswith("/"), "the page works without a network"
        assert ask(port, script).status == 200


def test_metrics(port: int) -> None:
    assert ask(port, "/v1/predict", b"no picture").status == 422
    assert ask(port, "/v1/predict", png()).status == 200
    assert ask(port, "/somewhere/else").status == 404
    page = ask(port, "/metrics").body.decode()
    assert re.search(r'lotus_edge_requests_total\{route="/v1/predict",status="200"\} [1-9]', page)
    assert re.search(r'lotus_edge_requests_total\{route="other",status="404"\} [1-9]', page)
    assert re.search(r'lotus_edge_errors_total\{kind="unusable"\} [1-9]', page)
    for stage in ("read", "queue", "decode", "predict", "encode", "total"):
        assert re.search(rf'lotus_edge_seconds_count\{{stage="{stage}"\}} [1-9]', page)
    assert "lotus_edge_ready 1.0" in page
    assert "lotus_edge_held 0.0" in page
    assert "lotus_edge_waiting 0.0" in page


def test_a_token_is_asked_for(joint: Path) -> None:
    with serving(joint, token="tönen") as (port, _):
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic eDp5"}):
            answer = ask(port, "/v1/predict", png(), **headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert ask(port, "/metrics", **headers).status == 401
        assert ask(port, "/readyz").status == 200
    with serving(joint, token="secret") as (port, _):
        assert ask(port, "/v1/bundle", Authorization="Bearer secret").status == 200


def test_full_and_late(joint: Path, slow: threading.Event) -> None:
    """Room for one that runs and one that waits; the third is told when to come again. Who waits
    too long is told so, and what nobody waits for is not begun.
    """
    with (
        serving(joint, queue=1, deadline=1.5) as (port, pool),
        ThreadPoolExecutor(4) as clients,
    ):
        slow.waits = True  # type: ignore[attr-defined]
        held = [clients.submit(ask, port, "/v1/predict", png()) for _ in range(2)]
        wait_until(lambda: pool.metrics.held._value.get() == 2)
        third = ask(port, "/v1/predict", png())
        assert (third.status, third.error["kind"]) == (503, "busy")
        assert int(third.headers["retry-after"]) >= 1
        assert ask(port, "/healthz").status == 200
        assert [one.result().status for one in held] == [504, 504]
        assert "within 1.5 s" in held[0].result().error["message"]
        assert pool.metrics.waiting._value.get() == 0
        slow.set()
        assert ask(port, "/v1/predict", png()).status == 200
        wait_until(lambda: pool.metrics.held._value.get() == 0)


def test_a_client_that_goes_away(port: int) -> None:
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.putrequest("POST", "/v1/predict")
        connection.putheader("Content-Length", "5000")
        connection.endheaders(b"x" * 100)
        connection.close()
    assert ask(port, "/v1/predict", png()).status == 200


def test_a_slow_body_is_not_waited_for(joint: Path) -> None:
    with serving(joint, deadline=0.3) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.putrequest("POST", "/v1/predict")
        connection.putheader("Content-Length", "5000")
        connection.endheaders(b"x" * 100)
        assert connection.getresponse().status == 504
        connection.close()


def start(bundle: Path, *options: str, **environment: str) -> tuple[subprocess.Popen[str], int]:
    """The command in a process of its own, and its port; it may not be ready yet."""
    command = [sys.executable, "-m", "apps", "serve", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ, **environment), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
    assert found, line + process.stderr.read()
    return process, int(found[1])


def test_sigterm_under_load_loses_nothing_that_was_accepted(joint: Path) -> None:
    process, port = start(joint, "--queue", "4")
    statuses: list[int] = []

    def client() -> None:
        while True:
            try:
                statuses.append(ask(port, "/v1/predict", png()).status)
            except OSError:
                return  # not taken any more

    clients = [threading.Thread(target=client) for _ in range(8)]
    with process:
        while ask(port, "/readyz").status != 200:
            time.sleep(0.05)
        for each in clients:
            each.start()
        while len(statuses) < 200:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
        for each in clients:
            each.join()
    assert process.returncode == 0, said
    assert set(statuses) <= {200, 503}
    assert f"stopped after {statuses.count(200)} predictions" in said
    assert "Traceback" not in said


def test_a_bundle_that_answers_wrong_is_not_served(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "wrong")
    with (bundle / "model-64x96.onnx").open("r+b") as graph:
        graph.write(b"N")
    process, _ = start(bundle)
    said = process.communicate()[1]
    assert process.returncode == 1
    assert re.search("error: .* is damaged", said)
    assert "Traceback" not in said


def test_a_port_in_use(joint: Path, port: int, capfd: pytest.CaptureFixture[str]) -> None:
    from apps.__main__ import main

    assert main(["serve", str(joint), "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in capfd.readouterr().err


def test_the_client_of_the_documents(port: int, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found, "the page has a client"
    (tmp_path / "photo.jpg").write_bytes(png())
    client = [sys.executable, "-c", found[1].replace(":8000/", f":{port}/")]
    done = subprocess.run(client, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "(40, 70)\n", done.stderr
