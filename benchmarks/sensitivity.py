"""What int8 costs, group by group and step by step: `python -m benchmarks.sensitivity BUNDLE...`.

The rows come from the policies that int8 bundles carry; nothing is measured again. The search
weighs the error against the share of multiply-adds in int8. `benchmarks.report` draws both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.rows import parse_arguments, write_rows
from export.bundle.costs import read_costs
from export.quantize.policy import Policy
from runtime.errors import LotusError
from runtime.manifest import Manifest


def main() -> int:
    """Save the rows of each bundle. Status 1 when one cannot be read or is not int8."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    arguments = parse_arguments(parser)
    for path in arguments.bundles:
        try:
            manifest = Manifest.load(path)
        except LotusError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        if manifest.quantisation is None:
            print(f"error: {path} is {manifest.precision}, not int8", file=sys.stderr)
            return 1
        policy = Policy.read(path / manifest.quantisation.policy)
        everything = read_costs(path / manifest.buckets[0].graph)["all"].multiply_adds
        int8_of_all = manifest.quantisation.multiply_adds / everything
        rows = []
        for task in policy.max_errors:
            several = len(policy.max_errors) > 1
            name = f"{manifest.name} ({task})" if several else manifest.name
            rows += _rows_of_task(name, policy, task, int8_of_all)
        print(f"{int8_of_all:.1%} of all multiply-adds in int8")
        saved = write_rows(f"sensitivity-{manifest.name}", rows, dirty=arguments.dirty)
        print(f"rows: {saved.name}")
    return 0


def _rows_of_task(
    name: str, policy: Policy, task: str, int8_of_all: float
) -> list[dict[str, object]]:
    """What the policy says of one task, which is printed too."""
    about = {"bundle": name, "budget": policy.max_errors[task], "kept": policy.high_precision}
    about |= {"int8_of_all": int8_of_all}
    rows: list[dict[str, object]] = []
    for step in policy.steps:
        error = step.errors[task]
        print(
            f"{name}: {step.high_precision:4d} groups in higher precision  {step.int8_share:6.1%} "
            f"in int8  error {error:.4f}"
        )
        share = {"kept": step.high_precision, "int8_share": step.int8_share, "distance": error}
        rows.append(about | share)
    rows += [
        {"bundle": name, "group": group, "alone": alone[task]}
        for group, alone in policy.alone.items()
    ]
    return rows


if __name__ == "__main__":
    sys.exit(main())
