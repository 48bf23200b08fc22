"""ScanNet: 800 pictures of rooms with depth of a structured-light sensor."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet, Item, Sample
from benchmarks.evaluation.depth import DepthProtocol
from benchmarks.evaluation.reading import read_depth_png, read_picture
from benchmarks.evaluation.sets.origins import MARIGOLD
from export.data_sets import Source, find_layout

_PROTOCOL = DepthProtocol(nearest=1e-3, farthest=10.0)


def _read(source: Source, item: Item) -> Sample:
    """Depth in millimetres."""
    depth = read_depth_png(source, item.files[0], unit=1000.0)
    mask = _PROTOCOL.inside(depth)
    return Sample(image=read_picture(source, item.name), truth=depth, mask=mask)


SCANNET = DataSet(
    name="scannet",
    title="ScanNet",
    layout=find_layout("scannet", "depth"),
    count=800,
    list_name="scannet/scannet_val_sampled_list_800_1.txt",
    read=_read,
    protocol=_PROTOCOL,
    examples=("scene0406_02/color/000300.jpg", "scene0406_02/depth/000300.png"),
    origin=f"{MARIGOLD}; the data set: http://www.scan-net.org",
    licence="ScanNet's terms of use: research, after signing them",
    size="800 pictures, each with a PNG of depth",
)
