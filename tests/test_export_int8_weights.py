"""Int8 weights that no kernel adds up beyond 16 bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import BUCKET
from numpy.typing import NDArray

from export.graph.int8_weights import LARGEST, channel_scales, safe_scales, to_int8
from export.graph.qdq import quantize
from export.quantize.layers import Range
from runtime.backends.onnxruntime import may_saturate, session_options
from runtime.backends.openvino import say_if_cut_off
from runtime.machine import has_wide_int8
from runtime.manifest import Manifest

LAYERS = {
    "conv 3x3": ("Conv", (32, 32, 3, 3), {"pads": [1, 1, 1, 1]}),
    "conv 1x1": ("Conv", (32, 32, 1, 1), {}),
    "conv of an odd width": ("Conv", (17, 33, 3, 3), {"pads": [1, 1, 1, 1]}),
    "conv of stride 2": ("Conv", (32, 32, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "transposed conv": ("ConvTranspose", (32, 48, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "linear": ("Gemm", (64, 48), {}),
}
"""Operator, shape of its weight, and attributes."""


def _pairs(whole: NDArray[np.int8], axis: int) -> NDArray[np.int64]:
    """The largest sum of one sign of each pair of neighbours, by what a kernel would add up."""
    channels = np.moveaxis(whole, (axis, 1 - axis), (0, 1)).astype(np.int64)
    sums = []
    for first in range(0, channels.shape[1], 2):
        pair = channels[:, first : first + 2]
        sums += [pair.clip(0).sum(1).max(), -pair.clip(None, 0).sum(1).min()]
    return np.array(sums)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(24, 18, 3, 3), (17, 33), (1, 1, 1, 1), (16, 1)])
def test_neighbours_stay_below_16_bits(shape: tuple[int, ...], axis: int) -> None:
    random = np.random.default_rng(0)
    for weight in (
        random.normal(size=shape).astype(np.float32),
        np.full(shape, 0.3, np.float32),
        np.full(shape, -0.3, np.float32),
        random.uniform(0.9, 1, shape).astype(np.float32),
        np.zeros(shape, np.float32),
    ):
        scale = safe_scales(weight, axis)
        sums = _pairs(to_int8(weight, scale, axis), axis)
        assert 255 * sums.max() < 2**15
        assert sums.max() >= LARGEST - 1 or not weight.any(), "no larger than it must be"
        assert (scale >= channel_scales(weight, axis)).all()


def test_a_pair_of_two_signs_does_not_add_up() -> None:
    weight = np.tile(np.array([[1.0, -1.0]], np.float32), (4, 8))
    assert np.array_equal(safe_scales(weight, 0), channel_scales(weight, 0))


@pytest.mark.parametrize("name", LAYERS)
def test_openvino_computes_what_is_written(name: str) -> None:
    """The worst case: weights of one size and one sign, activations at the end of their range.
    Kernels that saturate give a tenth of the sum or less.
    """
    openvino = pytest.importorskip("openvino")
    graph, values = _one_layer(*LAYERS[name])
    expected = onnxruntime.InferenceSession(graph).run(None, {"values": values})[0]  # in fp32
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.Core().read_model(graph), "CPU", settings)
    found = compiled({"values": values})[0]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def _one_layer(
    operator: str, shape: tuple[int, ...], attributes: dict[str, list[int]]
) -> tuple[bytes, NDArray[np.float32]]:
    """A graph of one int8 layer, and what it is given."""
    random = np.random.default_rng(1)
    weight = random.uniform(0.9, 1.0, shape).astype(np.float32)
    inputs = shape[1] if operator == "Conv" else shape[0]
    size = (20, inputs) if operator == "Gemm" else (1, inputs, 12, 12)
    values = random.uniform(0.8, 1.2, size).astype(np.float32)
    kind = ir.TensorType(ir.DataType.FLOAT)
    operands = [
        ir.Value(name="values", shape=ir.Shape(size), type=kind),
        ir.Value(
            name="weight", shape=ir.Shape(shape), type=kind, const_value=ir.tensor(weight, name="w")
        ),
    ]
    node = ir.node(operator, operands, attributes, name=f"unet/layer/{operator}")
    node.outputs[0].name, node.outputs[0].dtype = "sums", ir.DataType.FLOAT
    graph = ir.Graph(
        operands[:1], node.outputs, nodes=[node], initializers=operands[1:], opset_imports={"": 20}
    )
    assert quantize(graph, {"unet/layer": Range(low=-1.0, high=1.0)}) == 1
    return ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(), values


@pytest.mark.slow
def test_fast_kernels_of_onnxruntime_answer_as_wide_ones(
    bundle_int8: Path, photo: NDArray[np.uint8]
) -> None:
    manifest = Manifest.load(bundle_int8)
    assert not may_saturate(manifest, "onnxruntime")
    assert manifest.quantisation is not None
    older = dataclasses.replace(manifest.quantisation, fits_16_bits=False)
    older = dataclasses.replace(manifest, quantisation=older)
    assert may_saturate(older, "onnxruntime")
    assert not may_saturate(older, "onnxruntime-cuda")
    feeds = {"image": manifest.preprocess.apply(photo[:BUCKET, :BUCKET])}
    fast, wide = (
        onnxruntime.InferenceSession(
            bundle_int8 / manifest.buckets[0].graph,
            session_options(onnxruntime, saturates=saturates),
        ).run(None, feeds)[0]
        for saturates in (False, True)
    )
    assert np.array_equal(fast, wide)


@pytest.mark.slow
def test_openvino_says_where_sums_are_cut_off(
    bundle_int8: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.load(bundle_int8)
    assert manifest.quantisation is not None
    for fits, wide in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr("runtime.backends.openvino.has_wide_int8", lambda wide=wide: wide)
        quantisation = dataclasses.replace(manifest.quantisation, fits_16_bits=fits)
        say_if_cut_off(dataclasses.replace(manifest, quantisation=quantisation))
        assert ("cut off" in capsys.readouterr().err) == (not fits and not wide)
    say_if_cut_off(dataclasses.replace(manifest, quantisation=None))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "wide"),
    [
        ("sse2 avx2", False),
        ("sse2 avx2 avx512f", False),
        ("sse2 avx2 avx512_vnni", True),
        ("sse2 avx2 avx_vnni", True),
        ("fp asimd", True),  # an ARM that multiplies in another way
        ("", True),  # not told
    ],
)
def test_only_x86_without_vnni_adds_in_16_bits(
    flags: str, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.machine._flags", flags.split)
    assert has_wide_int8() == wide
