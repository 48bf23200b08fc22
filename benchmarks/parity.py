"""How far bundles are from PyTorch, and folded ones from plain ones: `python -m benchmarks.parity IMAGE_OR_FOLDER...`.

Each image is cropped (not resized) to the bucket; the same noise goes to both sides in mode G. One contender is in
memory at a time, so that the full-size network can be compared too (`--checkpoint random/lotus-d --size 512`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import BASELINE, CONTENDERS, built, opened
from benchmarks.rows import ROOT, write_rows
from runtime.image import IMAGE_SUFFIXES, load

_DEFAULT = ("onnxruntime", "plain-onnxruntime", "openvino", "plain-openvino")
_PLAIN = "plain-"


def main() -> int:
    """Build what is not there, predict every crop with every contender, print and save the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--checkpoint", nargs="+", default=["tiny/disparity-d"])
    parser.add_argument("--size", type=int, default=256, help="edge of the square bucket in pixels")
    parser.add_argument("--what", nargs="+", default=_DEFAULT, choices=CONTENDERS)
    parser.add_argument("--bundles", type=Path, default=ROOT / "engines", help="where bundles are built and kept")
    arguments = parser.parse_args()
    files = list(_files(arguments.images))
    crops = np.stack([_crop(load(path), (arguments.size, arguments.size)) for path in files])
    for checkpoint in arguments.checkpoint:
        answers = {}
        for name in (BASELINE, *arguments.what):
            print(f"{checkpoint}: {name}", file=sys.stderr)
            bundle = built(name, checkpoint, f"{arguments.size}x{arguments.size}", arguments.bundles)
            with opened(name, checkpoint, bundle, {}) as predict:
                answers[name] = [predict(crop[None])[0] for crop in crops]
        rows = list(_rows(answers, [path.name for path in files]))
        for row in rows:
            print("{image:<24} {what:<20} against {against:<14} max {max_abs:.2e}  mean {mean_abs:.2e}".format(**row))
        circumstances = {"checkpoint": checkpoint, "size": f"{arguments.size}x{arguments.size}"}
        name = write_rows(f"parity-{Path(checkpoint).name}", [circumstances | row for row in rows]).name
        print(f"rows: {name}")
    return 0


def _rows(answers: dict[str, list[NDArray[np.float32]]], images: list[str]) -> Iterator[dict[str, Any]]:
    """Everything against PyTorch, and everything folded against the same without folds."""
    pairs = [(name, BASELINE) for name in answers if name != BASELINE]
    pairs += [(name, _PLAIN + name) for name in answers if _PLAIN + name in answers]
    for what, against in pairs:
        for image, one, other in zip(images, answers[what], answers[against], strict=True):
            apart = np.abs(one - other)
            row = {"image": image, "what": what, "against": against}
            yield row | {"max_abs": float(apart.max()), "mean_abs": float(apart.mean())}


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        yield from (one for one in found if one.suffix.lower() in IMAGE_SUFFIXES)


def _crop(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of the image; a smaller image is repeated at its edges."""
    missing = [max(0, want - have) for want, have in zip(size, rgb.shape[:2], strict=True)]
    rgb = np.pad(rgb, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    top, left = ((have - want) // 2 for want, have in zip(size, rgb.shape[:2], strict=True))
    return np.ascontiguousarray(rgb[top : top + size[0], left : left + size[1]])


if __name__ == "__main__":
    sys.exit(main())
