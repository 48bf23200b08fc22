"""The picture at the top of the README: `python -m benchmarks.gallery BUNDLE IMAGE... --output PNG`.

One row: each input beside what the bundle predicts for it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import LotusEngine
from runtime.image import load

_HEIGHT, _GAP = 256, 6  # pixels


def main() -> int:
    """Predict each image and write the row of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    tiles = []
    with LotusEngine(arguments.bundle) as engine:
        for path in arguments.images:
            rgb = load(path)
            tiles += [Image.fromarray(picture) for picture in (rgb, engine(rgb).colorize())]
    tiles = [tile.resize((round(tile.width * _HEIGHT / tile.height), _HEIGHT)) for tile in tiles]
    width = sum(tile.width for tile in tiles) + _GAP * (len(tiles) - 1)
    sheet = Image.fromarray(np.full((_HEIGHT, width, 3), 255, np.uint8))
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width + _GAP
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.output, optimize=True)
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
