"""Samples of the sets of DSINE, by the kind of file that holds the normals."""

from __future__ import annotations

import numpy as np

from benchmarks.evaluation.dataset import Item, Sample
from benchmarks.evaluation.pickles import read_pickle
from benchmarks.evaluation.reading import read_exr, read_levels, read_picture
from export.data_sets import DataSetError, Source


def read_levels_normals(source: Source, item: Item) -> Sample:
    """8-bit PNG: n = c / 255 * 2 - 1, black is none."""
    (name,) = item.files
    levels = read_levels(source, name)
    if levels.ndim != 3 or levels.shape[2] < 3 or levels.dtype != np.uint8:
        raise DataSetError(
            f"{name} of {source.path} holds no normals: expected a PNG of three bands of 8 bits, "
            f"found {levels.dtype} {list(levels.shape)}"
        )
    levels = levels[..., :3]
    return Sample(
        image=read_picture(source, item.name),
        truth=levels.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1),
        mask=(levels > 0).any(axis=-1),
    )


def read_float_normals(source: Source, item: Item) -> Sample:
    """EXR: the vectors themselves, of which those shorter than 0.5 are none."""
    (name,) = item.files
    normals = read_exr(source, name)
    return Sample(
        image=read_picture(source, item.name),
        truth=normals,
        mask=np.linalg.norm(normals, axis=-1) > 0.5,
    )


def read_pickled_normals(source: Source, item: Item) -> Sample:
    """Pickled dict: `normal` [h,w,3] of the rectangle from `min_y`, `min_x` to `max_y`, `max_x`,
    both included; x and y point the other way, a zero vector is none.
    """
    image = read_picture(source, item.name)
    (name,) = item.files
    where = f"{name} of {source.path}"
    values = read_pickle(source.read(name), where)
    try:
        edges = {key: int(values[key]) for key in ("min_y", "max_y", "min_x", "max_x")}
        region = np.asarray(values["normal"], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise DataSetError(f"{where}: expected min_y, max_y, min_x, max_x and normal") from error
    rows = slice(edges["min_y"], edges["max_y"] + 1)
    columns = slice(edges["min_x"], edges["max_x"] + 1)
    truth = np.zeros(image.shape, np.float32)
    expected = truth[rows, columns].shape
    if region.shape != expected or min(edges.values()) < 0:
        raise DataSetError(
            f"{where}: normals are {list(region.shape)}, their rectangle in the picture "
            f"{list(expected)}"
        )
    truth[rows, columns] = region * np.array([-1, -1, 1], np.float32)
    return Sample(image=image, truth=truth, mask=(truth != 0).any(axis=-1))
