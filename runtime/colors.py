"""The colours of a map: Spectral, as the reference uses it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# ColorBrewer's 11-class Spectral, the anchors of matplotlib's map of that name (the reference's
# colours), red first.
_SPECTRAL = np.array(
    [
        [158, 1, 66],
        [213, 62, 79],
        [244, 109, 67],
        [253, 174, 97],
        [254, 224, 139],
        [255, 255, 191],
        [230, 245, 152],
        [171, 221, 164],
        [102, 194, 165],
        [50, 136, 189],
        [94, 79, 162],
    ],
    dtype=np.float64,
)


def spectral_table() -> NDArray[np.uint8]:
    """256 colours RGB uint8 [256,3], linear between the anchors of Spectral, red first."""
    position = np.linspace(0, len(_SPECTRAL) - 1, 256)
    channels = [
        np.interp(position, np.arange(len(_SPECTRAL)), _SPECTRAL[:, channel])
        for channel in range(3)
    ]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)
