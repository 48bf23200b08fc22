"""OpenVINO on the CPU. It reads the bundle's ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.backends.session import Arrays, Session, Shapes, import_vendor
from runtime.errors import BackendError

# Without a hint OpenVINO computes fp32 graphs in bf16 on CPUs that have it, and the golden would fail. With the hint
# bf16, a CPU that lacks it computes in fp32. In int8 bundles it holds for what is not quantised.
_PRECISION_HINT = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


def hints(precision: str) -> dict[str, str]:
    """What a bundle of this precision is compiled with."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISION_HINT[precision],
        # OpenVINO 2026.4 crashes (SIGSEGV) where its snippets fuse product, activation, product over few rows.
        "SNIPPETS_MODE": "DISABLE",
    }


class BackendSession(Session):
    """Compiles `bucket.graph` for the CPU with the precision that the manifest names."""

    _compiled: Any = None

    def _open(self) -> Shapes:
        openvino = import_vendor("openvino", extra="openvino")
        path = self.folder / self.bucket.graph
        if self.manifest.precision not in _PRECISION_HINT:
            raise BackendError(
                f"backend 'openvino' runs precisions {sorted(_PRECISION_HINT)}, the bundle is {self.manifest.precision}"
            )
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(str(path)), "CPU", hints(self.manifest.precision))
        except Exception as error:  # OpenVINO raises RuntimeError and, from its frontends, types of its own
            raise BackendError(
                f"OpenVINO {openvino.__version__} cannot open {path}: {error}\n"
                "`python -m runtime verify` tells whether the file is damaged."
            ) from error
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
