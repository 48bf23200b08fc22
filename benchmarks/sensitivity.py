"""What int8 costs, group by group and step by step: `python -m benchmarks.sensitivity BUNDLE [...]`.

Rows from the policies that int8 bundles carry, which `benchmarks.report` draws; nothing is measured anew. Speed is the
share of multiply-adds in int8, which is what the search weighs the error against.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.rows import write_rows
from export.costs import read_costs
from runtime.errors import LotusError
from runtime.manifest import Manifest


def main() -> int:
    """Save the rows of each bundle. Status 1 when one cannot be read or is not int8."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    for path in parser.parse_args().bundles:
        try:
            manifest = Manifest.load(path)
        except LotusError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        if manifest.quantisation is None:
            print(f"error: {path} is {manifest.precision}, not int8", file=sys.stderr)
            return 1
        policy = json.loads((path / manifest.quantisation.policy).read_text(encoding="utf-8"))
        everything = read_costs(path / manifest.buckets[0].graph)["all"].multiply_adds
        about = {"bundle": manifest.name, "budget": policy["budget"], "kept": policy["kept"]}
        about |= {"int8_of_all": manifest.quantisation.multiply_adds / everything}
        rows = [about | step for step in policy["steps"]]
        rows += [{"bundle": manifest.name, "group": group, "alone": alone} for group, alone in policy["alone"].items()]
        for step in policy["steps"]:
            print("{kept:4d} groups kept  {int8_share:6.1%} in int8  {distance:.4f} off".format(**step))
        print(f"{about['int8_of_all']:.1%} of all multiply-adds in int8")
        print(f"rows: {write_rows(f'sensitivity-{manifest.name}', rows).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
