"""The data sets of the paper's tables, one file each, in the order of the paper."""

from benchmarks.evaluation.sets.diode import DIODE
from benchmarks.evaluation.sets.eth3d import ETH3D
from benchmarks.evaluation.sets.ibims import IBIMS
from benchmarks.evaluation.sets.kitti import KITTI
from benchmarks.evaluation.sets.nyuv2 import NYUV2
from benchmarks.evaluation.sets.nyuv2_normals import NYUV2_NORMALS
from benchmarks.evaluation.sets.oasis import OASIS
from benchmarks.evaluation.sets.scannet import SCANNET
from benchmarks.evaluation.sets.scannet_normals import SCANNET_NORMALS
from benchmarks.evaluation.sets.sintel import SINTEL

SETS = (
    NYUV2,
    KITTI,
    ETH3D,
    SCANNET,
    DIODE,
    NYUV2_NORMALS,
    SCANNET_NORMALS,
    IBIMS,
    SINTEL,
    OASIS,
)
