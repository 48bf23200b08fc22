"""What a bundle's graph costs: `python export/inspect_bundle.py BUNDLE [BUNDLE ...] [--json]`.

For each stage: operations (2 for a multiply-add), the share of them in int8, bytes of weights,
bytes of activations that move if every operator is a kernel of its own, the largest sum of
activations alive at once, and kernels by type. `--network FLAVOUR` adds the layers that the parser
of TensorRT or TensorRT-RTX makes of the graph, with the types they answer in; it needs the vendor's
package, and no GPU for TensorRT-RTX. Of a bundle with several tasks, the UNet of each is shown too.
With a batch the numbers are those of all its images.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:
        # As a script, Python puts export/ first on sys.path; the project's packages lie one level
        # up.
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    from runtime.extras import explain_missing_packages

    explain_missing_packages()

import argparse
import json
from collections import Counter
from dataclasses import dataclass

from export.bundle.costs import Costs, read_costs
from export.graph.stages import STAGES
from export.targets.tensorrt_builder import read_network
from runtime.backends.tensorrt import FLAVOURS
from runtime.errors import LotusError
from runtime.manifest import Bucket, Manifest

_COLUMNS = ("Gop", "int8 %", "weights MB", "traffic MB", "peak MB", "kernels")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A bucket of a bundle; `layers` counts the vendor's layers, as "CONVOLUTION HALF", by
    stage.
    """

    manifest: Manifest
    bucket: Bucket
    costs: dict[str, Costs]
    layers: dict[str, Counter[str]]


def main(argv: list[str] | None = None) -> int:
    """Print one table for each bundle and bucket. Status 1 when a bundle cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python export/inspect_bundle.py",
        description=__doc__.splitlines()[0] if __doc__ else None,
    )
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--json", action="store_true", help="all numbers, in bytes and multiply-adds"
    )
    parser.add_argument(
        "--network", choices=sorted(FLAVOURS), metavar="FLAVOUR", help="tensorrt or tensorrt-rtx"
    )
    arguments = parser.parse_args(argv)
    try:
        read = [row for path in arguments.bundles for row in _read(path, arguments.network)]
    except LotusError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if arguments.json:
        rows = [
            {
                "bundle": row.manifest.name,
                "bucket": str(row.bucket),
                "batch": row.bucket.batch,
                "noises": row.bucket.noises,
                "tasks": row.manifest.tasks,
                "folds": row.manifest.folds,
            }
            | {stage: vars(cost) for stage, cost in row.costs.items()}
            | ({"layers": row.layers} if row.layers else {})
            for row in read
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for row in read:
        _print(row, read[0].costs["all"])
    return 0


def _read(path: Path, flavour: str | None) -> list[_Row]:
    manifest = Manifest.load(path)
    return [
        _Row(
            manifest=manifest,
            bucket=bucket,
            costs=read_costs(path / bucket.graph, manifest.tasks),
            layers=count_layers(path / bucket.graph, flavour) if flavour else {},
        )
        for bucket in manifest.buckets
    ]


def count_layers(graph: Path, flavour: str) -> dict[str, Counter[str]]:
    """Layers of the vendor's network by stage, and under "other" those that the vendor named
    itself.
    """
    counts: dict[str, Counter[str]] = {stage: Counter() for stage in (*STAGES, "other")}
    for layer in read_network(graph, flavour):
        stage = next(
            (stage for stage in STAGES if layer.name.startswith((f"{stage}/", f"{stage}."))),
            "other",
        )
        counts[stage][" ".join((layer.kind, *layer.types))] += 1
    return counts


def _print(row: _Row, first: Costs) -> None:
    manifest, bucket, costs = row.manifest, row.bucket, row.costs
    say = sys.stdout.write
    folds = ", ".join(manifest.folds) or "none: the plain graph"
    tasks = f"  {', '.join(manifest.tasks)}" if len(manifest.tasks) > 1 else ""
    say(f"{manifest.name}  {bucket}  opset {manifest.opset}{tasks}\nfolds: {folds}\n")
    width = max(8, *(len(stage) + 1 for stage in costs))
    say(" " * width + "".join(f"{column:>12}" for column in _COLUMNS) + "\n")
    for stage, cost in costs.items():
        share = 100 * cost.int8 / max(cost.multiply_adds, 1)
        numbers = (
            2 * cost.multiply_adds / 1e9,
            share,
            cost.weights / 1e6,
            cost.traffic / 1e6,
            cost.peak / 1e6,
        )
        say(
            f"{stage:<{width}}"
            + "".join(f"{number:12.1f}" for number in numbers)
            + f"{cost.kernels.total():12d}\n"
        )
    total = costs["all"]
    if bucket.answers > 1:
        each = 2 * total.multiply_adds / bucket.answers / 1e9
        what = "images" if bucket.batch > 1 else "noises"
        say(f"for each of {bucket.answers} {what}: {each:.1f} Gop\n")
    if total is not first:
        kernels = total.kernels.total() / first.kernels.total()
        say(
            f"of the first: operations {total.multiply_adds / first.multiply_adds:.3f}, "
            f"traffic {total.traffic / first.traffic:.3f}, kernels {kernels:.3f}\n"
        )
    for stage, cost in costs.items():
        if stage != "all":
            say(
                f"{stage}: "
                + ", ".join(f"{count} {kind}" for kind, count in cost.kernels.most_common())
                + "\n"
            )
    for stage, layers in row.layers.items():
        say(
            f"{stage} as parsed: "
            + ", ".join(f"{count} {kind}" for kind, count in layers.most_common())
            + "\n"
        )
    say("\n")


if __name__ == "__main__":
    sys.exit(main())
