"""Steps of `benchmarks.device`: the process that runs one, what a machine tells of itself, bounds,
and the page.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, write_null_bundle

from benchmarks import baselines
from benchmarks.baselines import Work
from benchmarks.on_device import facts as facts_of
from benchmarks.on_device import page, plot, running, speed, watch, worker
from benchmarks.on_device.repeats import repeat
from benchmarks.on_device.watch import watched


def test_every_action_is_a_function_and_the_worker_says_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for action, module in worker.ACTIONS.items():
        if module != "folded":  # which imports torch
            found = importlib.import_module(f"benchmarks.on_device.{module}")
            assert callable(getattr(found, action)), action
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"bundle": "nothing", "precision": "fp32"}\n'))
    monkeypatch.setattr(worker, "_follow_parent", lambda: None)
    worker.main(["bound", str(tmp_path / "result.json")])
    assert ended == [0]
    answer = json.loads((tmp_path / "result.json").read_text())
    assert answer["error"].startswith("TypeError: bound() missing")


def test_a_device_needs_neither_torch_nor_onnx_to_measure() -> None:
    """A Jetson has NumPy, Pillow and TensorRT."""
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'yaml', 'matplotlib', 'openvino', 'diffusers'):\n"
        "    sys.modules[name] = None\n"
        "import benchmarks.device, benchmarks.profile\n"
        "from benchmarks.on_device import events, facts, plumbing, rates, speed, worker\n"
        "print(rates.rates(seconds=0.01)['by'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "NumPy on cpu\n", done.stderr


def test_reasons_travel_without_folders() -> None:
    text = "cannot read /a/b-c/model.plan, C:\\Users\\x\\y.txt; see encoder/conv or export/x.py"
    assert page._public({"not_measured": text}) == (
        "cannot read .../model.plan, ...\\y.txt; see encoder/conv or export/x.py"
    )


def test_a_step_that_crashes_hangs_or_is_killed_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_program(text: str) -> None:
        """The child runs this in place of the worker."""
        program = tmp_path / "program.py"
        program.write_text(f"import os, sys, time\noptions = sys.stdin.readline()\n{text}")
        real = subprocess.Popen
        monkeypatch.setattr(
            running.subprocess,
            "Popen",
            lambda words, **rest: real([sys.executable, program, *words[3:]], **rest),
        )

    with_program("print('no such library')\nos.kill(os.getpid(), 11)")
    with pytest.raises(running.StepFailed, match=r"SIGSEGV: no such library"):
        running.run_step("x", {}, folder=tmp_path, seconds=30)
    monkeypatch.undo()
    with_program("os.kill(os.getpid(), 9)")
    with pytest.raises(running.StepFailed, match=r"SIGKILL, as where memory ran out"):
        running.run_step("x", {}, folder=tmp_path, seconds=30)
    monkeypatch.undo()
    with_program("time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(running.TimeUp, match="stopped after"):
        running.run_step("x", {}, folder=tmp_path, seconds=0.5)
    assert time.monotonic() - start < 20
    monkeypatch.undo()
    with_program("open(sys.argv[2], 'w').write('{\"result\": ' + options + '}')")
    assert running.run_step("x", {"a": 1}, folder=tmp_path, seconds=30) == {"a": 1}


PARENT = """
import sys
from pathlib import Path
from benchmarks.on_device.running import run_step
run_step("rates", {"seconds": 60.0}, folder=Path(sys.argv[1]), seconds=60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path], cwd=ROOT)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    assert _soon(lambda: bool(children.read_text()))
    child = Path("/proc") / children.read_text().split()[0]
    assert _soon(lambda: b"worker" in (child / "cmdline").read_bytes())
    parent.kill()
    parent.wait()
    assert _soon(lambda: not child.exists() or "Z" in (child / "stat").read_text().split()[2])


def test_on_windows_the_worker_asks_for_its_parent_and_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, asked, ended = [1, 1, 0], list[Any](), list[int]()

    def peek(handle: ctypes.c_void_p, *rest: Any) -> int:
        asked.append((handle.value, *rest))
        return answers.pop(0)

    windll = SimpleNamespace(kernel32=SimpleNamespace(PeekNamedPipe=peek))
    monkeypatch.setattr(ctypes, "windll", windll, raising=False)
    msvcrt = SimpleNamespace(get_osfhandle=lambda number: 100 + number)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: 0))  # it has no `read`
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(worker, "_EVERY", 0.0)
    with monkeypatch.context() as there:
        there.setattr(sys, "platform", "win32")
        worker._follow_parent()
    assert asked == [(100, None, 0, None, None, None)] * 3
    assert ended == [1]


def test_no_child_shares_the_standard_input() -> None:
    for path in (ROOT / "benchmarks" / "on_device").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
                assert "stdin" in [each.arg for each in node.keywords], f"{path}:{node.lineno}"


def _soon(true: Any, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def test_the_command_on_a_bundle_end_to_end(tmp_path: Path) -> None:
    """Of the null backend, whose graph is no graph: what cannot be counted is a line."""
    bundle = tmp_path / "bundle"
    write_null_bundle(bundle)
    words = [sys.executable, "-m", "benchmarks.device", "--bundle", bundle, "--seconds", "0.05"]
    done = subprocess.run(
        [*words, "--folder", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "report.md")
    body = json.loads((tmp_path / "out" / "row.json").read_text())
    row = next(row for row in body["rows"] if "latency" in row)
    assert row["latency"]["rounds"] >= 3
    assert row["verify"]["largest"] == 0
    assert row["build"]["bundle"] == "bundle"
    assert str(tmp_path) not in (tmp_path / "out" / "row.json").read_text()
    text = (tmp_path / "out" / "report.md").read_text()
    assert str(tmp_path) not in text
    assert (
        "the bundle's checkpoint is not here, or it has several: name one with --checkpoint" in text
    )
    assert "roofline" in text


def test_settings_and_readings_of_a_jetson(tmp_path: Path) -> None:
    files = {
        "sys/class/devfreq/17000000.gpu/cur_freq": "918000000",
        "sys/class/devfreq/17000000.gpu/max_freq": "918000000",
        "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
        "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov",
        "sys/class/devfreq/other/cur_freq": "1",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600",
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone1/temp": "47500",
        "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
        "sys/class/hwmon/hwmon1/in1_input": "5000",
        "sys/class/hwmon/hwmon1/curr1_input": "2000",
        "sys/class/hwmon/hwmon1/in3_label": "VDD_SOC",
        "sys/class/hwmon/hwmon1/in3_input": "5000",
        "sys/class/hwmon/hwmon1/curr3_input": "300",
        "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
        "sys/class/hwmon/hwmon2/in1_label": "VDD_GPU_SOC",
        "sys/class/hwmon/hwmon2/in1_input": "19000",
        "sys/class/hwmon/hwmon2/curr1_input": "1000",
        "proc/meminfo": "MemTotal: 7990000 kB\nMemAvailable:    5000000 kB\n",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\n",
    }
    _write(tmp_path, files)
    found = facts_of.settings(tmp_path)
    assert found["GPU governor"] == "nvhost_podgov"
    assert found["L4T"] == "R36 (release), REVISION: 4.3"
    assert found["CPU governor"] == "schedutil"
    raised_by_jetson_clocks = {"GPU min_freq": "306000000", "CPU least, kHz": "729600"}
    assert raised_by_jetson_clocks.items() <= found.items()
    with watched(tmp_path) as readings:
        time.sleep(0.01)
    medians = {name: each["median"] for name, each in readings.items()}
    assert medians == pytest.approx(
        {
            "GPU clock, MHz": 918,
            "CPU clock, MHz": 1510.4,
            "gpu-thermal, C": 47.5,
            "power of the board, W": 10,
            "power of VDD_SOC, W": 1.5,
            "power of VDD_GPU_SOC, W": 19,
            "memory available, GB": 5.12,
        }
    )


def test_the_cores_of_a_thor_are_its_gpu(tmp_path: Path) -> None:
    folder = "sys/class/devfreq"
    clocks = {"gpu-gpc-0": "1575000000", "gpu-nvd-0": "1692000000"}
    names = ("cur_freq", "max_freq")
    _write(tmp_path, {f"{folder}/{who}/{n}": hz for who, hz in clocks.items() for n in names})
    assert facts_of.settings(tmp_path)["GPU max_freq"] == clocks["gpu-gpc-0"]
    assert watch._sources(tmp_path)["GPU clock, MHz"]() == 1575


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


# Two GPUs in the order of their addresses; CUDA takes the second first.
SMI = """#!/bin/sh
first="NVIDIA T400, 560.35, 2048 MiB, 7.5, 30.00 W, 1425 MHz, [N/A], P8, Enabled"
second="NVIDIA GeForce RTX 3060, 560.35, 12288 MiB, 8.6, 170.00 W, 2100 MHz, [N/A], P0, Enabled"
case "$*" in
*--id=0000:41:00.0*loop-ms*) while :; do echo "1755, 9501, 61, [N/A], 4096"; sleep 0.05; done;;
*loop-ms*) while :; do echo "300, 405, 40, 7, 100"; sleep 0.05; done;;
*--id=0000:41:00.0*) echo "$second";;
*) echo "$first"; echo "$second";;
esac
"""


class Driver:
    """What is asked of the NVIDIA driver for an address; 100 is CUDA_ERROR_NO_DEVICE."""

    status = 0

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = 7 + number
        return 0

    def cuDeviceGetPCIBusId(self, text: Any, length: int, device: Any) -> int:
        text.value = {7: b"0000:41:00.0"}[device.value]
        return 0


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_readings_and_names_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(SMI)
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(facts_of, "nvidia_driver", Driver)
    called = "NVIDIA GeForce RTX 3060, CUDA 12060, build b"
    monkeypatch.setattr(facts_of, "describe_gpu", lambda: called)
    monkeypatch.setattr(facts_of, "_text", lambda path, root=None: "")  # this machine's own
    with watched(tmp_path) as readings:
        time.sleep(0.4)
    assert readings["GPU clock, MHz"]["median"] == 1755
    assert readings["GPU memory in use, MiB"]["most"] == 4096
    assert "GPU power, W" not in readings
    found = facts_of.facts()
    (gpu,) = found["gpus"]
    assert found["device"] == gpu["name"] == "NVIDIA GeForce RTX 3060"
    assert found["settings"] == {"GPU power limit": "170.00 W"}
    assert "clocks.max.mem" not in gpu
    monkeypatch.setattr(Driver, "status", 100)
    assert facts_of._nvidia_smi() == []


def _torch(cuda: bool) -> ModuleType:
    """A stand-in for PyTorch, for the CPU or with a GPU."""
    found: Any = ModuleType("torch")
    found.__spec__, found.__version__ = ModuleSpec("torch", None), "2.8.0"
    found.cuda = SimpleNamespace(
        is_available=lambda: cuda,
        get_device_name=lambda: "Orin",
        max_memory_allocated=lambda: 2_000_000_000,
    )
    return found


def test_pytorch_without_cuda_beside_a_gpu_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", _torch(cuda=False))
    assert facts_of.pytorch(nvidia=False) == {"pytorch": ""}
    reason = facts_of.pytorch(nvidia=True)["pytorch"]
    assert reason.startswith("this PyTorch has no CUDA: 2.8.0 finds no GPU")
    monkeypatch.setitem(sys.modules, "torch", _torch(cuda=True))
    assert facts_of.pytorch(nvidia=True) == {"pytorch": ""}
    monkeypatch.setitem(sys.modules, "torch", None)
    assert facts_of.pytorch(nvidia=True) == {"pytorch": "PyTorch is not installed"}


@pytest.mark.parametrize(("cuda", "device"), [(True, "Orin"), (False, "CPU")])
def test_the_reference_names_its_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, device: str
) -> None:
    @contextlib.contextmanager
    def opened(name: str, work: Work, bundles: Any, stages: dict[str, float]) -> Iterator[Any]:
        yield lambda images: stages.update(unet=0.1)

    monkeypatch.setattr(baselines, "opened", opened)
    monkeypatch.setitem(sys.modules, "torch", _torch(cuda))
    image = str(ROOT / "tiny" / "samples" / "room.png")
    options = {"checkpoint": "x", "task": "", "resolution": "64x64", "image": image}
    found = speed.reference(name="pytorch", seconds=0.01, **options)
    assert found["device"] == device
    assert found["device_gb"] == (2.0 if cuda else None)
    assert found["stages_s"] == {"unet": 0.1}


def test_repeats_are_bounded() -> None:
    assert len(repeat(lambda: None, seconds=0, least=3)) == 3
    assert len(repeat(lambda: None, seconds=60, most=7)) == 7


def test_a_page_and_a_plot_of_nothing(tmp_path: Path) -> None:
    facts = {
        "device": "a CPU",
        "gpu": "none",
        "gpus": [],
        "machine": {"arch": "x86_64", "cores": "2", "os": "Linux", "python": "3.11"},
        "settings": {},
        "versions": {},
    }
    work = Work(checkpoint="", resolution="64x64")
    body = {"rows": page.rows(facts, [], [], {}, work), "commit": "c", "date": "d", "command": "x"}
    text = page.render(body, "")
    assert "This machine" not in text
    assert "Nothing: every step was done." in text
    plot.plot_device(body, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
