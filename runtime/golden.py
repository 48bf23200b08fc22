"""The golden sample: what proves a bundle on the machine at hand. Needs NumPy only."""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
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
_LONGEST_HEADER = 1000  # characters of an array's; Python's parser runs out of memory on odd ones
_ELSEWHERE = 1e-3  # least bound of the largest difference on another backend than the target's


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A golden run on this machine: how far each bucket is from the PyTorch reference."""

    backend: str
    tolerance: float
    errors: dict[str, GoldenError]


@dataclass(frozen=True, kw_only=True)
class GoldenError:
    """Largest and mean absolute difference from the PyTorch reference.

    Of the worst task where a bundle has several; `by_task` has those of each then.
    """

    largest: float
    mean: float
    by_task: dict[str, GoldenError] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.by_task:
            return ", ".join(f"{task} {error}" for task, error in self.by_task.items())
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
    by_task = {
        task: _largest_of(_difference(answer[task], golden[task]) for answer in answers)
        for task in manifest.tasks
    }
    return _worst_task(by_task)


def worst(errors: dict[str, GoldenError]) -> GoldenError:
    """The largest of each number over the buckets, and for each task where there are several."""
    tasks = next(iter(errors.values())).by_task
    by_task = {
        task: _largest_of(error.by_task[task] for error in errors.values()) for task in tasks
    }
    return _worst_task(by_task) if by_task else _largest_of(errors.values())


def golden_on(manifest: Manifest, backend: str) -> Golden:
    """The bundle's golden with the tolerances that hold on this backend.

    Those in the manifest are for the target's own. Another library adds in another order, so that
    the largest difference may be 1e-3 there, as for the fp32 bundles of most targets; the bound of
    the mean stays.
    """
    golden = manifest.golden
    least = 0.0 if backend == manifest.target else _ELSEWHERE
    return dataclasses.replace(golden, tolerance=max(golden.tolerance, least))


def check_tolerance(errors: dict[str, GoldenError], backend: str, golden: Golden) -> Verification:
    """Accept the errors (by bucket) of a golden with the tolerances of this backend, as `golden_on`
    gives it. Raises: VerificationError when one is beyond them.
    """
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


def _difference(answer: NDArray[np.float32], exact: NDArray[np.float32]) -> GoldenError:
    """Of an answer [N,C,H,W] from the reference's, which may be [C,H,W] for N = 1."""
    difference = np.abs(answer - exact)
    return GoldenError(
        largest=float(difference.max()), mean=float(difference.mean(dtype=np.float64))
    )


def _largest_of(errors: Iterable[GoldenError]) -> GoldenError:
    pairs = [(error.largest, error.mean) for error in errors]
    return GoldenError(
        largest=max(largest for largest, _ in pairs), mean=max(mean for _, mean in pairs)
    )


def _worst_task(by_task: dict[str, GoldenError]) -> GoldenError:
    worst_one = _largest_of(by_task.values())
    several = by_task if len(by_task) > 1 else {}
    return dataclasses.replace(worst_one, by_task=several)


def _read(session: Session) -> dict[str, NDArray[Any]]:
    """`image` uint8 [H,W,3], `noise` (where it is an input) and each task's float32 [C,H,W]; for a
    batch of N > 1 [N,H,W,3] and [N,C,H,W], and for N > 1 noises [H,W,3] and [N,C,H,W].

    How large each must be is known before it is read: an archive of few bytes can unpack to many.
    """
    manifest, bucket = session.manifest, session.bucket
    path = session.folder / manifest.golden.file
    pictures, count = (((n,) if n > 1 else ()) for n in (bucket.batch, bucket.answers))
    picture = (*pictures, bucket.height, bucket.width, 3)
    expected: dict[str, tuple[str, Shape]] = {"image": ("uint8", picture)}
    expected |= {
        name: ("float32", shape) for name, shape in session.input_shapes.items() if name == "noise"
    }
    expected |= {
        name: ("float32", (*count, *shape[1:])) for name, shape in session.output_shapes.items()
    }
    try:
        content = read_bounded(path, _largest(manifest))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {
                name: _read_array(archive, f"{name}_{bucket}", *kind)
                for name, kind in expected.items()
            }
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged archives
        raise DamagedBundleError(
            f"cannot read the golden {path}: {error}. Build the bundle again."
        ) from error


def _largest(manifest: Manifest) -> int:
    """Bytes that a golden of these buckets may have, with room for more arrays."""
    pixels = sum(each.answers * each.height * each.width for each in manifest.buckets)
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
        read_header = readers[read_magic(stream)]
        found, fortran, kind = read_header(stream, max_header_size=_LONGEST_HEADER)
        if (kind, found, fortran) != (np.dtype(dtype), shape, False):
            raise ValueError(f"{name} is {kind.name} {list(found)}, expected {dtype} {list(shape)}")
        content = stream.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{name} has not {size} bytes")
    array = np.frombuffer(content, dtype).reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return array
