"""Where another engine begins to differ from ONNX Runtime: `python -m benchmarks.compare_layers
BUNDLE [--runner tensorrt]`.

Polygraphy marks the tensors between the layers as outputs. The golden's input then goes through
ONNX Runtime and through the other runner, one stage of the network after the other, so that only
one stage's tensors are in memory. The table has the layers in graph order, with the largest and the
mean absolute difference and the largest value. A `*` marks the first layer of a stage beyond the
tolerance, which is a share of the layer's largest value, or of 1 where that is smaller.

An output that is read from outside cannot be fused away. So a layer that is wrong only when it is
fused looks right here, and the engine of the bundle itself is not what is measured.

The runners `tensorrt` and `tensorrt-rtx` build an engine and run it, on the device. They have never
been run by this project's tests, which have no GPU. `onnxruntime-plain` is ONNX Runtime without its
graph optimisations, and runs anywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graph.stages import STAGES
from runtime.backends import BACKENDS
from runtime.backends.onnxruntime import session_options
from runtime.backends.session import import_vendor
from runtime.errors import BackendError, BackendMissingError, LotusError
from runtime.manifest import Bucket, Manifest

Arrays = dict[str, NDArray[Any]]
_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
"""Types that are compared: NumPy has no other floating-point type."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A node's output and the difference of the two runners there. `largest` is the largest
    finite magnitude that ONNX Runtime has there, by which a difference can be judged.
    """

    name: str
    operator: str
    output: str
    max_abs: float
    mean_abs: float
    largest: float

    @property
    def stage(self) -> str:
        """One of STAGES, for a graph that was built here."""
        return self.name.split("/", 1)[0]

    def exceeds(self, tolerance: float) -> bool:
        """Whether a difference is not a number, or larger than this share of the layer's largest
        value, or of 1 where that is smaller.
        """
        return not self.max_abs <= tolerance * max(1.0, self.largest)


def main(argv: list[str] | None = None) -> int:
    """Print the table. Status 1 where a layer exceeds the tolerance, or nothing can be compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runner", default="onnxruntime-plain", choices=RUNNERS)
    parser.add_argument("--bucket", metavar="HxW", help="default: the bundle's first")
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="X", help="default: 1e-3")
    parser.add_argument(
        "--graph",
        type=Path,
        metavar="ONNX",
        help="what the other runner gets, with the same names; default: the bundle's graph",
    )
    arguments = parser.parse_args(argv)
    try:
        graph, feeds = read_golden(arguments.bundle, arguments.bucket)
        layers = compare_layers(graph, feeds, arguments.runner, other=arguments.graph)
    except (LotusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    firsts = first_beyond(layers, arguments.tolerance)
    print(f"  {'layer':<64} {'max':>9} {'mean':>9} {'largest':>9}")
    for layer in layers:
        mark = "*" if layer in firsts else " "
        numbers = f"{layer.max_abs:9.2e} {layer.mean_abs:9.2e} {layer.largest:9.2e}"
        print(f"{mark} {layer.name:<64} {numbers}")
    for layer in firsts:
        print(
            f"{layer.stage}: the first beyond {arguments.tolerance:g} is {layer.name} "
            f"({layer.operator}), max {layer.max_abs:.2e}, mean {layer.mean_abs:.2e}"
        )
    if not firsts:
        print(f"all {len(layers)} layers are within {arguments.tolerance:g}")
    return 1 if firsts or not layers else 0


def read_golden(folder: Path, size: str | None = None) -> tuple[Path, Arrays]:
    """The graph of a bucket ("HxW"; None: the first) and the input of its golden, by name.

    Raises: BundleError, OSError; LotusError where the bundle has no such bucket.
    """
    manifest = Manifest.load(folder)
    buckets: dict[str, Bucket] = {str(bucket): bucket for bucket in manifest.buckets}
    size = size or next(iter(buckets))
    if size not in buckets:
        raise LotusError(f"{folder} has no bucket {size}; it has {', '.join(buckets)}")
    with np.load(folder / manifest.golden.file, allow_pickle=False) as golden:
        feeds = {"image": manifest.preprocess.apply(golden[f"image_{size}"])}
        if "noise" in manifest.input_shapes(buckets[size]):
            feeds["noise"] = golden[f"noise_{size}"]
    return folder / buckets[size].graph, feeds


def compare_layers(
    graph: Path, feeds: Arrays, runner: str, *, other: Path | None = None
) -> list[Layer]:
    """The layers of an ONNX file (external data beside it), in graph order, with the difference of
    a runner (a key of RUNNERS) from ONNX Runtime.

    `feeds` are the graph's inputs by name. `other` is the graph that the runner gets, with the same
    names; None: the same graph. Outputs that are not float16, float32 or float64 are left out.

    Raises: BackendMissingError without the vendor's package, BackendError with the vendor's words,
    OSError for a file that cannot be read.
    """
    package, opened = RUNNERS[runner]
    if importlib.util.find_spec(package) is None:
        raise BackendMissingError(f"the runner {runner} needs the package {package!r}")
    other = other or graph
    nodes = onnx.load(graph, load_external_data=False).graph.node
    theirs = onnx.load(other, load_external_data=False).graph.node
    known = {output for node in theirs for output in node.output}
    layers = []
    with tempfile.TemporaryDirectory() as folder:
        floats = _float_outputs(graph, Path(folder)) & known
        for stage in _stages(nodes):
            own = [node for node in nodes if node.name.split("/", 1)[0] == stage]
            marked = [output for node in own for output in node.output if output in floats]
            if not marked:
                continue
            paths = [
                _mark(path, marked, Path(folder) / name)
                for path, name in ((graph, "reference"), (other, "other"))
            ]
            expected, values = _run([_reference(paths[0]), opened(paths[1])], feeds)
            layers += [
                _compare(node, output, expected[output], values[output])
                for node in own
                for output in node.output
                if output in marked
            ]
    return layers


def first_beyond(layers: Iterable[Layer], tolerance: float) -> list[Layer]:
    """The first layer of each stage that exceeds the tolerance."""
    firsts: dict[str, Layer] = {}
    for layer in layers:
        if layer.exceeds(tolerance):
            firsts.setdefault(layer.stage, layer)
    return list(firsts.values())


def _stages(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """STAGES, then what else node names begin with."""
    return list(dict.fromkeys([*STAGES, *(node.name.split("/", 1)[0] for node in nodes)]))


def _mark(graph: Path, outputs: Any, folder: Path) -> Path:
    """A copy of the graph in the folder, which is made anew, with these outputs; its weights are
    linked, or copied where the folder is on another disk.
    """
    from polygraphy.backend.onnx import ModifyOutputs, OnnxFromPath, SaveOnnx
    from polygraphy.logger import G_LOGGER

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        # Weights stay where they are: the copy refers to files of the same names beside it.
        model = OnnxFromPath(str(graph), ignore_external_data=True)
        marked = SaveOnnx(ModifyOutputs(model, outputs=outputs), str(folder / graph.name))()
    for name in _external_files(marked):
        try:
            os.link(graph.parent / name, folder / name)
        except OSError:
            shutil.copyfile(graph.parent / name, folder / name)
    return folder / graph.name


def _external_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files, beside the graph, that hold its large weights."""
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _float_outputs(graph: Path, folder: Path) -> set[str]:
    """The outputs of nodes that can be compared. ONNX Runtime tells the types, as it knows its own
    operators too.
    """
    from polygraphy.constants import MARK_ALL

    session = _session(_mark(graph, MARK_ALL, folder / "all"), optimised=False)
    return {node.name for node in session.get_outputs() if node.type in _FLOATS}


def _session(graph: Path, *, optimised: bool) -> Any:
    ort = import_vendor(BACKENDS["onnxruntime"])
    options = session_options(ort)
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise BackendError(f"ONNX Runtime cannot open {graph.name}: {error}") from error


def _reference(graph: Path) -> Any:
    from polygraphy.backend.onnxrt import OnnxrtRunner

    return OnnxrtRunner(lambda: _session(graph, optimised=True), name="reference")


def _onnxruntime_plain(graph: Path) -> Any:
    from polygraphy.backend.onnxrt import OnnxrtRunner

    return OnnxrtRunner(lambda: _session(graph, optimised=False), name="onnxruntime-plain")


def _tensorrt(graph: Path) -> Any:
    """As export/targets builds engines: types are those of the graph, without TF32, and attention
    may become several kernels.
    """
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxPath,
        SetDecomposableAttentions,
        TrtRunner,
    )

    network = SetDecomposableAttentions(NetworkFromOnnxPath(str(graph), strongly_typed=True))
    return TrtRunner(EngineFromNetwork(network, config=CreateConfig(tf32=False)), name="tensorrt")


def _tensorrt_rtx(graph: Path) -> Any:
    from polygraphy import config

    # Polygraphy drives both through one module, which it picks when it is first imported.
    config.USE_TENSORRT_RTX = True
    return _tensorrt(graph)


RUNNERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "onnxruntime-plain": ("onnxruntime", _onnxruntime_plain),
    "tensorrt": ("tensorrt", _tensorrt),
    "tensorrt-rtx": ("tensorrt_rtx", _tensorrt_rtx),
}
"""The vendor's package and what makes a Polygraphy runner of a graph, by name."""


def _run(runners: list[Any], feeds: Arrays) -> list[Arrays]:
    """What each runner makes of the feeds; one runner is in memory at a time."""
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    try:
        with G_LOGGER.verbosity(G_LOGGER.ERROR):
            results = Comparator.run(runners, data_loader=[feeds])
    except PolygraphyException as error:
        raise BackendError(f"Polygraphy could not run the graph: {error}") from error
    return [dict(iterations[0]) for _, iterations in results.items()]


def _compare(
    node: onnx.NodeProto, output: str, expected: NDArray[Any], values: NDArray[Any]
) -> Layer:
    expected, values = np.asarray(expected, np.float64), np.asarray(values, np.float64)
    # Two equal infinities, such as a mask's, do not differ.
    with np.errstate(invalid="ignore"):
        difference = np.where(expected == values, 0.0, np.abs(expected - values))
    name = node.name or output
    if len(node.output) > 1:
        name = f"{name} [{list(node.output).index(output)}]"
    return Layer(
        name=name,
        operator=node.op_type,
        output=output,
        max_abs=float(difference.max(initial=0.0)),
        mean_abs=float(difference.mean()) if difference.size else 0.0,
        largest=float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)),
    )


if __name__ == "__main__":
    sys.exit(main())
