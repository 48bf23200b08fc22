"""What a bundle's graph costs: `python export/inspect.py BUNDLE [BUNDLE ...] [--json]`, plain beside folded.

For each stage: operations (2 for a multiply-add), the share of them in int8, bytes of weights, bytes of activations
that move if every operator is a kernel of its own, the largest sum of activations alive at once, and kernels by type.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script, Python puts export/ first on sys.path, where this file would hide the standard library's `inspect`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json

from export.costs import Costs, read_costs
from runtime.errors import LotusError
from runtime.manifest import Bucket, Manifest

_COLUMNS = ("Gop", "int8 %", "weights MB", "traffic MB", "peak MB", "kernels")


def main(argv: list[str] | None = None) -> int:
    """Print one table for each bundle and bucket. Status 1 when a bundle cannot be read."""
    parser = argparse.ArgumentParser(prog="inspect.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="all numbers, in bytes and multiply-adds")
    arguments = parser.parse_args(argv)
    try:
        read = [(manifest, bucket, costs) for path in arguments.bundles for manifest, bucket, costs in _read(path)]
    except LotusError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if arguments.json:
        rows = [
            {"bundle": manifest.name, "bucket": str(bucket), "folds": manifest.folds}
            | {stage: vars(cost) for stage, cost in costs.items()}
            for manifest, bucket, costs in read
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for manifest, bucket, costs in read:
        _print(manifest, bucket, costs, read[0][2]["all"])
    return 0


def _read(path: Path) -> list[tuple[Manifest, Bucket, dict[str, Costs]]]:
    manifest = Manifest.load(path)
    return [(manifest, bucket, read_costs(path / bucket.graph)) for bucket in manifest.buckets]


def _print(manifest: Manifest, bucket: Bucket, costs: dict[str, Costs], first: Costs) -> None:
    say = sys.stdout.write
    folds = ", ".join(manifest.folds) or "none: the plain graph"
    say(f"{manifest.name}  {bucket}  opset {manifest.opset}\nfolds: {folds}\n")
    say(f"{'':<8}" + "".join(f"{column:>12}" for column in _COLUMNS) + "\n")
    for stage, cost in costs.items():
        share = 100 * cost.int8 / max(cost.multiply_adds, 1)
        numbers = (2 * cost.multiply_adds / 1e9, share, cost.weights / 1e6, cost.traffic / 1e6, cost.peak / 1e6)
        say(f"{stage:<8}" + "".join(f"{number:12.1f}" for number in numbers) + f"{cost.kernels.total():12d}\n")
    total = costs["all"]
    if total is not first:
        kernels = total.kernels.total() / first.kernels.total()
        say(
            f"of the first: operations {total.multiply_adds / first.multiply_adds:.3f}, "
            f"traffic {total.traffic / first.traffic:.3f}, kernels {kernels:.3f}\n"
        )
    for stage, cost in costs.items():
        if stage != "all":
            say(f"{stage}: " + ", ".join(f"{count} {kind}" for kind, count in cost.kernels.most_common()) + "\n")
    say("\n")


if __name__ == "__main__":
    sys.exit(main())
