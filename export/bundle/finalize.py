"""From a folder of graphs, weights and golden to a bundle: engine, checksums, golden run, manifest.

Imports no torch: a Jetson finishes a bundle with NumPy and TensorRT alone.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, TypeAlias

from export.bundle.write import check_destination, staged, with_name
from export.errors import BuildError
from export.progress import say
from export.targets import TARGETS, Target
from runtime.backends import BACKENDS, open_session
from runtime.errors import BackendMissingError, DeviceMissingError
from runtime.golden import GoldenError, check_tolerance, golden_error, worst
from runtime.manifest import Bucket, EngineInfo, Manifest, Measured, describe_file
from runtime.proof import remember_proof
from runtime.there import is_dir, is_file

When: TypeAlias = Literal["now", "if possible", "later"]
"""When the engine of a target is built; later is on the device."""


def finalize(stage: Path, description: Manifest, *, engine: When = "if possible") -> Manifest:
    """Make a bundle of the folder `stage`, and write its manifest last.

    `description` is the manifest without what comes out here: engine, files and what the golden
    run measured. The engine is left to the device with "later"; with "if possible" also where the
    target's builder or a device that it needs is not here. Raises: BuildError,
    BackendMissingError, DeviceMissingError, and VerificationError when an answer on this machine is
    beyond the tolerance.
    """
    target = TARGETS[description.target]
    buckets, built = _build_engines(stage, description.buckets, target, engine)
    say("computing checksums")
    paths = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if is_file(path))
    manifest = dataclasses.replace(
        description,
        buckets=buckets,
        engine=built,
        files=[describe_file(stage, path) for path in paths],
    )
    measured = _run_golden(stage, manifest, target)
    manifest = dataclasses.replace(
        manifest, golden=dataclasses.replace(manifest.golden, measured=measured)
    )
    manifest.save(stage)
    if any(run.backend == target.name for run in measured):
        for bucket in manifest.buckets:  # it need not prove itself again here
            remember_proof(manifest, bucket, BACKENDS[target.name])
    return manifest


def finish_on_device(
    source: Path, *, target_name: str, output: Path | None, overwrite: bool, command: str
) -> Path:
    """Build the engine of a target from the graph in the bundle `source`, and return the bundle
    that holds it.

    A bundle of this target that lacks its engine is completed in place. Any other stays as it is:
    the engine comes into a new bundle, `output` or `<source>-<target>` beside it.

    Raises: BundleError, BuildError, BackendMissingError when the target's package is not installed,
    DeviceMissingError, VerificationError.
    """
    manifest = Manifest.load(source)
    target = TARGETS[target_name]
    recipe = _check_source(source, manifest, target).recipe(manifest.precision)
    destination, in_place = _where(source, manifest, target, output, overwrite)
    check_destination(destination, overwrite=overwrite or in_place)
    say("checking the files of the bundle")
    manifest.check_contents(source)
    engines = {bucket.engine for bucket in manifest.buckets}
    carried = [file for file in manifest.files if file.path not in engines]
    # Each engine holds the weights again; and on another disk they cannot be linked.
    parents = Path(os.path.realpath(destination)).parents
    parent = next(folder for folder in parents if is_dir(folder))
    copies = len(manifest.buckets) + (parent.stat().st_dev != source.stat().st_dev)
    needed = sum(file.bytes for file in carried) * copies
    with staged(destination, overwrite=overwrite or in_place, needed_bytes=needed) as stage:
        for file in carried:
            _link_or_copy(source / file.path, stage / file.path)
        largest, mean = recipe.tolerance
        description = dataclasses.replace(
            manifest,
            target=target.name,
            command=f"{manifest.command} && {command}",
            engine=None,
            buckets=[dataclasses.replace(bucket, engine=None) for bucket in manifest.buckets],
            golden=dataclasses.replace(manifest.golden, tolerance=largest, mean_tolerance=mean),
        )
        finalize(stage, description, engine="now")
    return destination


def _where(
    source: Path, manifest: Manifest, target: Target, output: Path | None, overwrite: bool
) -> tuple[Path, bool]:
    """Where the engine goes, and whether that completes `source` itself.

    Raises: BuildError for a place that would change a working bundle unasked.
    """
    unfinished = manifest.target == target.name and not all(b.engine for b in manifest.buckets)
    named = with_name(source)
    beside = named.with_name(f"{named.name}-{target.name}")
    destination = output or (source if unfinished else beside)
    here, there = (Path(os.path.realpath(folder)) for folder in (source, destination))
    if here in there.parents:
        raise BuildError(f"{destination} lies inside the bundle {source}; pass another --output")
    if here == there and not unfinished and not overwrite:
        raise BuildError(
            f"{source} is a finished bundle for {manifest.target}, and building the "
            f"{target.name} engine there would replace it. Leave --output out (it is then "
            f"{beside}), or pass --overwrite"
        )
    return destination, here == there and unfinished


def _check_source(source: Path, manifest: Manifest, target: Target) -> Target:
    """Whether the target's engine can be made of this bundle's graph. Raises: BuildError."""
    if target.build is None:
        raise BuildError(
            f"target {target.name!r} needs no engine: open the bundle with backend={target.name!r}"
        )
    if manifest.target not in TARGETS:
        raise BuildError(
            f"{source} is for {manifest.target!r}, which this release does not know: "
            f"{sorted(TARGETS)}"
        )
    built_for = TARGETS[manifest.target]
    recipe = target.recipe(manifest.precision)
    if built_for.recipe(manifest.precision).graph_types != recipe.graph_types:
        types = built_for.recipe(manifest.precision).graph_types
        raise BuildError(
            f"{manifest.precision} is another graph for {target.name} than for {built_for.name} "
            f"({recipe.graph_types}, {types}): build the bundle with --target {target.name}"
        )
    if built_for.recipe(manifest.precision).group_norm != recipe.group_norm:
        say(
            f"the bundle was built for {built_for.name}, with group normalisation spelled out for "
            f"it; one built with --target {target.name} keeps the operator"
        )
    if manifest.opset > target.opset:
        say(
            f"the graph is ONNX opset {manifest.opset}; every {target.name} reads {target.opset}, "
            "newer ones more. If the parser refuses it, build the bundle with --target "
            f"{target.name}."
        )
    return target


def _build_engines(
    stage: Path, buckets: list[Bucket], target: Target, engine: When
) -> tuple[list[Bucket], EngineInfo | None]:
    """The buckets with their engines, and what built them; as they were where none is built."""
    if target.build is None:
        return buckets, None
    if engine == "later":
        _say_how_to_finish("no engine is built here, as asked", target)
        return buckets, None
    info, finished = None, []
    suffix = target.engine_suffix or ".engine"
    for bucket in buckets:
        name = Path(bucket.graph).with_suffix(suffix).name
        say(f"building the {target.name} engine for {bucket}")
        try:
            info = target.build(stage / bucket.graph, stage / name)
        except (BackendMissingError, DeviceMissingError) as error:
            if engine == "now":
                raise
            for half_done in stage.glob(f"*{suffix}"):
                half_done.unlink()
            _say_how_to_finish(f"no engine built here: {error}", target)
            return buckets, None
        finished.append(dataclasses.replace(bucket, engine=name))
    return finished, info


def _say_how_to_finish(why: str, target: Target) -> None:
    say(
        f"{why}\nThe bundle carries the graph; on the device, "
        f"`python export/build_engine.py --from-bundle BUNDLE --target {target.name}` completes it "
        "in place"
    )


def _run_golden(stage: Path, manifest: Manifest, target: Target) -> list[Measured]:
    """Run the golden with the target's own backend or, where that cannot run or lacks its engine,
    the graph with a stand-in.

    No stand-in rounds a half graph as its target does; it runs one that says where to round.
    """
    half = target.recipe(manifest.precision).half is not None
    finished = target.build is None or all(bucket.engine for bucket in manifest.buckets)
    own = (target.name,) if finished else ()
    for backend in dict.fromkeys((*own, *target.stand_ins)):
        if backend not in BACKENDS:
            continue
        say(f"running the golden sample with {backend}")
        emulated = half and backend != target.name
        try:
            errors: dict[str, GoldenError] = {}
            for bucket in manifest.buckets:
                with (
                    _emulated(stage, bucket) if emulated else nullcontext(bucket) as opened,
                    open_session(backend, stage, manifest, opened) as session,
                ):
                    errors[str(bucket)] = golden_error(session)
        except (BackendMissingError, DeviceMissingError) as error:
            say(f"not run with {backend}: {error}")
            continue
        worst_error = worst(errors)
        say(
            f"{backend} differs from the PyTorch reference by {worst_error} (tolerance "
            f"{manifest.golden.tolerance:g})"
        )
        check_tolerance(errors, backend, manifest.golden)
        name = f"{backend}, emulated" if emulated else backend
        return [
            Measured(
                backend=name,
                max_abs_error=worst_error.largest,
                mean_abs_error=worst_error.mean,
            )
        ]
    say("the golden sample was not run here; on the device: python -m runtime verify BUNDLE")
    return []


@contextmanager
def _emulated(stage: Path, bucket: Bucket) -> Iterator[Bucket]:
    """The bucket with its half graph emulated in float32, for as long as the block lasts."""
    try:
        from export.graph.emulate import write_emulated
    except ImportError as error:
        raise BackendMissingError(f"emulating a half graph needs onnx-ir: {error}") from error
    graph = stage / f"emulated-{bucket.graph}"
    try:
        write_emulated(stage / bucket.graph, graph)
        yield dataclasses.replace(bucket, graph=graph.name)
    finally:
        graph.unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard-link where the file system can: the weights are gigabytes and do not change.

    Of a symbolic link, as in the hub's cache, the file itself is taken.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
