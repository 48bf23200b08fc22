"""From the module to an ONNX graph, as it is traced: the one file of this package with torch."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.rewriter.rules.common import slice_split_rule
from torch.export import ExportedProgram

from export.errors import BuildError
from export.graph.stages import STAGES
from export.network.single_pass import SinglePass
from runtime.manifest import Shape


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A traced network: the ONNX model, the PyTorch program that it was made of, and for each node
    the name of the operator of the program that it stands for, such as "conv2d_3".

    Nodes are named after their stage and module; the exporter's own notes are gone from the model.
    """

    model: ir.Model
    program: ExportedProgram
    operators: Mapping[ir.Node, str]


def trace(network: SinglePass, shapes: Mapping[str, Shape], opset: int) -> Traced:
    """Trace `network` for float32 inputs of these `shapes`, by name. Answers are named after tasks.

    At opset 23 attention is `Attention` and group normalisation `GroupNormalization`; at opset 20
    both are spelled out in older operators. Raises: BuildError when the exporter refuses.
    """
    program = _export(network, shapes, opset)
    exported = program.exported_program
    if exported is None:
        raise BuildError("the exporter kept no program of the traced network")
    model = program.model
    _name_nodes(model.graph)
    operators = {node: _operator(node) for node in model.graph}
    _strip(model)
    return Traced(model=model, program=exported, operators=operators)


def _export(network: SinglePass, shapes: Mapping[str, Shape], opset: int) -> torch.onnx.ONNXProgram:
    inputs = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with quiet_exporter(), quick_clean_up(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(network.tasks),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise BuildError(
                f"the network cannot be traced to ONNX opset {opset}: {error}"
            ) from error
    if program is None:
        raise BuildError(f"the exporter made nothing of the network at ONNX opset {opset}")
    return program


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter logs missing torchvision operators and its own deprecations; neither concerns a
    user.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def quick_clean_up() -> Iterator[None]:
    """The exporter's rule that makes one `Split` of two `Slice`s walks the whole graph at each
    node, which takes more than all others do. Asked at each `Slice` alone it answers the same.
    """
    ask = slice_split_rule.try_rewrite

    def ask_slices(model: ir.Model, graph: Any, node: ir.Node, **more: Any) -> Any:
        return ask(model, graph, node, **more) if node.op_type == "Slice" else None

    slice_split_rule.try_rewrite = ask_slices
    try:
        yield
    finally:
        vars(slice_split_rule).pop("try_rewrite", None)


def _name_nodes(graph: ir.Graph) -> None:
    """Name each node `stage/module.path/OpType`, so that every profiler can split time by stage."""
    stage, seen = STAGES[0], Counter[str]()
    for node in graph:
        # For example ": SinglePass/encoder: _Encoder/encoder.network.conv_in: Conv2d/conv2d:
        # aten.conv2d.default".
        scopes = [
            part.split(":")[0].strip()
            for part in node.metadata_props.get("namespace", "").split("/")
        ]
        paths = [scope for scope in scopes[:-1] if scope.split(".")[0] in STAGES]
        if paths:
            stage = paths[-1].split(".")[0]
        module = paths[-1].removeprefix(stage).strip(".") if paths else ""
        # A list of modules that was cut, as in diffusers' middle block, is named so.
        module = re.sub(
            r"slice\((\d+), None, None\)\.(\d+)", lambda cut: str(int(cut[1]) + int(cut[2])), module
        )
        name = "/".join(part for part in (stage, module, node.op_type) if part)
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _operator(node: ir.Node) -> str:
    """For example "conv2d_3" of ": SinglePass/encoder: _Encoder/.../conv2d_3:
    aten.conv2d.default".
    """
    return str(node.metadata_props.get("namespace", "").rsplit("/", 1)[-1].split(":")[0].strip())


def _strip(model: ir.Model) -> None:
    """Remove the exporter's stack traces and scopes: they are large and hold paths of the building
    machine.
    """
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
