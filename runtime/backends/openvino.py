"""OpenVINO, on the CPU or on a device of its own names. It reads the bundle's ONNX graph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.pages import giving_back, holding, map_files
from runtime.backends.session import Arrays, Session, Tensor, Tensors
from runtime.backends.versions import numbers
from runtime.console import say
from runtime.errors import BackendError
from runtime.machine import has_wide_int8, is_arm
from runtime.manifest import Manifest

# Without a hint OpenVINO computes fp32 graphs in bf16 on CPUs that have it, and the golden would
# fail. With the hint bf16, a CPU that lacks it computes in fp32. In int8 bundles it holds for what
# is not quantised.
_PRECISION_HINT = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}
# On ARM the hint bf16 gives f16, which overflows: not a number.
_PRECISION_HINT_ON_ARM = "f32"
# GPUs and NPUs have no bf16; whether f16 reaches far enough, the golden tells.
_PRECISION_HINT_ELSEWHERE = {"fp32": "f32", "bf16": "f16", "int8": "f16"}
# What OpenVINO calls the types of ours.
_TYPES = {"f32": "float32"}
# This version does not compile int8 graphs on ARM: a sum that it puts in has axes that look like
# addresses. Older ones, which were not tried, are taken to be the same.
_NO_INT8_ON_ARM = (2026, 4)
_SETTINGS, _LONGEST_HEADER = "settings.json", 1 << 16
_PRODUCTS = ("MatMul", "ScaledDotProductAttention")
_FEWEST_ROWS = 16


def hints(
    model: Any,
    precision: str,
    parallel: int = 1,
    *,
    device: str = "CPU",
    threads: int | None = None,
) -> dict[str, str]:
    """What an openvino.Model of a bundle of this precision is compiled with, for `parallel` runs at
    once. `threads` are those of the CPU; None is OpenVINO's choice.
    """
    # Runs beyond the number of streams would take turns.
    streams = {"NUM_STREAMS": str(parallel)} if parallel > 1 else {}
    if device != "CPU":
        precision = _PRECISION_HINT_ELSEWHERE[precision]
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            **streams,
        }
    # OpenVINO 2026.4 crashes (SIGSEGV) where its snippets fuse product, activation, product over
    # fewer than 16 rows. Elsewhere they are faster, and attention in them does not store its
    # scores.
    products = (op.output(0).shape for op in model.get_ops() if op.get_type_name() in _PRODUCTS)
    small = any(len(shape) > 1 and shape[-2] < _FEWEST_ROWS for shape in products)
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": (
            _PRECISION_HINT_ON_ARM if is_arm() else _PRECISION_HINT[precision]
        ),
        "SNIPPETS_MODE": "DISABLE" if small else "ENABLE",
        **({"INFERENCE_NUM_THREADS": str(threads)} if threads else {}),
        **streams,
    }


def say_if_cut_off(manifest: Manifest) -> None:
    """Say so where this CPU's int8 kernels saturate with the weights of a bundle."""
    if manifest.may_saturate and not has_wide_int8():
        say(
            f"lotus-edge: {manifest.name} is from before int8 weights were made for CPUs without "
            "VNNI, as this one is: sums are cut off, and maps are less exact. Build it again."
        )


class BackendSession(Session):
    """Compiles `bucket.graph` for the device with the precision that the manifest names."""

    _compiled: Any = None
    _held: Any = None

    def _open(self) -> Tensors:
        if self.manifest.precision not in _PRECISION_HINT:
            raise BackendError(
                f"backend 'openvino' runs precisions {sorted(_PRECISION_HINT)}, the bundle is "
                f"{self.manifest.precision}"
            )
        vendor = self._import()
        if self.device in (None, "CPU"):
            self._check_arm()
            say_if_cut_off(self.manifest)
        core = vendor.Core()
        if self.compiled is not None:
            self._compiled = self._import_kept(vendor, core, self.compiled.folder)
            return self._tensors()
        graph = self._graph()
        _check_onnx(graph)
        files = [self.model_folder / file.path for file in self.manifest.files]
        model, spans = map_files(lambda: core.read_model(str(graph)), files)
        spans = holding(spans, _addresses(model))
        found, device = core.available_devices, self.device or "CPU"
        if device not in {each.partition(".")[0] for each in found} | {*found}:
            raise BackendError(
                f"OpenVINO finds no device {device!r} here; it finds {', '.join(found)}"
            )
        settings = hints(
            model, self.manifest.precision, self.parallel, device=device, threads=self.threads
        )
        kept = {}
        if self.keep_in is not None:
            kept = {"CACHE_DIR": str(self.keep_in), "CACHE_MODE": "OPTIMIZE_SPEED"}
            (self.keep_in / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
        with giving_back(spans):  # the maps are those of `model`
            self._compiled = core.compile_model(model, device, settings | kept)
        return self._tensors()

    def _check_arm(self) -> None:
        """Raises: BackendError."""
        wrong = numbers(self.version)[:2] <= _NO_INT8_ON_ARM
        if is_arm() and wrong and self.manifest.precision == "int8":
            raise BackendError(
                f"OpenVINO {self.version} cannot open int8 bundles on ARM: open this one with the "
                "backend 'onnxruntime', or build one with `--target onnxruntime`"
            )

    def _import_kept(self, vendor: Any, core: Any, folder: Path) -> Any:
        """What OpenVINO wrote into its cache: a line of XML, then the compiled network.

        Neither OpenVINO's own hash of all weights is needed then, nor a second map: the file is
        mapped here, so that its pages can be given back while the weights are packed.
        """
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        (path,) = folder.glob("*.blob")
        blob = np.memmap(path, np.uint8, mode="c")  # OpenVINO takes no array that is read-only
        start = bytes(blob[:_LONGEST_HEADER]).index(b"\n") + 1
        address = blob.ctypes.data
        tensor = vendor.Tensor(blob[start:], shared_memory=True)
        self._held = (blob, tensor)  # what is imported reads from them
        with giving_back([(address, address + blob.nbytes)]):
            return core.import_model(tensor, "CPU", settings)

    def _tensors(self) -> Tensors:
        ports = (*self._compiled.inputs, *self._compiled.outputs)
        return {self._name(port): _tensor(port) for port in ports}

    def _name(self, port: Any) -> str:
        """The one that the manifest knows: where an operator falls away, a tensor has two names."""
        names = sorted(port.names)
        known = [name for name in names if name in self.input_shapes | self.output_shapes]
        return str([*known, *names][0])

    def _new_runner(self) -> Any:
        return self._compiled.create_infer_request()

    def _run(self, runner: Any, inputs: Arrays) -> Arrays:
        # A shared input would stay bound to the request: the next one could be copied into it.
        result = runner.infer(inputs, share_inputs=False, share_outputs=True)
        return {name: np.array(result[name]) for name in self.output_shapes}

    def _close(self) -> None:
        self._compiled = None
        self._held = None


def _check_onnx(path: Path) -> None:
    """Raises: BackendError. `Core.read_model` would try its other formats on what is no ONNX: they
    print, and follow other rules about what they open.
    """
    from openvino.frontend import FrontEndManager

    if not FrontEndManager().load_by_framework("onnx").supported(str(path)):
        raise BackendError(
            f"OpenVINO finds no ONNX graph in {path}. `python -m runtime verify` tells whether the "
            "bundle is whole and right here."
        )


def _addresses(model: Any) -> Iterator[int]:
    """Where the weights of an openvino.Model lie."""
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            yield op.data.ctypes.data


def _tensor(port: Any) -> Tensor:
    name = port.element_type.get_type_name()
    edges = (str(edge) if edge.is_dynamic else edge.get_length() for edge in port.partial_shape)
    return Tensor(_TYPES.get(name, name), tuple(edges))
