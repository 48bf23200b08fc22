"""Differences of bundles from PyTorch, and of folded bundles from plain ones: `python -m
benchmarks.parity IMAGE_OR_FOLDER...`.

Each image is cropped (not resized) to the bucket, and embedded colour profiles are ignored, as the
reference does; in mode G both sides get the same noise. One
baseline is in memory at a time, so that the full-size network can be compared too (`--checkpoint
random/lotus-d --size 512`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines import BASELINES, REFERENCE, Work, built, opened
from benchmarks.rows import ROOT, parse_arguments, write_rows
from runtime.image import IMAGE_SUFFIXES, load

_DEFAULT = ("onnxruntime", "plain-onnxruntime", "openvino", "plain-openvino")
_PLAIN = "plain-"


def main() -> int:
    """Build the bundles that are missing, predict every crop in every way, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--checkpoint", nargs="+", default=["tiny/disparity-d"])
    parser.add_argument("--size", type=int, default=256, help="edge of the square bucket in pixels")
    parser.add_argument("--what", nargs="+", default=_DEFAULT, choices=BASELINES)
    parser.add_argument(
        "--bundles", type=Path, default=ROOT / "engines", help="where bundles are built and kept"
    )
    arguments = parse_arguments(parser)
    files = list(_files(arguments.images))
    # The reference ignores embedded colour profiles.
    pictures = [load(path, icc=False) for path in files]
    crops = np.stack([_crop(rgb, (arguments.size, arguments.size)) for rgb in pictures])
    for checkpoint in arguments.checkpoint:
        predictions = {}
        for name in (REFERENCE, *arguments.what):
            print(f"{checkpoint}: {name}", file=sys.stderr)
            work = Work(checkpoint=checkpoint, resolution=f"{arguments.size}x{arguments.size}")
            bundles = built(name, work, arguments.bundles)
            with opened(name, work, bundles, {}) as predict:
                predictions[name] = [predict(crop[None])[0] for crop in crops]
        rows = list(_rows(predictions, [path.name for path in files]))
        for row in rows:
            print(
                f"{row['image']:<24} {row['what']:<20} against {row['against']:<14} "
                f"max {row['max_abs']:.2e}  mean {row['mean_abs']:.2e}"
            )
        circumstances = {"checkpoint": checkpoint, "size": f"{arguments.size}x{arguments.size}"}
        rows = [circumstances | row for row in rows]
        path = write_rows(f"parity-{Path(checkpoint).name}", rows, dirty=arguments.dirty)
        print(f"rows: {path.name}")
    return 0


def _rows(
    predictions: dict[str, list[NDArray[np.float32]]], images: list[str]
) -> Iterator[dict[str, Any]]:
    """Everything against PyTorch, and everything folded against the same without folds."""
    pairs = [(name, REFERENCE) for name in predictions if name != REFERENCE]
    pairs += [(name, _PLAIN + name) for name in predictions if _PLAIN + name in predictions]
    for name, against in pairs:
        both = zip(images, predictions[name], predictions[against], strict=True)
        for image, values, expected in both:
            difference = np.abs(values - expected)
            row = {"image": image, "what": name, "against": against}
            yield row | {"max_abs": float(difference.max()), "mean_abs": float(difference.mean())}


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        yield from (file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)


def _crop(rgb: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of the image; a smaller image is repeated at its edges."""
    missing = [max(0, want - have) for want, have in zip(size, rgb.shape[:2], strict=True)]
    rgb = np.pad(rgb, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    top, left = ((have - want) // 2 for want, have in zip(size, rgb.shape[:2], strict=True))
    return np.ascontiguousarray(rgb[top : top + size[0], left : left + size[1]])


if __name__ == "__main__":
    sys.exit(main())
