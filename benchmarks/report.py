"""Tables and plots from the committed rows: `python -m benchmarks.report [--check]`.

A table stands in a Markdown file between `<!-- rows: NAME, ... -->` and `<!-- end -->`. NAME is a
file of results/, and its first word is the kind of table, for example `latency`. Where the first
NAME is a kind itself (`precisions`), that is the kind of the others. Plots are written beside the
rows.

`--check` writes nothing; its status is 1 where a table is not what its rows give.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.plots import plot_latency, plot_policies, plot_scaling, plot_stages
from benchmarks.rows import RESULTS, ROOT
from benchmarks.tables import TABLES, Body, measured_rows
from runtime.extras import require

DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "benchmarks.md",
    ROOT / "docs" / "build.md",
    ROOT / "docs" / "evaluation.md",
    ROOT / "docs" / "experiments.md",
    ROOT / "docs" / "geometry.md",
    ROOT / "docs" / "precision.md",
    ROOT / "docs" / "serve.md",
    ROOT / "docs" / "video.md",
    ROOT / "tiny" / "README.md",
)
"""Files with tables; one that is not there is left out."""
_BLOCK = re.compile(r"<!-- rows: (?P<names>[\w., -]+?) -->\n.*?<!-- end -->", re.DOTALL)
_FEW = 3  # baselines: their table is enough


def main() -> int:
    """Write the tables and plots, or with --check compare the tables. Status 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; compare the tables")
    arguments = parser.parse_args()
    if arguments.check:
        stale = stale_documents()
        for path in stale:
            print(
                f"{path.name} differs from its rows: python -m benchmarks.report", file=sys.stderr
            )
        return 1 if stale else 0
    require("matplotlib")
    for path in stale_documents():
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(path)
    _plot()
    return 0


def stale_documents() -> list[Path]:
    """The documents with a table that is not what its rows give."""
    return [path for path, text in _texts().items() if render(text) != text]


def render(text: str) -> str:
    """The document with every table made anew from its rows.

    Raises: OSError where a table names rows that are not there.
    """

    def table(match: re.Match[str]) -> str:
        kind, names = _kind_and_names(match)
        lines = TABLES[kind]([_read(RESULTS / f"{name}.json") for name in names])
        return f"<!-- rows: {match['names']} -->\n" + "\n".join(lines) + "\n<!-- end -->"

    return _BLOCK.sub(table, text)


def _plot() -> None:
    # A setting's own file comes before those whose names say more.
    paths = sorted(RESULTS.glob("latency-*.json"), key=lambda path: (len(path.stem), path.stem))
    latencies = {path: _read(path) for path in paths}
    for path, bodies in _by_setting(latencies).items():
        rows = measured_rows(bodies)
        if len(rows) > _FEW:
            print(plot_latency({"rows": rows}, path.with_suffix(".png")))
    for bodies in _tables_of_sizes():
        print(plot_scaling(bodies, RESULTS / f"scaling-{_machine(bodies[0])}.png"))
    plots = {"profile": ("stages", plot_stages), "sensitivity": ("sensitivity", plot_policies)}
    for kind, (name, plot) in plots.items():
        bodies = [_read(path) for path in sorted(RESULTS.glob(f"{kind}-*.json"))]
        if bodies:
            print(plot(bodies, RESULTS / f"{name}.png"))


def _by_setting(latencies: dict[Path, Body]) -> dict[Path, list[Body]]:
    """Bodies of the same machine, checkpoint, resolution and batch together, by the path of the
    first.
    """
    first: dict[tuple[Any, ...], Path] = {}
    groups: dict[Path, list[Body]] = {}
    for path, body in latencies.items():
        row = next((row for row in body["rows"] if "p50_s" in row), None)
        if row is not None:
            setting = (_machine(body), row["checkpoint"], row["resolution"], row["batch"])
            groups.setdefault(first.setdefault(setting, path), []).append(body)
    return groups


def _tables_of_sizes() -> Iterator[list[Body]]:
    """The bodies of each table of sizes, in its order: a plot shows what its table says."""
    for text in _texts().values():
        for kind, names in map(_kind_and_names, _BLOCK.finditer(text)):
            if kind == "sizes":
                yield [_read(RESULTS / f"{name}.json") for name in names]


def _texts() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in DOCUMENTS if path.exists()}


def _kind_and_names(match: re.Match[str]) -> tuple[str, list[str]]:
    """Of a table: its kind, and the names of its rows."""
    names = match["names"].split(", ")
    kind = names.pop(0) if names[0] in TABLES and len(names) > 1 else names[0].split("-")[0]
    return kind, names


def _machine(body: Body) -> str:
    """The last of the instruction sets that count here, for example "avx2"."""
    return (body["machine"].get("isa") or body["machine"]["arch"]).split()[-1]


def _read(path: Path) -> Body:
    body: Body = json.loads(path.read_text(encoding="utf-8"))
    return body


if __name__ == "__main__":
    sys.exit(main())
