"""From a checkpoint to a bundle: the straight path through this room."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from export.bundle import check_destination, finish, staged
from export.checkpoint import Checkpoint, load_checkpoint
from export.errors import BuildError
from export.folds import apply_folds
from export.golden import write_golden
from export.precision.calibration import Calibration
from export.precision.int8 import Int8Settings, choose_int8
from export.precision.layers import Ranges
from export.single_pass import SinglePass
from export.small_vae import replace_vae
from export.targets import TARGETS
from export.to_onnx import write_graphs
from export.versions import tool_versions
from runtime.engine import draw_noise
from runtime.manifest import Bucket, Golden, Latent, Manifest
from runtime.manifest import Checkpoint as CheckpointEntry
from runtime.tasks import TASKS

_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")
# At an opset older than the target's own, group norms are InstanceNormalization, which ONNX Runtime sums less exactly.
_OLDER_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What to build. `resolutions` are (height, width) in pixels, empty for the size the UNet was trained at; `output`
    None means `engines/<name>`; `opset` None means the target's own; `seed` draws the golden's noise (mode G), is the
    bundle's default noise seed, and draws the weights of `random/...` checkpoints; `fixed_noise` makes that noise part
    of the graph. `vae_encoder` and `vae_decoder` name small autoencoders whose halves stand in for the checkpoint's.
    Without `folds` the graph is the plain one, for comparison. `calibration` is a folder of images, None for rendered
    ones, of which the first `calibration_images` show what a lower precision cannot hold; `budget` and `policy` are for
    int8, see export/precision/int8.py."""

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
    vae_encoder: str | None = None
    vae_decoder: str | None = None
    overwrite: bool = False
    calibration: Path | None = None
    calibration_images: int = 8
    budget: float | None = None
    policy: Path | None = None
    command: str = ""


def build(settings: BuildSettings, progress: Callable[[str], None]) -> Path:
    """Build a bundle and return its path.

    Raises: CheckpointError, BuildError, VerificationError, OutputError; nothing is left behind then, but what a killed
    int8 search has measured (`.NAME.search` beside the bundle), for the next build of that name.
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
    int8 = _int8(settings)
    if settings.output is not None:  # before a download of gigabytes
        check_destination(settings.output, overwrite=settings.overwrite)
    checkpoint = load_checkpoint(settings.checkpoint, task=settings.task, seed=settings.seed, progress=progress)
    checkpoint = replace_vae(
        checkpoint, settings.vae_encoder, settings.vae_decoder, seed=settings.seed, progress=progress
    )
    manifest = _draft(settings, checkpoint)
    destination = settings.output or Path("engines") / manifest.name
    weight_bytes = 4 * sum(p.numel() for module in (checkpoint.unet, checkpoint.vae) for p in module.parameters())
    memory = destination.with_name(f".{destination.name}.search")
    copies = 1 + (len(manifest.buckets) if target.engine_suffix else 0)
    with staged(destination, overwrite=settings.overwrite, needed_bytes=weight_bytes * copies) as stage:
        write_golden(checkpoint, manifest, stage, progress)
        module = SinglePass(checkpoint, _fixed_noises(manifest))
        if settings.folds:
            precision = settings.precision
            folds = apply_folds(module, progress, target.upsampling[precision], precision in target.winograd)
            manifest = dataclasses.replace(manifest, folds=folds)
        ranges: Ranges = {}
        if target.int8_layers(settings.precision):
            ranges, quantisation = choose_int8(module, manifest, int8, stage, memory, progress)
            manifest = dataclasses.replace(manifest, quantisation=quantisation)
        write_graphs(module, manifest, stage, int8.calibration, progress, ranges)
        del checkpoint, module  # the engine builder and the golden run need the memory
        gc.collect()
        finish(stage, manifest, progress)
    shutil.rmtree(memory, ignore_errors=True)
    return destination


def _int8(settings: BuildSettings) -> Int8Settings:
    calibration = Calibration(count=settings.calibration_images, folder=settings.calibration)
    return Int8Settings(calibration=calibration, budget=settings.budget, policy=settings.policy)


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
    halves = {"encoder": checkpoint.small_encoder, "decoder": checkpoint.small_decoder}
    small = {
        half: CheckpointEntry(id=_public_id(vae.id), sha256=vae.sha256(half)) for half, vae in halves.items() if vae
    }
    words = [Path(identity).name, *_words(small), *map(str, buckets), settings.precision, settings.target]
    name = "-".join(words)
    opset = settings.opset or target.opset
    largest, mean = target.tolerance[settings.precision]
    if opset < target.opset:
        largest = max(largest, _OLDER_TOLERANCE)
    return Manifest(
        name=name,
        checkpoint=CheckpointEntry(id=identity, sha256=checkpoint.sha256()),
        mode=checkpoint.mode,
        tasks=[checkpoint.task],
        outputs={checkpoint.task: TASKS[checkpoint.task].meaning},
        precision=settings.precision,
        target=settings.target,
        opset=opset,
        buckets=buckets,
        latent=Latent(
            channels=checkpoint.vae.config.latent_channels,
            downscale=cell,
            scaling_factor=checkpoint.vae.config.scaling_factor,
        ),
        noise_seed=settings.seed,
        fixed_noise=settings.fixed_noise,
        folds=[],
        golden=Golden(file="golden.npz", tolerance=largest, mean_tolerance=mean, measured=[]),
        files=[],
        tools=tool_versions(_TOOLS),
        command=settings.command,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        vae_encoder=small.get("encoder"),
        vae_decoder=small.get("decoder"),
    )


def _words(small: dict[str, CheckpointEntry]) -> list[str]:
    """What a bundle's name says about its small autoencoders: `vae-taesd`, `encoder-taesd`, `decoder-taesd`."""
    names = {half: Path(entry.id).name for half, entry in small.items()}
    if len(names) == 2 and len(set(names.values())) == 1:
        names = {"vae": names["encoder"]}
    return [f"{half}-{name}" for half, name in names.items()]


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
