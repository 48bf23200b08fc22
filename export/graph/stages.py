"""The stages of the network, which the name of every node of a graph begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.errors import BuildError

if TYPE_CHECKING:  # a device that measures needs the names alone
    import onnx_ir as ir

STAGES = ("encoder", "unet", "decoder")


def stage_of(node: ir.Node) -> str:
    """The stage that the node is named after. Raises: BuildError for a node of another graph."""
    stage = str(node.name).split("/", 1)[0]
    if stage not in STAGES:
        raise BuildError(
            f"the node {node.name!r} is named after no stage of {STAGES}; was this graph built "
            "here?"
        )
    return stage


def layer_of(node: ir.Node) -> str:
    """The layer that a node computes: its name without the operator (export/quantize/layers.py)."""
    return layer_name(str(node.name).rsplit("/", 1)[0])


def layer_name(module: str) -> str:
    """The layer of a module, as `unet/network.conv_in`. An upsampling is one layer, whether it is
    folded or, for sizes that do not allow it, in its plain form (export/folds/subpixel.py).
    """
    return module.removesuffix(".plain.conv")
