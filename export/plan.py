"""Everything that is decided before work starts: a request becomes a plan, checked in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.bundle.write import check_destination, with_name
from export.embedded import embedded_checkpoints
from export.errors import BuildError
from export.families import Family
from export.network.autoencoder import SmallVaeDescription, describe_small_vae
from export.network.checkpoint import Description, describe
from export.network.parts import is_whole
from export.plan_checks import buckets_of, check_int8, check_unused, limits_of, size_words
from export.quantize.calibration import Calibration
from export.settings import BuildSettings
from export.targets import TARGETS, Recipe, Target
from runtime.manifest import Bucket, Latent, Preprocess, Shape, input_shapes, noise_shape
from runtime.memory import estimate_needs
from runtime.tasks import Task
from runtime.there import exists

# At an opset older than the target's own, group norms are InstanceNormalization, which ONNX Runtime
# sums less exactly.
_OLDER_TOLERANCE = 1e-3
_UNKNOWN = "not known before the download"
# Peak memory of a build, fitted to the rows full-size-*.json in benchmarks/results (8.6 GB for
# 3.8 GB of fp32 weights; with an engine 14.7 GB in fp32 and 11.7 GB in fp16) and to a tiny build
# (0.6 GB).
_LIBRARY_BYTES, _BUILD_FACTOR, _ENGINE_FACTOR = 0.6e9, 2.1, 1.6
# The decoder's widest block is where most activations are alive: four maps of its channels.
_FULL_MAPS, _SMALL_CHANNELS = 4, 64
_STORED = {"fp16": ("float16", 2), "bf16": ("bfloat16", 2)}  # type and bytes of a weight


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A build, decided and checked; no weight is loaded yet.

    `checkpoints` are one for each task; they share the autoencoder, which is the first one's.
    `budgets` are the limits of
    an int8 build by task, each in its unit. `opset` is that of the files, where it has all that
    is left of the graph. `asked_precision` is what was asked for, where the target builds another
    `precision` instead.
    """

    checkpoints: tuple[Description, ...]
    encoder: SmallVaeDescription | None
    decoder: SmallVaeDescription | None
    target: Target
    precision: str
    asked_precision: str
    traced_opset: int
    opset: int
    buckets: tuple[Bucket, ...]
    noise_seed: int
    fixed_noise: bool
    engine: bool
    folds: bool
    calibration: Calibration
    budgets: Mapping[str, float]
    policy: Path | None
    name: str
    output: Path
    overwrite: bool
    command: str
    preprocess: Preprocess = field(default_factory=Preprocess)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted, in the order of the network's answers."""
        return tuple(checkpoint.task for checkpoint in self.checkpoints)

    @property
    def takes_noise(self) -> bool:
        """Whether an answer depends on noise."""
        return any(checkpoint.family.takes_noise for checkpoint in self.checkpoints)

    @property
    def recipe(self) -> Recipe:
        """What the target builds in this precision."""
        return self.target.recipe(self.precision)

    @property
    def latent(self) -> Latent:
        """Channels and scale of the latent."""
        return self.checkpoints[0].latent

    @property
    def noise_is_input(self) -> bool:
        """Whether the graph takes noise."""
        return self.takes_noise and not self.fixed_noise

    @property
    def search_cache(self) -> Path:
        """The folder beside the bundle where measurements of a killed int8 search wait."""
        return self.output.with_name(f".{self.output.name}.search")

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in fp32; 0 where they must be downloaded to know."""
        own = sum(checkpoint.parameters for checkpoint in self.checkpoints)
        shared = sum(checkpoint.vae_parameters for checkpoint in self.checkpoints[1:])
        return 4 * (own - shared)

    @property
    def copies(self) -> int:
        """How often the weights lie in the bundle: in the graph's file, and in each engine."""
        return 1 + (len(self.buckets) if self.engine else 0)

    @property
    def disk_bytes(self) -> int:
        """What the bundle takes at most, in the types of its graph; int8 may take less."""
        return self.disk_need(self.weight_bytes)

    @property
    def memory_bytes(self) -> int:
        """What the build takes at its peak, about."""
        engine = self._typed_bytes * _ENGINE_FACTOR if self.engine else 0
        return round(_LIBRARY_BYTES + self.weight_bytes * _BUILD_FACTOR + engine)

    @property
    def opened_bytes(self) -> int | None:
        """What opening the largest bucket and predicting takes, about, with the target's own
        backend; None where that was never measured.
        """
        kind, size = _STORED.get(self.recipe.stored or self.recipe.half or "", ("float32", 4))
        if self.recipe.quantizes_layers:
            kind, size = "int8", 1
        pixels = max(each.height * each.width * each.answers for each in self.buckets)
        channels = _SMALL_CHANNELS if self.decoder else self.checkpoints[0].vae_channels
        activations = _FULL_MAPS * pixels * channels * 4
        return estimate_needs({kind: self.weight_bytes // 4 * size}, activations, self.target.name)

    def disk_need(self, weight_bytes: int) -> int:
        """What a bundle takes at most of weights of so many bytes in fp32."""
        return round(weight_bytes * self._share * self.copies)

    @property
    def _typed_bytes(self) -> float:
        return self.weight_bytes * self._share

    @property
    def _share(self) -> float:
        """Bytes of the weights as they are stored, by those of fp32; int8 may take less."""
        return 0.5 if self.recipe.half or self.recipe.stored else 1.0

    def input_shapes(self, bucket: Bucket) -> dict[str, Shape]:
        """Shapes of the graph's float32 inputs."""
        return input_shapes(bucket, self.latent, noise=self.noise_is_input)

    def noise_shape(self, bucket: Bucket) -> Shape:
        """[1,C,h,w], the noise of mode G."""
        return noise_shape(bucket, self.latent)

    def lines(self) -> Iterator[str]:
        """What will be built, for a person: `--dry-run` prints it."""
        recipe, small = self.recipe, {"encoder": self.encoder, "decoder": self.decoder}
        rows = {
            **self._checkpoint_rows(),
            **{half: vae.public_id for half, vae in small.items() if vae is not None},
            "sizes": ", ".join(map(str, self.buckets)),
            "inputs": ", ".join(self.input_shapes(self.buckets[0])),
            "target": f"{self.target.name}, ONNX opset {self.opset}",
            "precision": f"{self.precision}: {recipe.graph_types} in the graph"
            + (f" (asked for {self.asked_precision})" if self._falls_back else ""),
            "folds": "all that apply" if self.folds else "none: the plain graph",
            "engine": self._engine_words(),
            "tolerance": "{:g} at most, {:g} in the mean".format(*self.tolerance),
            "calibration": str(self.calibration) if recipe.half or recipe.int8 else "-",
            "int8": self._int8_words() if recipe.quantizes_layers else "-",
            "output": f"{self.output}{' (replaces an old bundle)' if exists(self.output) else ''}",
            "disk": f"{self.disk_bytes / 1e9:.2f} GB at most" if self.weight_bytes else _UNKNOWN,
            "memory": f"about {self.memory_bytes / 1e9:.1f} GB (measured at 512x512)"
            if self.weight_bytes
            else _UNKNOWN,
            "opened": self._opened_words(),
        }
        for label, text in rows.items():
            yield f"{label:<13}{text}"

    def _engine_words(self) -> str:
        if self.target.build is None:
            return "-"
        return (
            f"by {self.target.name}, or left to the device" if self.engine else "left to the device"
        )

    def _opened_words(self) -> str:
        if not self.weight_bytes:
            return _UNKNOWN
        if (opened := self.opened_bytes) is None:
            return f"never measured with {self.target.name}"
        return f"about {opened / 1e9:.2f} GB of memory with {self.target.name}"

    def _checkpoint_rows(self) -> dict[str, str]:
        rows: dict[str, str] = {}
        for number, checkpoint in enumerate(self.checkpoints, 1):
            end = f" {number}" if len(self.checkpoints) > 1 else ""
            rows |= {
                f"checkpoint{end}": f"{checkpoint.public_id} ({checkpoint.family.name})",
                f"licence{end}": checkpoint.family.licence,
                **_note(checkpoint.family, end),
                f"task{end}": f"{checkpoint.task.name}: {checkpoint.task.meaning}",
            }
        return rows

    @property
    def tolerance(self) -> tuple[float, float]:
        """The golden's: largest and mean absolute difference."""
        largest, mean = self.recipe.tolerance
        older = self.traced_opset < self.target.opset
        return max(largest, _OLDER_TOLERANCE if older else 0.0), mean

    @property
    def _falls_back(self) -> bool:
        return self.precision != self.asked_precision

    @property
    def fallback_remark(self) -> str | None:
        """Why another precision is built than was asked for."""
        if not self._falls_back:
            return None
        return (
            f"{self.target.name} has no kernels for {self.asked_precision} on the CPU: the bundle "
            f"will be {self.precision}"
        )

    def _int8_words(self) -> str:
        if self.policy is not None:
            return f"layers as in {self.policy.name}"
        limits = (f"{self.budgets[task.name]:g} {task.error_unit}" for task in self.tasks)
        return f"as many layers as fit an error of {' and '.join(limits)}"


def make_plan(settings: BuildSettings) -> Plan:
    """Decide and check everything that can be checked before a weight is loaded.

    Raises: BuildError, CheckpointError.
    """
    try:
        return _decide(settings)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise BuildError(f"a file or folder of this build cannot be used: {error}") from error


def _decide(settings: BuildSettings) -> Plan:
    """Raises: BuildError, CheckpointError, OSError."""
    if settings.target not in TARGETS:
        raise BuildError(f"unknown target {settings.target!r}; known: {sorted(TARGETS)}")
    target = TARGETS[settings.target]
    precision = target.fallback_precision.get(settings.precision, settings.precision)
    recipe = target.recipe(precision)
    calibration = Calibration(count=settings.calibration_images, folder=settings.calibration)
    check_int8(settings)
    if settings.calibration is None and (recipe.half or recipe.int8):
        embedded_checkpoints()  # the scenes to calibrate with lie beside them
    if settings.output is not None:  # before a download of gigabytes
        check_destination(settings.output, overwrite=settings.overwrite)
    checkpoints = _describe(settings)
    checkpoint = checkpoints[0]
    if settings.fixed_noise and not any(each.family.takes_noise for each in checkpoints):
        names = " and ".join(repr(each.id) for each in checkpoints)
        raise BuildError(f"{names} is of mode D: it has no noise to fix")
    takes_noise = any(each.family.takes_noise for each in checkpoints)
    if settings.ensemble > 1 and (settings.fixed_noise or not takes_noise):
        why = "--fixed-noise leaves one noise" if takes_noise else "mode D takes no noise"
        raise BuildError(f"an ensemble of {settings.ensemble} has a noise for each answer: {why}")
    encoder, decoder = (
        None if name is None else describe_small_vae(name, checkpoint)
        for name in (settings.vae_encoder or settings.vae, settings.vae_decoder or settings.vae)
    )
    buckets = buckets_of(settings, checkpoint)
    words = [
        *(Path(each.public_id).name for each in checkpoints),
        *(*_vae_words(encoder, decoder), *size_words(buckets), precision, target.name),
    ]
    name = "-".join(words)
    traced_opset = settings.opset or target.opset
    output = with_name(settings.output or Path("engines") / name)
    check_destination(output, overwrite=settings.overwrite)
    budgets = limits_of(settings, checkpoints)
    check_unused(settings, target, recipe)
    return Plan(
        checkpoints=checkpoints,
        encoder=encoder,
        decoder=decoder,
        target=target,
        precision=precision,
        asked_precision=settings.precision,
        traced_opset=traced_opset,
        opset=settings.opset or recipe.opset or traced_opset,
        buckets=buckets,
        noise_seed=settings.seed,
        fixed_noise=settings.fixed_noise,
        engine=settings.engine and target.build is not None,
        folds=settings.folds,
        calibration=calibration,
        budgets=budgets,
        policy=settings.policy,
        name=name,
        output=output,
        overwrite=settings.overwrite,
        command=settings.command,
    )


def _note(family: Family, end: str) -> dict[str, str]:
    return {} if family.remark is None else {f"note{end}": family.remark}


def _describe(settings: BuildSettings) -> tuple[Description, ...]:
    """The checkpoints, of different tasks and with the same latents. Raises: BuildError,
    CheckpointError.
    """
    names = (settings.checkpoint, *settings.beside)
    tasks: Sequence[str | None] = settings.task.split(",") if settings.task else [None] * len(names)
    if len(tasks) != len(names):
        raise BuildError(
            f"--task names {', '.join(map(str, tasks))} for {len(names)} checkpoints: name one "
            "task for each, in their order"
        )
    families = settings.family.split(",") if settings.family else [None]
    if len(families) not in (1, len(names)):
        raise BuildError(
            f"--family names {', '.join(map(str, families))} for {len(names)} checkpoints: name "
            "one for all, or one for each, in their order"
        )
    families = families * len(names) if len(families) == 1 else families
    if settings.base is not None and len(names) > 1 and all(map(is_whole, names)):
        raise BuildError("each checkpoint is a whole one, which needs no --base: leave it out")
    checkpoints = tuple(
        describe(
            name,
            task=task,
            family=family,
            # One that is whole needs none of it; alone it is refused with a base.
            base=None if len(names) > 1 and is_whole(name) else settings.base,
        )
        for name, task, family in zip(names, tasks, families, strict=True)
    )
    predicted = [checkpoint.task.name for checkpoint in checkpoints]
    if len(set(predicted)) < len(predicted):
        raise BuildError(
            f"the checkpoints predict {', '.join(predicted)}: a bundle holds each task once. Build "
            "a bundle of each, or say with --task what they predict"
        )
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.latent != first.latent:
            raise BuildError(
                f"{first.id!r} and {other.id!r} cannot share an encoder and a decoder: their "
                f"latents differ ({first.latent}, {other.latent}). Build a bundle of each"
            )
    return checkpoints


def _vae_words(
    encoder: SmallVaeDescription | None, decoder: SmallVaeDescription | None
) -> list[str]:
    """What a name says of small autoencoders: `vae-taesd`, `encoder-taesd`, `decoder-taesd`."""
    halves = {"encoder": encoder, "decoder": decoder}
    names = {half: Path(vae.public_id).name for half, vae in halves.items() if vae is not None}
    if len(names) == 2 and len(set(names.values())) == 1:
        names = {"vae": names["encoder"]}
    return [f"{half}-{name}" for half, name in names.items()]
