"""What a machine is and how it is set: names, versions, power mode, clocks, and which backends can
open a bundle on it. What cannot be asked is left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.rows import machine
from export.versions import tool_versions
from runtime.backends import BACKENDS, installed
from runtime.backends.session import Backend, import_vendor
from runtime.errors import LotusError
from runtime.machine import describe_gpu, nvidia_driver

_TOOLS = (
    *("torch", "diffusers", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy"),
    *("pillow", "tensorrt", "tensorrt-rtx", "cuda-bindings", "cuda-python"),
)
_SMI = (
    *("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm"),
    *("clocks.max.mem", "pstate", "persistence_mode"),
)
OPENVINO_DEVICES = ("GPU", "NPU")
_SECONDS = 10.0  # for a tool to answer


def facts() -> dict[str, Any]:
    """All but the backends: `device` is its name, `nvidia` whether it has a GPU by NVIDIA, `gpus`
    what nvidia-smi tells of the one that is measured, `settings` how it is set.
    """
    gpus = _nvidia_smi()
    jetson = _text("/proc/device-tree/model").strip("\0")
    gpu = describe_gpu()
    name = gpu.partition(",")[0]
    nvidia = gpu != "none" and not gpu.startswith(",")
    limits = [each["power.limit"] for each in gpus if "power.limit" in each]
    here = machine()
    return {
        "device": jetson or (name if nvidia else here.get("cpu") or here["arch"]),
        "nvidia": nvidia,
        "gpu": gpu if nvidia else "none",
        "gpus": gpus,
        "machine": here,
        "settings": settings() | ({"GPU power limit": limits[0]} if limits else {}),
        "versions": tool_versions(_TOOLS) | {"python": here["python"]},
    }


def settings(root: Path = Path("/")) -> dict[str, str]:
    """Power mode, governor and limits of the clocks; what this machine does not tell is left out.

    They change what is measured, so a kept step is for these settings alone.
    """
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    found = {
        "power mode": _power_mode(),
        "CPU governor": _text(f"{cpu}/scaling_governor", root),
        "CPU limit, kHz": _text(f"{cpu}/scaling_max_freq", root),
        "CPU least, kHz": _text(f"{cpu}/scaling_min_freq", root),
        "L4T": _text("etc/nv_tegra_release", root).partition("\n")[0].strip("# "),
    }
    for folder in gpu_clocks(root):
        for name in ("governor", "max_freq", "min_freq"):
            found[f"GPU {name}"] = _text(f"{folder.relative_to(root)}/{name}", root)
    return {name: value for name, value in found.items() if value}


def gpu_clocks(root: Path = Path("/")) -> list[Path]:
    """The folders in which a Jetson tells and sets its GPU's clock."""
    words = ("gpu", "ga10b", "gv11b", "gb10b", "gpc")
    every = sorted((root / "sys/class/devfreq").glob("*"))
    found = [path for path in every if any(word in path.name for word in words)]
    # Thor has gpu-gpc-0, its cores, beside gpu-nvd-0, its video engines.
    return [path for path in found if "gpc" in path.name] or found


def bus_id() -> str:
    """The address of the GPU that CUDA takes first, such as "0000:01:00.0", by which nvidia-smi
    knows it; nvidia-smi counts in another order. "" where the driver tells none.
    """
    try:
        driver = nvidia_driver()
    except OSError:
        return ""
    device, text = ctypes.c_int(), ctypes.create_string_buffer(32)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetPCIBusId(text, len(text), device)
    )
    return "" if failed else text.value.decode(errors="replace")


def not_installed() -> dict[str, str]:
    """Why backends cannot even be tried: their package is not there. By name; nothing is
    imported.
    """
    here = installed()
    return {
        name: f"the package {backend.package!r} is not installed: {backend.how_to_install}"
        for name, backend in BACKENDS.items()
        if backend.package and name not in here
    }


def packages() -> dict[str, list[str]]:
    """The installed backends by the vendor's package; that for tests, where it may be opened, is
    of the package "".
    """
    found: dict[str, list[str]] = {}
    for name in installed():
        found.setdefault(BACKENDS[name].package, []).append(name)
    return found


def backends(*, names: list[str]) -> dict[str, str]:
    """Why each of these backends of one package cannot open a bundle here, "" where it can;
    OpenVINO's further devices too. It imports the package: a function of the worker.
    """
    reasons = {name: _reason(BACKENDS[name]) for name in names}
    if reasons.get("openvino") == "":
        reasons |= {f"openvino:{device}": _openvino_lacks(device) for device in OPENVINO_DEVICES}
    return reasons


def pytorch(*, nvidia: bool) -> dict[str, str]:
    """Why PyTorch cannot be measured here, "" where it can: it must not compute on the CPU where
    there is a GPU by NVIDIA. It imports the package then: a function of the worker.
    """
    reason = ""
    if importlib.util.find_spec("torch") is None:
        reason = "PyTorch is not installed"
    elif nvidia:
        import torch

        if not torch.cuda.is_available():
            reason = f"this PyTorch has no CUDA: {torch.__version__} finds no GPU; see pytorch.org"
    return {"pytorch": reason}


def _reason(backend: Backend) -> str:
    if not backend.package:
        return ""
    try:
        vendor = import_vendor(backend)
        if backend.package == "onnxruntime":
            offered = vendor.get_available_providers()
            return "" if backend.option in offered else f"this onnxruntime has no {backend.option}"
        if backend.on_gpu:
            from runtime.backends.cuda import Cuda

            Cuda(backend.name)
    except LotusError as error:
        return str(error)
    return ""


def _openvino_lacks(device: str) -> str:
    vendor = import_vendor(BACKENDS["openvino"])
    found = vendor.Core().available_devices
    if any(name.partition(".")[0] == device for name in found):
        return ""
    return f"OpenVINO finds no {device} here; it has {', '.join(found)}"


def _nvidia_smi() -> list[dict[str, str]]:
    """What it tells of the GPU that CUDA takes first, which is alone in the list."""
    address = bus_id()
    if not address:
        return []
    query = f"--query-gpu={','.join(_SMI)}"
    lines = answer_of("nvidia-smi", f"--id={address}", query, "--format=csv,noheader")
    rows = [[value.strip() for value in line.split(",")] for line in lines]
    return [
        {name: value for name, value in zip(_SMI, row, strict=True) if "N/A" not in value}
        for row in rows
        if len(row) == len(_SMI)
    ]


def _power_mode() -> str:
    """A Jetson's, such as "MAXN"; on other machines what Windows or Linux call their profile."""
    lines = answer_of("nvpmodel", "-q")
    named = [line.partition(":")[2].strip() for line in lines if "Power Mode" in line]
    return named[0] if named else _text("sys/firmware/acpi/platform_profile")


def answer_of(*command: str) -> list[str]:
    """The lines that a tool prints; none where it is missing, fails or does not answer."""
    if shutil.which(command[0]) is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        return done.stdout.splitlines() if done.returncode == 0 else []
    return []


def _text(path: str, root: Path = Path("/")) -> str:
    with contextlib.suppress(OSError):
        return (root / path.lstrip("/")).read_text(errors="replace").strip()
    return ""


def peak_gb() -> float | None:
    """The most memory that this process had, in GB; None where the system does not tell."""
    if os.name == "nt":
        return None
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
