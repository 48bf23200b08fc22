"""What can be said of a request alone: its sizes, limits, and options that go together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from export.errors import BuildError
from export.network.checkpoint import Description
from export.quantize.policy import Policy
from export.settings import BuildSettings
from export.targets import Recipe, Target
from runtime.manifest import Bucket
from runtime.manifest_check import LARGEST_AREA, LARGEST_BATCH, LARGEST_EDGE, MOST_BUCKETS
from runtime.there import is_file

_NAMED = 6  # buckets in the default name of a bundle


def limits_of(settings: BuildSettings, checkpoints: Sequence[Description]) -> dict[str, float]:
    """The limit of each task. Raises: BuildError."""
    tasks = [checkpoint.task for checkpoint in checkpoints]
    limits = settings.budget or [task.max_error for task in tasks]
    if len(limits) != len(tasks):
        raise BuildError(
            f"the budget has {len(limits)} numbers for {len(tasks)} tasks: name one for each "
            f"({', '.join(f'{task.name} in {task.error_unit}' for task in tasks)})"
        )
    return {task.name: limit for task, limit in zip(tasks, limits, strict=True)}


def check_int8(settings: BuildSettings) -> None:
    """Refuse limits and a policy that cannot be. Raises: BuildError."""
    for limit in settings.budget or ():
        if not 0 < limit < math.inf:
            raise BuildError(f"a budget must be a positive number, found {limit}")
    if settings.policy is None:
        return
    if not is_file(settings.policy):
        raise BuildError(
            f"no policy {settings.policy}; a bundle of --precision int8 holds one (policy.json)"
        )
    Policy.read(settings.policy)  # a file that cannot be read is refused before calibration


def check_unused(settings: BuildSettings, target: Target, recipe: Recipe) -> None:
    """Refuse options that would change nothing. Raises: BuildError."""
    unused = []
    if not recipe.quantizes_layers:
        options = {"--budget": settings.budget, "--policy": settings.policy}
        unused = [name for name, value in options.items() if value is not None]
    calibrates = recipe.half or recipe.int8 or settings.precision != "fp32"
    if settings.calibration is not None and not calibrates:
        unused.append("--calibration")
    if not settings.engine and target.build is None:
        unused.append("--no-engine")
    if unused:
        raise BuildError(
            f"{' and '.join(unused)} would change nothing: {settings.precision} for "
            f"{settings.target} has no use for {'it' if len(unused) == 1 else 'them'}; leave "
            f"{'it' if len(unused) == 1 else 'them'} out"
        )


def buckets_of(settings: BuildSettings, checkpoint: Description) -> tuple[Bucket, ...]:
    """One for each size and batch, and for an ensemble. Raises: BuildError."""
    sizes = settings.resolutions
    if not sizes:
        if checkpoint.trained_size is None:
            raise BuildError(
                f"the config of {checkpoint.id!r} names no size of training; pass --resolution"
            )
        sizes = (checkpoint.trained_size,)
    buckets = tuple(
        _bucket(*size, checkpoint.latent.downscale, batch=batch)
        for size in sizes
        for batch in settings.batches
    )
    if settings.ensemble != 1:
        buckets += tuple(
            _bucket(*size, checkpoint.latent.downscale, noises=settings.ensemble) for size in sizes
        )
    if len(set(buckets)) < len(buckets):
        raise BuildError(f"a size is named twice: {', '.join(map(str, buckets))}")
    if len(buckets) > MOST_BUCKETS:
        raise BuildError(f"a bundle has at most {MOST_BUCKETS} buckets, found {len(buckets)}")
    return buckets


def _bucket(height: int, width: int, multiple: int, *, batch: int = 1, noises: int = 1) -> Bucket:
    if height < multiple or width < multiple or height % multiple or width % multiple:
        near = (max(multiple, round(edge / multiple) * multiple) for edge in (height, width))
        raise BuildError(
            f"{height}x{width} is not a multiple of {multiple} pixels in both directions; the "
            f"nearest is {'x'.join(map(str, near))}"
        )
    if not 1 <= batch <= LARGEST_BATCH:
        raise BuildError(f"a batch has 1 to {LARGEST_BATCH} pictures, found {batch}")
    if not 1 <= noises <= LARGEST_BATCH:
        raise BuildError(f"an ensemble has 1 to {LARGEST_BATCH} noises, found {noises}")
    bucket = Bucket(height=height, width=width, batch=batch, noises=noises, graph="")
    if max(height, width) > LARGEST_EDGE or bucket.answers * height * width > LARGEST_AREA:
        raise BuildError(
            f"{bucket} is too large: an edge has at most {LARGEST_EDGE} pixels, and all pictures "
            f"of a run {LARGEST_AREA}"
        )
    return dataclasses.replace(bucket, graph=f"model-{bucket}.onnx")


def size_words(buckets: Sequence[Bucket]) -> list[str]:
    """What a name says of sizes; of many the first ones, for a folder's name has an end."""
    words = [str(bucket) for bucket in buckets]
    return words if len(words) <= _NAMED else [*words[:_NAMED], f"and-{len(words) - _NAMED}-more"]
