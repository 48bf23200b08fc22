"""The golden sample: what proves a bundle on the machine at hand. Needs NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.session import Session
from runtime.errors import DamagedBundleError, VerificationError


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A golden run on this machine: largest absolute difference from the PyTorch reference, by bucket."""

    backend: str
    tolerance: float
    errors: dict[str, float]


def golden_error(session: Session) -> float:
    """Largest absolute difference between the session's answers to its bucket's golden and the PyTorch reference.

    Raises: DamagedBundleError, BackendError.
    """
    manifest = session.manifest
    golden = _read(session)
    feeds = {"image": manifest.preprocess.apply(golden["image"])}
    if "noise" in golden:
        feeds["noise"] = golden["noise"]
    # Twice: a backend may run plainly the first time and from a captured graph ever after.
    answers = (session(feeds), session(feeds))
    return max(float(np.abs(one[task][0] - golden[task]).max()) for one in answers for task in manifest.tasks)


def judge(errors: dict[str, float], backend: str, tolerance: float) -> Verification:
    """Accept the errors (by bucket) or raise VerificationError."""
    if not max(errors.values()) <= tolerance:
        raise VerificationError(
            f"backend {backend!r} answers the golden sample wrong on this machine: off the PyTorch reference by "
            f"{errors} (largest absolute difference by bucket), tolerance {tolerance:g}. Do not use this bundle here: "
            "update the driver or the inference library, build the bundle on this machine, or take another backend."
        )
    return Verification(backend=backend, tolerance=tolerance, errors=errors)


def _read(session: Session) -> dict[str, NDArray[Any]]:
    """`image` uint8 [H,W,3], `noise` (where it is an input) and each task's float32 [C,H,W]."""
    manifest = session.manifest
    path = session.folder / manifest.golden.file
    names = [*session.input_shapes, *manifest.tasks]
    try:
        with np.load(path, allow_pickle=False) as stored:
            golden = {name: stored[f"{name}_{session.bucket}"] for name in names}
    except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged archives
        raise DamagedBundleError(f"cannot read the golden {path}: {error}. Build the bundle again.") from error
    found = {name: (array.dtype.name, array.shape) for name, array in golden.items()}
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "image": ("uint8", (session.bucket.height, session.bucket.width, 3))
    }
    expected |= {name: ("float32", shape) for name, shape in session.input_shapes.items() if name == "noise"}
    expected |= {name: ("float32", shape[1:]) for name, shape in session.output_shapes.items()}
    if found != expected:
        raise DamagedBundleError(f"the golden {path} holds {found}, expected {expected}. Build the bundle again.")
    return golden
