"""What a device can do at best, in `benchmarks.device`: rates as measured, and the bounds that they
give.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_null_bundle

from benchmarks import roofline
from benchmarks.on_device import rates
from runtime.errors import LotusError


def test_bounds_name_the_device_and_the_rates_that_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_null_bundle(tmp_path / "bundle")
    monkeypatch.setattr(rates, "_multiply_adds", lambda graph: 1)
    monkeypatch.setattr(roofline, "_costs", lambda graph: ([], 0))
    options: dict[str, Any] = {"bundle": str(tmp_path / "bundle"), "precision": "int8"}
    measured = {"tflops": {"fp32": 1.0}, "bandwidth_gb_s": 1.0, "by": "torch on cpu"}
    nano = "NVIDIA Jetson Orin Nano Developer Kit"
    found = rates.bound(**options, device=nano, on_gpu=True, measured=measured)
    assert found["peak"]["device"].startswith("Jetson Orin Nano")
    assert "measured" not in found, "the rates of a CPU bound no GPU"
    with pytest.raises(LotusError, match="no rate of int8 was measured"):
        rates.bound(**options, device="x", on_gpu=False, measured=measured)
    asked: list[str] = []
    monkeypatch.setattr(roofline, "bound_as_stored", lambda graph, entry, base: asked.append(base))
    for bf16, other in ((3.0, "bf16"), (0.1, "fp32")):
        known = measured | {"tflops": {"fp32": 1.0, "bf16": bf16, "int8": 4.0}}
        assert "measured" in rates.bound(**options, device="x", on_gpu=False, measured=known)
        assert asked.pop() == other, "the faster type bounds what is not int8"
    options["precision"] = "fp32"
    assert "measured" in rates.bound(**options, device="x", on_gpu=False, measured=measured)
    with pytest.raises(LotusError, match="has no 'GeForce RTX 3060 Ti'"):
        rates.bound(**options, device="GeForce RTX 3060 Ti", on_gpu=True, measured=None)


def test_a_cpu_has_a_rate_of_int8_where_onnx_runtime_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_EDGES", (64, 128))
    monkeypatch.setattr(rates, "_BYTES", 4096)
    tflops = rates.rates(seconds=0.1)["tflops"]
    assert all(rate > 0 for rate in tflops.values())
    assert set(tflops) == {"fp32", "bf16", "int8"}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert set(rates.rates(seconds=0.1)["tflops"]) == {"fp32", "bf16"}
