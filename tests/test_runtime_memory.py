"""What an opened bucket takes, told before it is opened, and how many stay open by it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, write_null_bundle
from open_buckets import watch

from runtime import LotusEngine, memory
from runtime.__main__ import main
from runtime.backends.null import BackendSession
from runtime.errors import BackendError
from runtime.manifest import Bucket, Manifest, Memory

GB = 10**9
NEEDS = Memory(
    weights={"float32": GB}, activations={f"{8 * (8 + n)}x64": GB // 10 for n in range(4)}
)


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """A null bundle of four buckets that says it needs about 1.1 GB for each."""
    buckets = [Bucket(height=8 * (8 + n), width=64, graph="model-64x96.onnx") for n in range(4)]
    bundle = write_null_bundle(tmp_path / "four", buckets=buckets)
    dataclasses.replace(Manifest.load(bundle), memory=NEEDS).save(bundle)
    return bundle


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The null backend takes what weights and activations take."""
    plain = memory._Use(libraries=0, activations=1, half=1, weights={"float32": 1}, kept={})
    monkeypatch.setitem(memory._USES, "null", plain)


def _open_after_all(four: Path, monkeypatch: pytest.MonkeyPatch, available: int) -> list[int]:
    """How many buckets were open after each of the four was used; each takes of the memory."""
    buckets = watch(monkeypatch)
    left = lambda: available - len(buckets.now) * 11 * GB // 10  # noqa: E731
    monkeypatch.setattr(memory, "available_memory", left)
    counts = []
    with LotusEngine(four) as engine:
        for n in range(4):
            engine(np.zeros((8 * (8 + n), 64, 3), np.uint8))
            counts.append(len(buckets.now))
    return counts


@pytest.mark.parametrize(
    ("available", "counts"),
    [(100 * GB, [1, 2, 3, 4]), (4 * GB, [1, 2, 2, 2]), (2 * GB, [1, 1, 1, 1]), (0, [1, 1, 1, 1])],
)
@pytest.mark.usefixtures("measured")
def test_as_many_stay_open_as_memory_holds(
    four: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    counts: list[int],
) -> None:
    assert _open_after_all(four, monkeypatch, available) == counts


@pytest.mark.usefixtures("measured")
def test_a_bucket_is_served_while_another_is_always_in_use(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions that follow each other without a gap do not keep the other out for ever."""
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    first, second = (np.zeros((8 * (8 + n), 64, 3), np.uint8) for n in range(2))
    run = BackendSession._run

    def slowly(*arguments: object) -> object:
        time.sleep(0.02)
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BackendSession, "_run", slowly)
    done = threading.Event()

    def busy() -> None:
        while not done.is_set():
            engine(first)

    with LotusEngine(four, parallel=3) as engine, ThreadPoolExecutor(4) as pool:
        try:
            loops = [pool.submit(busy) for _ in range(3)]
            time.sleep(0.1)
            pool.submit(engine, second).result(timeout=10)
        finally:
            done.set()
        for loop in loops:
            loop.result()


def test_where_nobody_knows_two_stay_open(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _open_after_all(four, monkeypatch, 0) == [1, 2, 2, 2]


@pytest.mark.parametrize("most", [0, -1, 2.0, True, "2"])
def test_max_open_is_a_number(four: Path, most: object) -> None:
    with pytest.raises(BackendError, match="max_open is a number from 1 on"):
        LotusEngine(four, max_open=most)  # type: ignore[arg-type]


def test_nothing_is_estimated_that_was_not_measured(four: Path) -> None:
    manifest = Manifest.load(four)
    assert memory.estimate(manifest, manifest.buckets[0], "tensorrt") is None
    assert memory.estimate(manifest, manifest.buckets[0], "openvino") is not None
    unknown = dataclasses.replace(manifest, memory=None)
    assert memory.estimate(unknown, manifest.buckets[0], "openvino") is None


def test_info_says_what_is_large(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Manifest.load(four)
    dataclasses.replace(bundle, target="onnxruntime").save(four)
    assert main(["info", str(four)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^of these +golden .* MB, graphs .* MB", told, re.MULTILINE)
    assert re.search(r"^weights +float32 1000\.0 MB$", told, re.MULTILINE)
    assert len(re.findall(r"^memory \d+x64 +about 1\.2\d GB to open and predict", told, re.M)) == 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n"}, 2048 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable:    2048 kB\n",
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "7\n",
                "sys/fs/cgroup/a/memory.max": "1000\n",
                "sys/fs/cgroup/a/memory.current": "400\n",
            },
            600,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.current": "900\n",
                "sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 700\n",
            },
            800,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/c\n",
                "sys/fs/cgroup/memory/c/memory.limit_in_bytes": "500\n",
                "sys/fs/cgroup/memory/c/memory.usage_in_bytes": "900\n",
            },
            0,
        ),
        ({}, None),
    ],
)
def test_available_memory_is_that_of_the_container(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert memory.available_memory(tmp_path) == expected


# What a full-size bundle of 512x512 says of itself: bytes of weights by type.
_FULL = {
    "fp32": {"float32": 3_605_715_536},
    "bf16": {"float32": 1_594_368, "bfloat16": 1_802_328_832},
    "int8": {"float32": 11_608_832, "int8": 898_922_368},
}
_OPENED = [
    pytest.param(body["machine"]["isa"], row, id=f"{path.stem}-{row['bundle']}-{row['way']}")
    for path in sorted((ROOT / "benchmarks" / "results").glob("opening*.json"))
    for body in [json.loads(path.read_text(encoding="utf-8"))]
    for row in body["rows"]
]


@pytest.mark.parametrize(("isa", "row"), _OPENED)
def test_the_estimate_is_within_a_fifth_of_what_full_size_took(
    monkeypatch: pytest.MonkeyPatch, isa: str, row: dict[str, Any]
) -> None:
    monkeypatch.setattr(memory, "has_bf16", lambda: "bf16" in isa)
    *_, precision, target = row["bundle"].split("-")
    told = memory.estimate_needs(
        _FULL[precision], 2**30, row["backend"], kept=row["way"] == "kept, second time"
    )
    assert target == row["backend"]
    assert told is not None
    assert abs(told / 1e9 / row["peak_gb"] - 1) < 0.2


def test_a_kept_network_needs_less_room(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second bucket fits beside the first, once its network is compiled."""
    needs = Memory(weights={"bfloat16": GB}, activations=NEEDS.activations)
    manifest = dataclasses.replace(Manifest.load(four), memory=needs, target="openvino")
    monkeypatch.setattr(memory, "available_memory", lambda: 5 * GB)
    first, second, *_ = manifest.buckets
    room = memory.Room(manifest=manifest, backend="openvino")
    assert not room(second, [first], [])
    assert dataclasses.replace(room, is_kept=lambda bucket: bucket == second)(second, [first], [])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_estimate_is_what_is_measured(bundle_d: Path, backend: str) -> None:
    """A process of its own. Most of this small one is libraries; full size is in the benchmarks."""
    pytest.importorskip(backend)
    code = """
import re, sys
from pathlib import Path
import numpy as np
from runtime import LotusEngine
with LotusEngine(sys.argv[1], sys.argv[2]) as engine:
    engine(np.zeros((64, 64, 3), np.uint8))
status = Path("/proc/self/status").read_text()
print(int(re.search("VmHWM:[^0-9]*([0-9]+)", status)[1]) * 1024)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak")
    command = [sys.executable, "-c", code, str(bundle_d), backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    manifest = Manifest.load(bundle_d)
    told = memory.estimate(manifest, manifest.buckets[0], backend)
    assert told is not None
    assert abs(told / int(done.stdout) - 1) < 0.2
