"""What `latency` and `parity` compare, by name: PyTorch as a user would run it, plain ONNX exports,
and our bundles.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import ROOT
from export.errors import BuildError

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""RGB uint8 [N,H,W,3] to the N maps as they leave the network's post-processing, float32.

PyTorch takes the N images in one pass; a bundle, whose graph is for one image, takes them one after
the other.
"""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One way to run the network. Without a `backend` it is PyTorch, with `options` of
    `open_pytorch`; otherwise a bundle, built with `options` of `export/build_engine.py`.
    """

    meaning: str
    backend: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


# Random weights have no accuracy to keep, and one image does for the ranges: what is compared is
# speed.
_ALL_INT8 = {"precision": "int8", "calibration-images": 1, "budget": 1.0}
BASELINES = {
    "pytorch": Baseline(meaning="PyTorch fp32, prompt cached, posterior mean: the reference"),
    "pytorch-authors": Baseline(
        meaning="PyTorch fp32 as published: text encoder for each image, posterior sample",
        options={"published": True},
    ),
    "pytorch-bf16": Baseline(
        meaning="PyTorch, autocast bf16, prompt cached", options={"dtype": "bfloat16"}
    ),
    "pytorch-fp16": Baseline(
        meaning="PyTorch, autocast fp16, prompt cached", options={"dtype": "float16"}
    ),
    "pytorch-compile": Baseline(meaning="PyTorch fp32, torch.compile", options={"compile": True}),
    "plain-onnxruntime": Baseline(
        meaning="plain ONNX export (opset 20), ONNX Runtime fp32",
        backend="onnxruntime",
        options={"target": "onnxruntime", "folds": False, "opset": 20},
    ),
    "plain-openvino": Baseline(
        meaning="plain ONNX export (opset 20), OpenVINO fp32",
        backend="openvino",
        options={"target": "openvino", "folds": False, "opset": 20},
    ),
    "onnxruntime": Baseline(
        meaning="lotus-edge, ONNX Runtime fp32",
        backend="onnxruntime",
        options={"target": "onnxruntime"},
    ),
    "openvino": Baseline(
        meaning="lotus-edge, OpenVINO fp32", backend="openvino", options={"target": "openvino"}
    ),
    "openvino-bf16": Baseline(
        meaning="lotus-edge, OpenVINO bf16",
        backend="openvino",
        options={"target": "openvino", "precision": "bf16"},
    ),
    "onnxruntime-int8": Baseline(
        meaning="lotus-edge, ONNX Runtime int8 (every layer that can; fp32 elsewhere)",
        backend="onnxruntime",
        options={"target": "onnxruntime", **_ALL_INT8},
    ),
    "openvino-int8": Baseline(
        meaning="lotus-edge, OpenVINO int8 (every layer that can; bf16 elsewhere)",
        backend="openvino",
        options={"target": "openvino", **_ALL_INT8},
    ),
    "openvino-taesd": Baseline(
        meaning="lotus-edge, OpenVINO fp32, autoencoder of TAESD's size (another function)",
        backend="openvino",
        options={"target": "openvino", "vae": "random/taesd"},
    ),
    "openvino-bf16-taesd": Baseline(
        meaning="lotus-edge, OpenVINO bf16, autoencoder of TAESD's size (another function)",
        backend="openvino",
        options={"target": "openvino", "precision": "bf16", "vae": "random/taesd"},
    ),
    "openvino-int8-taesd": Baseline(
        meaning="lotus-edge, OpenVINO int8, autoencoder of TAESD's size (another function)",
        backend="openvino",
        options={"target": "openvino", "vae": "random/taesd", **_ALL_INT8},
    ),
    "onnxruntime-cuda": Baseline(
        meaning="lotus-edge, ONNX Runtime CUDA fp32",
        backend="onnxruntime-cuda",
        options={"target": "onnxruntime"},
    ),
    "tensorrt": Baseline(
        meaning="lotus-edge, TensorRT fp32", backend="tensorrt", options={"target": "tensorrt"}
    ),
    "tensorrt-fp16": Baseline(
        meaning="lotus-edge, TensorRT fp16",
        backend="tensorrt",
        options={"target": "tensorrt", "precision": "fp16"},
    ),
    "tensorrt-int8": Baseline(
        meaning="lotus-edge, TensorRT int8 (every layer that can; fp16 elsewhere)",
        backend="tensorrt",
        options={"target": "tensorrt", **_ALL_INT8},
    ),
    "tensorrt-rtx": Baseline(
        meaning="lotus-edge, TensorRT-RTX fp32",
        backend="tensorrt-rtx",
        options={"target": "tensorrt-rtx"},
    ),
    "tensorrt-rtx-fp16": Baseline(
        meaning="lotus-edge, TensorRT-RTX fp16",
        backend="tensorrt-rtx",
        options={"target": "tensorrt-rtx", "precision": "fp16"},
    ),
}
REFERENCE = "pytorch"
"""The baseline that all others are compared with."""


def bundle_path(name: str, checkpoint: str, resolution: str, folder: Path) -> Path | None:
    """Where a baseline's bundle lies; those with the same settings share it. None for PyTorch."""
    baseline = BASELINES[name]
    if baseline.backend is None:
        return None
    settings = "-".join(f"{key}={value}" for key, value in sorted(baseline.options.items()))
    return folder / f"bench-{checkpoint}-{resolution}-{settings}".replace("/", "-")


def built(name: str, checkpoint: str, resolution: str, folder: Path) -> Path | None:
    """The baseline's bundle; None for PyTorch. A bundle that is not there yet is built by a process
    of its own.

    Raises: BuildError.
    """
    bundle = bundle_path(name, checkpoint, resolution, folder)
    if bundle is None or bundle.exists():
        return bundle
    options = BASELINES[name].options
    command = [sys.executable, "export/build_engine.py", checkpoint, "--resolution", resolution]
    command += [f"--{key}={value}" for key, value in options.items() if key != "folds"]
    command += [] if options.get("folds", True) else ["--no-folds"]
    command += ["--output", str(bundle)]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise BuildError(f"the bundle of {name} could not be built")
    return bundle


@contextlib.contextmanager
def opened(
    name: str, checkpoint: str, bundle: Path | None, stages: dict[str, float]
) -> Iterator[Predict]:
    """The baseline, loaded. A prediction by PyTorch writes the seconds of each stage into `stages`.

    Raises: CheckpointError, BundleError, BackendError.
    """
    baseline = BASELINES[name]
    if bundle is None or baseline.backend is None:
        from benchmarks.pytorch_baseline import open_pytorch  # torch would count as the bundles'

        yield open_pytorch(checkpoint, stages, **baseline.options)
        return
    from runtime import LotusEngine

    with LotusEngine(bundle, baseline.backend) as engine:
        yield lambda images: np.stack([engine(image, resize=None).values for image in images])
