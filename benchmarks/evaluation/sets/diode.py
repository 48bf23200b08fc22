"""DIODE: 771 pictures of rooms and the outdoors, 768x1024, with depth of a laser scanner."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet, Item, Sample
from benchmarks.evaluation.depth import DepthProtocol
from benchmarks.evaluation.reading import read_array, read_picture
from benchmarks.evaluation.sets.origins import MARIGOLD
from export.data_sets import Source, find_layout

_PROTOCOL = DepthProtocol(nearest=0.6, farthest=350.0, longer_edge=640)


def _read(source: Source, item: Item) -> Sample:
    """Depth in metres; the mask file alone says what counts."""
    depth, mask = (read_array(source, name) for name in item.files)
    return Sample(
        image=read_picture(source, item.name),
        truth=depth.astype("float32"),
        mask=mask.astype(bool),
    )


DIODE = DataSet(
    name="diode",
    title="DIODE",
    layout=find_layout("diode", "depth"),
    count=771,
    list_name="diode/diode_val_all_filename_list.txt",
    read=_read,
    protocol=_PROTOCOL,
    examples=("indoors/.../X.png", "X_depth.npy", "X_depth_mask.npy"),
    origin=f"{MARIGOLD}; the data set: https://diode-dataset.org",
    licence="MIT",
    size="771 pictures of 768x1024, each with two .npy; DIODE's own val.tar.gz has 2,774,625,282 "
    "bytes (the same pictures; unpack it, an uncompressed tar is read)",
    checksum="MD5 of DIODE's own val.tar.gz: 5c895d09201b88973c8fe4552a67dd85",
)
