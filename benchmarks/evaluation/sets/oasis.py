"""OASIS: 10,000 pictures of anything, with normals that people drew."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet
from benchmarks.evaluation.normal import NormalProtocol
from benchmarks.evaluation.reading_normals import read_pickled_normals
from benchmarks.evaluation.sets.origins import DSINE
from export.data_sets import find_layout

OASIS = DataSet(
    name="oasis",
    title="OASIS",
    layout=find_layout("oasis", "normal"),
    count=10_000,
    list_name="oasis/split/val.txt",
    read=read_pickled_normals,
    protocol=NormalProtocol(),
    examples=("val/100277_DT_img.png", "val/100277_DT_normal.pkl"),
    origin=f"{DSINE}; the data set: https://oasis.cs.princeton.edu",
    licence="see the page of the data set",
    size="10,000 pictures of many sizes, each with a pickle of normals",
)
