"""The manifest: everything a bundle says about itself.

The same dataclasses write and read `manifest.json`; docs/bundle-format.md describes it in words.
A field with a default is optional in the file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DamagedBundleError, SchemaError
from runtime.files import File, check_content, check_presence, describe_file, sha256_of
from runtime.loops import Loops
from runtime.manifest_check import (
    LARGEST_MEAN_TOLERANCE,
    LARGEST_TOLERANCE,
    check_paths,
    check_values,
)
from runtime.manifest_json import (
    BATCHES,
    MANIFEST,
    NOISES,
    OLDEST_SCHEMA,
    SCHEMA,
    check_requires,
    checksum,
    parse,
    read_json,
    upgrade,
)
from runtime.tasks import TASKS

__all__ = [
    "LARGEST_MEAN_TOLERANCE",
    "LARGEST_TOLERANCE",
    "MANIFEST",
    "OLDEST_SCHEMA",
    "SCHEMA",
    "Bucket",
    "Checkpoint",
    "EngineInfo",
    "File",
    "Golden",
    "Latent",
    "Manifest",
    "Measured",
    "Memory",
    "Preprocess",
    "Quantisation",
    "Source",
    "Spent",
    "describe_file",
    "input_shapes",
    "noise_shape",
    "output_shapes",
    "required_features",
    "sha256_of",
]

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where the weights came from, and the SHA-256 over their bytes."""

    id: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the network of one task came from; `family` and `licence` as in `Manifest`."""

    checkpoint: Checkpoint
    family: str = ""
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One static input size in pixels, with the ONNX graph and, for TensorRT flavours, the engine
    that serve it. They answer `batch` pictures at once, or one picture with `noises` noises, which
    is encoded once.
    """

    height: int
    width: int
    graph: str
    engine: str | None = None
    batch: int = 1
    noises: int = 1

    def __str__(self) -> str:
        """512x512; 4x512x512 with a batch of 4, and 512x512-noises8 with 8 noises."""
        batch = f"{self.batch}x" if self.batch > 1 else ""
        noises = f"-noises{self.noises}" if self.noises > 1 else ""
        return f"{batch}{self.height}x{self.width}{noises}"

    @property
    def answers(self) -> int:
        """Maps of each task that one run gives. One of `batch` and `noises` is 1."""
        return self.batch * self.noises


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """`x = pixel * scale + offset` on RGB uint8; the network's layout is NCHW."""

    scale: float = 1 / 127.5
    offset: float = -1.0

    def apply(self, rgb: NDArray[np.uint8], loops: Loops | None = None) -> NDArray[np.float32]:
        """RGB uint8 [N,H,W,3], or [H,W,3] for N = 1, to the network's float32 [N,3,H,W]."""
        pictures = rgb.reshape(-1, *rgb.shape[-3:])
        if loops is not None and pictures.dtype == np.uint8:
            count, height, width = pictures.shape[:3]
            made = np.empty((count, 3, height, width), np.float32)
            flat = np.ascontiguousarray(pictures).reshape(count, -1, 3)
            loops.normalise(flat, self.scale, self.offset, made.reshape(count, 3, -1))
            return made
        # In the order of the layout that its shape says: PyTorch sums in another order otherwise.
        planes: NDArray[np.float32] = pictures.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        planes *= np.float32(self.scale)
        planes += np.float32(self.offset)
        return planes


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Latent channels, pixels per latent cell along each edge, and the scaling factor (all from the
    VAE's config).
    """

    channels: int
    downscale: int
    scaling_factor: float


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """Who built the engine: flavour (`tensorrt`, `tensorrt-rtx`), exact version, device and builder
    settings.
    """

    flavour: str
    version: str
    compute_capability: str | None
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of the golden at build time: largest and mean absolute difference from the PyTorch
    reference, the worst over all buckets.
    """

    backend: str
    max_abs_error: float
    mean_abs_error: float


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The proof in the bundle: per bucket an input and the reference's answer, in one `.npz`.

    `tolerance` bounds the largest absolute difference, `mean_tolerance` its mean over all pixels.
    """

    file: str
    tolerance: float
    mean_tolerance: float
    measured: list[Measured]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What int8 costs one task, and what it may cost; see `Quantisation`."""

    max_error: float
    error: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """How a bundle came to int8.

    `policy` is the file with each layer's range and choice; `calibration_sha256` the SHA-256 of
    the pixels of the calibration images, and `images` their number. `error` is what was measured
    on them, `max_error` the limit that was asked for, both in `unit` (the task's `error_unit`).
    `multiply_adds` run in int8. `error` is that of the first task; `beside` has the others'.
    `fits_16_bits`: two neighbouring weights are together at most 128, so that no kernel that adds
    products in 16 bits saturates.
    """

    policy: str
    calibration_sha256: str
    images: int
    max_error: float
    error: float
    unit: str
    multiply_adds: int
    beside: dict[str, Spent] = field(default_factory=dict)
    fits_16_bits: bool = False


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What decides how much memory a bundle takes: bytes of its weights by type, as they are
    stored, and for each bucket the bytes of activations that are alive at once.
    """

    weights: dict[str, int]
    activations: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A bundle's description of itself.

    `mode` is "d" (regression) or "g" (generation, takes a noise tensor), "g" too if only one task
    does; all share it. `family` names the kind of network ("lotus-d", "lotus-g"; "" unknown).
    `tasks` name the outputs and their order; `outputs` states in words what each means.
    `checkpoint`, `family` and `licence` are those of the first task, and `beside` has those of
    each other task. `noise_seed` is the seed used when the caller names
    none (mode G), and with `fixed_noise` the only one: its noise is part of the graph. `folds`
    names the exact rewrites in the graph. `vae_encoder` and `vae_decoder` say what stands in for
    the halves of the checkpoint's autoencoder; None is its own. `licence` is that of the weights.
    `requires` names the features that a reader must know. `memory` is None where it is not known.
    """

    name: str
    checkpoint: Checkpoint
    mode: str
    tasks: list[str]
    outputs: dict[str, str]
    precision: str
    target: str
    opset: int
    buckets: list[Bucket]
    latent: Latent
    noise_seed: int
    fixed_noise: bool
    folds: list[str]
    golden: Golden
    files: list[File]
    tools: dict[str, str]
    command: str
    created: str
    family: str = ""
    licence: str | None = None
    requires: list[str] = field(default_factory=list)
    preprocess: Preprocess = field(default_factory=Preprocess)
    engine: EngineInfo | None = None
    quantisation: Quantisation | None = None
    vae_encoder: Checkpoint | None = None
    vae_decoder: Checkpoint | None = None
    beside: dict[str, Source] = field(default_factory=dict)
    memory: Memory | None = None

    @property
    def may_saturate(self) -> bool:
        """Whether it has int8 layers that are not known to fit kernels which add in 16 bits."""
        return self.quantisation is not None and not self.quantisation.fits_16_bits

    @property
    def sources(self) -> dict[str, Source]:
        """Where the network of each task came from, in the order of `tasks`."""
        first = Source(checkpoint=self.checkpoint, family=self.family, licence=self.licence)
        return {self.tasks[0]: first, **{task: self.beside[task] for task in self.tasks[1:]}}

    def input_shapes(self, bucket: Bucket) -> dict[str, Shape]:
        """As the function `input_shapes`, for this bundle."""
        return input_shapes(bucket, self.latent, noise=self.mode == "g" and not self.fixed_noise)

    def noise_shape(self, bucket: Bucket) -> Shape:
        """[1,C,H/8,W/8], the noise of one picture in mode G."""
        return noise_shape(bucket, self.latent)

    def output_shapes(self, bucket: Bucket) -> dict[str, Shape]:
        """As the function `output_shapes`, for this bundle."""
        return output_shapes(bucket, self.tasks)

    def files_of(self, bucket: Bucket) -> list[File]:
        """What opening this bucket reads: all listed files but those of other buckets."""
        others = {name for other in self.buckets for name in (other.graph, other.engine)}
        others -= {bucket.graph, bucket.engine}
        return [file for file in self.files if file.path not in others]

    @cached_property
    def checksum(self) -> str:
        """SHA-256 in hex over all that the manifest says, the files' checksums among it."""
        return checksum({"schema": SCHEMA, **dataclasses.asdict(self)})

    def save(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`; the text carries its own checksum, so that no
        flipped bit goes unseen.

        Raises: OSError.
        """
        body = {"schema": SCHEMA, **dataclasses.asdict(self), "manifest_sha256": self.checksum}
        (folder / MANIFEST).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check a bundle's manifest: schema, types, values, paths, presence and sizes of
        all files.

        Raises: SchemaError, UnsafePathError, DamagedBundleError.
        """
        manifest = cls.read(folder)
        for file in manifest.files:
            check_presence(folder, file)
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """As `load`, without a look at the other files. Raises: SchemaError, UnsafePathError,
        DamagedBundleError.
        """
        path = folder / MANIFEST
        body = read_json(folder)
        try:
            return cls._parsed(body, path)
        except RecursionError as error:
            raise SchemaError(f"{path} is nested too deeply. Build the bundle again.") from error

    @classmethod
    def _parsed(cls, body: dict[str, Any], path: Path) -> Manifest:
        carried = body.pop("manifest_sha256", None)
        actual = checksum(body)
        body = upgrade(body, path)
        check_requires(body.get("requires", []), (f.name for f in dataclasses.fields(cls)), path)
        manifest: Manifest = parse(cls, body, MANIFEST)
        check_paths(manifest)
        check_values(manifest)
        if carried != actual:
            raise DamagedBundleError(
                f"{path} was changed after it was written: it carries checksum {carried!r} and "
                f"its content has {actual!r}. Copy or build the bundle again."
            )
        manifest.checksum  # noqa: B018  (kept from here on: what it cannot go through is refused)
        return manifest

    def check_contents(self, folder: Path) -> None:
        """Compare the SHA-256 of every file with the manifest. Raises: DamagedBundleError."""
        for file in self.files:
            check_content(folder, file)


def required_features(manifest: Manifest) -> list[str]:
    """What belongs into `requires`: without it a reader would answer for one task of several, or
    feed one picture or one noise to a graph that takes more.
    """
    features = {
        "beside": bool(manifest.beside),
        BATCHES: any(bucket.batch > 1 for bucket in manifest.buckets),
        NOISES: any(bucket.noises > 1 for bucket in manifest.buckets),
    }
    return [name for name, needed in features.items() if needed]


def input_shapes(bucket: Bucket, latent: Latent, *, noise: bool) -> dict[str, Shape]:
    """Shapes of the float32 inputs: `image` [N,3,H,W] and, with `noise`, `noise` [M,C,H/8,W/8],
    where N is the bucket's batch and M the number of its answers.
    """
    shapes: dict[str, Shape] = {"image": (bucket.batch, 3, bucket.height, bucket.width)}
    if noise:
        shapes["noise"] = (bucket.answers, *noise_shape(bucket, latent)[1:])
    return shapes


def noise_shape(bucket: Bucket, latent: Latent) -> Shape:
    """[1,C,H/8,W/8], the shape of one picture's latent."""
    height, width = bucket.height // latent.downscale, bucket.width // latent.downscale
    return (1, latent.channels, height, width)


def output_shapes(bucket: Bucket, tasks: Iterable[str]) -> dict[str, Shape]:
    """Shapes of the float32 outputs: one [M,channels,H,W] for each task, named by the task; M is
    the number of the bucket's answers.
    """
    size = (bucket.height, bucket.width)
    return {name: (bucket.answers, TASKS[name].channels, *size) for name in tasks}
