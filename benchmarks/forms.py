"""The forms of a layer that folds choose from, on each backend: `python -m benchmarks.forms`.

Measured are upsampling (three of the full-size decoder at 512x512 and the last of the UNet), the
autoencoder's wide convolutions, and on OpenVINO attention of autoencoder and UNet at 512, 768 and
1024 pixels. Each layer is a graph of its own, with a narrow convolution behind it, or an activation
behind attention. Times are medians of interleaved rounds. `export/targets` chooses by them.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
import torch
from diffusers.models.upsampling import Upsample2D
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rows import parse_arguments, write_rows
from export.folds.subpixel import FORMS, SubpixelUpsample
from export.folds.winograd import WinogradConv
from export.graph.attention import join_heads, split_queries
from export.graph.int8_weights import output_axis
from export.graph.qdq import quantize
from export.graph.stages import layer_of
from export.graph.to_onnx import quiet_exporter
from export.quantize.layers import OUTPUT, Range
from export.targets import TARGETS
from runtime.backends import BACKENDS
from runtime.backends.onnxruntime import session_options
from runtime.backends.openvino import hints
from runtime.backends.session import import_vendor

_UPSAMPLINGS = ((512, 64), (512, 128), (256, 256), (640, 32))
_CONVOLUTIONS = ((512, 64), (512, 128), (256, 256), (128, 512))
"""(channels, edge of the map that comes in)."""
_ATTENTIONS = ((512, 512), (320, 64))
"""(channels, channels of a head)."""
_TOKENS = (64, 96, 128)
"""Edges of the map of tokens."""
_READER, _READ = "reader", 16
"""Name and channels of the convolution behind the layer. Engines, in int8 above all, choose a
layer's form by what reads it. An activation would not do: some engines fuse it with the layer.
"""
_BOUND = 4.0  # of standard normal values
_INT8 = {"onnxruntime": "onnxruntime", "openvino-bf16": "openvino"}
"""Targets by the backend that runs their int8 graphs."""
_INT8_FORMS = ("plain", *FORMS)
"""The forms that int8 can take."""
_Run = Callable[[NDArray[np.float32]], object]


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parse_arguments(parser)
    rows = []
    for fold, channels, edge, modules in _layers():
        layer = {"fold": fold, "channels": channels, "edge": edge}
        x = np.random.default_rng(0).standard_normal((1, channels, edge, edge), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            seconds = _race(_open_all(fold, modules, x, Path(folder)), x, arguments.rounds)
        for (backend, form), median in seconds.items():
            rows.append(layer | {"backend": backend, "form": form, "p50_s": median})
            print(
                f"{fold:<10}{channels:4d} channels {edge:4d} {backend:<20}{form:<12}{median:8.4f} s"
            )
    print(f"rows: {write_rows('forms', rows, dirty=arguments.dirty).name}")
    return 0


def _open_all(
    fold: str, modules: dict[str, nn.Module], x: NDArray[np.float32], folder: Path
) -> dict[tuple[str, str], _Run]:
    """Each form of a layer, ready to run, by (backend, form); int8 backends end in "-int8"."""
    graphs = {name: _export(module, x, folder / f"{name}.onnx") for name, module in modules.items()}
    runs = {
        (backend, name): _OPEN[backend](graph)
        for name, graph in graphs.items()
        for backend in _of(fold)
    }
    for backend, target in _INT8.items():
        for name, graph in graphs.items():
            if name in _INT8_FORMS:
                runs[f"{backend}-int8", name] = _OPEN[backend](_quantised(graph, target))
    return runs


def _race(
    runs: dict[tuple[str, str], _Run], x: NDArray[np.float32], rounds: int
) -> dict[tuple[str, str], float]:
    """Median seconds of each run, all of them in turn in every round."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for turn in range(rounds + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run(x)
            if turn:  # the first is warm-up
                seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(measured) for key, measured in seconds.items()}


def _layers() -> Iterator[tuple[str, int, int, dict[str, nn.Module]]]:
    """Fold, channels, edge, and the layer in each form."""
    for channels, edge in _UPSAMPLINGS:
        plain = Upsample2D(channels, use_conv=True, out_channels=channels).eval()
        forms = {form: SubpixelUpsample(plain, plain.conv, form).eval() for form in FORMS}
        yield "subpixel", channels, edge, {"plain": plain, **forms}
    for channels, edge in _CONVOLUTIONS:
        conv = nn.Conv2d(channels, channels, 3, padding=1).eval()
        yield (
            "winograd",
            channels,
            edge,
            {"plain": conv, "winograd": WinogradConv(conv, fewest_pixels=1).eval()},
        )
    for channels, depth in _ATTENTIONS:
        for edge in _TOKENS:
            yield (
                "attention",
                channels,
                edge,
                dict.fromkeys(("joined", "blocks"), _Attention(channels, depth).eval()),
            )


def _of(fold: str) -> list[str]:
    """The backends on which a fold's forms are compared."""
    return [backend for backend in _OPEN if fold != "attention" or backend.startswith("openvino")]


class _Attention(nn.Module):
    """Self-attention over a map [1,C,H,W] with heads of `depth` channels, between its two matrices;
    the output is tokens [1,H W,C].
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.depth, self.project, self.out = (
            depth,
            nn.Linear(channels, 3 * channels),
            nn.Linear(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.depth)).transpose(1, 2) for part in tokens)
        # Without a product behind it, attention would be the graph's tail, which OpenVINO leaves in
        # float32.
        return cast(
            Tensor, self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        )


def _export(module: nn.Module, x: NDArray[np.float32], path: Path) -> Path:
    attention = isinstance(module, _Attention)
    channels = x.shape[1]
    layer = nn.Sequential(module, nn.SiLU() if attention else nn.Conv2d(channels, _READ, 1)).eval()
    with quiet_exporter(), torch.no_grad():
        torch.onnx.export(
            layer, (torch.from_numpy(x),), path, dynamo=True, opset_version=23, verbose=False
        )
    model = ir.load(path)
    model.graph[-1].name = _READER
    if attention:
        rewrites = {
            "blocks": functools.partial(split_queries, fewest=0),
            "joined": functools.partial(join_heads, contrib=False),
        }
        assert rewrites[path.stem](model.graph) == 1
    ir.save(model, path)
    return path


def _quantised(path: Path, target: str) -> Path:
    """The same graph with input and weight of every convolution in int8, and the further tensors
    that the target has in int8.
    """
    int8, model = TARGETS[target].recipe("int8").int8, ir.load(path)
    assert int8 is not None
    ranges: dict[str, Range] = {}
    for node in model.graph:
        if output_axis(node) is not None and node.name != _READER:
            ranges[layer_of(node)] = Range(low=-_BOUND, high=_BOUND)
            if OUTPUT in int8.extra_tensors:
                bound = torch.full((int(node.outputs[0].shape[1]),), _BOUND)
                ranges[f"{layer_of(node)}/{OUTPUT}"] = Range(low=-bound, high=bound)
    quantize(model.graph, ranges, unsigned=int8.zero_points)
    RemoveUnusedNodesPass()(model)
    rounded = path.with_stem(f"{path.stem}-int8-{target}")
    ir.save(model, rounded)
    return rounded


def _onnxruntime(path: Path) -> _Run:
    ort = import_vendor(BACKENDS["onnxruntime"])
    session = ort.InferenceSession(
        str(path), session_options(ort), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def _openvino(path: Path, precision: str) -> _Run:
    openvino = import_vendor(BACKENDS["openvino"])
    core = openvino.Core()
    model = core.read_model(str(path))
    return core.compile_model(model, "CPU", hints(model, precision))


_OPEN: dict[str, Callable[[Path], _Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": lambda path: _openvino(path, "fp32"),
    "openvino-bf16": lambda path: _openvino(path, "bf16"),
}

if __name__ == "__main__":
    sys.exit(main())
