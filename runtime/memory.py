"""How much memory an opened bucket takes, estimated from the manifest before anything is opened.

What decides it is known when a bundle is built: the bytes of its weights by type, and the bytes of
activations that are alive at once. What a backend makes of them was measured (docs/benchmarks.md,
"Opening").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.backends.cgroups import cgroup_folders, read_text
from runtime.errors import BackendError
from runtime.machine import has_bf16
from runtime.manifest import Bucket, Manifest


@dataclass(frozen=True, kw_only=True)
class _Use:
    """Bytes of memory for each byte of weights of a type, and of activations; and `libraries`, what
    a process has loaded beside them. `kept` is for weights of a network that was compiled before
    (runtime/compiled.py), `half` for activations of a network in bf16 or int8. On a CPU that has no
    bf16 it is `without_bf16`.
    """

    libraries: float
    activations: float
    half: float
    weights: Mapping[str, float]
    kept: Mapping[str, float]
    without_bf16: _Use | None = None


_FEW = 2  # buckets that stay open where nobody knows how much memory they take
_HALF = {"bfloat16", "int8"}  # types of weights

_PACKED = {"float32": 1.02, "int8": 1.1}
# OpenVINO packs each weight into a copy. What is stored as bf16 it first makes float32. What it
# kept is mapped, and used as it is.
_WITHOUT_BF16 = _Use(
    libraries=0.19e9,
    activations=1.0,
    half=1.0,
    weights={"float32": 1.14, "bfloat16": 4.1, "int8": 1.2},
    kept={"bfloat16": 2.0},
)
_USES = {
    "onnxruntime": _Use(
        libraries=0.09e9, activations=1.05, half=1.05, weights=_PACKED, kept=_PACKED
    ),
    "openvino": replace(
        _WITHOUT_BF16,
        half=0.5,
        weights={**_WITHOUT_BF16.weights, "bfloat16": 3.1},
        kept={},
        without_bf16=_WITHOUT_BF16,
    ),
}


def estimate(
    manifest: Manifest, bucket: Bucket, backend: str, parallel: int = 1, *, kept: bool = False
) -> int | None:
    """Bytes of resident memory, at its peak, of a process that opens this bucket on the CPU and
    makes so many predictions at once; None where the bundle does not say what it needs, or the
    backend was never measured. `kept`: the compiled network is there from an earlier opening.
    """
    needs = manifest.memory
    if needs is None or str(bucket) not in needs.activations:
        return None
    activations = parallel * needs.activations[str(bucket)]
    return estimate_needs(needs.weights, activations, backend, kept=kept)


def estimate_needs(
    weights: Mapping[str, int], activations: int, backend: str, *, kept: bool = False
) -> int | None:
    """As `estimate`, of so many bytes of weights by type, and of activations."""
    use = _USES.get(backend)
    if use is None:
        return None
    if use.without_bf16 is not None and not has_bf16():
        use = use.without_bf16
    factors = use.kept if kept else use.weights
    packed = sum(size * factors.get(kind, 1.0) for kind, size in weights.items())
    return round(
        use.libraries + packed + activations * (use.half if _HALF & {*weights} else use.activations)
    )


@dataclass(frozen=True, kw_only=True)
class Room:
    """How many buckets of a bundle may be open at once: `most`, or if None as many as memory holds.

    By memory a bucket is opened beside others if it takes no more than half of what is available.
    Where that cannot be told, two are open at most. `is_kept` says of which buckets the compiled
    network is there. Raises: BackendError.
    """

    manifest: Manifest
    backend: str
    most: int | None = None
    device: str | None = None
    parallel: int = 1
    is_kept: Callable[[Bucket], bool] = lambda bucket: False

    def __post_init__(self) -> None:
        if self.most is not None and (type(self.most) is not int or self.most < 1):
            raise BackendError(f"max_open is a number from 1 on, found {self.most!r}")

    def __call__(self, bucket: Bucket, kept: Sequence[Bucket], given_up: Sequence[Bucket]) -> bool:
        """Whether `bucket` fits beside the `kept` ones, once those `given_up` are closed."""
        if self.most is not None:
            return len(kept) < self.most
        sizes = [
            estimate(self.manifest, each, self.backend, self.parallel, kept=self.is_kept(each))
            for each in (bucket, *given_up)
        ]
        needed, *freed = [size for size in sizes if size is not None] or [0]
        available = available_memory()
        elsewhere = self.device not in (None, "CPU")
        if None in sizes or available is None or elsewhere:
            return len(kept) < _FEW
        return needed <= (available + sum(freed)) / 2


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, or fewer where a cgroup (a container)
    has a limit. None where the system does not tell. `root` is where /proc and /sys lie.
    """
    found = [*_of_cgroups(root)]
    for line in read_text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            found.append(int(rest.split()[0]) * 1024)
    return min(found, default=None)


def _of_cgroups(root: Path) -> Iterator[int]:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }
    for version, folder in cgroup_folders(root, "memory"):
        limit, used = (read_text(folder / name).strip() for name in names[version])
        if limit.isdecimal() and used.isdecimal():
            yield max(int(limit) - int(used) + _cached(folder), 0)


def _cached(folder: Path) -> int:
    """Bytes of files that the system holds in memory for the group, and would give up."""
    for line in read_text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdecimal():
            return int(value)
    return 0
