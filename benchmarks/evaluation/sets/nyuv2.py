"""NYUv2: 654 pictures of rooms, 480x640, with depth of a Kinect."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet, Item, Sample
from benchmarks.evaluation.depth import DepthProtocol
from benchmarks.evaluation.reading import read_depth_png, read_picture
from benchmarks.evaluation.sets.origins import MARIGOLD
from export.data_sets import Source, find_layout

_PROTOCOL = DepthProtocol(nearest=1e-3, farthest=10.0)


def _read(source: Source, item: Item) -> Sample:
    """The raw depth in millimetres; what Eigen's crop leaves counts."""
    depth = read_depth_png(source, item.files[0], unit=1000.0)
    mask = _PROTOCOL.inside(depth)
    mask[:45] = mask[471:] = False
    mask[:, :41] = mask[:, 601:] = False
    return Sample(image=read_picture(source, item.name), truth=depth, mask=mask)


NYUV2 = DataSet(
    name="nyuv2",
    title="NYUv2",
    layout=find_layout("nyuv2", "depth"),
    count=654,
    list_name="nyu/labeled/filename_list_test.txt",
    read=_read,
    protocol=_PROTOCOL,
    examples=("test/kitchen_0004/rgb_0001.png", "test/kitchen_0004/depth_0001.png"),
    origin=f"{MARIGOLD}; the data set: https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    licence="none is stated by its authors; cite Silberman et al., ECCV 2012",
    size="654 pictures of 480x640, each with two PNGs of depth (the raw one is used)",
)
