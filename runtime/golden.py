"""The golden sample: what proves a bundle on the machine at hand. Needs NumPy only."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from runtime.backends.session import Session
from runtime.errors import DamagedBundleError, VerificationError
from runtime.files import read_bounded
from runtime.manifest import Golden, Manifest, Shape
from runtime.tasks import TASKS

_ROOM = 1 << 20  # bytes of an archive beside its arrays


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A golden run on this machine: how far each bucket is from the PyTorch reference."""

    backend: str
    tolerance: float
    errors: dict[str, GoldenError]


@dataclass(frozen=True, kw_only=True)
class GoldenError:
    """Largest and mean absolute difference from the PyTorch reference."""

    largest: float
    mean: float

    def __str__(self) -> str:
        return f"{self.largest:.2e} (mean {self.mean:.2e})"


def golden_error(session: Session) -> GoldenError:
    """The difference between the session's answers to its bucket's golden and the PyTorch
    reference.

    Raises: DamagedBundleError, BackendError.
    """
    manifest = session.manifest
    golden = _read(session)
    feeds = {"image": manifest.preprocess.apply(golden["image"])}
    if "noise" in golden:
        feeds["noise"] = golden["noise"]
    # Twice where later runs replay a captured graph: it must be right too.
    answers = [session(feeds) for _ in range(2 if session.backend.replays else 1)]
    differences = [
        np.abs(answer[task][0] - golden[task]) for answer in answers for task in manifest.tasks
    ]
    return GoldenError(
        largest=max(float(difference.max()) for difference in differences),
        mean=max(float(difference.mean(dtype=np.float64)) for difference in differences),
    )


def worst(errors: dict[str, GoldenError]) -> GoldenError:
    """The largest of each number over the buckets."""
    return GoldenError(
        largest=max(error.largest for error in errors.values()),
        mean=max(error.mean for error in errors.values()),
    )


def check_tolerance(errors: dict[str, GoldenError], backend: str, golden: Golden) -> Verification:
    """Accept the errors (by bucket). Raises: VerificationError when one is beyond the tolerance."""
    error = worst(errors)
    if not (error.largest <= golden.tolerance and error.mean <= golden.mean_tolerance):
        by_bucket = {bucket: str(error) for bucket, error in errors.items()}
        raise VerificationError(
            f"backend {backend!r} answers the golden sample wrong on this machine: it differs "
            f"from the PyTorch reference by {by_bucket} (absolute differences by bucket), the "
            f"tolerance is {golden.tolerance:g} (mean {golden.mean_tolerance:g}). Do not use this "
            "bundle here: update the driver or the inference library, build the bundle on this "
            "machine, or take another backend."
        )
    return Verification(backend=backend, tolerance=golden.tolerance, errors=errors)


def _read(session: Session) -> dict[str, NDArray[Any]]:
    """`image` uint8 [H,W,3], `noise` (where it is an input) and each task's float32 [C,H,W].

    How large each must be is known before it is read: an archive of few bytes can unpack to many.
    """
    manifest, bucket = session.manifest, session.bucket
    path = session.folder / manifest.golden.file
    expected: dict[str, tuple[str, Shape]] = {"image": ("uint8", (bucket.height, bucket.width, 3))}
    expected |= {
        name: ("float32", shape) for name, shape in session.input_shapes.items() if name == "noise"
    }
    expected |= {name: ("float32", shape[1:]) for name, shape in session.output_shapes.items()}
    try:
        content = read_bounded(path, _largest(manifest))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {
                name: _read_array(archive, f"{name}_{bucket}", *kind)
                for name, kind in expected.items()
            }
    except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged archives
        raise DamagedBundleError(
            f"cannot read the golden {path}: {error}. Build the bundle again."
        ) from error


def _largest(manifest: Manifest) -> int:
    """Bytes that a golden of these buckets may have, with room for more arrays."""
    pixels = sum(bucket.height * bucket.width for bucket in manifest.buckets)
    channels = manifest.latent.channels + sum(TASKS[name].channels for name in manifest.tasks)
    return _ROOM + pixels * 2 * (3 + channels * 4)


def _read_array(archive: zipfile.ZipFile, name: str, dtype: str, shape: Shape) -> NDArray[Any]:
    """One array of a `.npz` archive, of this type and shape. Raises: ValueError and others."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    entry = archive.getinfo(f"{name}.npy")
    # Python reads these two piece by piece; of the others a few bytes may unpack to many at once.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in a way that is not read")
    with archive.open(entry) as stream:
        readers = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
        found, fortran, kind = readers[read_magic(stream)](stream)
        if (kind, found, fortran) != (np.dtype(dtype), shape, False):
            raise ValueError(f"{name} is {kind.name} {list(found)}, expected {dtype} {list(shape)}")
        content = stream.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{name} has not {size} bytes")
    array = np.frombuffer(content, dtype).reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return array
