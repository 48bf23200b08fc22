"""Write a bundle beside its final place and rename it when it is whole; finish and verify it.

Imports no torch: a Jetson finishes a bundle with NumPy and TensorRT alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from export.errors import BuildError
from export.targets import TARGETS
from runtime.backends import BACKENDS, session_class
from runtime.errors import BackendMissingError, BundleError, DeviceMissingError, UnfinishedBundleError
from runtime.golden import GoldenError, golden_error, judge, worst
from runtime.manifest import MANIFEST, SCHEMA, Bucket, Manifest, Measured, describe_file

Progress = Callable[[str], None]


@contextmanager
def staged(destination: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place when the block ends without an error.

    After an error, or a signal that raises, nothing is left and an old bundle stays as it was.
    Raises: BuildError when `destination` exists (and is not an old bundle to overwrite) or the disk is full.
    """
    destination = destination.resolve()
    check_destination(destination, overwrite=overwrite)
    stage: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(destination.parent).free
        if free < needed_bytes:
            raise BuildError(
                f"the disk of {destination.parent} has {free / 1e9:.2f} GB free; this bundle needs about "
                f"{needed_bytes / 1e9:.2f} GB. Free some, or pass --output on another disk."
            )
        stage = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
        stage.chmod(0o755)
        yield stage
        check_destination(destination, overwrite=overwrite)  # another build may have come first
        _take_place(stage, destination)
    except OSError as error:
        raise BuildError(f"cannot write the bundle {destination}: {error}. Nothing of it was left behind.") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse a place that may not be written: only a bundle, and nothing beside its own files, is ever replaced.

    Raises: BuildError.
    """
    if not destination.exists():
        return
    if not overwrite:
        raise BuildError(f"{destination} exists; pass --overwrite to replace it, or another --output")
    try:
        listed = {file.path for file in Manifest.load(destination).files}
    except BundleError as error:
        listed = _files_of_another_release(destination)
        if not listed:
            raise BuildError(
                f"{destination} exists and is not a whole bundle, so it is not overwritten; remove it yourself or pass "
                f"another --output ({error})"
            ) from error
    found = {path.relative_to(destination).as_posix() for path in destination.rglob("*") if not path.is_dir()}
    if foreign := sorted(found - listed - {MANIFEST}):
        raise BuildError(
            f"{destination} holds files that are not the bundle's: {foreign[:5]}; move them, so that "
            "replacing the bundle loses nothing, or pass another --output"
        )


def _files_of_another_release(folder: Path) -> set[str]:
    """What a manifest of another schema lists; nothing where there is none."""
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return set() if body["schema"] == SCHEMA else {str(file["path"]) for file in body["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def finish(stage: Path, manifest: Manifest, progress: Progress, *, engine_required: bool = False) -> Manifest:
    """Turn a folder with graphs, weights and golden into a bundle: engine, checksums, manifest, golden run.

    Without the target's builder or device the engine is left to the device, unless `engine_required`.
    Raises: BuildError, VerificationError when an answer on this machine is beyond the tolerance.
    """
    manifest = _build_engines(stage, manifest, progress, engine_required)
    progress("computing checksums")
    paths = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())
    manifest = dataclasses.replace(manifest, files=[describe_file(stage, path) for path in paths])
    measured = _run_golden(stage, manifest, progress)
    manifest = dataclasses.replace(manifest, golden=dataclasses.replace(manifest.golden, measured=measured))
    manifest.save(stage)
    return manifest


def finish_on_device(
    source: Path, *, target: str, output: Path | None, overwrite: bool, command: str, progress: Progress
) -> Path:
    """Build the engine of `target` from the graph in the bundle `source`; in place unless `output` is given.

    Raises: BundleError, BuildError, BackendMissingError when the target's package is not installed.
    """
    manifest = Manifest.load(source)
    if TARGETS[target].engine_suffix is None:
        raise BuildError(f"target {target!r} needs no engine: open the bundle with backend={target!r}")
    if manifest.target not in TARGETS:
        raise BuildError(f"{source} is for {manifest.target!r}, which this release does not know: {sorted(TARGETS)}")
    if manifest.precision not in TARGETS[target].tolerance:
        known = sorted(TARGETS[target].tolerance)
        raise BuildError(f"target {target!r} has no precision {manifest.precision!r}; it has {known}")
    forms = [TARGETS[name].forms[manifest.precision] for name in (manifest.target, target)]
    if len(set(forms)) > 1:
        raise BuildError(
            f"{manifest.precision} is another graph for {target} than for {manifest.target} ({forms[1]}, {forms[0]}): "
            f"build the bundle with --target {target}"
        )
    if TARGETS[manifest.target].group_norm.get(manifest.precision):
        progress(
            f"the bundle was built for {manifest.target}, with group normalisation spelled out for it; one built with "
            f"--target {target} keeps the operator"
        )
    if manifest.opset > TARGETS[target].opset:
        progress(
            f"the graph is ONNX opset {manifest.opset}; every {target} reads {TARGETS[target].opset}, newer ones more. "
            f"If the parser refuses it, build the bundle with --target {target}."
        )
    progress("checking the files of the bundle")
    manifest.check_contents(source)
    destination = source if output is None else output
    engines = {bucket.engine for bucket in manifest.buckets}
    carried = [file for file in manifest.files if file.path not in engines]
    needed = sum(file.bytes for file in carried) * len(manifest.buckets)  # each engine holds the weights again
    with staged(destination, overwrite=overwrite or output is None, needed_bytes=needed) as stage:
        for file in carried:
            _link_or_copy(source / file.path, stage / file.path)
        largest, mean = TARGETS[target].tolerance[manifest.precision]
        manifest = dataclasses.replace(
            manifest,
            target=target,
            command=f"{manifest.command} && {command}",
            engine=None,
            buckets=[dataclasses.replace(bucket, engine=None) for bucket in manifest.buckets],
            golden=dataclasses.replace(manifest.golden, tolerance=largest, mean_tolerance=mean),
        )
        finish(stage, manifest, progress, engine_required=True)
    return destination


def _build_engines(stage: Path, manifest: Manifest, progress: Progress, required: bool) -> Manifest:
    suffix = TARGETS[manifest.target].engine_suffix
    if suffix is None:
        return manifest
    from export.targets.tensorrt import build_engine

    info = None
    buckets: list[Bucket] = []
    for bucket in manifest.buckets:
        name = Path(bucket.graph).with_suffix(suffix).name
        progress(f"building the {manifest.target} engine for {bucket}")
        try:
            info = build_engine(stage / bucket.graph, stage / name, manifest.target, progress)
        except (BackendMissingError, DeviceMissingError) as error:
            if required:
                raise
            progress(
                f"no engine built here: {error}\nThe bundle carries the graph; finish it on the device: "
                f"python export/build_engine.py --from-bundle BUNDLE --target {manifest.target}"
            )
            return manifest
        buckets.append(dataclasses.replace(bucket, engine=name))
    return dataclasses.replace(manifest, buckets=buckets, engine=info)


def _run_golden(stage: Path, manifest: Manifest, progress: Progress) -> list[Measured]:
    """Run the golden with the target's own backend or, where that cannot run, the graph with ONNX Runtime.

    ONNX Runtime does not round a half graph as its target does; it runs one that says where.
    """
    typed = TARGETS[manifest.target].typed(manifest.precision)
    for backend in dict.fromkeys((manifest.target, "onnxruntime")):
        progress(f"running the golden sample with {backend}")
        emulated = typed and backend == "onnxruntime"
        try:
            errors: dict[str, GoldenError] = {}
            for bucket in manifest.buckets:
                with (
                    _emulated(stage, bucket) if emulated else nullcontext(bucket) as runs,
                    session_class(backend)(stage, manifest, runs, BACKENDS[backend].option) as session,
                ):
                    errors[str(bucket)] = golden_error(session)
        except (BackendMissingError, DeviceMissingError, UnfinishedBundleError) as error:
            progress(f"not run with {backend}: {error}")
            continue
        found = worst(errors)
        progress(f"{backend} is {found} off the PyTorch reference (tolerance {manifest.golden.tolerance:g})")
        judge(errors, backend, manifest.golden)
        name = f"{backend}, emulated" if emulated else backend
        return [Measured(backend=name, max_abs_error=found.largest, mean_abs_error=found.mean)]
    progress("the golden sample was not run here; on the device: python -m runtime verify BUNDLE")
    return []


@contextmanager
def _emulated(stage: Path, bucket: Bucket) -> Iterator[Bucket]:
    """The bucket with its half graph emulated in float32, for as long as the block lasts."""
    try:
        from export.precision.emulate import write_emulated
    except ImportError as error:
        raise BackendMissingError(f"emulating a half graph needs onnx-ir: {error}") from error
    graph = stage / f"emulated-{bucket.graph}"
    try:
        write_emulated(stage / bucket.graph, graph)
        yield dataclasses.replace(bucket, graph=graph.name)
    finally:
        graph.unlink(missing_ok=True)


def _take_place(stage: Path, destination: Path) -> None:
    """Rename `stage` to `destination`; an old bundle there is moved aside first and put back if that fails."""
    if not destination.exists():
        stage.rename(destination)
        return
    aside = destination.with_name(f".{destination.name}.old-{os.getpid()}")
    destination.rename(aside)
    try:
        stage.rename(destination)
    except BaseException:
        aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard-link where the file system can: the weights are gigabytes and do not change."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
