"""KITTI: 652 pictures of streets with depth of a laser, Eigen's split."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from benchmarks.evaluation.dataset import DataSet, Item, Sample
from benchmarks.evaluation.depth import DepthProtocol
from benchmarks.evaluation.reading import read_depth_png, read_picture
from benchmarks.evaluation.sets.origins import MARIGOLD
from export.data_sets import DataSetError, Source, find_layout

_PROTOCOL = DepthProtocol(nearest=1e-5, farthest=80.0)
_HEIGHT, _WIDTH = 352, 1216  # of KITTI's benchmark


def _read(source: Source, item: Item) -> Sample:
    """Depth in 256ths of a metre; picture and truth are cropped, bottom and middle, and what lies
    in Eigen's mask counts.
    """
    image = _crop(read_picture(source, item.name), item.name)
    depth = _crop(read_depth_png(source, item.files[0], unit=256.0), item.files[0])
    mask = _PROTOCOL.inside(depth)
    height, width = depth.shape
    mask[: int(0.3324324 * height)] = mask[int(0.91351351 * height) :] = False
    mask[:, : int(0.0359477 * width)] = mask[:, int(0.96405229 * width) :] = False
    return Sample(image=image, truth=depth, mask=mask)


def _crop(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    height, width = pixels.shape[:2]
    if height < _HEIGHT or width < _WIDTH:
        raise DataSetError(
            f"{name} is {height} x {width}: KITTI's are cropped to {_HEIGHT} x {_WIDTH}"
        )
    left = (width - _WIDTH) // 2
    return pixels[height - _HEIGHT :, left : left + _WIDTH]


KITTI = DataSet(
    name="kitti",
    title="KITTI",
    layout=find_layout("kitti", "depth"),
    count=652,
    list_name="kitti/eigen_test_files_with_gt.txt",
    read=_read,
    protocol=_PROTOCOL,
    examples=(
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png",
        "2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000069.png",
    ),
    origin=f"{MARIGOLD}; the data set: https://www.cvlibs.net/datasets/kitti/eval_depth_all.php",
    licence="CC BY-NC-SA 3.0",
    size="697 pictures of about 375x1242, 652 of them with a PNG of depth",
)
