"""From a checkpoint to a bundle: the straight path through this room."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from export.bundle import check_destination, finish, staged
from export.checkpoint import Checkpoint, load_checkpoint
from export.errors import BuildError
from export.folds import apply_folds
from export.golden import write_golden
from export.precision.calibration import Calibration
from export.single_pass import SinglePass
from export.targets import TARGETS
from export.to_onnx import write_graphs
from runtime.engine import draw_noise
from runtime.manifest import Bucket, Golden, Latent, Manifest
from runtime.manifest import Checkpoint as CheckpointEntry
from runtime.tasks import TASKS

_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What to build. `resolutions` are (height, width) in pixels, empty for the size the UNet was trained at; `output`
    None means `engines/<name>`; `opset` None means the target's own; `seed` draws the golden's noise (mode G), is the
    bundle's default noise seed, and draws the weights of `random/...` checkpoints; `fixed_noise` makes that noise part
    of the graph. Without `folds` the graph is the plain one, for comparison. `calibration` is a folder of images, None
    for rendered ones, of which the first `calibration_images` show what a half precision cannot hold."""

    checkpoint: str
    task: str | None = None
    resolutions: tuple[tuple[int, int], ...] = ()
    precision: str = "fp32"
    target: str = "onnxruntime"
    opset: int | None = None
    output: Path | None = None
    seed: int = 0
    folds: bool = True
    fixed_noise: bool = False
    overwrite: bool = False
    calibration: Path | None = None
    calibration_images: int = 8
    command: str = ""


def build(settings: BuildSettings, progress: Callable[[str], None]) -> Path:
    """Build a bundle and return its path.

    Raises: CheckpointError, BuildError, VerificationError; nothing is left behind then.
    """
    target = TARGETS[settings.target]
    if settings.precision in target.instead:
        precision = target.instead[settings.precision]
        progress(
            f"{settings.target} has no kernels for {settings.precision} on the CPU: the bundle will be {precision}"
        )
        settings = dataclasses.replace(settings, precision=precision)
    if settings.precision not in target.tolerance:
        raise BuildError(
            f"target {settings.target!r} has no precision {settings.precision!r}; it has {sorted(target.tolerance)}"
        )
    calibration = Calibration(count=settings.calibration_images, folder=settings.calibration)
    if settings.output is not None:  # before a download of gigabytes
        check_destination(settings.output, overwrite=settings.overwrite)
    checkpoint = load_checkpoint(settings.checkpoint, task=settings.task, seed=settings.seed, progress=progress)
    manifest = _draft(settings, checkpoint)
    destination = settings.output or Path("engines") / manifest.name
    weight_bytes = 4 * sum(p.numel() for module in (checkpoint.unet, checkpoint.vae) for p in module.parameters())
    copies = 1 + (len(manifest.buckets) if target.engine_suffix else 0)
    with staged(destination, overwrite=settings.overwrite, needed_bytes=weight_bytes * copies) as stage:
        write_golden(checkpoint, manifest, stage, progress)
        module = SinglePass(checkpoint, _fixed_noises(manifest))
        if settings.folds:
            manifest = dataclasses.replace(
                manifest, folds=apply_folds(module, progress, target.upsampling[settings.precision])
            )
        write_graphs(module, manifest, stage, calibration, progress)
        del checkpoint, module  # the engine builder and the golden run need the memory
        gc.collect()
        finish(stage, manifest, progress)
    return destination


def _draft(settings: BuildSettings, checkpoint: Checkpoint) -> Manifest:
    """The manifest as far as it is known before anything is written."""
    cell = checkpoint.downscale
    buckets = [_bucket(height, width, cell) for height, width in settings.resolutions or (_trained_size(checkpoint),)]
    if len(set(buckets)) < len(buckets):
        raise BuildError(f"a resolution is named twice: {', '.join(map(str, buckets))}")
    if settings.fixed_noise and checkpoint.mode != "g":
        raise BuildError(f"{checkpoint.id!r} is of mode D: it has no noise to fix")
    target = TARGETS[settings.target]
    identity = _public_id(checkpoint.id)
    name = "-".join([Path(identity).name, *map(str, buckets), settings.precision, settings.target])
    return Manifest(
        name=name,
        checkpoint=CheckpointEntry(id=identity, sha256=checkpoint.sha256()),
        mode=checkpoint.mode,
        tasks=[checkpoint.task],
        outputs={checkpoint.task: TASKS[checkpoint.task].meaning},
        precision=settings.precision,
        target=settings.target,
        opset=settings.opset or target.opset,
        buckets=buckets,
        latent=Latent(
            channels=checkpoint.vae.config.latent_channels,
            downscale=cell,
            scaling_factor=checkpoint.vae.config.scaling_factor,
        ),
        noise_seed=settings.seed,
        fixed_noise=settings.fixed_noise,
        folds=[],
        golden=Golden(file="golden.npz", tolerance=target.tolerance[settings.precision], measured=[]),
        files=[],
        tools=tool_versions(_TOOLS),
        command=settings.command,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _fixed_noises(manifest: Manifest) -> list[torch.Tensor]:
    if not manifest.fixed_noise:
        return []
    shapes = {manifest.noise_shape(bucket) for bucket in manifest.buckets}
    return [torch.from_numpy(draw_noise(manifest.noise_seed, shape)) for shape in shapes]


def _trained_size(checkpoint: Checkpoint) -> tuple[int, int]:
    """Height and width in pixels of the latents that the UNet's config names."""
    size = checkpoint.unet.config.sample_size
    if size is None:
        raise BuildError(f"the config of {checkpoint.id!r} names no size of training; pass --resolution")
    height, width = (size, size) if isinstance(size, int) else size
    return height * checkpoint.downscale, width * checkpoint.downscale


def _bucket(height: int, width: int, cell: int) -> Bucket:
    if height < cell or width < cell or height % cell or width % cell:
        near = "x".join(str(max(cell, round(edge / cell) * cell)) for edge in (height, width))
        raise BuildError(
            f"{height}x{width} is not a multiple of {cell} pixels in both directions; the nearest is {near}"
        )
    return Bucket(height=height, width=width, graph=f"model-{height}x{width}.onnx")


def _public_id(name: str) -> str:
    """A local folder by its name alone: bundles travel, and the folders of the building machine concern nobody."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def tool_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of the named distributions; those that are not installed are left out."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
