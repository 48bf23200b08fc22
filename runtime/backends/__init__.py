"""The inference engines that this runtime can drive.

Adding one takes a file in this folder with a class `BackendSession`, and a line in `BACKENDS`.
A file, and the vendor's package with it, is imported only when a session is opened.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from runtime.backends.session import Backend, Session
from runtime.backends.versions import KnownVersions
from runtime.compiled import Kept
from runtime.errors import BackendMissingError
from runtime.manifest import Bucket, Manifest

__all__ = [
    "BACKENDS",
    "FOR_TESTS",
    "Backend",
    "KnownVersions",
    "Session",
    "find_backend",
    "installed",
    "open_session",
]

_JETSON = (
    "on a Jetson use JetPack's own package (python3-libnvinfer), in a virtual environment made "
    "with --system-site-packages"
)

# Each row was tried with the versions about it; see docs/experiments.md, "Bugs and limits of the
# vendors". That of CUDA was not: it is read off ONNX Runtime's issues.
_ONNXRUNTIME = (KnownVersions(opset=20, oldest="1.23"),)
# 1.23 has no CUDA kernels of opset 21 and newer for Reshape, Transpose and Unsqueeze (issue 26065).
_ONNXRUNTIME_CUDA = (*_ONNXRUNTIME, KnownVersions(opset=21, oldest="1.24"))
_OPENVINO = (
    KnownVersions(opset=20, oldest="2025.4"),
    KnownVersions(opset=21, oldest="2026.2"),
    # 2026.2 opens these too, and answers maps that look right and are not.
    KnownVersions(opset=23, oldest="2026.3"),
)

# From 1.29 on it sends what it runs to its maker, from its import on: threads, sockets and a
# database in the user's cache.
_NO_TELEMETRY = (("ORT_DISABLE_TELEMETRY", "1"),)
# With it OpenVINO tells its maker of each import, from a process that it forks beside its threads.
_OPENVINO_TELEMETRY = ("openvino_telemetry",)

FOR_TESTS = "LOTUS_EDGE_NULL"
"""The environment variable with which, set to 1, the null backend can be opened. It answers maps
without any network: no bundle may ask for that."""

_VISIBLE = "the environment variable CUDA_VISIBLE_DEVICES chooses the GPU"

# Further execution providers of ONNX Runtime, what brings them, and whether they run on an NVIDIA
# GPU; none of them was ever run here. What they cannot compute is an error, no quiet trip to the
# CPU.
_PROVIDERS = (
    ("coreml", "CoreMLExecutionProvider", "onnxruntime on macOS", False),
    ("directml", "DmlExecutionProvider", "onnxruntime-directml on Windows", False),
    ("qnn", "QNNExecutionProvider", "onnxruntime-qnn", False),
    ("rtx", "NvTensorRTRTXExecutionProvider", "the TensorRT-RTX plugin", True),
)

# The option of ONNX Runtime is the execution provider.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="onnxruntime",
            module="onnxruntime",
            package="onnxruntime",
            product="ONNX Runtime",
            extra="cpu",
            option="CPUExecutionProvider",
            no_devices="it is the CPU; onnxruntime-cuda and others are backends of their own",
            threads=True,
            known=_ONNXRUNTIME,
            keeps=("fp32", "int8"),
            environment=_NO_TELEMETRY,
        ),
        Backend(
            name="onnxruntime-cuda",
            module="onnxruntime",
            package="onnxruntime",
            product="ONNX Runtime (onnxruntime-gpu)",
            extra="gpu",
            on_gpu=True,
            option="CUDAExecutionProvider",
            devices="the number of a GPU",
            known=_ONNXRUNTIME_CUDA,
            environment=_NO_TELEMETRY,
        ),
        *(
            Backend(
                name=f"onnxruntime-{name}",
                module="onnxruntime",
                package="onnxruntime",
                product="ONNX Runtime",
                hint=f"the provider comes with {package}",
                on_gpu=on_gpu,
                option=provider,
                no_devices="the provider chooses it",
                known=_ONNXRUNTIME,
                environment=_NO_TELEMETRY,
            )
            for name, provider, package, on_gpu in _PROVIDERS
        ),
        Backend(
            name="openvino",
            module="openvino",
            package="openvino",
            product="OpenVINO",
            extra="openvino",
            devices="CPU, GPU, GPU.1, NPU",
            threads=True,
            known=_OPENVINO,
            without=_OPENVINO_TELEMETRY,
            # In fp32 it packs weights as fast from the bundle.
            keeps=("bf16", "int8"),
        ),
        Backend(
            name="tensorrt",
            module="tensorrt",
            package="tensorrt",
            product="TensorRT",
            extra="gpu",
            hint=_JETSON,
            no_devices=_VISIBLE,
            on_gpu=True,
            replays=True,
        ),
        Backend(
            name="tensorrt-rtx",
            module="tensorrt",
            package="tensorrt_rtx",
            product="TensorRT-RTX",
            extra="rtx",
            no_devices=_VISIBLE,
            on_gpu=True,
            replays=True,
            keeps=("fp32", "fp16", "bf16", "int8"),
            growth=0.2,  # kernels without weights; how large they are was never measured
        ),
        Backend(name="null", module="null", no_devices="it computes nothing"),
    )
}


def installed() -> list[str]:
    """Names of the backends whose vendor package is installed (its driver may still be missing)."""
    return [name for name, backend in BACKENDS.items() if _is_installed(backend)]


def find_backend(name: str) -> Backend:
    """The backend of this name.

    Raises: BackendMissingError when it is unknown or its vendor package is not installed.
    """
    backend = BACKENDS.get(name) if isinstance(name, str) else None
    if backend is None or not (backend.package or _is_installed(backend)):
        raise BackendMissingError(
            f"unknown backend {name!r}; known: {_offered(BACKENDS)}; "
            f"installed: {_offered(installed())}"
        )
    if not _is_installed(backend):
        raise BackendMissingError(
            f"backend {name!r} needs the package {backend.package!r}, which is not installed "
            f"({backend.how_to_install}); installed backends: {_offered(installed())}"
        )
    return backend


def open_session(
    name: str,
    folder: Path,
    manifest: Manifest,
    bucket: Bucket,
    *,
    model_folder: Path | None = None,
    parallel: int = 1,
    device: str | None = None,
    threads: int | None = None,
    compiled: Kept | None = None,
    keep_in: Path | None = None,
) -> Session:
    """Open one bucket of the bundle in `folder` with the backend of this name.

    The vendor reads the bucket's files in `model_folder`, where they do not lie in `folder`.
    Threads may run the session at once; `parallel` runs are in flight then, and others wait.
    `device`, `threads`, `compiled` and `keep_in` are those of `Session`.

    Raises: BackendMissingError as `find_backend`, or when the package does not load; BackendError
    and DamagedBundleError when the backend refuses the bucket's model, or its version is known to
    be wrong.
    """
    backend = find_backend(name)
    module = importlib.import_module(f".{backend.module}", __package__)
    session: Session = module.BackendSession(
        folder,
        manifest,
        bucket,
        backend,
        model_folder=model_folder,
        parallel=parallel,
        device=device,
        threads=threads,
        compiled=compiled,
        keep_in=keep_in,
    )
    return session


def _offered(names: Iterable[str]) -> list[str]:
    """Those that a user may want; the null backend, which has no package, is for tests."""
    return sorted(name for name in names if BACKENDS[name].package)


def _is_installed(backend: Backend) -> bool:
    if not backend.package:
        return os.environ.get(FOR_TESTS) == "1"
    return importlib.util.find_spec(backend.package) is not None
