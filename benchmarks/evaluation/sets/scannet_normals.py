"""ScanNet: 300 pictures of rooms with normals by FrameNet."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet
from benchmarks.evaluation.normal import NormalProtocol
from benchmarks.evaluation.reading_normals import read_levels_normals
from benchmarks.evaluation.sets.origins import DSINE
from export.data_sets import find_layout

SCANNET_NORMALS = DataSet(
    name="scannet",
    title="ScanNet",
    layout=find_layout("scannet", "normal"),
    count=300,
    list_name="scannet/split/test.txt",
    read=read_levels_normals,
    protocol=NormalProtocol(),
    examples=("scene0532_00/000000_img.png", "scene0532_00/000000_normal.png"),
    origin=f"{DSINE}; the data set: http://www.scan-net.org",
    licence="ScanNet's terms of use: research, after signing them",
    size="300 pictures of 480x640, each with a PNG of normals",
)
