"""The TensorRT backend on a GPU; skipped with the reason elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tensorrt_fakes import gpu_missing, image, make_manifest, open_session

from runtime.backends import BACKENDS, cuda
from runtime.errors import BackendError
from runtime.manifest import Manifest

needs_gpu = pytest.mark.skipif(gpu_missing() is not None, reason=f"never run here: {gpu_missing()}")


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def gpu_bundle(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Manifest]:
    from tensorrt_graph import make_graph

    from export.targets.tensorrt_builder import build_engine

    pytest.importorskip(BACKENDS[request.param].package, reason="the flavour is not installed")
    info = build_engine(
        make_graph(tmp_path), tmp_path / "model.engine", request.param, lambda message: None
    )
    return tmp_path, dataclasses.replace(make_manifest(request.param, info.version), engine=info)


@pytest.mark.gpu
@needs_gpu
def test_gpu_answers_equal_onnx_runtime_plain_and_captured(gpu_bundle):
    ort = pytest.importorskip("onnxruntime", reason="the reference")
    folder, manifest = gpu_bundle
    reference = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    with open_session(folder, manifest) as session:
        for seed in (0, 1, 2, 0):  # plain, captured, launched, and the first again
            given = image(seed)
            expected = reference.run(["disparity"], given)[0]
            np.testing.assert_allclose(session(given)["disparity"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_gpu_memory_returns_after_close(gpu_bundle):
    folder, manifest = gpu_bundle
    runtime = cuda.Cuda(manifest.target)
    free = []
    for _ in range(4):
        with open_session(folder, manifest) as session:
            session(image(0))
            session(image(1))
        free.append(runtime.module.cudaMemGetInfo()[1])
    assert free[-1] >= free[1] - (1 << 20)  # the first rounds load libraries
    with pytest.raises(BackendError, match="closed"):
        session(image(0))
