"""Which layers take int8: as many multiply-adds as fit a limit on the error of the prediction.

Error     of each task's prediction against the fp32 one, on the calibration images, as the task
          measures it: AbsRel after alignment for depth and disparity, the mean angle for normals.
First     everything in int8. Where each task is within its limit, the search ends.
Ranking   every group (a layer and its output, or a residual) is quantised alone, and ranked by its
          squared error per multiply-add. Rounding errors of different layers are nearly
          independent, so that their squares add up; so do those of several tasks, each as a share
          of its limit. A task that is within its limit with everything in int8 does not count.
          Residuals rank first, whatever their error: they have no multiply-adds, and the memory
          that they may save does not count.
Search    as few of the worst groups as possible stay in higher precision, found by bisection.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
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

Errors = Mapping[str, float]
"""By task, in its unit."""
Measure = Callable[[Ranges], Errors]
"""The errors of the predictions with the layers of `ranges` quantised."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the search found: the groups in `high_precision`, each group's errors `alone`, and the
    steps.
    """

    high_precision: list[str]
    alone: dict[str, Errors]
    steps: list[Step]

    @property
    def final(self) -> Step:
        """The step that was taken."""
        count = len(self.high_precision)
        return next(step for step in self.steps if step.high_precision == count)


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """What the stages make of one image: the image's latent [1,C,h,w], and by the number of the
    task its latent and its map [C,H,W].
    """

    encoded: Tensor
    latents: dict[int, Tensor]
    maps: dict[int, NDArray[np.float32]]


class ErrorMetric:
    """The errors of the predictions with some layers quantised, each in its task's unit: the mean
    over the images of `feeds`.

    The exact outputs of every stage are kept, so that stages before the first quantised layer need
    not run again. The images are not kept.
    """

    def __init__(self, network: SinglePass, tasks: Sequence[Task], feeds: Feeds) -> None:
        self._network, self._tasks, self._feeds = network, tuple(tasks), feeds
        self._exact: list[_Outputs] = []

    def __call__(self, ranges: Ranges) -> dict[str, float]:
        """The errors by task with the layers of `ranges` quantised."""
        self._exact = self._exact or [self._run(inputs, {}) for inputs in self._feeds()]
        errors: dict[str, list[float]] = {task.name: [] for task in self._tasks}
        for inputs, exact in zip(self._feeds(), self._exact, strict=True):
            rounded = self._run(inputs, ranges, exact)
            for number, task in enumerate(self._tasks):
                error = task.error(rounded.maps[number], exact.maps[number])
                errors[task.name].append(error)
        return {name: float(np.mean(values)) for name, values in errors.items()}

    def _run(
        self, inputs: tuple[Tensor, ...], ranges: Ranges, exact: _Outputs | None = None
    ) -> _Outputs:
        image, *noise = inputs
        unets = list(self._network.unets.items())
        every = exact is None or _touches(ranges, "encoder/")
        moved = [n for n, (name, _) in enumerate(unets) if every or _touches(ranges, name)]
        drawn = range(len(unets)) if every or _touches(ranges, "decoder/") else moved
        latents, maps = ({}, {}) if exact is None else (dict(exact.latents), dict(exact.maps))
        with torch.inference_mode(), FakeQuant(self._network, ranges):
            encoded = self._network.encoder(image) if exact is None or every else exact.encoded
            latents |= {number: unets[number][1](encoded, *noise) for number in moved}
            answers = self._network.decoder([latents[number] for number in drawn], drawn)
        maps |= {number: map_[0].numpy() for number, map_ in zip(drawn, answers, strict=True)}
        return _Outputs(encoded=encoded, latents=latents, maps=maps)


def _touches(ranges: Ranges, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in ranges)


class CachedErrors:
    """The errors of `measure`, kept in a file too, so that a killed build goes on where it was.

    A file that holds something else is replaced.
    """

    def __init__(self, measure: Measure, path: Path) -> None:
        self._measure, self._path = measure, path
        self._known: dict[str, Errors] = {}
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            self._known = dict(json.loads(path.read_text(encoding="utf-8")))

    def __call__(self, ranges: Ranges) -> Errors:
        """The errors with these layers quantised. Raises: OutputError."""
        key = hashlib.sha256(" ".join(sorted(ranges)).encode()).hexdigest()[:16]
        if key not in self._known:
            self._known[key] = self._measure(ranges)
            write_atomic(self._path, json.dumps(self._known).encode())
        return self._known[key]


def rank(measure: Measure, layers: list[Layer], ranges: Ranges) -> dict[str, Errors]:
    """Each group's errors when it alone is quantised."""
    groups = list(dict.fromkeys(layer.group for layer in layers if layer.name in ranges))
    return {
        group: measure({layer.name: ranges[layer.name] for layer in layers if layer.group == group})
        for group in track(groups, "sensitivity of layers")
    }


def search(
    measure: Measure,
    layers: list[Layer],
    ranges: Ranges,
    ranked: Callable[[], dict[str, Errors]],
    limits: Errors,
) -> Choice:
    """Keep as few groups as possible in higher precision, with each task's error within its limit.

    `ranked` is asked for each group's errors alone only where all groups together are beyond them.
    """
    work: dict[str, int] = {}
    for layer in layers:
        work[layer.group] = work.get(layer.group, 0) + layer.multiply_adds
    costliest = list(work)
    steps: dict[int, Step] = {}

    def fits(count: int) -> bool:
        groups = set(costliest[count:])
        errors = measure(
            {layer.name: ranges[layer.name] for layer in layers if layer.group in groups}
        )
        share = sum(work[group] for group in groups) / sum(work.values())
        steps[count] = Step(high_precision=count, int8_share=share, errors=dict(errors))
        say(
            f"{count} of {len(costliest)} groups in higher precision: {share:.1%} of these layers "
            f"in int8, error {in_words(errors)}"
        )
        return all(errors[task] <= limit for task, limit in limits.items())

    if fits(0):
        return Choice(high_precision=[], alone={}, steps=list(steps.values()))
    alone, everything = ranked(), steps[0].errors
    beyond = {task: limit for task, limit in limits.items() if everything[task] > limit}

    def cost(group: str) -> tuple[float, float]:
        squares = sum((alone[group][task] / limit) ** 2 for task, limit in beyond.items())
        return squares / work[group] if work[group] else math.inf, squares

    costliest = sorted(work, key=cost, reverse=True)
    low, high = 1, len(costliest)  # with all in higher precision nothing is rounded
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    if low not in steps:
        fits(low)
    ordered = sorted(steps.values(), key=lambda step: step.high_precision)
    return Choice(high_precision=costliest[:low], alone=alone, steps=ordered)


def in_words(errors: Errors) -> str:
    """`0.0123`, or of several tasks `disparity 0.0123, normal 0.87`."""
    if len(errors) == 1:
        return f"{next(iter(errors.values())):.3g}"
    return ", ".join(f"{task} {error:.3g}" for task, error in errors.items())
