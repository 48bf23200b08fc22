"""Accuracy on the data sets of the paper, by its protocol: `python -m benchmarks.evaluate BUNDLE
--data ROOT [--sets nyuv2,kitti]`; two bundles: `--compare A B`; what the sets are: `--list`.

A picture that was measured stays measured: the same command goes on where it was stopped. See
docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evaluation.compare import compare, comparison_rows, comparison_table
from benchmarks.evaluation.listing import listing
from benchmarks.evaluation.report import write_report
from benchmarks.evaluation.run import Evaluation, Settings, evaluate
from benchmarks.rows import describe, parse_arguments, write_rows
from runtime import LotusEngine, LotusError
from runtime.console import prepare, release, say, show
from runtime.extras import require
from runtime.files import write_atomic


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the report. Status 0 done, 1 an error, 2 wrong usage, 130
    interrupted.
    """
    parser = _parser()
    arguments = parse_arguments(parser, words, wanted=lambda given: given.name is not None)
    if sum((arguments.list, arguments.bundle is not None, arguments.compare is not None)) != 1:
        parser.error("name a BUNDLE, or --compare A B, or --list")
    if not arguments.list and arguments.data is None:
        parser.error("--data ROOT is the folder that holds the sets; --list says what goes there")
    prepare()
    try:
        if arguments.list:
            show("\n".join(listing()))
        else:
            _measure(arguments)
    except (LotusError, OSError) as error:  # OSError: a full disk, a folder that is a file
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return 130
    finally:
        release()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluate", description=__doc__.partition("\n\n")[0]
    )
    add = parser.add_argument
    add("bundle", nargs="?", metavar="BUNDLE")
    add("--list", action="store_true", help="what each set is, and where people get it")
    add("--compare", nargs=2, metavar=("A", "B"), help="two bundles on the same pictures")
    add("--data", type=Path, metavar="ROOT", help="the folder that holds the sets")
    add(
        "--sets",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=(),
        metavar="SET[,SET...]",
        help="default: all under ROOT that the bundle's tasks are measured with",
    )
    add("--lists", type=Path, metavar="DIR", help="the authors' lists of files (data_split)")
    add("--count", type=int, metavar="N", help="N pictures of each set, spread over it")
    add("--backend", help="default: what the bundle names")
    add("--seed", type=int, help="noise of mode G; default: the bundle's")
    add("--ensemble", type=int, default=1, metavar="M", help="mode G: the middle of M answers")
    add("--output", type=Path, default=Path("out/evaluation"), metavar="DIR")
    add("--name", metavar="NAME", help="also write the rows as benchmarks/results/NAME.json")
    return parser


def _measure(arguments: argparse.Namespace) -> None:
    require("matplotlib")
    settings = Settings(
        root=arguments.data,
        output=arguments.output,
        sets=arguments.sets,
        lists=arguments.lists,
        count=arguments.count,
        seed=arguments.seed,
        ensemble=arguments.ensemble,
    )
    bundles = arguments.compare or [arguments.bundle]
    evaluations, rows = [], []
    for bundle in bundles:
        with LotusEngine(bundle, arguments.backend) as engine:
            evaluation = evaluate(engine, settings)
            table, measured = write_report(evaluation)
        show(table)
        show(f"{evaluation.folder / 'report.md'}")
        evaluations.append(evaluation)
        rows += measured
    if arguments.compare:
        rows = _compare(evaluations[0], evaluations[1], settings.output)
    if arguments.name:
        show(f"rows: {write_rows(arguments.name, rows, dirty=arguments.dirty).name}")


def _compare(first: Evaluation, second: Evaluation, output: Path) -> list[dict[str, object]]:
    """Print the table of differences, write it, and give its rows."""
    names = (first.folder.name, second.folder.name)
    comparisons = compare(first, second)
    table = "\n".join(comparison_table(comparisons, names))
    rows = comparison_rows(comparisons, names)
    path = output / f"{names[0]}-against-{names[1]}"
    write_atomic(path.with_name(f"{path.name}.md"), f"# Two bundles\n\n{table}\n".encode())
    body = json.dumps(describe(rows), indent=2) + "\n"
    write_atomic(path.with_name(f"{path.name}.json"), body.encode())
    show(table)
    show(f"{path}.md")
    return rows


if __name__ == "__main__":
    sys.exit(main())
