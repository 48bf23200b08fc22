"""Which layers take int8: as many multiply-adds as fit a limit on the error of the prediction.

Error     of the prediction against the fp32 one, on the calibration images, as the task measures
          it: AbsRel after alignment for depth and disparity, the mean angle for normals.
First     everything in int8. Where that is within the limit, the search ends.
Ranking   every group (a layer and its output, or a residual) is quantised alone, and ranked by its
          squared error per multiply-add. Rounding errors of different layers are nearly
          independent, so that their squares add up. Residuals rank first, whatever their error:
          they have no multiply-adds, and the memory that they may save does not count.
Search    as few of the worst groups as possible stay in higher precision, found by bisection.
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

from export.network.single_pass import SinglePass
from export.progress import say, track
from export.quantize.layers import FakeQuant, Layer, Ranges
from export.quantize.policy import Step
from export.quantize.ranges import Feeds
from runtime.files import write_atomic
from runtime.tasks import Task

Measure = Callable[[Ranges], float]
"""The error of the prediction with the layers of `ranges` quantised."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the search found: the groups in `high_precision`, each group's error `alone`, and the
    steps.
    """

    high_precision: list[str]
    alone: dict[str, float]
    steps: list[Step]

    @property
    def final(self) -> Step:
        """The step that was taken."""
        count = len(self.high_precision)
        return next(step for step in self.steps if step.high_precision == count)


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """What the stages make of one image: latents [1,C,h,w] and the map [C,H,W]."""

    encoded: Tensor
    denoised: Tensor
    prediction: NDArray[np.float32]


class ErrorMetric:
    """The error of the prediction with some layers quantised, in the task's unit: the mean over
    the images of `feeds`.

    The exact outputs of every stage are kept, so that stages before the first quantised layer need
    not run again. The images are not kept.
    """

    def __init__(self, network: SinglePass, task: Task, feeds: Feeds) -> None:
        self._network, self._task, self._feeds = network, task, feeds
        self._exact: list[_Outputs] = []

    def __call__(self, ranges: Ranges) -> float:
        """The error with the layers of `ranges` quantised."""
        self._exact = self._exact or [self._run(inputs, {}) for inputs in self._feeds()]
        errors = []
        for inputs, exact in zip(self._feeds(), self._exact, strict=True):
            rounded = self._run(inputs, ranges, exact)
            errors.append(self._task.error(rounded.prediction, exact.prediction))
        return float(np.mean(errors))

    def _run(
        self, inputs: tuple[Tensor, ...], ranges: Ranges, exact: _Outputs | None = None
    ) -> _Outputs:
        image, *noise = inputs
        network = self._network
        stages = {name.partition("/")[0] for name in ranges}
        with torch.inference_mode(), FakeQuant(network, ranges):
            reuse = exact if exact is not None and "encoder" not in stages else None
            encoded = network.encoder(image) if reuse is None else reuse.encoded
            reuse = exact if exact is not None and stages <= {"decoder"} else None
            denoised = network.unet(encoded, *noise) if reuse is None else reuse.denoised
            prediction = network.decoder(denoised)
        return _Outputs(encoded=encoded, denoised=denoised, prediction=prediction[0].numpy())


class CachedErrors:
    """The errors of `measure`, kept in a file too, so that a killed build goes on where it was.

    A file that holds something else is replaced.
    """

    def __init__(self, measure: Measure, path: Path) -> None:
        self._measure, self._path = measure, path
        self._known: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            self._known = dict(json.loads(path.read_text(encoding="utf-8")))

    def __call__(self, ranges: Ranges) -> float:
        """The error with these layers quantised. Raises: OutputError."""
        key = hashlib.sha256(" ".join(sorted(ranges)).encode()).hexdigest()[:16]
        if key not in self._known:
            self._known[key] = self._measure(ranges)
            write_atomic(self._path, json.dumps(self._known).encode())
        return self._known[key]


def rank(measure: Measure, layers: list[Layer], ranges: Ranges) -> dict[str, float]:
    """Each group's error when it alone is quantised."""
    groups = list(dict.fromkeys(layer.group for layer in layers if layer.name in ranges))
    return {
        group: measure({layer.name: ranges[layer.name] for layer in layers if layer.group == group})
        for group in track(groups, "sensitivity of layers")
    }


def search(
    measure: Measure,
    layers: list[Layer],
    ranges: Ranges,
    ranked: Callable[[], dict[str, float]],
    max_error: float,
) -> Choice:
    """Keep as few groups as possible in higher precision, with the error within `max_error`.

    `ranked` is asked for each group's error alone only where all groups together are beyond it.
    """
    work: dict[str, int] = {}
    for layer in layers:
        work[layer.group] = work.get(layer.group, 0) + layer.multiply_adds
    costliest = list(work)
    steps: dict[int, Step] = {}

    def fits(count: int) -> bool:
        groups = set(costliest[count:])
        error = measure(
            {layer.name: ranges[layer.name] for layer in layers if layer.group in groups}
        )
        share = sum(work[group] for group in groups) / sum(work.values())
        steps[count] = Step(high_precision=count, int8_share=share, error=error)
        say(
            f"{count} of {len(costliest)} groups in higher precision: {share:.1%} of these layers "
            f"in int8, error {error:.3g}"
        )
        return error <= max_error

    if fits(0):
        return Choice(high_precision=[], alone={}, steps=list(steps.values()))
    alone = ranked()
    costliest = sorted(
        work, key=lambda group: (_cost(alone[group], work[group]), alone[group]), reverse=True
    )
    low, high = 1, len(costliest)  # with all in higher precision nothing is rounded
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    if low not in steps:
        fits(low)
    ordered = sorted(steps.values(), key=lambda step: step.high_precision)
    return Choice(high_precision=costliest[:low], alone=alone, steps=ordered)


def _cost(error: float, work: int) -> float:
    return error**2 / work if work else math.inf
