"""Devices, threads, and the cores that a process may use."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle

from runtime import LotusEngine, machine
from runtime.__main__ import main
from runtime.backends import BACKENDS, installed
from runtime.backends.cores import usable_cores
from runtime.backends.versions import numbers
from runtime.errors import BackendError
from runtime.manifest import Bucket

RGB = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
CORES = usable_cores()
# Opens a bundle, predicts, and says what usable_cores and the library's own setting are.
TELL = """
import os, sys
import numpy as np
from runtime import LotusEngine
from runtime.backends.cores import usable_cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
with LotusEngine(sys.argv[1]) as engine:
    engine(np.zeros((64, 96, 3), np.uint8))
    (session,) = engine._sessions._sessions.values()
    library = (
        session._session.get_session_options().intra_op_num_threads
        if engine.backend == "onnxruntime"
        else session._compiled.get_property("INFERENCE_NUM_THREADS")
    )
print(usable_cores(), session.threads, library)
"""


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, CORES),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/../..\n", {"cpu.max": "90000 100000\n"}, 1),  # as some containers see themselves
        ("0::/\n", {"cpu.max": f"{CORES * 100000 - 50000} 100000\n"}, CORES),  # a half is one more
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"},
            CORES,
        ),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("0::/\n", {"cpu.max": "nonsense"}, CORES),
        ("", {}, CORES),
    ],
)
def test_the_quota_of_a_container_counts(
    tmp_path: Path, group: str, files: dict[str, str], cores: int
) -> None:
    write(tmp_path, **{"proc/self/cgroup": group})
    for name, text in files.items():
        write(tmp_path, **{f"sys/fs/cgroup/{name}": text})
    assert usable_cores(tmp_path) == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
@pytest.mark.skipif(CORES < 2, reason="one core: nothing to restrict")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_process_on_one_core_computes_with_one_thread(tmp_path: Path, backend: str) -> None:
    if backend not in installed():
        pytest.skip(f"the package of {backend} is not installed")
    bundle = bundle_for(tmp_path, backend)
    done = subprocess.run(
        [sys.executable, "-c", TELL, str(bundle)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1", "1"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads_are_those_that_are_asked_for(tmp_path: Path, backend: str) -> None:
    if backend not in installed():
        pytest.skip(f"the package of {backend} is not installed")
    bundle = bundle_for(tmp_path, backend)
    with LotusEngine(bundle) as usual, LotusEngine(bundle, threads=1) as one:
        np.testing.assert_allclose(usual(RGB).values, one(RGB).values, atol=1e-6)
        (session,) = one._sessions._sessions.values()
        assert session.threads == 1


def bundle_for(folder: Path, backend: str, **changes: object) -> Path:
    """A bundle whose graph is a mean over the channels."""
    onnx = pytest.importorskip("onnx")
    folder.mkdir(exist_ok=True)
    shapes = {"image": [1, 3, 64, 96], "disparity": [1, 1, 64, 96]}
    image, disparity = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    kernel = onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 1 / 6, np.float32), "kernel")
    shift = onnx.numpy_helper.from_array(np.full(1, 0.5, np.float32), "shift")
    node = onnx.helper.make_node("Conv", ["image", "kernel", "shift"], ["disparity"])
    graph = onnx.helper.make_graph([node], "mean", [image], [disparity], [kernel, shift])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10),
        folder / "model-64x96.onnx",
    )
    bucket = Bucket(height=64, width=96, graph="model-64x96.onnx")
    return write_null_bundle(folder, backend=backend, buckets=[bucket], **changes)


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is not installed")
def test_devices_of_openvino(tmp_path: Path) -> None:
    bundle = bundle_for(tmp_path, "openvino")
    with LotusEngine(bundle, device="CPU") as engine:
        engine(RGB)
    with (
        LotusEngine(bundle, device="TPU") as engine,
        pytest.raises(BackendError, match="no device 'TPU' here; it finds CPU"),
    ):
        engine(RGB)


@pytest.mark.skipif("openvino" not in installed(), reason="OpenVINO is not installed")
@pytest.mark.parametrize("name", ["aarch64", "arm64", "ARM64", "x86_64", "AMD64"])
def test_openvino_on_arm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes in fp32 whatever the bundle's precision, and is not asked for int8."""
    import openvino

    from runtime.backends import openvino as backend

    arm = name not in ("x86_64", "AMD64")
    bundle = bundle_for(tmp_path / "int8", "openvino", precision="int8")
    bf16 = bundle_for(tmp_path / "bf16", "openvino", precision="bf16")
    model = openvino.Core().read_model(str(bundle / "model-64x96.onnx"))
    monkeypatch.setattr(platform, "machine", lambda: name)
    monkeypatch.setattr(machine, "_cpuinfo", dict)
    hints = [backend.hints(model, precision) for precision in ("fp32", "bf16", "int8")]
    found = [each["INFERENCE_PRECISION_HINT"] for each in hints]
    assert found == (["f32"] * 3 if arm else ["f32", "bf16", "bf16"])
    assert machine.has_bf16() is not arm

    compiled: list[str] = []

    def fail(*_: object) -> None:
        compiled.append("here")
        raise RuntimeError("as ever")

    monkeypatch.setattr(openvino.Core, "compile_model", fail)
    monkeypatch.setattr(backend, "_NO_INT8_ON_ARM", numbers(openvino.__version__)[:2])
    said = "on ARM: open this one with the backend 'onnxruntime'" if arm else "as ever"
    with LotusEngine(bundle) as engine, pytest.raises(BackendError, match=said):
        engine(RGB)
    assert bool(compiled) is not arm
    with LotusEngine(bf16) as engine, pytest.raises(BackendError, match="as ever"):
        engine(RGB)
    monkeypatch.setattr(backend, "_NO_INT8_ON_ARM", (2025, 4))  # a newer one is tried
    with LotusEngine(bundle) as engine, pytest.raises(BackendError, match="as ever"):
        engine(RGB)


@pytest.mark.parametrize(
    ("backend", "options", "said"),
    [
        ("null", {"device": "0"}, "takes no device"),
        ("null", {"threads": 2}, "does not compute on the CPU"),
        ("onnxruntime", {"device": "0"}, "backends of their own"),
        ("onnxruntime", {"threads": 0}, "number from 1 on"),
        ("onnxruntime", {"threads": True}, "number from 1 on"),
        ("onnxruntime-cuda", {"device": 0}, "a name such as"),
        ("onnxruntime-cuda", {"threads": 2}, "does not compute on the CPU"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    null_bundle: Path, backend: str, options: dict[str, object], said: str
) -> None:
    if backend not in installed():
        pytest.skip(f"the package of {backend} is not installed")
    with pytest.raises(BackendError, match=said):
        LotusEngine(null_bundle, backend, **options)  # type: ignore[arg-type]


def test_on_the_command_line(
    null_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = "tiny/samples/room.png"
    assert main(["verify", str(null_bundle), "--device", "CPU"]) == 1
    assert "takes no device" in capfd.readouterr().err
    words = ["predict", str(null_bundle), picture, "--output", str(tmp_path / "o")]
    assert main([*words, "--threads", "2"]) == 1
    assert "does not compute on the CPU" in capfd.readouterr().err


def test_every_backend_says_which_devices_it_takes() -> None:
    assert all(bool(each.devices) != bool(each.no_devices) for each in BACKENDS.values())


class TwoGpus:
    """What is asked of the NVIDIA driver; 101 is CUDA_ERROR_INVALID_DEVICE."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13000
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0 if number < 2 else 101

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = f"GPU {device.value}".encode()
        return 0


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(machine, "nvidia_driver", TwoGpus)
    monkeypatch.setattr(machine, "_driver_build", lambda: "b1")
    machine.describe_gpu.cache_clear()
    yield
    machine.describe_gpu.cache_clear()


@pytest.mark.usefixtures("two_gpus")
def test_the_gpu_that_is_asked_for_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = dataclasses.replace(BACKENDS["onnxruntime-cuda"], package="")
    assert machine.describe_machine(cuda)["gpu"] == "GPU 0, CUDA 13000, build b1"
    assert machine.describe_machine(cuda, "1")["gpu"] == "GPU 1, CUDA 13000, build b1"
    assert machine.describe_machine(cuda, "2")["gpu"] == "none"
    monkeypatch.setattr(machine, "_driver_build", lambda: "")  # as on Windows
    assert not machine.knows_device(cuda)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("backend", "device", "known"),
    [
        ("onnxruntime", None, True),
        ("openvino", None, True),
        ("openvino", "CPU", True),
        ("openvino", "GPU", False),
        ("openvino", "NPU", False),
        ("onnxruntime-cuda", "1", True),
        ("onnxruntime-cuda", "2", False),
        ("onnxruntime-rtx", None, True),
        ("onnxruntime-coreml", None, False),
        ("onnxruntime-directml", None, False),
        ("onnxruntime-qnn", None, False),
        ("tensorrt", None, True),
        ("tensorrt-rtx", None, True),
    ],
)
def test_which_devices_are_known(backend: str, device: str | None, known: bool) -> None:
    assert machine.knows_device(BACKENDS[backend], device) == known


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("backend", "device", "told"),
    [
        ("openvino", None, True),
        ("openvino", "GPU", False),
        ("onnxruntime-coreml", None, False),
        ("tensorrt-rtx", None, True),
        ("onnxruntime-cuda", "2", False),
    ],
)
def test_for_what_a_network_is_compiled(
    backend: str, device: str | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, where the driver's build is not told, the vendor compares the driver."""
    monkeypatch.setattr(machine, "_driver_build", lambda: "")
    monkeypatch.setattr(machine, "_flags", lambda: ["sse2"])
    assert machine.knows_target(BACKENDS[backend], device) == told
    monkeypatch.setattr(machine, "_flags", list)
    assert machine.knows_target(BACKENDS[backend], device) == (told and backend == "tensorrt-rtx")


@pytest.mark.parametrize(("device", "goldens"), [("CPU", 1), ("GPU", 2)])
def test_on_an_unknown_device_a_bundle_proves_itself_at_each_opening(
    null_bundle: Path,
    device: str,
    goldens: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"package": "numpy", "devices": "any", "no_devices": "", "threads": True}
    monkeypatch.setitem(BACKENDS, "null", dataclasses.replace(BACKENDS["null"], **changes))
    monkeypatch.setenv("LOTUS_EDGE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        with LotusEngine(null_bundle, device=device) as engine:
            engine(RGB)
            engine.verify()
    assert capsys.readouterr().err.count("running its golden sample") == goldens
