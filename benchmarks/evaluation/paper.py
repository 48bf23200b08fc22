"""The published numbers: Lotus, arXiv 2409.18124v5, its tables of zero-shot depth and normals."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet
from runtime.manifest import Manifest
from runtime.tasks import Task

_NAMES = {
    "depth": ("nyuv2", "kitti", "eth3d", "scannet", "diode"),
    "normal": ("nyuv2", "scannet", "ibims", "sintel", "oasis"),
}
# AbsRel and delta1 in percent, or mean angle in degrees and percent below 11.25; by family and
# task, in the order of the names above.
_ROWS = {
    ("lotus-g", "disparity"): "5.4/96.8 8.5/92.2 5.9/97.0 5.9/95.7 22.9/72.9",
    ("lotus-d", "disparity"): "5.1/97.2 8.1/93.1 6.1/97.0 5.5/96.5 22.8/73.8",
    ("lotus-g", "depth"): "5.4/96.6 11.3/87.7 6.2/96.1 6.0/96.0 -",
    ("lotus-d", "depth"): "5.3/96.7 9.3/92.8 6.8/95.3 6.0/96.3 -",
    ("lotus-g", "normal"): "16.5/59.4 15.1/63.9 17.2/66.2 33.6/21.0 22.7/29.4",
    ("lotus-d", "normal"): "16.2/59.8 14.7/64.0 17.1/66.4 32.3/22.4 22.3/31.8",
}


def family_of(manifest: Manifest, task: Task) -> str:
    """The kind of network that answers a task; bundles of before families are Lotus of a mode."""
    if task.name in manifest.beside:
        return manifest.beside[task.name].family or f"lotus-{manifest.mode}"
    return manifest.family or f"lotus-{manifest.mode}"


def published(manifest: Manifest, task: Task, data: DataSet) -> dict[str, float] | None:
    """The paper's numbers for the set, by metric; None where it has none."""
    row = _ROWS.get((family_of(manifest, task), task.name))
    if row is None:
        return None
    cell = row.split()[_NAMES[data.kind].index(data.name)]
    if cell == "-":
        return None
    return dict(zip(data.protocol.headline, map(float, cell.split("/")), strict=True))
