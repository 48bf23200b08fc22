"""What each task's output means, and all that depends on it: decoding, colours, error, blending.

Code asks the task; it never tests a task's name or number of channels. A new task is one entry of
`TASKS`, with a subclass of `Task` only where its maps behave in a new way.

A *map* is what the network answers, float32 [C,H,W]. *Values* are what a user gets, float32 [H,W]
for one channel and [H,W,C] for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime import loops
from runtime.colors import Paint, ends, in_range, scaled, spectral
from runtime.enlarge import enlarge, is_larger, is_pillows
from runtime.pixels import ONE_BLOCK, memory_of
from runtime.vectors import angles, unit_vectors

Resize: TypeAlias = Literal["bilinear", "nearest"]
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of a map."""

_FLOOR = 0.1  # AbsRel divides by the exact value: one below this counts as this large
_FLAT = 1e-12  # the variance of a map in which there is nothing but rounding


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """`scale * map + shift` is the map brought to another one. `r_squared` is the share of the
    other's variance that it then explains; 1 is all of it.
    """

    scale: float = 1.0
    shift: float = 0.0
    r_squared: float = 1.0

    def apply(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The map, brought to the other one."""
        if (self.scale, self.shift) == (1, 0):
            return output
        aligned: NDArray[np.float32] = output * np.float32(self.scale) + np.float32(self.shift)
        return aligned


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """A map [C,H,W], and `spread` [1,H,W] where it is the middle of several: how far from it they
    lie, in the map's unit (vectors: degrees).
    """

    map: NDArray[np.float32]
    spread: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A map whose values lie in [low, high].

    `channels` is 1 or 3. `near` says which values are close to the camera ("small", "large", or
    None where they say nothing about distance). `meaning` states in words what a value is.
    `space` is the space in which a prediction is aligned to ground truth in scale and shift
    ("depth", "disparity"; None: it needs no alignment). `truth` is the kind of ground truth that
    measures it ("depth", "normal"; None: there is none). `error_unit` is the unit of `error`,
    and `max_error` the largest error that an int8 build accepts by default. `uncertainty_unit` is
    the unit of `uncertainty`. `axes`: what multiplies directions into the camera's frame (x right,
    y down, z forward); None for what is no direction.
    """

    name: str
    channels: int
    low: float
    high: float
    near: str | None
    meaning: str
    space: str | None = None
    truth: str | None = None
    error_unit: str = "of the range"
    max_error: float = 0.01
    axes: tuple[int, int, int] | None = None
    uncertainty_unit: str = "of the range"

    def decode(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values of a map: [C,H,W] -> [H,W] or [H,W,C]. Nothing is clipped."""
        if self.channels == 1:
            plane: NDArray[np.float32] = output[0]
            return plane
        return np.ascontiguousarray(output.transpose(1, 2, 0))

    def colorize(
        self, values: NDArray[np.float32], bounds: tuple[float, float] | None = None
    ) -> NDArray[np.uint8]:
        """RGB uint8 [H,W,3].

        Three channels become red, green and blue, from `low` (0) to `high` (255). One channel is
        shown in Spectral from the image's smallest to its largest value, or between `bounds`, as
        the frames of a video need it; what is near is red.
        """
        return self.painter(values, bounds)(values)

    def painter(
        self, values: NDArray[np.float32], bounds: tuple[float, float] | None = None
    ) -> Paint:
        """What gives each part of `values` the colours that it has in `colorize` of the whole. A
        task with other colours overrides this, and not `colorize`: files come from here.
        """
        compiled = loops.ready(values.size)
        if self.channels > 1:
            return in_range(self.low, self.high, compiled)
        return spectral(bounds or ends(values), red_is_high=self.near == "large", loops=compiled)

    def legend(self, values: NDArray[np.float32]) -> str:
        """What the colours of these values mean, in a few words."""
        if self.channels == 1:
            low, high = ends(values)
            blue, red = (low, high) if self.near == "large" else (high, low)
            return f"Spectral: red is {red:.6g}, blue is {blue:.6g}"
        return f"red, green and blue: 0 is {self.low:g}, 255 is {self.high:g}"

    def encode16(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """The values as uint16 of the same shape: 0 is `low`, 65535 is `high`."""
        compiled = loops.ready(values.size)
        return scaled(values, self.low, self.high, 65535, np.uint16, compiled)

    def error(self, prediction: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
        """How far the map `prediction` is from the map `exact`, both [C,H,W], in `error_unit`.

        Here: the mean absolute difference as a share of the range.
        """
        difference = np.abs(prediction.astype(np.float64) - exact.astype(np.float64))
        return float(difference.mean() / (self.high - self.low))

    def align(self, output: NDArray[np.float32], reference: NDArray[np.float32]) -> Alignment:
        """What brings the map `output` to the map `reference` of the same pixels, both [C,H,W].

        Here nothing does: values are what they are, and `r_squared` says how far they agree.
        """
        x, y = (
            self.canonical(each).reshape(self.channels, -1).astype(np.float64)
            for each in (output, reference)
        )
        variance = float(y.var(axis=1).sum())
        if variance <= _FLAT:
            return Alignment(r_squared=0.0)
        return Alignment(r_squared=1 - float(((x - y) ** 2).mean(axis=1).sum()) / variance)

    def canonical(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The map [C,H,W] in the form in which maps of this task are compared and added. Here as it
        is.
        """
        return output

    def merge(self, outputs: Sequence[NDArray[np.float32]]) -> Answer:
        """The middle of several maps [C,H,W] of the same picture, and how far they lie from it.

        Each is aligned to the first; then the median of each pixel, and the median distance from it
        (MAD), the mean over the channels.
        """
        first, *others = outputs
        aligned = np.stack([first, *(self.align(each, first).apply(each) for each in others)])
        middle = np.median(aligned, axis=0)
        spread = np.median(np.abs(aligned - middle), axis=0).mean(axis=0, keepdims=True)
        return Answer(map=middle, spread=spread)

    def uncertainty(
        self, values: NDArray[np.float32], spread: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The spread [H,W] of these values in `uncertainty_unit`. Here: as a share of the range."""
        share: NDArray[np.float32] = spread / np.float32(self.high - self.low)
        return share

    def resize(
        self,
        output: NDArray[np.float32],
        height: int,
        width: int,
        method: Resize,
        box: Box | None = None,
    ) -> NDArray[np.float32]:
        """The map [C,H,W], or what lies in `box`, at another size, each channel alone. Decode
        afterwards. Needs Pillow.

        The parts of a map together are the map as a whole, but for rounding.
        """
        shape = (output.shape[1], output.shape[2])
        compiled = loops.ready(len(output) * height * width)
        quicker = height * width > ONE_BLOCK or (compiled is not None and is_pillows())
        if method == "bilinear" and quicker and is_larger(shape, height, width, box):
            large = np.empty((len(output), height, width), np.float32)
            for plane, out in zip(output, large, strict=True):
                enlarge(plane, out, box, compiled)
            return large
        from PIL import Image

        filters = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
        planes = [
            memory_of(Image.fromarray(plane).resize((width, height), filters[method], box))
            for plane in output
        ]
        return np.stack(planes) if len(planes) > 1 else planes[0][None]

    def blend(
        self, maps: Sequence[NDArray[np.float32]], weights: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """One map [C,H,W] out of several of the same pixels: the mean by `weights`, each [H,W].

        A pixel that a map does not cover has weight 0 there. Decode afterwards, which also brings
        vectors back to unit length. Maps that are known up to scale and shift must be aligned to
        each other first.

        Raises: ValueError where a pixel's weights do not add up to a positive number, or where
        maps and weights differ in number.
        """
        total = np.sum(weights, axis=0, dtype=np.float64)
        if not (total > 0).all():
            raise ValueError("the weights of each pixel must add up to a positive number")
        mean = np.zeros(maps[0].shape, np.float64)
        for output, weight in zip(maps, weights, strict=True):
            mean += output * (weight / total)
        return mean.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class AffineTask(Task):
    """A map that is known up to scale and shift, as depth and disparity from one picture are."""

    error_unit: str = "AbsRel"
    max_error: float = 0.01
    uncertainty_unit: str = "of the value"

    def align(self, output: NDArray[np.float32], reference: NDArray[np.float32]) -> Alignment:
        """Scale and shift of least squares over all pixels, where the scale is not negative.

        A map without detail, or one that says the opposite, gets scale 0, and becomes the mean of
        the reference; `r_squared` is 0 then.
        """
        x, y = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
        middle, wanted = x.mean(), y.mean()
        x -= middle
        y -= wanted
        covariance = max(float(x @ y), 0.0) / x.size
        variances = float(x @ x) / x.size, float(y @ y) / y.size
        if min(variances) <= _FLAT:
            return Alignment(scale=0.0, shift=float(wanted), r_squared=0.0)
        scale = covariance / variances[0]
        return Alignment(
            scale=scale,
            shift=float(wanted - scale * middle),
            r_squared=scale * covariance / variances[1],
        )

    def uncertainty(
        self, values: NDArray[np.float32], spread: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """MAD over median; a value below 0.1 counts as 0.1."""
        relative: NDArray[np.float32] = spread / np.maximum(values, np.float32(_FLOOR))
        return relative

    def error(self, prediction: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
        """AbsRel after the prediction is aligned to `exact` by least squares, both [1,H,W].

        Exact values below 0.1 count as 0.1: AbsRel has no bound at 0.
        """
        values, wanted = prediction.astype(np.float64).ravel(), exact.astype(np.float64).ravel()
        design = np.stack([values, np.ones_like(values)], axis=1)
        solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
        return float((np.abs(design @ solution - wanted) / np.maximum(wanted, _FLOOR)).mean())


@dataclass(frozen=True, kw_only=True)
class NormalTask(Task):
    """Unit vectors."""

    error_unit: str = "degrees"
    max_error: float = 1.0
    axes: tuple[int, int, int] | None = (1, -1, -1)
    uncertainty_unit: str = "degrees"

    def decode(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """[3,H,W] -> unit vectors [H,W,3]; a zero vector stays zero."""
        return unit_vectors(output.transpose(1, 2, 0), loops.ready(output.size))

    def canonical(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of unit length."""
        return np.ascontiguousarray(self.decode(output).transpose(2, 0, 1))

    def error(self, prediction: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
        """The mean angle between the vectors of two maps [3,H,W], in degrees."""
        first, second = (self.decode(output).astype(np.float64) for output in (prediction, exact))
        return float(angles(first, second).mean())

    def merge(self, outputs: Sequence[NDArray[np.float32]]) -> Answer:
        """The mean direction, and the median angle to it in degrees."""
        vectors = np.stack([self.decode(output) for output in outputs])
        middle = unit_vectors(vectors.sum(axis=0))
        spread = np.median([angles(each, middle) for each in vectors], axis=0)
        spread = spread.astype(np.float32, copy=False)[None]
        return Answer(map=np.ascontiguousarray(middle.transpose(2, 0, 1)), spread=spread)

    def uncertainty(
        self, values: NDArray[np.float32], spread: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The angle itself."""
        return spread


@dataclass(frozen=True, kw_only=True)
class ShareTask(Task):
    """How much of a pixel belongs to the subject, shown in grey."""

    def painter(
        self, values: NDArray[np.float32], bounds: tuple[float, float] | None = None
    ) -> Paint:
        """Black is `low` and white is `high`, in every image alike."""
        return self._grey

    def _grey(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        grey = scaled(values, self.low, self.high, 255, np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)

    def legend(self, values: NDArray[np.float32]) -> str:
        """Grey in every image alike."""
        return f"black is {self.low:g}, white is {self.high:g}"


# Source of the ranges and of the colour map's direction: the Lotus paper (arXiv 2409.18124) and its
# published code.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        AffineTask(
            name="depth",
            channels=1,
            low=0.0,
            high=1.0,
            near="small",
            meaning="affine-invariant depth: metric depth is a*value + b with unknown a > 0 and b",
            space="depth",
            truth="depth",
        ),
        AffineTask(
            name="disparity",
            channels=1,
            low=0.0,
            high=1.0,
            near="large",
            meaning="affine-invariant disparity: 1 / metric depth is a*value + b with "
            "unknown a > 0 and b",
            space="disparity",
            truth="depth",
        ),
        NormalTask(
            name="normal",
            channels=3,
            low=-1.0,
            high=1.0,
            near=None,
            meaning="surface normal in the camera frame, unit length; colours are 255 - those of "
            "Omnidata and Metric3D",
            truth="normal",
        ),
        ShareTask(
            name="matting",
            channels=1,
            low=0.0,
            high=1.0,
            near=None,
            meaning="opacity of the subject: 1 is the subject, 0 the background, between them hair "
            "and blur",
        ),
        ShareTask(
            name="segmentation",
            channels=1,
            low=0.0,
            high=1.0,
            near=None,
            meaning="dichotomous segmentation: 1 is the subject, 0 the background; 0.5 is the "
            "threshold of a mask",
        ),
    )
}
