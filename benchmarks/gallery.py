"""The picture at the top of the README: `python -m benchmarks.gallery IMAGE... --bundle B...
--output PNG`.

There is a row for each image: the input, then what each bundle predicts for it.
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
    """Predict each image and write the rows of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--bundle", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [[load(path)] for path in arguments.images]
    for bundle in arguments.bundle:
        with LotusEngine(bundle) as engine:
            for row in rows:
                row.append(engine(row[0]).colorize())
    tiles = [[_scaled(Image.fromarray(picture)) for picture in row] for row in rows]
    width = max(sum(tile.width for tile in row) + _GAP * (len(row) - 1) for row in tiles)
    height = _HEIGHT * len(rows) + _GAP * (len(rows) - 1)
    sheet = Image.fromarray(np.full((height, width, 3), 255, np.uint8))
    for number, row in enumerate(tiles):
        left = 0
        for tile in row:
            sheet.paste(tile, (left, number * (_HEIGHT + _GAP)))
            left += tile.width + _GAP
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.output, optimize=True)
    print(arguments.output)
    return 0


def _scaled(picture: Image.Image) -> Image.Image:
    return picture.resize((round(picture.width * _HEIGHT / picture.height), _HEIGHT))


if __name__ == "__main__":
    sys.exit(main())
