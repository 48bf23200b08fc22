"""`lotus-edge triton`: the repository, and the real server with it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, bucket, write_null_bundle

from apps.__main__ import main
from apps.triton.model import TritonPythonModel
from apps.triton.repository import Serving, config, model_name
from runtime import LotusEngine
from runtime.manifest import Manifest

VENV = Path(os.environ.get("LOTUS_EDGE_TRITON", ROOT / ".venv-triton"))
TASKS = ("disparity", "normal")


def write(bundle: Path, repository: Path, *options: str) -> int:
    return main(["triton", str(bundle), "--output", str(repository), "--name", "lotus", *options])


# --- the repository


def test_a_repository_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_null_bundle(tmp_path / "n", task=TASKS)
    assert write(bundle, tmp_path / "r") == 0, capsys.readouterr()
    assert "tritonserver --model-repository" in capsys.readouterr().out
    files = sorted(
        path.relative_to(tmp_path / "r").as_posix() for path in tmp_path.glob("r/**/*.*")
    )
    assert "lotus/config.pbtxt" in files
    assert "lotus/1/model.py" in files
    copied = tmp_path / "r" / "lotus" / "1" / "bundle"
    with LotusEngine(copied) as engine:
        engine.verify()
    program = (tmp_path / "r" / "lotus" / "1" / "model.py").read_text()
    found: dict[str, object] = {}
    exec(program, found)
    assert found["TritonPythonModel"] is TritonPythonModel
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["lotus"]


def test_the_configuration(tmp_path: Path) -> None:
    buckets = [bucket(), bucket(4)]
    batched = Manifest.load(write_null_bundle(tmp_path / "b", mode="g", buckets=buckets))
    text = config("m", batched, Serving(backend="tensorrt", instances=2, delay=500, queue=9))
    for line in (
        'name: "m"',
        'backend: "python"',
        "max_batch_size: 4",
        "  preferred_batch_size: 4",
        "  max_queue_delay_microseconds: 500",
        "  default_queue_policy { max_queue_size: 9 }",
        "instance_group [ { count: 2 kind: KIND_GPU } ]",
        'parameters { key: "backend" value: { string_value: "tensorrt" } }',
    ):
        assert line in text.splitlines()
    assert '"seed" data_type: TYPE_INT64' in text
    plain = Manifest.load(write_null_bundle(tmp_path / "p", task=TASKS))
    text = config("m", plain, Serving(backend="openvino"))
    assert "KIND_CPU" in text
    assert "seed" not in text
    assert "max_queue_delay" not in text  # nothing to wait for
    assert '{ name: "normal" data_type: TYPE_FP32 dims: [ -1, -1, 3 ] }' in text


def test_what_is_there_is_not_replaced(
    null_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(null_bundle, tmp_path / "r") == 0
    assert write(null_bundle, tmp_path / "r") == 1
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "r" / "lotus" / "old.txt").touch()
    assert write(null_bundle, tmp_path / "r", "--overwrite") == 0
    assert not (tmp_path / "r" / "lotus" / "old.txt").exists()
    (tmp_path / "mine" / "lotus").mkdir(parents=True)
    assert write(null_bundle, tmp_path / "mine", "--overwrite") == 1
    assert "was not written by this command" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["lotus"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "../x"], "a model's name has"),
        (["--name", ""], "a model's name has"),
        (["--backend", "cuda"], "unknown backend"),
    ],
)
def test_what_is_refused(
    null_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    assert write(null_bundle, tmp_path / "r", *options) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_damaged_bundle_is_refused(null_bundle: Path, tmp_path: Path) -> None:
    path = null_bundle / "model-64x96.onnx"
    path.write_bytes(b"x" * path.stat().st_size)
    assert write(null_bundle, tmp_path / "r") == 1
    assert not (tmp_path / "r").exists()


def test_names_are_those_of_folders(null_bundle: Path) -> None:
    manifest = Manifest.load(null_bundle)
    object.__setattr__(manifest, "name", " ../a b/é ")
    assert model_name(manifest) == "a-b"


# --- the server


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Server:
    """tritonserver, as the package nvidia-pytriton carries it."""

    def __init__(self, repository: Path, log: Path) -> None:
        (packages,) = VENV.glob("lib/python*/site-packages")
        triton = packages / "pytriton" / "tritonserver"
        self.http, self.grpc = free_ports(2)
        # The package has a stub of the Python backend for each version of Python.
        backends = log.parent / "backends"
        shutil.copytree(triton / "backends", backends)
        stub = triton / "python_backend_stubs" / packages.parent.name.removeprefix("python")
        shutil.copy(stub / "triton_python_backend_stub", backends / "python")
        environment = dict(
            os.environ,
            PATH=f"{VENV / 'bin'}:{os.environ['PATH']}",
            VIRTUAL_ENV=str(VENV),
            PYTHONPATH=f"{ROOT}:{packages}",
            LD_LIBRARY_PATH=str(packages / "nvidia_pytriton.libs"),
        )
        self.log = log
        stream = log.open("w")
        self.process = subprocess.Popen(
            [
                str(triton / "bin" / "tritonserver"),
                f"--model-repository={repository}",
                f"--backend-directory={backends}",
                f"--http-port={self.http}",
                f"--grpc-port={self.grpc}",
                "--http-address=127.0.0.1",
                "--grpc-address=127.0.0.1",
                "--allow-metrics=false",
            ],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        stream.close()

    def wait(self) -> None:
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready"):
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < until, self.log.read_text()
                time.sleep(0.1)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture(scope="module")
def triton_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, and a batch of two."""
    buckets = [bucket(), bucket(2), bucket(1, 96, 64)]
    return write_null_bundle(tmp_path_factory.mktemp("t") / "n", task=TASKS, buckets=buckets)


@pytest.fixture(scope="module")
def server(triton_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (VENV / "bin" / "python").exists():
        pytest.skip(f"needs NVIDIA's tritonserver (`make triton` makes {VENV.name})")
    folder = tmp_path_factory.mktemp("server")
    assert write(triton_bundle, folder / "repository", "--delay", "20000") == 0
    server = Server(folder / "repository", folder / "log.txt")
    try:
        server.wait()
        yield server
    finally:
        assert server.stop() == 0


def test_the_real_server_answers_as_the_engine_does(
    server: Server, triton_bundle: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    sizes = {"fits": (64, 96), "odd": (37, 51), "high": (130, 70)}
    pictures = {
        name: random.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in sizes.items()
    }
    np.savez(tmp_path / "pictures.npz", **pictures)
    script = str(ROOT / "tests" / "triton_client.py")
    urls = [f"127.0.0.1:{server.http}", f"127.0.0.1:{server.grpc}"]
    done = subprocess.run(
        [str(VENV / "bin" / "python"), script, str(tmp_path), *urls, "lotus"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with LotusEngine(triton_bundle) as engine:
        expected = {name: engine(rgb) for name, rgb in pictures.items()}
    with np.load(tmp_path / "answers.npz") as answers:
        forms = {key.split()[1].partition("-")[0] for key in answers}
        assert forms == {"array", "encoded", "at", "after"}
        assert len(answers.files) > 100
        for key in answers:
            _, _, name, *task = key.split()
            values = expected[name][task[0] if task else TASKS[0]].values
            assert np.array_equal(answers[key], values[None]), key
    said = json.loads((tmp_path / "said.json").read_text())
    for name, words in {
        "words": "picture 0: ",
        "nothing": "picture 0: ",
        "both": "give the pictures as 'image'",
        "none": "",
        "grey": "shape",
        "floats": "",
        "other": "",
    }.items():
        for kind in ("http", "grpc"):
            assert said[f"{kind} {name}"] != "no error"
            assert words in said[f"{kind} {name}"], said
    assert str(tmp_path) not in json.dumps(said)
    assert "Traceback" not in json.dumps(said)


def test_a_bundle_that_cannot_be_opened_is_no_model(triton_bundle: Path, tmp_path: Path) -> None:
    if not (VENV / "bin" / "python").exists():
        pytest.skip(f"needs NVIDIA's tritonserver (`make triton` makes {VENV.name})")
    assert write(triton_bundle, tmp_path / "r") == 0
    (tmp_path / "r" / "lotus" / "1" / "bundle" / "golden.npz").unlink()
    server = Server(tmp_path / "r", tmp_path / "log.txt")
    assert server.process.wait(60) != 0
    assert "golden.npz is missing" in (tmp_path / "log.txt").read_text()
