"""What the OpenVINO backend does for speed and memory, beside the contract of every backend."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import openvino as backend

openvino = pytest.importorskip(
    "openvino", reason="needs OpenVINO: pip install 'lotus-edge[openvino]'"
)
SMAPS = Path("/proc/self/smaps")


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


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux tells what is mapped")
def test_pages_of_mapped_weights_are_given_back(tmp_path: Path) -> None:
    """As OpenVINO maps a large weight file; a small one it reads. A file elsewhere keeps its
    pages.
    """
    content = np.random.default_rng(0).bytes(1 << 22)
    maps = {}
    for folder in ("bundle", "elsewhere"):
        path = tmp_path / folder / "model.onnx.data"
        path.parent.mkdir()
        path.write_bytes(content)
        with path.open("rb") as stream:
            maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        assert maps[path][:] == content
        assert _resident(path) == len(content)
    bundle, elsewhere = maps
    backend._give_back_pages(bundle.parent)
    assert _resident(bundle) == 0
    assert _resident(elsewhere) == len(content)
    assert maps[bundle][:] == content


def _resident(path: Path) -> int:
    """Bytes of the file that are in this process's memory."""
    total, inside = 0, False
    for line in SMAPS.read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path.resolve()))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
