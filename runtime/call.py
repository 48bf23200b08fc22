"""One call of an engine: its settings, and the noise that they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ImageError
from runtime.manifest import Bucket, Manifest
from runtime.tasks import Resize
from runtime.tiles import Progress

_READING = frozenset(("strict", "icc", "max_pixels"))
_LARGEST_NOISE = 1e4  # standard normal noise stays below 10
_LARGEST_ENSEMBLE = 1024


@dataclass(frozen=True, kw_only=True)
class Call:
    """The settings of one call of an engine, checked, as `LotusEngine.__call__` describes them."""

    seed: int | None = None
    noise: NDArray[np.float32] | None = None
    resize: Resize | None = "bilinear"
    ensemble: int = 1
    tiles: bool = False
    progress: Progress | None = None
    on_error: str = "raise"
    reading: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Call:
        """The settings that these keywords of `LotusEngine.__call__` mean."""
        own = {name: value for name, value in options.items() if name not in _READING}
        return cls(**own, reading={name: options[name] for name in _READING & options.keys()})

    def __post_init__(self) -> None:
        if unknown := sorted(self.reading.keys() - _READING):
            raise TypeError(f"unexpected keywords {unknown}; load has {sorted(_READING)}")
        if self.on_error not in ("raise", "return"):
            raise ImageError(f"on_error must be 'raise' or 'return', found {self.on_error!r}")
        if self.resize not in ("bilinear", "nearest", None):
            raise ImageError(f"resize must be 'bilinear', 'nearest' or None, found {self.resize!r}")
        if type(self.ensemble) is not int or not 1 <= self.ensemble <= _LARGEST_ENSEMBLE:
            raise ImageError(
                f"an ensemble has 1 to {_LARGEST_ENSEMBLE} answers, found {self.ensemble!r}"
            )
        if self.ensemble > 1 and self.noise is not None:
            raise ImageError("an ensemble draws its noises from seeds: leave the noise out")
        if self.tiles and self.resize is None:
            raise ImageError("tiles answer at the size of the picture: leave resize=None out")

    def noises(self, manifest: Manifest, bucket: Bucket) -> NDArray[np.float32] | None:
        """The noise of one picture, [N,C,h,w] for an ensemble of N; None where the bundle takes
        none. Raises: ImageError.
        """
        shape, seed, noise = manifest.noise_shape(bucket), self.seed, self.noise
        if "noise" not in manifest.input_shapes(bucket):
            if noise is not None:
                raise ImageError(
                    "this bundle takes no noise: it is of mode D, or was built with --fixed-noise, "
                    "which made the noise part of the graph"
                )
            return None
        if noise is None:
            first = manifest.noise_seed if seed is None else seed
            draws = [draw_noise(first, shape)]  # refuses what is no seed
            draws += [draw_noise(first + number, shape) for number in range(1, self.ensemble)]
            return np.concatenate(draws)
        if seed is not None:
            raise ImageError("give a seed or the noise, not both")
        if (
            not isinstance(noise, np.ndarray)
            or noise.dtype.kind not in "fiu"
            or noise.shape != shape
        ):
            given = (
                f"{noise.dtype} {list(noise.shape)}"
                if isinstance(noise, np.ndarray)
                else type(noise).__name__
            )
            raise ImageError(
                f"bucket {bucket} takes noise as a float array of shape {list(shape)}, found "
                f"{given}"
            )
        if not (np.abs(noise) < _LARGEST_NOISE).all():
            raise ImageError(
                f"the noise holds NaN, infinite or absurd values (beyond {_LARGEST_NOISE:g})"
            )
        return np.ascontiguousarray(noise, dtype=np.float32)


def draw_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 of `shape` from NumPy's counter-based Philox: the same on every
    machine and backend.

    Raises: ImageError for a negative or non-integer seed.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ImageError(f"a seed is a non-negative integer, found {seed!r}")
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape, dtype=np.float32)
