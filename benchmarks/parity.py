"""How far the runtime is from the PyTorch reference: `python -m benchmarks.parity IMAGE_OR_FOLDER... [--checkpoint C]`.

Each image is cropped (not resized) to the bucket; the same noise goes to both sides in mode G.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import write_rows
from export.assemble import BuildSettings, build
from export.checkpoint import load_checkpoint
from export.reference import predict_reference
from runtime import LotusEngine
from runtime.backends import installed
from runtime.engine import draw_noise, unit_vectors
from runtime.image import IMAGE_SUFFIXES, load


def main() -> int:
    """Build a bundle, compare on every crop with every backend that opens ONNX here, print and save the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--checkpoint", default="tiny/disparity-d")
    parser.add_argument("--task", help="default: what the checkpoint is known for")
    parser.add_argument("--size", type=int, default=256, help="edge of the square bucket in pixels")
    arguments = parser.parse_args()
    backends = [name for name in ("onnxruntime", "openvino") if name in installed()]
    with tempfile.TemporaryDirectory() as folder:
        size = (arguments.size, arguments.size)
        settings = BuildSettings(
            checkpoint=arguments.checkpoint, task=arguments.task, resolutions=(size,), output=Path(folder) / "bundle"
        )
        bundle = build(settings, lambda line: print(line, file=sys.stderr))
        rows = list(_compare(bundle, settings, arguments.images, backends))
    for row in rows:
        print(f"{row['image']:<24} {row['backend']:<14} max {row['max_abs']:.2e}  mean {row['mean_abs']:.2e}")
    name = f"parity-{Path(arguments.checkpoint).name}"
    print(f"rows: {write_rows(name, rows).name}")
    return 0


def _compare(
    bundle: Path, settings: BuildSettings, images: list[Path], backends: list[str]
) -> Iterator[dict[str, Any]]:
    checkpoint = load_checkpoint(settings.checkpoint, task=settings.task)
    with ExitStack() as stack:
        engines = [stack.enter_context(LotusEngine(bundle, backend=backend)) for backend in backends]
        for path in _files(images):
            rgb = _crop(load(path), settings.resolutions[0])
            manifest = engines[0].manifest
            shape = manifest.input_shapes(manifest.buckets[0]).get("noise")
            noise = draw_noise(1, shape) if shape else None
            expected = predict_reference(checkpoint, rgb, noise).transpose(1, 2, 0)
            if checkpoint.task == "normal":
                expected = unit_vectors(expected)
            for engine in engines:
                values = engine(rgb, noise=noise, resize=None).values.reshape(expected.shape)
                apart = np.abs(values - expected)
                yield {
                    "checkpoint": settings.checkpoint,
                    "image": path.name,
                    "backend": engine.backend,
                    "precision": settings.precision,
                    "size": f"{rgb.shape[0]}x{rgb.shape[1]}",
                    "max_abs": float(apart.max()),
                    "mean_abs": float(apart.mean()),
                }


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
