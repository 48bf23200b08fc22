"""The TensorRT builder. TensorRT-RTX builds real engines here, without a GPU; nothing here runs
one.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from tensorrt_graph import make_graph

from export.errors import BuildError
from export.targets import tensorrt_builder as builder
from runtime.backends import cuda
from runtime.errors import BackendError

FLAVOUR = "tensorrt-rtx"
NO_RTX = "needs the package tensorrt-rtx (`pip install 'lotus-edge[rtx]'`)"

onnx = pytest.importorskip("onnx", reason="makes the graphs; `pip install 'lotus-edge[export]'`")


@pytest.fixture(scope="module")
def rtx() -> object:
    return pytest.importorskip("tensorrt_rtx", reason=NO_RTX)


def test_builds_an_engine_with_attention_and_group_norm(rtx, tmp_path):
    messages: list[str] = []
    graph = make_graph(tmp_path)
    info = builder.build_engine(graph, tmp_path / "model.rtx", FLAVOUR, messages.append)
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    assert (tmp_path / "model.rtx").stat().st_size > 10_000
    assert (info.flavour, info.version, info.compute_capability) == (FLAVOUR, rtx.__version__, None)
    assert info.settings["strongly_typed"] is True
    assert info.settings["tf32"] is False
    assert info.settings["decomposable_attentions"] == 1
    assert "model.onnx" in messages[0]


def test_the_engine_is_recognised_by_the_vendor(rtx, tmp_path):
    """Without a GPU the vendor stops at the device; a file that is no engine stops before, at its
    magic tag.
    """
    builder.build_engine(
        make_graph(tmp_path), tmp_path / "model.rtx", FLAVOUR, lambda message: None
    )
    log = builder.Log(rtx)
    runtime = rtx.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine((tmp_path / "model.rtx").read_bytes())
    if engine is None:
        assert "cudaError" in log.text()
        assert "magicTag" not in log.text()
    assert runtime.deserialize_cuda_engine(b"not an engine" * 20) is None
    assert "magicTag" in log.text()


def test_attention_in_fp32_needs_the_decomposition_we_allow(rtx, tmp_path, monkeypatch):
    """If this fails, the vendor fuses fp32 attention or decomposes by itself, and
    `_allow_decomposition` can go.
    """
    monkeypatch.setattr(builder, "_allow_decomposition", lambda vendor, network: 0)
    with pytest.raises(
        BuildError, match="Attention operation was not supported by a dedicated kernel"
    ):
        builder.build_engine(
            make_graph(tmp_path), tmp_path / "model.rtx", FLAVOUR, lambda message: None
        )
    assert not (tmp_path / "model.rtx").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"nonsense" * 10), "Failed to parse the ONNX model"),
        (lambda path: path.unlink(), "cannot be found"),
        (lambda path: path.with_name("model.onnx.data").unlink(), "model.onnx.data"),
        (lambda path: make_graph(path.parent, operator="NoSuchOperator"), "NoSuchOperator"),
        (
            lambda path: make_graph(path.parent, dtype=onnx.TensorProto.FLOAT16),
            "image is DataType.HALF",
        ),
    ],
    ids=["nonsense", "no graph", "no weights", "unknown operator", "half input"],
)
def test_a_refused_graph_is_a_build_error_with_the_parsers_words(rtx, tmp_path, damage, words):
    graph = make_graph(tmp_path)
    damage(graph)
    with pytest.raises(BuildError, match=words) as caught:
        builder.build_engine(graph, tmp_path / "model.rtx", FLAVOUR, lambda message: None)
    assert str(graph) in str(caught.value)
    assert not (tmp_path / "model.rtx").exists()


def test_an_error_in_progress_stops_the_build_and_comes_out(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_SECONDS_BETWEEN_MESSAGES", 0.0)

    def broken(message: str) -> None:
        if "step" in message:
            raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError, match="nobody listens"):
        builder.build_engine(make_graph(tmp_path), tmp_path / "model.rtx", FLAVOUR, broken)
    assert not (tmp_path / "model.rtx").exists()


def test_progress_tells_phase_and_step(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_SECONDS_BETWEEN_MESSAGES", 0.0)
    messages: list[str] = []
    builder.build_engine(make_graph(tmp_path), tmp_path / "model.rtx", FLAVOUR, messages.append)
    assert any(message.startswith("Building engine, step 1 of ") for message in messages)


BUILD_IN_A_CHILD = """
import sys, time
from pathlib import Path

BANNED = {
    *("torch", "onnx", "PIL", "diffusers", "transformers", "polygraphy", "onnxruntime"),
}


class Banned:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(f"{name} is banned here")

sys.meta_path.insert(0, Banned())

def progress(message):
    print(message, flush=True)
    if "step" in message and "slowly" in sys.argv:
        time.sleep(1)

from export.targets import tensorrt_builder as tensorrt
tensorrt._SECONDS_BETWEEN_MESSAGES = 0
info = tensorrt.build_engine(Path(sys.argv[1]), Path(sys.argv[2]), "tensorrt-rtx", progress)
print("built", info.version)
"""


def test_builds_with_only_numpy_and_the_vendor(rtx, tmp_path):
    command = [sys.executable, "-c", BUILD_IN_A_CHILD, make_graph(tmp_path), tmp_path / "model.rtx"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    assert f"built {rtx.__version__}" in child.stdout
    assert (tmp_path / "model.rtx").stat().st_size > 10_000


@pytest.mark.slow
def test_ctrl_c_stops_the_build_and_leaves_no_engine(rtx, tmp_path):
    command = [
        sys.executable,
        "-c",
        BUILD_IN_A_CHILD,
        make_graph(tmp_path),
        tmp_path / "model.rtx",
        "slowly",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell's background job ignores SIGINT, and its children with it.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes, **heed) as child:
        assert child.stdout is not None
        assert any(
            ", step 1 of" in line for line in child.stdout
        )  # now the vendor is at work, and waits a second
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(
            timeout=60
        )  # the whole build takes minutes at a second for each step
    assert "KeyboardInterrupt" in err
    assert "built" not in out
    assert not (tmp_path / "model.rtx").exists()


def test_a_full_disk_is_a_build_error_and_leaves_no_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4096, hard)
    )  # as a full disk: the write comes back short, then fails
    try:
        with pytest.raises(
            BuildError, match=r"cannot write .*model\.plan \(100000 bytes\): File too large"
        ):
            builder._write(memoryview(bytes(100_000)), tmp_path / "model.plan")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "model.plan").exists()


def test_all_blocks_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_BLOCK", 7)
    plan = bytes(range(100))
    builder._write(memoryview(plan), tmp_path / "model.plan")
    assert (tmp_path / "model.plan").read_bytes() == plan


def test_tensorrt_without_its_package_or_its_gpu(tmp_path):
    """TensorRT proper builds on the device only; elsewhere it says what is missing: package, driver
    or GPU.
    """
    try:
        builder.load_vendor("tensorrt")
        cuda.Cuda("tensorrt")
    except BackendError:
        with pytest.raises(BackendError, match="'tensorrt' cannot be imported"):
            builder.build_engine(
                make_graph(tmp_path), tmp_path / "model.plan", "tensorrt", lambda message: None
            )
        assert not (tmp_path / "model.plan").exists()
    else:
        pytest.skip("this machine has TensorRT and a GPU")
