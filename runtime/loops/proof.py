"""Whether compiled loops answer the bits of the plain ways, on this machine."""

from __future__ import annotations

import numpy as np
from PIL import Image

from runtime.colors import in_range, scaled, spectral
from runtime.enlarge import enlarge
from runtime.loops import Loops
from runtime.manifest import Preprocess
from runtime.shrink import shrink
from runtime.vectors import unit_vectors

_SIZES = [((67, 101), (31, 23)), ((24, 37), (53, 90)), ((40, 640), (40, 129)), ((96, 60), (32, 28))]


def differences(loops: Loops) -> list[str]:
    """The functions that answer otherwise, on noise of several sizes."""
    found = []
    random = np.random.default_rng(0)
    for (height, width), (rows, columns) in _SIZES:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        plain = shrink(image, rows, columns)
        if not np.array_equal(shrink(image, rows, columns, loops), plain):
            found.append("shrink")
        rgb = np.stack([plain, plain])
        if not np.array_equal(Preprocess().apply(rgb), Preprocess().apply(rgb, loops)):
            found.append("normalise")
        values = random.random((height, width), dtype=np.float32) * np.float32(1.4)
        first, second = np.empty((2, height + 50, width + 9), np.float32)
        enlarge(values, first)
        enlarge(values, second, loops=loops)
        if not np.array_equal(first, second):
            found.append("enlarge")
        for bounds in ((0.0, 1.0), (0.1, 0.9)):
            plain, quick = (
                spectral(bounds, red_is_high=height > 30, loops=each)(values)
                for each in (None, loops)
            )
            if not np.array_equal(plain, quick):
                found.append("spectral")
        for low in (0.0, -1.0):
            codes, same = (
                scaled(values, low, 1.0, 65535, np.uint16, each) for each in (None, loops)
            )
            if not np.array_equal(codes, same):
                found.append("scaled")
        three = random.normal(size=(height, width, 3)).astype(np.float32)
        if not np.array_equal(in_range(-1, 1)(three), in_range(-1, 1, loops)(three)):
            found.append("in_range")
        vectors = random.normal(size=(3, height, width)).astype(np.float32).transpose(1, 2, 0)
        vectors[0, 0] = 0
        if not np.array_equal(unit_vectors(vectors), unit_vectors(vectors, loops)):
            found.append("unit_vectors")
    return sorted(set(found))
