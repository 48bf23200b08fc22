"""OpenVINO on the CPU. It reads the bundle's ONNX graph."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.session import Arrays, Session, Shapes, import_vendor
from runtime.errors import BackendError

# Without a hint OpenVINO computes fp32 graphs in bf16 on CPUs that have it, and the golden would
# fail. With the hint bf16, a CPU that lacks it computes in fp32. In int8 bundles it holds for what
# is not quantised.
_PRECISION_HINT = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


_PRODUCTS = ("MatMul", "ScaledDotProductAttention")
_FEWEST_ROWS = 16


def hints(model: Any, precision: str) -> dict[str, str]:
    """What an openvino.Model of a bundle of this precision is compiled with."""
    # OpenVINO 2026.4 crashes (SIGSEGV) where its snippets fuse product, activation, product over
    # fewer than 16 rows. Elsewhere they are faster, and attention in them does not store its
    # scores.
    products = (op.output(0).shape for op in model.get_ops() if op.get_type_name() in _PRODUCTS)
    small = any(len(shape) > 1 and shape[-2] < _FEWEST_ROWS for shape in products)
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISION_HINT[precision],
        "SNIPPETS_MODE": "DISABLE" if small else "ENABLE",
    }


class BackendSession(Session):
    """Compiles `bucket.graph` for the CPU with the precision that the manifest names."""

    _compiled: Any = None

    def _open(self) -> Shapes:
        openvino = import_vendor(self.backend)
        path = self.model_folder / self.bucket.graph
        if self.manifest.precision not in _PRECISION_HINT:
            raise BackendError(
                f"backend 'openvino' runs precisions {sorted(_PRECISION_HINT)}, the bundle is "
                f"{self.manifest.precision}"
            )
        try:
            core = openvino.Core()
            model = core.read_model(str(path))
            self._compiled = core.compile_model(model, "CPU", hints(model, self.manifest.precision))
        # OpenVINO raises RuntimeError and, from its frontends, types of its own.
        except Exception as error:
            raise BackendError(
                f"OpenVINO {openvino.__version__} cannot open {path}: {error}\n"
                "`python -m runtime verify` tells whether the file is damaged."
            ) from error
        _give_back_pages(self.folder)
        ports = (*self._compiled.inputs, *self._compiled.outputs)
        return {port.any_name: tuple(port.shape) for port in ports}

    def _run(self, inputs: Arrays) -> Arrays:
        try:
            result = self._compiled(inputs)
            return {name: np.array(result[name], dtype=np.float32) for name in self.output_shapes}
        except Exception as error:  # as above
            raise BackendError(f"OpenVINO failed on bucket {self.bucket}: {error}") from error

    def _close(self) -> None:
        self._compiled = None


def _give_back_pages(folder: Path) -> None:
    """Take the pages of mapped files in `folder` out of this process's memory, on Linux.

    OpenVINO maps the weights and keeps the map beside its packed copy; what it does read again
    comes from the file.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    libc, inside = ctypes.CDLL(None), f"{folder.resolve()}/"
    for line in maps.read_text().splitlines():
        span, rights, *_, path = [*line.split(maxsplit=5), ""][:6]
        if rights.startswith("r--") and path.startswith(inside):
            start, end = (int(edge, 16) for edge in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
