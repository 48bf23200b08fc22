"""The manifest: everything a bundle says about itself. The same dataclasses write and read `manifest.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DamagedBundleError, SchemaError, UnsafePathError
from runtime.tasks import TASKS, Task

SCHEMA = 3
# Of values in [0,1]; a proof with a wider mean proves nothing. In half precision and int8 single pixels may be far off.
LARGEST_TOLERANCE, LARGEST_MEAN_TOLERANCE = 0.8, 0.05
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the bundle: POSIX path relative to the bundle, size in bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where the weights came from, and the SHA-256 over their bytes."""

    id: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One static input size in pixels, with the ONNX graph and, for TensorRT flavours, the engine that serve it."""

    height: int
    width: int
    graph: str
    engine: str | None = None

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """`x = pixel * scale + offset` on RGB uint8; the network's layout is NCHW."""

    scale: float = 1 / 127.5
    offset: float = -1.0

    def apply(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [H,W,3] to the network's float32 [1,3,H,W]."""
        planes = rgb.transpose(2, 0, 1)[None].astype(np.float32)
        planes *= np.float32(self.scale)
        planes += np.float32(self.offset)
        return planes


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Latent channels, pixels per latent cell along each edge, and the scaling factor (all from the VAE's config)."""

    channels: int
    downscale: int
    scaling_factor: float


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """Who built the engine: flavour (`tensorrt`, `tensorrt-rtx`), exact version, device and builder settings."""

    flavour: str
    version: str
    compute_capability: str | None
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of the golden at build time: largest and mean absolute difference from the PyTorch reference, the worst
    over all buckets."""

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
class Quantisation:
    """How a bundle came to int8: the file with each layer's range and choice, the SHA-256 of the calibration images'
    pixels and their number, the budget and the distance that was measured (AbsRel after alignment, or degrees), and
    the multiply-adds that run in int8."""

    policy: str
    calibration_sha256: str
    images: int
    budget: float
    distance: float
    multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A bundle's description of itself.

    `mode` is "d" (regression) or "g" (generation, takes a noise tensor); `tasks` name the outputs and their order;
    `outputs` states in words what each means; `noise_seed` is the seed used when the caller names none (mode G), and
    with `fixed_noise` the only one: its noise is part of the graph. `folds` names the exact rewrites in the graph.
    `vae_encoder` and `vae_decoder` say what stands in for the halves of the checkpoint's autoencoder; None is its own.
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
    preprocess: Preprocess = field(default_factory=Preprocess)
    engine: EngineInfo | None = None
    quantisation: Quantisation | None = None
    vae_encoder: Checkpoint | None = None
    vae_decoder: Checkpoint | None = None

    def input_shapes(self, bucket: Bucket) -> dict[str, tuple[int, ...]]:
        """Shapes of the float32 inputs: `image` [1,3,H,W] and, unless mode G's is fixed, `noise` [1,C,H/8,W/8]."""
        shapes: dict[str, tuple[int, ...]] = {"image": (1, 3, bucket.height, bucket.width)}
        if self.mode == "g" and not self.fixed_noise:
            shapes["noise"] = self.noise_shape(bucket)
        return shapes

    def noise_shape(self, bucket: Bucket) -> tuple[int, ...]:
        """[1,C,H/8,W/8], what mode G's noise has."""
        cell = self.latent.downscale
        return (1, self.latent.channels, bucket.height // cell, bucket.width // cell)

    def output_shapes(self, bucket: Bucket) -> dict[str, tuple[int, ...]]:
        """Shapes of the float32 outputs: one `[1,channels,H,W]` for each task, named by the task."""
        return {name: (1, TASKS[name].channels, bucket.height, bucket.width) for name in self.tasks}

    @property
    def task(self) -> Task:
        """The first (today: the only) task."""
        return TASKS[self.tasks[0]]

    def save(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`; the text carries its own checksum, so that no flipped bit goes unseen.

        Raises: OSError.
        """
        body = {"schema": SCHEMA, **dataclasses.asdict(self)}
        body["manifest_sha256"] = _checksum(body)
        (folder / MANIFEST).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check a bundle's manifest: schema, types, values, paths, presence and sizes of all files.

        Raises: SchemaError, UnsafePathError, DamagedBundleError.
        """
        body = _read_json(folder)
        if type(body.get("schema")) is not int or body["schema"] != SCHEMA:
            raise SchemaError(
                f"{folder / MANIFEST} has schema {body.get('schema')!r}; this runtime reads schema {SCHEMA}. "
                "Use the lotus-edge release that built the bundle, or build the bundle again."
            )
        checksum = body.pop("manifest_sha256", None)
        actual = _checksum(body)
        body.pop("schema")
        manifest: Manifest = _parse(cls, body, MANIFEST)
        _check_values(manifest)
        for file in manifest.files:
            _check_file(folder, file)
        if checksum != actual:
            raise DamagedBundleError(
                f"{folder / MANIFEST} was changed after it was written: it carries checksum {checksum!r} and its "
                f"content has {actual!r}. Copy or build the bundle again."
            )
        return manifest

    def check_contents(self, folder: Path) -> None:
        """Compare the SHA-256 of every file with the manifest. Raises: DamagedBundleError."""
        for file in self.files:
            found = sha256_of(folder / file.path)
            if found != file.sha256:
                raise DamagedBundleError(
                    f"{folder / file.path} is damaged: SHA-256 is {found}, the manifest says {file.sha256}. "
                    "Copy or build the bundle again."
                )


def describe_file(folder: Path, path: str) -> File:
    """The manifest's entry for a file that lies in `folder`. Raises: OSError."""
    return File(path=path, bytes=(folder / path).stat().st_size, sha256=sha256_of(folder / path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex. Raises: DamagedBundleError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise DamagedBundleError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SchemaError(
            f"{folder} is not a bundle: it has no {MANIFEST}. "
            "Build one with `python export/build_engine.py CHECKPOINT`."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise SchemaError(f"cannot read {path}: {error}. Copy or build the bundle again.") from error
    if not isinstance(body, dict):
        raise SchemaError(f"{path} holds {type(body).__name__}, not an object. Copy or build the bundle again.")
    return body


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` (from JSON) as `kind`: a dataclass of this module, list[...], dict[str, ...], X | None or a scalar."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: expected an object, found {value!r}")
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            odd = sorted(set(value) ^ set(hints))
            raise SchemaError(f"{where}: missing or unknown fields {odd}; schema {SCHEMA} has {sorted(hints)}")
        return kind(**{name: _parse(hint, value[name], f"{where}: {name}") for name, hint in hints.items()})  # type: ignore[operator]
    if origin is list and isinstance(value, list):
        return [_parse(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is types.UnionType:
        return None if value is None else _parse(arguments[0], value, where)
    if kind is Any:
        return value
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if not isinstance(kind, type) or type(value) is not kind:
        raise SchemaError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {value!r}")
    return value


def _check_values(manifest: Manifest) -> None:
    """Refuse a manifest whose parts contradict each other. Raises: SchemaError, UnsafePathError."""
    listed = {file.path for file in manifest.files}
    named = {manifest.golden.file, *(bucket.graph for bucket in manifest.buckets)}
    named |= {bucket.engine for bucket in manifest.buckets if bucket.engine is not None}
    named |= {manifest.quantisation.policy} if manifest.quantisation is not None else set()
    for path in sorted(listed | named):
        pure = PurePosixPath(path)
        odd = pure.is_absolute() or ".." in pure.parts or path in ("", ".") or any(c in path for c in "\\:\0")
        if odd or not path.isprintable() or len(path) > 255:
            raise UnsafePathError(f"{MANIFEST}: the path {path!r} leads outside the bundle; paths must be relative")
    cell = manifest.latent.downscale
    problems = [
        *(f"file {path!r} is used but not listed in `files`" for path in sorted(named - listed)),
        *(f"unknown task {task!r}; known: {sorted(TASKS)}" for task in manifest.tasks if task not in TASKS),
        *(f"bucket {b} is not a positive multiple of {cell}" for b in manifest.buckets if not _fits(b, cell)),
    ]
    if manifest.mode not in ("d", "g"):
        problems.append(f"unknown mode {manifest.mode!r}; known: 'd', 'g'")
    if not manifest.buckets or not manifest.tasks:
        problems.append("a bundle needs at least one bucket and one task")
    for field_name, largest in (("tolerance", LARGEST_TOLERANCE), ("mean_tolerance", LARGEST_MEAN_TOLERANCE)):
        if not 0 < (found := getattr(manifest.golden, field_name)) <= largest:
            problems.append(f"golden.{field_name} must lie in (0, {largest}], found {found!r}")
    for what, items in (
        ("buckets", [str(bucket) for bucket in manifest.buckets]),
        ("tasks", manifest.tasks),
        ("files", [file.path for file in manifest.files]),
    ):
        if len(set(items)) < len(items):
            problems.append(f"`{what}` names something twice: {items}")
    if set(manifest.outputs) != set(manifest.tasks):
        problems.append(f"`outputs` describes {sorted(manifest.outputs)}, the tasks are {manifest.tasks}")
    constants = (manifest.preprocess.scale, manifest.preprocess.offset, manifest.latent.scaling_factor)
    if not np.isfinite(constants).all() or manifest.latent.channels < 1 or manifest.noise_seed < 0:
        problems.append("constants must be finite, latent.channels positive and noise_seed not negative")
    if problems:
        raise SchemaError(f"{MANIFEST}: {'; '.join(problems)}. Build the bundle again.")


def _fits(bucket: Bucket, cell: int) -> bool:
    return cell > 0 and all(edge > 0 and edge % cell == 0 for edge in (bucket.height, bucket.width))


def _check_file(folder: Path, file: File) -> None:
    path = folder / file.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafePathError(f"{path} is a link that leads outside the bundle")
    if not path.is_file():
        raise DamagedBundleError(f"{path} is missing. Copy or build the bundle again.")
    size = path.stat().st_size
    if size != file.bytes:
        raise DamagedBundleError(
            f"{path} has {size} bytes, the manifest says {file.bytes}: the copy was cut short or the file was changed. "
            "Copy or build the bundle again."
        )
