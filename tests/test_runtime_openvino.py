"""What the OpenVINO backend does for speed and memory, beside the contract of every backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.backends import openvino as backend

openvino = pytest.importorskip(
    "openvino", reason="needs OpenVINO: pip install 'lotus-edge[openvino]'"
)


@pytest.mark.parametrize(("rows", "mode"), [(15, "DISABLE"), (16, "ENABLE")])
def test_snippets_are_off_where_they_crash(rows: int, mode: str) -> None:
    """OpenVINO 2026.4 ends the process over few rows; a network for small images has such
    products.
    """
    ops = openvino.opset13
    tokens = ops.parameter([rows, 32], np.float32)
    product = ops.matmul(tokens, ops.constant(np.ones((32, 32), np.float32)), False, False)
    assert backend.hints(openvino.Model([product], [tokens]), "fp32")["SNIPPETS_MODE"] == mode


@pytest.mark.slow
def test_a_bundle_for_small_images_has_them_off(bundle_d: Path) -> None:
    model = openvino.Core().read_model(str(bundle_d / "model-64x64.onnx"))
    assert backend.hints(model, "fp32")["SNIPPETS_MODE"] == "DISABLE"
