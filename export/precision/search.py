"""Which layers take int8: as many multiply-adds as the budget allows, by the error of the prediction.

Distance  how far a prediction is from the fp32 one on the calibration images, in the unit that users judge by: AbsRel
          after alignment in scale and shift for depth and disparity, the mean angle in degrees for normals.
First     everything in int8: where that is within the budget, nothing is left to do.
Ranking   every group (a layer and its output, or a residual) is quantised alone. The square of its distance for each
          multiply-add says what it costs to have it in int8: rounding errors of different layers have little to do with
          each other, so that their squares add up, and one large error weighs more than many small ones. Residuals are
          kept first, whatever their error: the search counts multiply-adds, and no memory that they may save.
Search    with the costliest groups kept in higher precision, the fewest that bring the distance of everything else
          together within the budget, by bisection.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.precision.layers import Layer, Quantised, Ranges
from export.precision.ranges import Feeds
from export.single_pass import SinglePass
from runtime.engine import unit_vectors
from runtime.prediction import write_whole
from runtime.tasks import Task

BUDGETS = {1: 0.01, 3: 1.0}
"""The default budget by the task's channels: AbsRel, or degrees."""
Measure = Callable[[Ranges], float]
"""The distance with the layers of `ranges` quantised."""
_FLOOR = 0.1  # of values in [0,1]: what is smaller counts as this large in AbsRel, which would be endless at 0


def distance(task: Task, prediction: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Of two maps [C,H,W] of the task: AbsRel after alignment, or the mean angle in degrees."""
    if task.channels == 3:
        one, other = (unit_vectors(values.transpose(1, 2, 0)).astype(np.float64) for values in (prediction, exact))
        return float(
            np.degrees(np.arctan2(np.linalg.norm(np.cross(one, other), axis=-1), (one * other).sum(-1))).mean()
        )
    values, wanted = prediction.astype(np.float64).ravel(), exact.astype(np.float64).ravel()
    design = np.stack([values, np.ones_like(values)], axis=1)
    solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
    return float((np.abs(design @ solution - wanted) / np.maximum(wanted, _FLOOR)).mean())


@dataclass(frozen=True, kw_only=True)
class Step:
    """One point of the search: groups kept, share of multiply-adds in int8, and the distance."""

    kept: int
    int8_share: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the search found: `kept` groups in higher precision, each group's distance alone, and the steps."""

    kept: list[str]
    alone: dict[str, float]
    steps: list[Step]

    @property
    def final(self) -> Step:
        """The step that was taken."""
        return next(step for step in self.steps if step.kept == len(self.kept))


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What the stages answer to one image: latents [1,C,h,w] and the map [C,H,W]."""

    encoded: Tensor
    denoised: Tensor
    prediction: NDArray[np.float32]


class Meter:
    """Distances of the module with some layers quantised. Of each image the exact answers are kept, so that stages
    before the first quantised layer need not run again; the image itself is not."""

    def __init__(self, module: SinglePass, task: Task, feeds: Feeds) -> None:
        self._module, self._task, self._feeds = module, task, feeds
        self._exact: list[_Answers] = []

    def __call__(self, ranges: Ranges) -> float:
        """The mean over the images."""
        self._exact = self._exact or [self._run(inputs, {}) for inputs in self._feeds()]
        distances = []
        for inputs, exact in zip(self._feeds(), self._exact, strict=True):
            rounded = self._run(inputs, ranges, exact)
            distances.append(distance(self._task, rounded.prediction, exact.prediction))
        return float(np.mean(distances))

    def _run(self, inputs: tuple[Tensor, ...], ranges: Ranges, exact: _Answers | None = None) -> _Answers:
        image, *noise = inputs
        stages = {name.partition("/")[0] for name in ranges}
        with torch.inference_mode(), Quantised(self._module, ranges):
            encoded = exact.encoded if exact and "encoder" not in stages else self._module.encoder(image)
            denoised = exact.denoised if exact and stages <= {"decoder"} else self._module.unet(encoded, *noise)
            prediction = self._module.decoder(denoised)
        return _Answers(encoded=encoded, denoised=denoised, prediction=prediction[0].numpy())


class Remembered:
    """A meter's distances, kept in the file `memory` too, so that a killed build goes on where it was. A file that is
    no such memory is replaced."""

    def __init__(self, meter: Measure, memory: Path) -> None:
        self._meter, self._memory = meter, memory
        self._known: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            self._known = dict(json.loads(memory.read_text(encoding="utf-8")))

    def __call__(self, ranges: Ranges) -> float:
        """The distance with these layers quantised. Raises: OutputError."""
        key = hashlib.sha256(" ".join(sorted(ranges)).encode()).hexdigest()[:16]
        if key not in self._known:
            self._known[key] = self._meter(ranges)
            write_whole(self._memory, json.dumps(self._known).encode())
        return self._known[key]


def rank(meter: Measure, layers: list[Layer], ranges: Ranges, progress: Callable[[str], None]) -> dict[str, float]:
    """Each group's distance when it alone is quantised."""
    alone: dict[str, float] = {}
    groups = list(dict.fromkeys(layer.group for layer in layers if layer.name in ranges))
    for number, group in enumerate(groups, start=1):
        alone[group] = meter({layer.name: ranges[layer.name] for layer in layers if layer.group == group})
        progress(f"sensitivity {number}/{len(groups)}: {group} alone is {alone[group]:.2g} off")
    return alone


def search(
    meter: Measure,
    layers: list[Layer],
    ranges: Ranges,
    ranked: Callable[[], dict[str, float]],
    budget: float,
    progress: Callable[[str], None],
) -> Choice:
    """Keep the costliest groups, the fewest with which the distance is within the budget.

    `ranked` is asked for each group's distance alone only where all groups together are beyond it.
    """
    work: dict[str, int] = {}
    for layer in layers:
        work[layer.group] = work.get(layer.group, 0) + layer.multiply_adds
    costliest = list(work)
    steps: dict[int, Step] = {}

    def measure(kept: int) -> bool:
        groups = set(costliest[kept:])
        measured = meter({layer.name: ranges[layer.name] for layer in layers if layer.group in groups})
        share = sum(work[group] for group in groups) / sum(work.values())
        steps[kept] = Step(kept=kept, int8_share=share, distance=measured)
        progress(f"{kept} of {len(costliest)} groups kept: {share:.1%} of these layers in int8, {measured:.3g} off")
        return measured <= budget

    if measure(0):
        return Choice(kept=[], alone={}, steps=list(steps.values()))
    alone = ranked()
    costliest = sorted(work, key=lambda group: (_cost(alone[group], work[group]), alone[group]), reverse=True)
    low, high = 1, len(costliest)  # with all kept nothing is rounded
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if measure(middle) else (middle + 1, high)
    if low not in steps:
        measure(low)
    return Choice(kept=costliest[:low], alone=alone, steps=sorted(steps.values(), key=lambda step: step.kept))


def _cost(alone: float, work: int) -> float:
    return alone**2 / work if work else math.inf
