"""Sintel: 1,064 pictures of a film, 436x1024, with normals of its scenes."""

from __future__ import annotations

from benchmarks.evaluation.dataset import DataSet
from benchmarks.evaluation.normal import NormalProtocol
from benchmarks.evaluation.reading_normals import read_float_normals
from benchmarks.evaluation.sets.origins import DSINE
from export.data_sets import find_layout

SINTEL = DataSet(
    name="sintel",
    title="Sintel",
    layout=find_layout("sintel", "normal"),
    count=1064,
    list_name="sintel/split/sintel.txt",
    read=read_float_normals,
    protocol=NormalProtocol(),
    examples=("alley_1/frame_0001_img.png", "alley_1/frame_0001_normal.exr"),
    origin=f"{DSINE}; the data set: http://sintel.is.tue.mpg.de",
    licence="the film: CC BY 3.0, (c) Blender Foundation",
    size="1,064 pictures of 436x1024, each with an EXR of normals",
)
