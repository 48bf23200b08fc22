"""Which ways to run the network are measured on a device, the most valuable first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.baselines import BASELINES, Work
from export.targets import TARGETS
from runtime.backends import BACKENDS
from runtime.manifest import Manifest

PYTORCH = ("pytorch", "pytorch-fp16")
"""The references. Ratios are to the first; the second is measured on GPUs alone."""

_BF16 = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to run the network.

    `backend` and its `device` open `bundle`. That is `source`, or a copy of it with an engine. The
    source is built with `words` for `export/build_engine.py`; a user's own has none. `kind` names
    the source and the step that builds it. `precision` is that of the bundle.
    """

    name: str
    meaning: str
    backend: str
    kind: str = ""
    source: str = ""
    bundle: str = ""
    device: str | None = None
    target: str = "onnxruntime"
    precision: str = "fp32"
    words: tuple[str, ...] = ()

    @property
    def needs_engine(self) -> bool:
        """Whether `bundle` is a copy of the source that gets an engine."""
        return self.bundle != self.source

    @property
    def place(self) -> str:
        """What `backends` of the facts calls it: "openvino", or "openvino:GPU" for a device."""
        return self.backend if self.device is None else f"{self.backend}:{self.device}"


def _known(name: str, work: Work) -> Contender:
    """A baseline that is a bundle."""
    baseline = BASELINES[name]
    options = baseline.build_options(work)
    return Contender(
        name=name,
        meaning=baseline.meaning,
        backend=str(baseline.backend),
        target=options["target"],
        precision=options.get("precision", "fp32"),
        words=tuple(f"--{key}={value}" for key, value in options.items()),
    )


def _openvino_on(device: str, work: Work) -> Contender:
    return replace(
        _known("openvino", work),
        name=f"openvino-{device.lower()}",
        meaning=f"lotus-edge, OpenVINO fp32 bundle on its device {device}",
        device=device,
    )


def _by_value(work: Work) -> tuple[Contender, ...]:
    """All, without their bundles; `words` are those of the precision alone."""
    return (
        _known("tensorrt-fp16", work),
        _known("tensorrt-int8", work),
        _known("tensorrt-rtx-fp16", work),
        Contender(
            name="tensorrt-rtx-int8",
            meaning="lotus-edge, TensorRT-RTX int8 weights (fp16 elsewhere)",
            backend="tensorrt-rtx",
            target="tensorrt-rtx",
            precision="int8",
            words=("--target=tensorrt-rtx", "--precision=int8"),
        ),
        # The same bundle as `tensorrt-fp16`: its graph needs no TensorRT.
        replace(
            _known("tensorrt-fp16", work),
            name="onnxruntime-cuda-fp16",
            meaning="lotus-edge, ONNX Runtime CUDA on the fp16 graph for TensorRT",
            backend="onnxruntime-cuda",
        ),
        _known("onnxruntime-cuda", work),
        _openvino_on("GPU", work),
        _openvino_on("NPU", work),
        _known("openvino", work),
        _known("onnxruntime", work),
        _known("openvino-bf16", work),
        _known("openvino-int8", work),
        _known("onnxruntime-int8", work),
        *(
            replace(
                _known("onnxruntime", work),
                name=name,
                meaning=f"lotus-edge, ONNX Runtime fp32 with {BACKENDS[name].option}",
                backend=name,
            )
            for name in (f"onnxruntime-{each}" for each in ("coreml", "directml", "qnn", "rtx"))
        ),
    )


NAMES = tuple(each.name for each in _by_value(Work(checkpoint="", resolution="")))
"""Of all contenders, the most valuable first."""


def contenders(work: Work, folder: Path, only: Sequence[str] = ()) -> list[Contender]:
    """All that could be measured anywhere, or those named in `only`. Their bundles are built into
    `folder`; those of the same target and precision share one.
    """
    checkpoints = [checkpoint for checkpoint, _ in work.checkpoints]
    task = [f"--task={work.task}"] if work.task else []
    found = []
    for each in _by_value(work):
        kind = f"{work.name}-{each.target}-{each.precision}"
        source, has_engine = str(folder / kind), TARGETS[each.target].build is not None
        runs_engine = has_engine and each.backend == each.target
        found.append(
            replace(
                each,
                kind=kind,
                source=source,
                bundle=f"{source}-finished" if runs_engine else source,
                words=(
                    *(*checkpoints, *task, f"--resolution={work.resolution}", *each.words),
                    *(["--no-engine"] if has_engine else []),
                ),
            )
        )
    return [each for each in found if not only or each.name in only]


def given_bundles(bundles: Sequence[Path], folder: Path) -> Iterator[Contender]:
    """Contenders for the bundles that a user brings: each by its own backend, and where that is
    TensorRT its graph by ONNX Runtime too. One that lacks its engine gets it in a copy in `folder`.

    Raises: BundleError.
    """
    seen: set[str] = set()
    for bundle in bundles:
        manifest, whole = Manifest.load(bundle), bundle.resolve()
        name = re.sub(r"[^\w.+-]", "-", manifest.name)  # a file's name too
        names = (name, *(f"{name}-{number}" for number in range(2, len(bundles) + 2)))
        name = next(each for each in names if each not in seen)
        seen.add(name)
        target = TARGETS.get(manifest.target)
        makes_engine = target is not None and target.build is not None
        finished = not makes_engine or all(bucket.engine for bucket in manifest.buckets)
        own = Contender(
            name=name,
            meaning=f"{name} ({manifest.target})",
            backend=manifest.target,
            kind=name,
            source=str(whole),
            bundle=str(whole if finished else folder / f"{name}-finished"),
            target=manifest.target,
            precision=manifest.precision,
        )
        yield own
        if makes_engine:
            yield replace(
                own,
                name=f"{name}-by-onnxruntime-cuda",
                meaning=f"{name}, its graph by ONNX Runtime CUDA",
                backend="onnxruntime-cuda",
                bundle=str(whole),
            )


def why_not(contender: Contender, facts: Mapping[str, Any]) -> str:
    """Why it cannot be measured on a machine with these facts; "" where it can."""
    reason: str = facts["backends"].get(contender.place, f"no backend {contender.place!r} here")
    has_bf16 = set(_BF16) & set(facts["machine"].get("isa", "").split())
    on_cpu = contender.backend in ("openvino", "onnxruntime") and contender.device is None
    if not reason and contender.precision == "bf16" and on_cpu and not has_bf16:
        return "the CPU has no instructions for bf16 (avx512_bf16, amx_bf16)"
    return reason
