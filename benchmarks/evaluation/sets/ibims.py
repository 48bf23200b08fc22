"""iBims-1: 100 pictures of rooms, 480x640, with normals of a laser scan."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet
from benchmarks.evaluation.normal import NormalProtocol
from benchmarks.evaluation.reading_normals import read_float_normals
from benchmarks.evaluation.sets.origins import DSINE
from export.data_sets import find_layout

IBIMS = DataSet(
    name="ibims",
    title="iBims-1",
    layout=find_layout("ibims", "normal"),
    count=100,
    list_name="ibims/split/ibims.txt",
    read=read_float_normals,
    protocol=NormalProtocol(),
    examples=("ibims/corridor_01_img.png", "ibims/corridor_01_normal.exr"),
    origin=f"{DSINE}; the data set: https://www.asg.ed.tum.de/lmf/ibims1/",
    licence="see the page of the data set",
    size="100 pictures of 480x640, each with an EXR of normals",
)
