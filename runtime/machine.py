"""What of a machine decides how a backend answers: library versions, driver, device, CPU kind."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
from pathlib import Path

import numpy as np

from runtime.backends.session import Backend, import_vendor
from runtime.backends.versions import version_of

# Settings of the vendors' libraries that change what they compute.
_SWITCHES = ("ONEDNN_", "DNNL_", "OV_", "OPENVINO_", "ORT_", "NVIDIA_TF32", "CUBLAS_", "CUDNN_")
_NO_GPU = "none"


def describe_machine(backend: Backend, device: str | None = None) -> dict[str, str]:
    """The facts, by name, by which a proof of this backend on this device (None: its default) holds
    on this machine. Whether they suffice for one, `knows_device` says.
    """
    facts = {
        "backend": backend.name,
        "version": version_of(import_vendor(backend)) if backend.package else "",
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
    }
    if backend.on_gpu:
        facts["gpu"] = describe_gpu(int(device or 0))
    if device is not None:
        facts["device"] = device
    switches = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_SWITCHES)}
    return facts | ({"switches": str(switches)} if switches else {})


def knows_device(backend: Backend, device: str | None = None) -> bool:
    """Whether device and driver are described: CPUs, and NVIDIA GPUs on Linux but for WSL.
    Elsewhere another driver or device may look the same, and no proof holds.
    """
    if backend.on_gpu:
        return describe_gpu(int(device or 0)) != _NO_GPU and bool(_driver_build())
    return backend.threads and device in (None, "CPU")


def nvidia_driver() -> ctypes.CDLL:
    """The NVIDIA driver's own library, which needs no Python package. Raises: OSError."""
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def knows_target(backend: Backend, device: str | None = None) -> bool:
    """Whether the system tells for what a network is compiled on this device (None: the backend's
    default), so that it is kept for no other: a GPU and its driver, or a CPU's instruction sets.
    """
    if backend.on_gpu:
        return describe_gpu(int(device or 0)) != _NO_GPU
    return backend.threads and device in (None, "CPU") and bool(_flags())


def is_arm() -> bool:
    """Whether the CPU is a 64-bit ARM."""
    return platform.machine().lower() in ("aarch64", "arm64")


def has_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on the CPU: on no ARM, and on x86 as Linux tells; elsewhere
    it is taken for granted.
    """
    told = {"avx512_bf16", "amx_bf16"}
    return not is_arm() and (not _cpuinfo() or not told.isdisjoint(_flags()))


def has_wide_int8() -> bool:
    """Whether the CPU adds products of int8 in 32 bits: what is no x86 does, and x86 with VNNI, as
    Linux tells; elsewhere it is taken for granted.
    """
    flags = set(_flags())
    return "sse2" not in flags or not flags.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


@functools.cache
def describe_gpu(number: int = 0) -> str:
    """Name and driver of the GPU of this number, as the NVIDIA driver tells; "none" where there is
    no driver, or no such GPU.
    """
    try:
        driver = nvidia_driver()
    except OSError:
        return _NO_GPU
    version, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = (
        driver.cuInit(0)
        or driver.cuDriverGetVersion(ctypes.byref(version))
        or driver.cuDeviceGet(ctypes.byref(device), number)
        or driver.cuDeviceGetName(name, len(name), device)
    )
    if failed:
        return _NO_GPU
    called = name.value.decode(errors="replace")
    return f"{called}, CUDA {version.value}, build {_driver_build()}"


def _driver_build() -> str:
    """Which build of the NVIDIA driver runs, as Linux tells; "" elsewhere."""
    for path in ("/proc/driver/nvidia/version", "/etc/nv_tegra_release"):
        with contextlib.suppress(OSError):
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    return ""


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core, by name."""
    facts: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return facts
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts


def _flags() -> list[str]:
    """The instruction sets, as Linux names them on x86 or on ARM."""
    facts = _cpuinfo()
    return (facts.get("flags") or facts.get("Features") or "").split()


@functools.cache
def _cpu() -> str:
    """Model and instruction sets: a virtual machine may hide some of a model's."""
    facts = _cpuinfo()
    if not facts:
        return platform.processor() or platform.machine()
    names = ("model name", "Model", "Hardware", "CPU implementer", "CPU part", "stepping")
    words = [facts[name] for name in names if facts.get(name)]
    flags = " ".join(sorted(_flags()))
    return f"{', '.join(words)}; flags {hashlib.sha256(flags.encode()).hexdigest()[:12]}"
