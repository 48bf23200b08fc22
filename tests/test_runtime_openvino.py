"""What the OpenVINO backend does for speed and memory, beside the contract of every backend."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

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
    for folder in ("bundle", "elsewhere", "probe"):
        path = tmp_path / folder / "model.onnx.data"
        path.parent.mkdir()
        with path.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # pages that are not on the disk yet stay
        with path.open("rb") as stream:
            maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        assert maps[path][:] == content
        assert _resident(path) == len(content)
    bundle, elsewhere, probe = maps
    start = np.frombuffer(maps[probe], np.uint8).ctypes.data
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(len(content)), 21)
    if _resident(probe) == len(content):
        pytest.skip("this kernel, or this file system (tmpfs), keeps the pages of files")
    link = tmp_path / "link"
    link.symlink_to(bundle)  # as in the cache of a hub
    backend._give_back_pages([link])
    assert _resident(bundle) < len(content) / 10
    assert _resident(elsewhere) == len(content)
    assert maps[bundle][:] == content


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux tells what is mapped")
def test_memory_in_the_place_of_a_map_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the list of maps and the advice another thread may unmap the file and allocate. Here
    the list names memory of our own from the start.
    """
    content = np.random.default_rng(0).bytes(1 << 22)
    memory = mmap.mmap(-1, len(content), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = content
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    file = tmp_path / "model.onnx.data"
    file.write_bytes(b"")
    read = Path.read_text

    def old_list(path: Path, *words: Any) -> str:
        if str(path) != "/proc/self/maps":
            return read(path, *words)
        return f"{start:x}-{start + len(content):x} r--p 00000000 fe:00 1 {file.resolve()}\n"

    monkeypatch.setattr(Path, "read_text", old_list)
    backend._give_back_pages([file])
    assert memory[:] == content


def _resident(path: Path) -> int:
    """Bytes of the file that are in this process's memory."""
    total, inside = 0, False
    for line in SMAPS.read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path.resolve()))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
