"""ETH3D: 454 pictures of 24 megapixels with depth of a laser scanner."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet, Item, Sample
from benchmarks.evaluation.depth import DepthProtocol
from benchmarks.evaluation.reading import read_picture, read_raw_floats
from benchmarks.evaluation.sets.origins import MARIGOLD
from export.data_sets import Source, find_layout

_PROTOCOL = DepthProtocol(nearest=1e-5, farthest=float("inf"), longer_edge=768, alignment_edge=1024)


def _read(source: Source, item: Item) -> Sample:
    """Raw float32 of the picture's size, in metres; infinity is none."""
    image = read_picture(source, item.name)
    depth = read_raw_floats(source, item.files[0], *image.shape[:2])
    return Sample(image=image, truth=depth, mask=depth > _PROTOCOL.nearest)


ETH3D = DataSet(
    name="eth3d",
    title="ETH3D",
    layout=find_layout("eth3d", "depth"),
    count=454,
    list_name="eth3d/eth3d_filename_list.txt",
    read=_read,
    protocol=_PROTOCOL,
    examples=(
        "rgb/office/images/dslr_images/DSC_0219.JPG",
        "depth/office_dslr_depth/office/ground_truth_depth/dslr_images/DSC_0219.JPG",
    ),
    origin=f"{MARIGOLD}; the data set: https://www.eth3d.net/datasets",
    licence="CC BY-NC-SA 4.0",
    size="454 pictures of 4032x6048, each with 98 MB of depth: 44 GB of depth in all",
)
