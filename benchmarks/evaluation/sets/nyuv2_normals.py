"""NYUv2: 654 pictures of rooms, 480x640, with normals by GeoNet."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet
from benchmarks.evaluation.normal import NormalProtocol
from benchmarks.evaluation.reading_normals import read_levels_normals
from benchmarks.evaluation.sets.origins import DSINE
from export.data_sets import find_layout

NYUV2_NORMALS = DataSet(
    name="nyuv2",
    title="NYUv2",
    layout=find_layout("nyuv2", "normal"),
    count=654,
    list_name="nyuv2/split/test.txt",
    read=read_levels_normals,
    protocol=NormalProtocol(),
    examples=("test/000000_img.png", "test/000000_normal.png"),
    origin=f"{DSINE}; the data set: https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    licence="none is stated by its authors; cite Silberman et al., ECCV 2012",
    size="654 pictures of 480x640, each with a PNG of normals",
)
