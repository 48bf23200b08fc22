"""The inference engines this runtime can drive, as data: one file each, imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from runtime.backends.session import Session
from runtime.errors import BackendMissingError


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where a backend lives: our module, the vendor package it needs, the extra that installs it, and its option."""

    module: str
    package: str | None
    extra: str | None
    option: str = ""


# `option` is handed to the session: the execution provider of ONNX Runtime, the flavour of TensorRT.
BACKENDS = {
    "onnxruntime": Backend(module="onnxruntime", package="onnxruntime", extra="cpu", option="CPUExecutionProvider"),
    "onnxruntime-cuda": Backend(
        module="onnxruntime", package="onnxruntime", extra="gpu", option="CUDAExecutionProvider"
    ),
    "openvino": Backend(module="openvino", package="openvino", extra="openvino"),
    "tensorrt": Backend(module="tensorrt", package="tensorrt", extra="gpu", option="tensorrt"),
    "tensorrt-rtx": Backend(module="tensorrt", package="tensorrt_rtx", extra="rtx", option="tensorrt-rtx"),
    "null": Backend(module="null", package=None, extra=None),
}


def installed() -> list[str]:
    """Names of the backends whose vendor package is installed (its driver may still be missing)."""
    return [name for name, backend in BACKENDS.items() if _is_installed(backend)]


def session_class(name: str) -> type[Session]:
    """The session class of a backend. Raises: BackendMissingError."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise BackendMissingError(f"unknown backend {name!r}; known: {sorted(BACKENDS)}; installed: {installed()}")
    backend = BACKENDS[name]
    if not _is_installed(backend):
        raise BackendMissingError(
            f"backend {name!r} needs the package {backend.package!r}, which is not installed "
            f"(`pip install 'lotus-edge[{backend.extra}]'`); installed backends: {installed()}"
        )
    found: type[Session] = importlib.import_module(f"runtime.backends.{backend.module}").BackendSession
    return found


def _is_installed(backend: Backend) -> bool:
    return backend.package is None or importlib.util.find_spec(backend.package) is not None
