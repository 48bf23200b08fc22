"""Whether a manifest's values can be true, within bounds that keep a made-up one harmless."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from runtime.errors import SchemaError
from runtime.files import check_path
from runtime.manifest_json import MANIFEST
from runtime.tasks import TASKS

if TYPE_CHECKING:
    from runtime.manifest import Bucket, Manifest

# Of values in [0,1]. A golden with a wider mean proves nothing. In half precision and int8 the
# error of single pixels may be large.
LARGEST_TOLERANCE, LARGEST_MEAN_TOLERANCE = 0.8, 0.05
LARGEST_EDGE, LARGEST_AREA = 16_384, 1 << 26  # pixels of a bucket, of all its pictures
LARGEST_BATCH = 64  # pictures or noises of a bucket
LARGEST_CHANNELS, LARGEST_CELL = 64, 64  # channels of the latent, pixels of a cell's edge
LARGEST_CONSTANT, SMALLEST_SCALE = 1e3, 1e-6  # of preprocess and latent, apart from the sign
LARGEST_SEED = 1 << 63
MOST_BUCKETS, MOST_FILES = 64, 1024
LONGEST_NAME = 1024  # characters, of a bundle's name, target and precision
LARGEST_OPSET = 1000
LARGEST_MEMORY = 1 << 50  # bytes


def check_paths(manifest: Manifest) -> None:
    """Raises: UnsafePathError, SchemaError for a file that is used but not listed."""
    listed, named = {file.path for file in manifest.files}, _named_paths(manifest)
    for path in sorted(listed | named):
        check_path(path)
    if unlisted := sorted(named - listed):
        raise SchemaError(
            f"{MANIFEST}: files {unlisted} are used but not listed in `files`. "
            "Build the bundle again."
        )


def check_values(manifest: Manifest) -> None:
    """Refuse a manifest whose parts are absurd or contradict each other. Raises: SchemaError."""
    problems = [*_odd_lists(manifest), *_odd_sizes(manifest), *_odd_numbers(manifest)]
    problems += _odd_tasks(manifest)
    if manifest.mode not in ("d", "g"):
        problems.append(f"unknown mode {manifest.mode!r}; known: 'd', 'g'")
    if problems:
        raise SchemaError(f"{MANIFEST}: {'; '.join(problems)}. Build the bundle again.")


def _named_paths(manifest: Manifest) -> set[str]:
    """The files that the manifest uses by name."""
    paths = {manifest.golden.file, *(bucket.graph for bucket in manifest.buckets)}
    paths |= {bucket.engine for bucket in manifest.buckets if bucket.engine is not None}
    if manifest.quantisation is not None:
        paths.add(manifest.quantisation.policy)
    return paths


def _odd_lists(manifest: Manifest) -> Iterator[str]:
    """What is wrong with tasks, buckets and files, in words."""
    if unknown := [task for task in manifest.tasks if task not in TASKS]:
        yield f"unknown tasks {unknown}; known: {sorted(TASKS)}"
    if not manifest.buckets or not manifest.tasks:
        yield "a bundle needs at least one bucket and one task"
    for name, items, most in (
        ("buckets", [str(bucket) for bucket in manifest.buckets], MOST_BUCKETS),
        ("tasks", manifest.tasks, len(TASKS)),
        ("files", [file.path for file in manifest.files], MOST_FILES),
    ):
        if len(items) > most:
            yield f"`{name}` has {len(items)} entries, at most {most} are read"
        elif len(set(items)) < len(items):
            yield f"`{name}` names something twice: {items}"


def _odd_tasks(manifest: Manifest) -> Iterator[str]:
    """What is said of other tasks than there are, in words."""
    tasks, quantisation = manifest.tasks, manifest.quantisation
    said: list[tuple[str, str, Mapping[str, object], list[str]]] = [
        ("outputs", "describes", manifest.outputs, tasks),
        ("beside", "has the sources of", manifest.beside, tasks[1:]),
    ]
    if quantisation is not None:
        said.append(("quantisation.beside", "has the errors of", quantisation.beside, tasks[1:]))
    for name, verb, entries, wanted in said:
        if set(entries) != set(wanted):
            others = "" if wanted == tasks else f", those after the first {wanted}"
            yield f"`{name}` {verb} {sorted(entries)}, the tasks are {tasks}{others}"


def _odd_sizes(manifest: Manifest) -> Iterator[str]:
    """What is wrong with buckets and the latent, in words."""
    latent = manifest.latent
    if not 1 <= latent.channels <= LARGEST_CHANNELS:
        yield f"latent.channels must lie in 1 to {LARGEST_CHANNELS}, found {latent.channels}"
    if not 1 <= latent.downscale <= LARGEST_CELL:
        yield f"latent.downscale must lie in 1 to {LARGEST_CELL}, found {latent.downscale}"
        return
    takes_noise = manifest.mode == "g" and not manifest.fixed_noise
    plain = {(each.height, each.width) for each in manifest.buckets if each.noises == 1}
    for bucket in manifest.buckets:
        if not _fits(bucket, latent.downscale):
            yield f"bucket {bucket} is not a positive multiple of {latent.downscale}"
        elif max(bucket.height, bucket.width) > LARGEST_EDGE:
            yield f"bucket {bucket} has an edge of more than {LARGEST_EDGE} pixels"
        elif not 1 <= bucket.batch <= LARGEST_BATCH:
            yield f"a bucket's batch must lie in 1 to {LARGEST_BATCH}, found {bucket.batch}"
        elif not 1 <= bucket.noises <= LARGEST_BATCH:
            yield f"a bucket's noises must lie in 1 to {LARGEST_BATCH}, found {bucket.noises}"
        elif bucket.noises > 1 and (bucket.batch > 1 or not takes_noise):
            yield f"bucket {bucket} has several noises, and a batch or no noise to take"
        elif (bucket.height, bucket.width) not in plain:
            yield f"bucket {bucket} has no bucket of its size with one noise beside it"
        elif bucket.answers * bucket.height * bucket.width > LARGEST_AREA:
            yield f"bucket {bucket} has more than {LARGEST_AREA} pixels"


def _odd_numbers(manifest: Manifest) -> Iterator[str]:
    """What is wrong with tolerances, constants, names and the opset, in words."""
    golden, preprocess = manifest.golden, manifest.preprocess
    for name, value, largest in (
        ("tolerance", golden.tolerance, LARGEST_TOLERANCE),
        ("mean_tolerance", golden.mean_tolerance, LARGEST_MEAN_TOLERANCE),
    ):
        if not 0 < value <= largest:
            yield f"golden.{name} must lie in (0, {largest}], found {value!r}"
    for name, value, smallest in (
        ("preprocess.scale", preprocess.scale, SMALLEST_SCALE),
        ("preprocess.offset", preprocess.offset, 0.0),
        ("latent.scaling_factor", manifest.latent.scaling_factor, SMALLEST_SCALE),
    ):
        if not (math.isfinite(value) and smallest <= abs(value) <= LARGEST_CONSTANT):
            yield f"{name} must lie in {smallest:g} to {LARGEST_CONSTANT:g}, found {value!r}"
    for name, text in (
        ("name", manifest.name),
        ("target", manifest.target),
        ("precision", manifest.precision),
    ):
        if not 0 < len(text) <= LONGEST_NAME:
            yield f"{name} must have 1 to {LONGEST_NAME} characters, found {len(text)}"
    if not 0 < manifest.opset <= LARGEST_OPSET:
        yield f"opset must lie in 1 to {LARGEST_OPSET}, found {manifest.opset}"
    needs = manifest.memory
    sizes = [] if needs is None else [*needs.weights.values(), *needs.activations.values()]
    if not all(0 <= size <= LARGEST_MEMORY for size in sizes):
        yield f"memory holds bytes, 0 to {LARGEST_MEMORY}, found {sizes}"
    if not 0 <= manifest.noise_seed < LARGEST_SEED:
        yield f"noise_seed must lie in 0 to 2^63, found {manifest.noise_seed}"


def _fits(bucket: Bucket, cell: int) -> bool:
    return all(edge > 0 and edge % cell == 0 for edge in (bucket.height, bucket.width))
