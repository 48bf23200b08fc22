"""Build a TensorRT or TensorRT-RTX engine from an ONNX file. Needs NumPy and the vendor's package,
nothing else.

TensorRT-RTX builds without a GPU, for every GPU it supports; TensorRT builds on the device, for
that device.

Memory: TensorRT-RTX 1.7.1 takes at its peak three times the size of the weights (measured on 0.94
GB of fp32 convolutions: 2.9 GB resident), of which one time is the mapped weight file, which the
kernel can drop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import BuildError
from export.progress import current
from runtime.backends.cuda import compute_capability
from runtime.backends.tensorrt import FLAVOURS, Log, load_vendor
from runtime.manifest import EngineInfo

_SECONDS_BETWEEN_MESSAGES = 5.0
_BLOCK = 1 << 26  # bytes written at a time


def build_engine(
    graph: Path, engine: Path, flavour: str, report: Callable[[str], None] | None = None
) -> EngineInfo:
    """Build `engine` from the ONNX file `graph` (external data beside it) and describe it.

    Precision is in the graph: the network is strongly typed, and TF32 is off, so that float32 means
    float32. `flavour` is "tensorrt" or "tensorrt-rtx". `report` gets a short message every few
    seconds; None takes the Progress in force.

    Raises: BuildError with the vendor's words for a refused graph, a failed build or a full disk;
    BackendMissingError without the vendor's package; DeviceMissingError when flavour "tensorrt"
    finds no GPU.
    """
    progress = current()
    report = report or (progress.say if progress is not None else _ignore)
    vendor = load_vendor(flavour)
    # Asked first: without a GPU TensorRT fails later, and in its own words.
    capability = None if FLAVOURS[flavour].portable else compute_capability()
    log = Log(vendor)
    # The parser owns the weights: it must live until the engine is built.
    builder, network, _parser = _parse(vendor, log, graph, flavour)
    attentions = _allow_decomposition(vendor, network)
    config = builder.create_builder_config()
    config.clear_flag(vendor.BuilderFlag.TF32)
    # The timing cache is never touched: on TensorRT-RTX asking for it needs a GPU.
    report(
        f"{flavour} {vendor.__version__} builds an engine from {graph.name} ({network.num_layers} "
        "layers)"
    )
    plan = _build(vendor, builder, network, config, report)
    if plan is None:
        raise BuildError(
            f"{flavour} {vendor.__version__} cannot build an engine from {graph}:\n{log.text()}"
        )
    _write(memoryview(plan).cast("B"), engine)
    return EngineInfo(
        flavour=flavour,
        version=vendor.__version__,
        compute_capability=capability,
        settings={
            "strongly_typed": True,
            "tf32": bool(config.get_flag(vendor.BuilderFlag.TF32)),
            "builder_optimization_level": int(config.builder_optimization_level),
            "decomposable_attentions": attentions,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of the network that the vendor's parser makes of a graph: kind and types of what it
    answers, as the vendor spells them ("CONVOLUTION", "HALF").
    """

    name: str
    kind: str
    types: tuple[str, ...]


def read_network(graph: Path, flavour: str) -> list[Layer]:
    """The layers that the builder of `flavour` starts from. Needs no GPU for TensorRT-RTX.

    Raises: BuildError when the parser refuses the graph or the vendor cannot start;
    BackendMissingError.
    """
    vendor = load_vendor(flavour)
    _, network, _parser = _parse(vendor, Log(vendor), graph, flavour)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [
        Layer(
            name=layer.name,
            kind=layer.type.name,
            types=tuple(layer.get_output(index).dtype.name for index in range(layer.num_outputs)),
        )
        for layer in layers
    ]


def _parse(vendor: Any, log: Log, graph: Path, flavour: str) -> tuple[Any, Any, Any]:
    """Builder, network and parser of the ONNX file. Raises: BuildError with all of the parser's
    errors.
    """
    try:
        builder = vendor.Builder(log.logger)
    except (
        RuntimeError,
        TypeError,
    ) as error:  # pybind11's, for a C++ exception and for a null object
        raise BuildError(
            f"{flavour} {vendor.__version__} cannot start: {error}\n{log.text()}"
        ) from error
    network = builder.create_network(1 << int(vendor.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = vendor.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        words = "\n".join([*errors, log.text()])  # only the log names a missing weight file
        raise BuildError(f"the parser of {flavour} {vendor.__version__} refuses {graph}:\n{words}")
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    odd = [
        f"{tensor.name} is {tensor.dtype}"
        for tensor in tensors
        if tensor.dtype != vendor.DataType.FLOAT
    ]
    if odd:
        raise BuildError(f"inputs and outputs of {graph} must be float32, but {', '.join(odd)}")
    return builder, network, parser


def _allow_decomposition(vendor: Any, network: Any) -> int:
    """Let every ONNX `Attention` fall back to separate kernels where the vendor has no fused one;
    returns their count.

    The parser forbids it, and then a build fails on attention in float32 and on wide heads (the
    VAE's is 512): "not supported by a dedicated kernel". Fused kernels are still preferred. Vendors
    before IAttention have no such layers.
    """
    kind = getattr(vendor.LayerType, "ATTENTION_INPUT", None)
    if kind is None or not hasattr(vendor, "IAttentionInputLayer"):
        return 0
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    attentions = [layer for layer in layers if layer.type == kind]
    for layer in attentions:
        layer.__class__ = (
            vendor.IAttentionInputLayer
        )  # the bindings return the base class; Polygraphy does the same
        layer.attention.decomposable = True
    return len(attentions)


def _build(
    vendor: Any, builder: Any, network: Any, config: Any, report: Callable[[str], None]
) -> Any:
    """The serialised engine, or None when the vendor fails. Ctrl-C and an error in `report`
    cancel the build.

    The vendor swallows what is raised in its callbacks. So it works in a second thread, where
    Python raises no Ctrl-C, and the callbacks only look whether they should stop.
    """
    watch = _Watch(report)
    if hasattr(vendor, "IProgressMonitor"):
        config.progress_monitor = watch.monitor(vendor)
    with ThreadPoolExecutor(1) as pool:
        try:
            plan = pool.submit(builder.build_serialized_network, network, config).result()
        except BaseException:
            watch.stopped = True
            raise
    if watch.error is not None:
        raise watch.error
    return plan


class _Watch:
    """Tells `report` every few seconds how far the build is, and stops it when asked or when
    `report` fails.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.stopped = False
        self.error: BaseException | None = None
        self._report = report
        self._steps: dict[str, int] = {}
        self._last = time.monotonic()

    def monitor(self, vendor: Any) -> Any:
        """The IProgressMonitor to hand to the vendor."""
        watch = self

        class Monitor(vendor.IProgressMonitor):  # type: ignore[misc]  # known at run time
            def __init__(self) -> None:
                vendor.IProgressMonitor.__init__(self)

            def phase_start(self, phase: str, parent: str | None, count: int) -> None:
                watch._steps[phase] = count

            def phase_finish(self, phase: str) -> None:
                pass

            def step_complete(self, phase: str, step: int) -> bool:
                return watch._go_on(phase, step)

        return Monitor()

    def _go_on(self, phase: str, step: int) -> bool:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_MESSAGES and not self.stopped:
            self._last = now
            try:
                self._report(f"{phase}, step {step + 1} of {self._steps.get(phase, '?')}")
            except BaseException as error:  # raised again by _build
                self.error, self.stopped = error, True
        return not self.stopped


def _ignore(line: str) -> None:
    pass


def _write(plan: memoryview, engine: Path) -> None:
    """Write from the vendor's buffer, in blocks; a failed write leaves no file. Raises:
    BuildError.
    """
    try:
        with engine.open("wb") as stream:
            for start in range(0, len(plan), _BLOCK):
                stream.write(plan[start : start + _BLOCK])
    except OSError as error:
        engine.unlink(missing_ok=True)
        raise BuildError(
            f"cannot write {engine} ({len(plan)} bytes): {error.strerror or error}"
        ) from error
