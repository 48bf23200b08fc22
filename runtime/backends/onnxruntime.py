"""ONNX Runtime, on the CPU, on CUDA (with IO binding), or with another execution provider.

The backend's `option` is the execution provider.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.backends.session import Arrays, Session, Tensor, Tensors, import_vendor
from runtime.errors import BackendError
from runtime.extras import how_to_install
from runtime.manifest import Manifest

_FATAL_ONLY = 4  # log severity: an error is raised, with the same words
_MOST_FOLDED = "1000000"  # bytes
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 would round fp32 products to 10 bits, and the golden would fail.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    _CUDA: {"use_tf32": "0"},
}
# What ONNX Runtime says where it would fall back to the CPU. Why a provider did not start it only
# logs.
_WOULD_FALL_BACK = "assigned to the default CPU EP"

# The optimised graph, with weights in the layout of the kernels of this CPU: they are mapped from
# the file, neither copied nor packed.
_KEPT, _KEPT_WEIGHTS = "model.onnx", "model.onnx.data"
_KEEP = {
    "session.optimized_model_external_initializers_file_name": _KEPT_WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}


def session_options(ort: Any, *, saturates: bool = False, threads: int | None = None) -> Any:
    """What a session is opened with, as onnxruntime.SessionOptions.

    `saturates`: the int8 layers need kernels that add in more than 16 bits; see `may_saturate`.
    `threads`: of an operator; None is one for each physical core.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads or 0
    # The pattern reserves one block for all activations beside what the arena already holds. Reuse,
    # planned ahead, keeps a buffer of the encoder from its last reader until the decoder has one of
    # the same size.
    options.enable_mem_pattern = False
    options.enable_mem_reuse = False
    # Larger products of constants are left in the graph on purpose, see export/folds/winograd.py.
    options.add_session_config_entry(
        "optimization.constant_folding_max_output_size_in_bytes", _MOST_FOLDED
    )
    if saturates:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def may_saturate(manifest: Manifest, backend: str) -> bool:
    """Whether int8 layers are of a bundle from before `fits_16_bits`. On x86 CPUs without VNNI the
    kernels add products in 16 bits, which saturate then: the map is 4 times as far off.

    A bundle of another target has no int8 kernels here, and fails with the slower ones (ONNX
    Runtime 1.31: a zero point of the wrong shape).
    """
    return manifest.target == backend and manifest.may_saturate


# What ONNX Runtime calls the types of ours.
_TYPES = {"tensor(float)": "float32"}


class BackendSession(Session):
    """Runs `bucket.graph`, one operator after the other.

    Its sessions are safe for threads, so that a run needs nothing for itself.
    """

    _session: Any = None

    def _open(self) -> Tensors:
        self._ort = ort = self._import()
        provider = self.backend.option
        if provider == _CUDA and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN from their Python packages, where there are any
        kept = self.compiled
        path = self._graph() if kept is None else kept.folder / _KEPT
        options = session_options(
            ort,
            saturates=may_saturate(self.manifest, self.backend.name),
            threads=self.threads,
        )
        if self.keep_in is not None:
            options.optimized_model_filepath = str(self.keep_in / _KEPT)
            for entry, value in _KEEP.items():
                options.add_session_config_entry(entry, value)
        if kept is not None:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if provider != _CPU:
            # An operator without a kernel there is an error, not a quiet trip to the CPU.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = ort.InferenceSession(
                str(path),
                options,
                providers=[(provider, self._provider_options())],
                enable_fallback=0,  # would try another provider, and print
            )
        except Exception as error:  # its types have no base but this in common
            if _WOULD_FALL_BACK not in str(error):
                raise
            raise self._not_started() from error
        if self._session.get_providers()[0] != provider:  # a graph without nodes
            raise self._not_started()
        return {
            node.name: Tensor(_TYPES.get(node.type, node.type), tuple(node.shape))
            for node in (*self._session.get_inputs(), *self._session.get_outputs())
        }

    def _import(self) -> Any:
        """As `Session._import`; the provider comes before the version, since a newer package for
        the CPU would not have it either. Raises: BackendError too where it is not there.
        """
        offered = import_vendor(self.backend).get_available_providers()
        if self.backend.option not in offered:
            raise BackendError(
                f"this onnxruntime has no {self.backend.option}; it has {offered}. "
                f"CUDA comes with the extra `gpu`, {how_to_install('gpu')}; "
                "backend='onnxruntime' uses the CPU."
            )
        return super()._import()

    def _not_started(self) -> BackendError:
        return BackendError(
            f"ONNX Runtime {self.version} could not start {self.backend.option} (driver or "
            'libraries missing: `python -c "import onnxruntime; onnxruntime.print_debug_info()"` '
            f"lists them), or has no kernel there for an operator in {self.folder}. "
            "backend='onnxruntime' uses the CPU."
        )

    def _provider_options(self) -> dict[str, str]:
        if self.device is not None and not self.device.isdecimal():
            raise BackendError(
                f"the device of {self.backend.name} is a number, found {self.device!r}"
            )
        chosen = {} if self.device is None else {"device_id": self.device}
        return _PROVIDER_OPTIONS.get(self.backend.option, {}) | chosen

    def _run(self, runner: None, inputs: Arrays) -> Arrays:
        names = list(self.output_shapes)
        if self.backend.option == _CUDA:
            return self._run_bound(inputs)
        return dict(zip(names, self._session.run(names, inputs), strict=True))

    def _run_bound(self, inputs: Arrays) -> Arrays:
        """Copy once to the device and once back; outputs are allocated on the device."""
        ort, number = self._ort, int(self.device or 0)
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(
                name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", number)
            )
        for name in self.output_shapes:
            binding.bind_output(name, "cuda", number)
        self._session.run_with_iobinding(binding)
        return dict(zip(self.output_shapes, binding.copy_outputs_to_cpu(), strict=True))

    def _close(self) -> None:
        self._session = None
