"""The golden sample: what proves a bundle on the machine at hand. Needs NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.session import Session
from runtime.errors import DamagedBundleError, VerificationError
from runtime.manifest import Golden


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
    # Twice: a backend may run plainly the first time and from a captured graph ever after.
    answers = (session(feeds), session(feeds))
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
    """`image` uint8 [H,W,3], `noise` (where it is an input) and each task's float32 [C,H,W]."""
    manifest = session.manifest
    path = session.folder / manifest.golden.file
    names = [*session.input_shapes, *manifest.tasks]
    try:
        with np.load(path, allow_pickle=False) as stored:
            golden = {name: stored[f"{name}_{session.bucket}"] for name in names}
    except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged archives
        raise DamagedBundleError(
            f"cannot read the golden {path}: {error}. Build the bundle again."
        ) from error
    stored_kinds = {name: (array.dtype.name, array.shape) for name, array in golden.items()}
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "image": ("uint8", (session.bucket.height, session.bucket.width, 3))
    }
    expected |= {
        name: ("float32", shape) for name, shape in session.input_shapes.items() if name == "noise"
    }
    expected |= {name: ("float32", shape[1:]) for name, shape in session.output_shapes.items()}
    if stored_kinds != expected:
        raise DamagedBundleError(
            f"the golden {path} holds {stored_kinds}, expected {expected}. Build the bundle again."
        )
    return golden
