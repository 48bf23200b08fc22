"""What the folds are worth in PyTorch: the folded network against the plain one, on one device.

Never run on a GPU so far. The same function on the CPU, in fp32, is tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.on_device.repeats import repeat
from export.folds import apply_folds
from export.graph.stages import STAGES
from export.network.checkpoint import load_checkpoint
from export.network.single_pass import SinglePass
from export.targets import TARGETS
from runtime.engine import draw_noise
from runtime.image import fit_to_bucket, load
from runtime.manifest import Bucket, Preprocess


def folded(
    *, checkpoint: str, task: str, resolution: str, image: str, target: str, seconds: float
) -> dict[str, Any]:
    """Seconds of the plain and the folded network, alternating, as a whole and by stage; and how
    far their maps differ, from each other and from the plain network in fp32.

    In fp16 on a GPU, with the folds that `target` takes in fp16; on the CPU in fp32.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "fp16" if device.type == "cuda" else "fp32"
    kind = torch.float16 if precision == "fp16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    plain = SinglePass(load_checkpoint(checkpoint, task=task or None)).eval()
    inputs = inputs_of(plain, image, resolution)
    plain.to(device)
    with torch.inference_mode():
        exact = _maps(plain, inputs, device, torch.float32)
    plain.to(kind)
    rewritten = SinglePass(load_checkpoint(checkpoint, task=task or None)).eval()
    folds = apply_folds(rewritten, TARGETS[target].recipe(precision))
    networks = {"plain": plain, "folded": rewritten.to(device, kind)}
    with torch.inference_mode():
        maps = {name: _maps(each, inputs, device, kind) for name, each in networks.items()}
        times = _race(networks, [each.to(device, kind) for each in inputs], seconds)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "precision": precision,
        "folds": folds,
        "times_s": times,
        "ratio": times["plain"]["all"] / times["folded"]["all"],
        "difference": _difference(maps["plain"], maps["folded"]),
        "plain_from_fp32": _difference(maps["plain"], exact),
        "folded_from_fp32": _difference(maps["folded"], exact),
    }


def inputs_of(network: SinglePass, image: str, resolution: str) -> list[Tensor]:
    """The picture, and the noise of mode G, as the network's inputs in float32 on the CPU."""
    height, width = map(int, resolution.split("x"))
    picture, _ = fit_to_bucket(load(Path(image)), Bucket(height=height, width=width, graph=""))
    inputs = [torch.from_numpy(Preprocess().apply(picture))]
    if any(unet.takes_noise for unet in network.unets.values()):
        with torch.inference_mode():
            latent = network.encoder(inputs[0])
        inputs.append(torch.from_numpy(draw_noise(0, tuple(latent.shape))))
    return inputs


class Clock:
    """The seconds of each stage of a network's run, on its device."""

    def __init__(self, network: SinglePass, device: torch.device) -> None:
        self._marks: dict[str, Any] = {}
        self._on_gpu = device.type == "cuda"
        for stage in STAGES:
            child = getattr(network, stage)
            child.register_forward_pre_hook(self._marker(f"{stage} begins"))
            child.register_forward_hook(self._marker(f"{stage} ends"))

    def read(self) -> dict[str, float]:
        """Of the last run, which it waits for; "all" is from the first stage to the last."""
        if self._on_gpu:
            torch.cuda.synchronize()
        spans = {stage: (f"{stage} begins", f"{stage} ends") for stage in STAGES}
        spans["all"] = f"{STAGES[0]} begins", f"{STAGES[-1]} ends"
        return {name: self._between(*span) for name, span in spans.items()}

    def _marker(self, name: str) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            self._marks[name] = self._now()

        return mark

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: str, second: str) -> float:
        before, after = self._marks[first], self._marks[second]
        return float(before.elapsed_time(after)) / 1e3 if self._on_gpu else float(after - before)


def _race(
    networks: dict[str, SinglePass], inputs: list[Tensor], seconds: float
) -> dict[str, dict[str, float]]:
    """Medians by network and stage. They take turns, so that what slows the device slows both."""
    clocks = {name: Clock(each, inputs[0].device) for name, each in networks.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in networks}

    def turn() -> None:
        for name, network in networks.items():
            network(*inputs)
            rounds[name].append(clocks[name].read())

    turn()  # warm
    for taken in rounds.values():
        taken.clear()
    repeat(turn, seconds=seconds)
    return {
        name: {stage: median(each[stage] for each in taken) for stage in taken[0]}
        for name, taken in rounds.items()
    }


def _maps(
    network: SinglePass, inputs: list[Tensor], device: torch.device, kind: torch.dtype
) -> list[Tensor]:
    maps = network(*(each.to(device, kind) for each in inputs))
    return [each.float().cpu() for each in maps]


def _difference(first: list[Tensor], second: list[Tensor]) -> dict[str, float]:
    """Of all maps; values in the task's range."""
    apart = torch.cat([(a - b).abs().flatten() for a, b in zip(first, second, strict=True)])
    return {"largest": float(apart.max()), "mean": float(apart.mean())}
