"""What of a machine decides how a backend answers: library versions, driver, device, CPU kind."""

from __future__ import annotations

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


def describe_machine(backend: Backend) -> dict[str, str]:
    """The facts, by name, by which a proof of this backend holds on this machine."""
    facts = {
        "backend": backend.name,
        "version": version_of(import_vendor(backend)) if backend.package else "",
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
    }
    if backend.on_gpu:
        facts["gpu"] = describe_gpu()
    switches = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_SWITCHES)}
    return facts | ({"switches": str(switches)} if switches else {})


def nvidia_driver() -> ctypes.CDLL:
    """The NVIDIA driver's own library, which needs no Python package. Raises: OSError."""
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def knows_cpu() -> bool:
    """Whether the system tells the CPU's instruction sets: what one packs is for no other."""
    return bool(_flags())


def has_bf16() -> bool:
    """Whether the CPU computes in bf16, as Linux tells; elsewhere it is taken for granted."""
    return not _cpuinfo() or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_flags())


def has_wide_int8() -> bool:
    """Whether the CPU adds products of int8 in 32 bits: what is no x86 does, and x86 with VNNI, as
    Linux tells; elsewhere it is taken for granted.
    """
    flags = set(_flags())
    return "sse2" not in flags or not flags.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


@functools.cache
def describe_gpu() -> str:
    """Driver and device 0, as the NVIDIA driver tells; "none" without a driver."""
    try:
        driver = nvidia_driver()
    except OSError:
        return "none"
    version, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuInit(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    build = ""
    for path in ("/proc/driver/nvidia/version", "/etc/nv_tegra_release"):
        if Path(path).is_file():
            build = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
            break
    return f"{name.value.decode(errors='replace')}, CUDA {version.value}, build {build}"


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
