"""What `latency` and `parity` compare, by name: PyTorch as a user would run it, plain ONNX exports,
and our bundles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import ROOT
from export.errors import BuildError
from runtime.extras import how_to_get

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""RGB uint8 [N,H,W,3] to the N maps as they leave the network's post-processing, float32.

PyTorch takes the N images in one pass; a bundle takes them one after the other, or fills a bucket
with that batch. Of several checkpoints the maps are [N,H,W,C], their channels side by side.
"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every baseline does: `checkpoint` are one or several, with commas between them, and
    `task` theirs in this order ("" where they imply it). `batch` images are one prediction. Bundles
    are built for `resolution`, or for `sizes`, with commas between them, of which it is one; the
    first one calibrates int8. NNCF quantises a bundle of one size.
    `trained` weights have an accuracy to keep: int8 stays within its limit, and eight pictures
    calibrate it. Of random weights every layer that can is int8, and one picture does.
    """

    checkpoint: str
    resolution: str
    batch: int = 1
    task: str = ""
    trained: bool = False
    sizes: str = ""

    @property
    def checkpoints(self) -> list[tuple[str, str]]:
        """Each with its task, "" where it implies it."""
        names = self.checkpoint.split(",")
        tasks = self.task.split(",") if self.task else [""] * len(names)
        return list(zip(names, tasks, strict=True))

    @property
    def built_for(self) -> str:
        """The sizes of its bundles."""
        return self.sizes or self.resolution

    @property
    def calibration_images(self) -> int:
        """How many."""
        return 8 if self.trained else 1

    @property
    def name(self) -> str:
        """In names of files."""
        names = "+".join(Path(name).name for name, _ in self.checkpoints)
        return f"{names}-{self.resolution}" + (f"-batch-{self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One way to run the network. Without a `backend` it is PyTorch, with `options` of
    `open_pytorch`; otherwise a bundle, built with `options` of `export/build_engine.py`. `batched`:
    its bucket takes the batch in one run. Several checkpoints are one bundle, or one for each if
    `apart`, as PyTorch always has it. `nncf`: the preset with which OpenVINO's own quantiser makes
    int8 of that bundle's graph (`benchmarks.nncf_peer`). `recipe`: fields that the target's recipe
    has in another way (`benchmarks.build_variant`).
    """

    meaning: str
    backend: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    batched: bool = False
    apart: bool = False
    nncf: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        """Whether it says something without its likeness beside it."""
        return not (self.batched or self.apart or self.recipe)

    def build_options(self, work: Work) -> dict[str, Any]:
        """`options` for this work."""
        int8 = {"calibration-images": work.calibration_images}
        int8 |= {} if work.trained else {"budget": 1.0}
        return {
            **self.options,
            **(int8 if self.options.get("precision") == "int8" else {}),
            **({"batch": work.batch} if self.batched else {}),
        }


_PLAIN_OPENVINO = {"target": "openvino", "folds": False, "opset": 20}
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
    "pytorch-compile-bf16": Baseline(
        meaning="PyTorch, autocast bf16, torch.compile",
        options={"dtype": "bfloat16", "compile": True},
    ),
    "pytorch-torchao-weights": Baseline(
        meaning="PyTorch, torchao int8 weights, torch.compile",
        options={"torchao": "Int8WeightOnlyConfig", "compile": True},
    ),
    "pytorch-torchao-dynamic": Baseline(
        meaning="PyTorch, torchao int8 weights and dynamic activations, torch.compile",
        options={"torchao": "Int8DynamicActivationInt8WeightConfig", "compile": True},
    ),
    "plain-onnxruntime": Baseline(
        meaning="plain ONNX export (opset 20), ONNX Runtime fp32",
        backend="onnxruntime",
        options={"target": "onnxruntime", "folds": False, "opset": 20},
    ),
    "plain-openvino": Baseline(
        meaning="plain ONNX export (opset 20), OpenVINO fp32",
        backend="openvino",
        options=_PLAIN_OPENVINO,
    ),
    "nncf": Baseline(
        meaning="plain ONNX export, NNCF int8 (default settings), OpenVINO",
        backend="openvino",
        options=_PLAIN_OPENVINO,
        nncf="default",
    ),
    "nncf-best": Baseline(
        meaning="plain ONNX export, NNCF int8 (preset mixed, model type transformer), OpenVINO",
        backend="openvino",
        options=_PLAIN_OPENVINO,
        nncf="best",
    ),
    "nncf-half": Baseline(
        meaning="plain ONNX export, NNCF int8 (the same, half of the range for weights), OpenVINO",
        backend="openvino",
        options=_PLAIN_OPENVINO,
        nncf="half",
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
        options={"target": "onnxruntime", "precision": "int8"},
    ),
    "openvino-int8": Baseline(
        meaning="lotus-edge, OpenVINO int8 (every layer that can; bf16 elsewhere)",
        backend="openvino",
        options={"target": "openvino", "precision": "int8"},
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
        options={"target": "openvino", "precision": "int8", "vae": "random/taesd"},
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
        options={"target": "tensorrt", "precision": "int8"},
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
_VARIED = ("onnxruntime", "openvino", "openvino-bf16", "tensorrt-fp16", "tensorrt-rtx-fp16")
BASELINES |= {
    f"{name}-batch": dataclasses.replace(
        BASELINES[name], meaning=f"{BASELINES[name].meaning}, the batch in one run", batched=True
    )
    for name in _VARIED
}
BASELINES |= {
    f"{name}-apart": dataclasses.replace(
        BASELINES[name], meaning=f"{BASELINES[name].meaning}, a bundle for each task", apart=True
    )
    for name in (*_VARIED, "onnxruntime-int8", "openvino-int8")
}
BASELINES |= {
    f"{name}-one-decode": dataclasses.replace(
        BASELINES[name],
        meaning=f"{BASELINES[name].meaning}, all latents decoded as one batch",
        recipe={"decodes_batched": True},
    )
    for name in _VARIED
}
BASELINES["openvino-int8-stored-bf16"] = dataclasses.replace(
    BASELINES["openvino-int8"],
    meaning=f"{BASELINES['openvino-int8'].meaning}, other weights stored as bf16",
    recipe={"stored": "bf16"},
)
_NNCF_OF = "plain-openvino"  # the baseline whose bundle NNCF is given
REFERENCE = "pytorch"
"""The baseline that all others are compared with."""


def bundle_paths(name: str, work: Work, folder: Path) -> dict[Path, list[tuple[str, str]]]:
    """Where a baseline's bundles lie, with the checkpoints and tasks of each; those with the same
    settings share it. Empty for PyTorch. Of `nncf` they are what it made of bundles.
    """
    baseline = BASELINES[name]
    if baseline.backend is None:
        return {}
    work = dataclasses.replace(work, sizes="") if baseline.nncf else work
    options = baseline.build_options(work)
    options |= baseline.recipe
    settings = "-".join(f"{key}={value}" for key, value in sorted(options.items()))
    settings += f"-nncf-{baseline.nncf}-{work.calibration_images}" if baseline.nncf else ""
    every = work.checkpoints
    parts = [[each] for each in every] if baseline.apart else [every]
    bundles = {}
    for part in parts:
        words = "+".join(
            f"{checkpoint}={task}" if task else checkpoint for checkpoint, task in part
        )
        path = f"bench-{words}-{work.built_for}-{settings}".replace("/", "-").replace(",", "+")
        bundles[folder / path] = part
    return bundles


def built(name: str, work: Work, folder: Path) -> list[Path]:
    """The baseline's bundles; none for PyTorch. One that is not there yet is built by a process of
    its own.

    Raises: BuildError.
    """
    baseline = BASELINES[name]
    bundles = bundle_paths(name, work, folder)
    for bundle, part in bundles.items():
        if bundle.exists():
            continue
        words = ["export/build_engine.py"]
        if baseline.recipe:
            words = ["-m", "benchmarks.build_variant", json.dumps(baseline.recipe)]
        words += _build_words(baseline, work, part)
        if baseline.nncf:
            if importlib.util.find_spec("nncf") is None:
                raise BuildError(f"{how_to_get('nncf')}")
            plain = built(_NNCF_OF, dataclasses.replace(work, sizes=""), folder)[0]
            words = ["-m", "benchmarks.nncf_peer", str(plain), f"--preset={baseline.nncf}"]
            words += [f"--images={work.calibration_images}"]
        command = [sys.executable, *words, "--output", str(bundle)]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
            raise BuildError(f"the bundle of {name} could not be built")
    return [*bundles]


def _build_words(baseline: Baseline, work: Work, part: list[tuple[str, str]]) -> list[str]:
    """Of `export/build_engine.py`, but for the output."""
    options = baseline.build_options(work)
    words = [checkpoint for checkpoint, _ in part]
    words += [f"--task={','.join(task for _, task in part)}"] if part[0][1] else []
    words += ["--resolution", work.built_for]
    words += [] if options.pop("folds", True) else ["--no-folds"]
    if "budget" in options:
        options["budget"] = ",".join([str(options["budget"])] * len(part))  # one for each task
    return words + [f"--{key}={value}" for key, value in options.items()]


@contextlib.contextmanager
def opened(
    name: str, work: Work, bundles: Sequence[Path], stages: dict[str, float]
) -> Iterator[Predict]:
    """The baseline, loaded. A prediction by PyTorch writes the seconds of each stage into `stages`.

    Raises: CheckpointError, BundleError, BackendError.
    """
    baseline = BASELINES[name]
    if baseline.backend is None:
        from benchmarks.pytorch_baseline import open_pytorch  # torch would count as the bundles'

        options = dict(baseline.options)
        if work.trained:
            options.pop("compile", None)  # takes minutes, and what counts here is accuracy
        each_stages: list[dict[str, float]] = [{} for _ in work.checkpoints]
        networks = [
            open_pytorch(checkpoint, own, task=task or None, **options)
            for (checkpoint, task), own in zip(work.checkpoints, each_stages, strict=True)
        ]

        def predict_each(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            maps = [network(images) for network in networks]
            stages.clear()
            for own in each_stages:
                for stage, seconds in own.items():
                    stages[stage] = stages.get(stage, 0.0) + seconds
            return side_by_side(maps)

        yield predict_each
        return
    if baseline.nncf:
        from benchmarks.nncf_peer import open_quantised

        yield open_quantised(bundles[0])
        return
    from runtime import LotusEngine

    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(LotusEngine(bundle, baseline.backend)) for bundle in bundles]

        def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            answers = [engine(list(images), resize=None) for engine in engines]
            maps = [
                np.stack([prediction[task].values for prediction in predictions])
                for engine, predictions in zip(engines, answers, strict=True)
                for task in engine.manifest.tasks
            ]
            return side_by_side(maps)

        yield predict


def side_by_side(maps: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """One array of the maps of all tasks, each [N,H,W] or [N,H,W,C]."""
    if len(maps) == 1:
        return maps[0]
    return np.concatenate([values.reshape(*values.shape[:3], -1) for values in maps], axis=-1)
