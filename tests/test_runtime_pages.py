"""Memory of weights that a vendor has mapped and packed: given back, and nothing else with it."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from runtime.backends.pages import giving_back, holding, map_files

SMAPS = Path("/proc/self/smaps")
CONTENT = np.random.default_rng(0).bytes(1 << 22)

pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="only Linux tells what is mapped")


def _written(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    return path


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _resident(path: Path) -> int:
    """Bytes of the file that are in this process's memory."""
    total, inside = 0, False
    for line in SMAPS.read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path.resolve()))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def _wait_for(done: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


def test_pages_go_while_the_block_lasts_and_at_its_end(tmp_path: Path) -> None:
    file, elsewhere = _written(tmp_path / "weights"), _written(tmp_path / "elsewhere")
    link = tmp_path / "link"
    link.symlink_to(file)  # as in the cache of a hub
    other = _mapped(elsewhere)
    mapped, spans = map_files(lambda: _mapped(file), [link])
    assert mapped[:] == other[:] == CONTENT
    assert _resident(file) == len(CONTENT)
    with giving_back(spans):
        assert _wait_for(lambda: _resident(file) == 0)
        assert mapped[:] == CONTENT  # it comes back where it is read
    assert _resident(file) == 0
    assert _resident(elsewhere) == len(CONTENT)
    assert mapped[:] == CONTENT


def test_maps_of_others_are_left_alone(tmp_path: Path) -> None:
    """They may go, and other memory come into their place, while the pages are given back."""
    file = _written(tmp_path / "weights")
    others = _mapped(file)
    assert others[:] == CONTENT
    mapped, spans = map_files(lambda: _mapped(file), [file])
    assert len(spans) == 1
    with giving_back(spans):
        pass
    assert _resident(file) == len(CONTENT)  # of the map that was there before
    assert mapped[:] == CONTENT


def test_two_that_read_at_once_do_not_take_each_others_maps(tmp_path: Path) -> None:
    file = _written(tmp_path / "weights")
    found = []

    def slowly() -> mmap.mmap:
        mapped = _mapped(file)
        time.sleep(0.2)
        return mapped

    threads = [
        threading.Thread(target=lambda: found.append(map_files(slowly, [file]))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(spans) for _, spans in found) == [1, 1, 1]
    assert len({spans[0] for _, spans in found}) == 3


def test_only_maps_that_hold_the_answer_are_its_own() -> None:
    """Others map the files in ways of their own, and give them up at any moment."""
    assert holding([(0, 10), (20, 30), (40, 50)], [3, 29, 50]) == [(0, 10), (20, 30)]


def test_without_maps_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Thread", None)
    with giving_back([]):
        pass


def test_compiling_never_holds_the_weights_twice(tmp_path: Path) -> None:
    """OpenVINO itself, in a process of its own: the peak over 256 MB of weights."""
    pytest.importorskip("openvino", reason="needs OpenVINO")
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    layers, edge = 64, 1024
    names = [f"w{number}" for number in range(layers)]
    products = [
        onnx.helper.make_node("MatMul", [f"x{number}", name], [f"x{number + 1}"])
        for number, name in enumerate(names)
    ]
    rng = np.random.default_rng(0)
    tensors = [
        onnx.numpy_helper.from_array(rng.random((edge, edge), dtype=np.float32), name)
        for name in names
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [16, edge])
        for name in ("x0", f"x{layers}")
    ]
    graph = onnx.helper.make_graph(products, "g", ends[:1], ends[1:], tensors)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    code = """
import re, sys
from pathlib import Path
import openvino
from runtime.backends import pages
from runtime.backends.pages import giving_back, map_files
pages._EVERY = 0.01  # the whole takes a second, beside other work
folder, core = Path(sys.argv[1]), openvino.Core()
def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search("VmHWM:[^0-9]*([0-9]+)", status)[1]) / 1e3
before = peak()
read = lambda: core.read_model(str(folder / "model.onnx"))
model, spans = map_files(read, [folder / "weights"])
from runtime.backends.openvino import _addresses
spans = pages.holding(spans, _addresses(model))
with giving_back(spans if sys.argv[2] == "True" else []):
    core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print(len(spans), peak() - before)
"""
    peaks = {}
    for giving in (True, False):
        command = [sys.executable, "-c", code, str(tmp_path), str(giving)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        maps, megabytes = done.stdout.split()
        assert maps == "1", "OpenVINO maps the weights no more: this module has lost its purpose"
        peaks[giving] = float(megabytes)
    assert peaks[True] < 1.7 * 268 < peaks[False], peaks
