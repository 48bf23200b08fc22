"""A half-precision bundle that any CPU can run: `python -m benchmarks.emulate BUNDLE --output DIR`.

ONNX Runtime runs the same graph in float32 and rounds every result to the half type
(export/graph/emulate.py). So `benchmarks.accuracy` can tell without a GPU what a precision costs.
It says nothing about speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from export.graph.emulate import write_emulated
from runtime.errors import LotusError
from runtime.manifest import Manifest, describe_file


def main() -> int:
    """Write the bundle. Status 1 when BUNDLE cannot be read or the output exists."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        print(emulate_bundle(arguments.bundle, arguments.output))
    except (LotusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def emulate_bundle(bundle: Path, output: Path) -> Path:
    """A bundle for ONNX Runtime with `bundle`'s weights (linked) and golden. Raises: LotusError,
    OSError.
    """
    manifest = Manifest.load(bundle)
    output.mkdir(parents=True)
    engines = {bucket.engine for bucket in manifest.buckets}
    for file in manifest.files:
        if file.path not in engines:
            os.link(bundle / file.path, output / file.path)
    for bucket in manifest.buckets:
        write_emulated(output / bucket.graph, output / "emulated.onnx")
        (output / "emulated.onnx").replace(output / bucket.graph)
    files = [describe_file(output, path.name) for path in sorted(output.iterdir())]
    dataclasses.replace(
        manifest,
        name=f"{manifest.name}-emulated",
        target="onnxruntime",
        engine=None,
        buckets=[dataclasses.replace(bucket, engine=None) for bucket in manifest.buckets],
        files=files,
    ).save(output)
    return output


if __name__ == "__main__":
    sys.exit(main())
