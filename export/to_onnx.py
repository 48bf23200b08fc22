"""From the module to ONNX graphs: one small graph for each bucket, all over one file of weights."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.attention import write_attention
from export.errors import BuildError
from export.group_norm import spell_out_group_norm
from export.precision.calibration import Calibration
from export.precision.layers import Ranges
from export.precision.lower import lower
from export.precision.qdq import quantise
from export.single_pass import SinglePass
from export.targets import TARGETS
from runtime.manifest import Manifest

WEIGHTS = "model.onnx.data"
STAGES = ("encoder", "unet", "decoder")
_INLINE_BYTES = 1024  # smaller constants stay in the graph, where shape inference and parsers look for them
_ALIGNMENT = 4096  # lets a runtime map a tensor straight from the file


def write_graphs(
    module: SinglePass,
    manifest: Manifest,
    folder: Path,
    calibration: Calibration,
    progress: Callable[[str], None],
    ranges: Ranges | None = None,
) -> None:
    """Write the graph of each bucket of `manifest`, and one `model.onnx.data` for all, into `folder`.

    At opset 23 attention stays `Attention` and group normalisation `GroupNormalization`, unless the target has forms of
    its own; at opset 20 both are spelled out in older operators. `calibration` shows what a half precision cannot hold;
    the layers of `ranges` become int8.

    Raises: BuildError when the exporter or the ONNX checker refuses; OSError.
    """
    with (folder / WEIGHTS).open("wb") as stream:
        pool = _WeightPool(stream)
        for bucket in manifest.buckets:
            progress(f"tracing the {bucket} graph (ONNX opset {manifest.opset})")
            inputs = {name: torch.zeros(shape) for name, shape in manifest.input_shapes(bucket).items()}
            program = _trace(module, inputs, manifest.tasks[0], manifest.opset)
            model = program.model
            _name_nodes(model.graph)
            target = TARGETS[manifest.target]
            spell_out_group_norm(model.graph, target.group_norm.get(manifest.precision, "kernel"))
            write_attention(model.graph, target.attention.get(manifest.precision, "split"))
            quantise(model.graph, ranges or {}, unsigned=target.int8_affine)
            if target.typed(manifest.precision):
                assert program.exported_program is not None
                lower(model.graph, program.exported_program, manifest, calibration.feeds(manifest, bucket), progress)
            RemoveUnusedNodesPass()(model)
            _strip(model)
            pool.externalise(model.graph)
            ir.save(model, folder / bucket.graph)
            del model, program
    for bucket in manifest.buckets:
        try:
            onnx.checker.check_model(str(folder / bucket.graph))
        except onnx.checker.ValidationError as error:
            raise BuildError(f"the ONNX checker refuses the {bucket} graph: {error}") from error


def _trace(module: SinglePass, inputs: dict[str, torch.Tensor], output: str, opset: int) -> torch.onnx.ONNXProgram:
    with quiet_exporter(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=[output],
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise BuildError(f"the network cannot be traced to ONNX opset {opset}: {error}") from error
    assert program is not None
    return program


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter logs missing torchvision operators and its own deprecations; neither concerns a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_nodes(graph: ir.Graph) -> None:
    """Name each node `stage/module.path/OpType`, so that every profiler can split time by stage."""
    stage, seen = STAGES[0], Counter[str]()
    for node in graph:
        # For example ": SinglePass/encoder: _Encoder/encoder.network.conv_in: Conv2d/conv2d: aten.conv2d.default".
        scopes = [part.split(":")[0].strip() for part in node.metadata_props.get("namespace", "").split("/")]
        paths = [scope for scope in scopes[:-1] if scope.split(".")[0] in STAGES]
        if paths:
            stage = paths[-1].split(".")[0]
        module = paths[-1].removeprefix(stage).strip(".") if paths else ""
        # A list of modules that was cut, as in diffusers' middle block, is named so.
        module = re.sub(r"slice\((\d+), None, None\)\.(\d+)", lambda cut: str(int(cut[1]) + int(cut[2])), module)
        name = "/".join(part for part in (stage, module, node.op_type) if part)
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _strip(model: ir.Model) -> None:
    """Remove the exporter's stack traces and scopes: they are large and hold paths of the building machine."""
    model.producer_name, model.producer_version = "lotus-edge", None
    model.metadata_props.clear()
    graph = model.graph
    graph.metadata_props.clear()
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        values.extend(node.outputs)
    for value in values:
        value.metadata_props.clear()


class _WeightPool:
    """Appends tensors to one file, each content once, and points graphs at them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offsets: dict[tuple[str, int], int] = {}

    def externalise(self, graph: ir.Graph) -> None:
        """Move every initialiser of 1 KiB or more out of `graph`."""
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _INLINE_BYTES:
                continue
            offset = self._store(tensor)
            value.const_value = ir.ExternalTensor(
                WEIGHTS,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=tensor.shape,
                name=value.name,
                base_dir=Path(self._stream.name).parent,
            )

    def _store(self, tensor: ir.TensorProtocol) -> int:
        data = memoryview(tensor.numpy().reshape(-1).view(np.uint8))
        key = (hashlib.sha256(data).hexdigest(), tensor.nbytes)
        if key not in self._offsets:
            self._stream.seek(-self._stream.tell() % _ALIGNMENT, 1)
            self._offsets[key] = self._stream.tell()
            self._stream.write(data)
        return self._offsets[key]
