"""Tables and plots from the committed rows: `python -m benchmarks.report [--check]`.

A table stands in a Markdown file between `<!-- rows: NAME, ... -->` and `<!-- end -->`. NAME is a file of results/; its
beginning picks the kind of table, unless the first NAME is a kind itself (`precisions`). `--check` writes nothing and
fails where a file differs from its rows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders import BASELINE
from benchmarks.rows import RESULTS, ROOT

PAGES = (ROOT / "README.md", ROOT / "tiny" / "README.md", Path(__file__).with_name("NOTES.md"))
_BLOCK = re.compile(r"<!-- rows: (?P<names>[\w., -]+?) -->\n.*?<!-- end -->", re.DOTALL)
_FEW = 3  # contenders: their table says it all
_Body = dict[str, Any]


def main() -> int:
    """Write the tables and plots, or with --check compare the tables. Status 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        made = render(text)
        if made != text:
            stale.append(page.name)
        if not arguments.check:
            page.write_text(made, encoding="utf-8")
    if arguments.check:
        for name in stale:
            print(f"{name} differs from its rows: python -m benchmarks.report", file=sys.stderr)
        return 1 if stale else 0
    # A setting's own file comes before those whose names say more.
    paths = sorted(RESULTS.glob("latency-*.json"), key=lambda path: (len(path.stem), path.stem))
    latencies = {path: json.loads(path.read_text()) for path in paths}
    for path, bodies in _by_setting(latencies).items():
        rows = _measured(bodies)
        if len(rows) > _FEW:
            print(_plot_latency({"rows": rows}, path.with_suffix(".png")))
    if len(latencies) > 1:
        print(_plot_scaling(list(latencies.values()), RESULTS / "scaling.png"))
    profiles = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("profile-*.json"))]
    if profiles:
        print(_plot_stages(profiles, RESULTS / "stages.png"))
    policies = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("sensitivity-*.json"))]
    if policies:
        print(_plot_policies(policies, RESULTS / "sensitivity.png"))
    return 0


def render(text: str) -> str:
    """The page with every table made anew from its rows."""

    def table(match: re.Match[str]) -> str:
        names = match["names"].split(", ")
        kind = names.pop(0) if names[0] in _TABLES and len(names) > 1 else names[0].split("-")[0]
        lines = _TABLES[kind]([json.loads((RESULTS / f"{name}.json").read_text()) for name in names])
        return f"<!-- rows: {match['names']} -->\n" + "\n".join(lines) + "\n<!-- end -->"

    return _BLOCK.sub(table, text)


def _latency(bodies: list[_Body]) -> list[str]:
    """One line for each contender, resolution and batch. The ratio is to the reference in its own group, whose seconds
    stand beside it."""
    lines = [
        "| | p50 | against PyTorch | first prediction | peak memory | GFLOP/s | off PyTorch by |",
        "|---|---|---|---|---|---|---|",
    ]
    shown = _last_rows(bodies)
    several = len({key[1:] for key in shown}) > 1
    for row in shown.values():
        if "p50_s" not in row:
            lines.append(f"| {row['meaning']} | not measured: {_plain(row['not_measured'])} | | | | | |")
            continue
        size = f", {row['resolution']}" + (f", {row['batch']} images" if row["batch"] > 1 else "")
        label = row["meaning"] + (size if several else "")
        rate = f"{row['gflops']:.0f}" if "gflops" in row else ""
        beside = f"{row['ratio']:.2f}x" + (
            "" if row["what"] == BASELINE else f" of {row['ratio'] * row['p50_s']:.1f} s"
        )
        lines.append(
            f"| {label} | {row['p50_s']:.2f} s | {beside} | {row['first_s']:.1f} s | "
            f"{row['peak_gb']:.1f} GB | {rate} | {row['max_abs_error']:.1e} |"
        )
    for body in bodies:
        ceiling, machine = body["rows"][0]["gflops"], body["machine"]
        where = f"{machine['cores']} cores ({machine['cpu']}), commit {body['commit']}, {body['date']}"
        rates = f"{ceiling['float32']:.0f} GFLOP/s in fp32, {ceiling['bfloat16']:.0f} in bf16"
        lines += ["", f"{where}; one large product ran at {rates}. `{body['command']}`"]
    return lines


def _by_setting(latencies: dict[Path, _Body]) -> dict[Path, list[_Body]]:
    """Bodies of the same checkpoint, resolution and batch together, by the path of the first."""
    first: dict[tuple[Any, ...], Path] = {}
    groups: dict[Path, list[_Body]] = {}
    for path, body in latencies.items():
        row = next((row for row in body["rows"] if "p50_s" in row), None)
        if row is not None:
            path = first.setdefault((row["checkpoint"], row["resolution"], row["batch"]), path)
            groups.setdefault(path, []).append(body)
    return groups


def _last_rows(bodies: list[_Body]) -> dict[tuple[Any, ...], _Body]:
    """Rows by contender, resolution and batch: the first in a file, as the reference runs in every group, and of the
    last file that has one; of the reference the first file's."""
    found: dict[tuple[Any, ...], _Body] = {}
    for body in bodies:
        own: dict[tuple[Any, ...], _Body] = {}
        for row in body["rows"]:
            if row["what"] != "ceiling":
                own.setdefault((row["what"], row.get("resolution"), row.get("batch")), row)
        found |= {key: row for key, row in own.items() if key not in found or row["what"] != BASELINE}
    return found


def _measured(bodies: list[_Body]) -> list[_Body]:
    """The rows of `_last_rows` that hold a measurement."""
    return [row for row in _last_rows(bodies).values() if "p50_s" in row]


def _plain(reason: str) -> str:
    return reason.split(". ")[0].replace("|", "/")[:100]


def _accuracy(bodies: list[_Body]) -> list[str]:
    """One line for each bundle and group, its constant prediction beside it."""
    keys = list(bodies[0]["rows"][-1]["metrics"])
    shown = [key for key in ("abs_rel", "delta1", "mean", "median", "below_11.25", "rmse") if key in keys]
    lines = ["| | " + " | ".join(shown) + " | the constant's |", "|---|" + "---|" * (len(shown) + 1)]
    for body in bodies:
        found = {row["name"]: row for row in body["rows"] if row["images"] != 1}
        first = body["rows"][0]
        label = first["bundle"] + (f", mean of {first['mean_of']} seeds" if first["mean_of"] > 1 else "")
        for name, row in found.items():
            if name.startswith(("constant", "all")):
                continue
            constant = found.get(f"constant map: {name}", {"metrics": {}})["metrics"].get(shown[0])
            numbers = " | ".join(f"{row['metrics'][key]:.3f}" for key in shown)
            beside = "" if constant is None else f"{constant:.3f}"
            lines.append(f"| {label}, {name} | {numbers} | {beside} |")
    return lines


def _precisions(bodies: list[_Body]) -> list[str]:
    """One line for each checkpoint, in style: the first metric by precision and target, and how far from fp32's."""
    found: dict[str, dict[str, float]] = {}
    metrics, settings = {}, dict[str, None]()
    for body in bodies:
        checkpoint, setting = _checkpoint_and_setting(body)
        group = next(row for row in body["rows"] if row["name"].startswith("in-style ("))
        metrics[checkpoint] = next(key for key in ("abs_rel", "mean") if key in group["metrics"])
        settings[setting] = None
        found.setdefault(checkpoint, {})[setting] = group["metrics"][metrics[checkpoint]]
    lines = [f"| in style, 100 images | | {' | '.join(settings)} |", "|---|---|" + "---|" * len(settings)]
    exactly = next(setting for setting in settings if setting.startswith("fp32"))
    for checkpoint, values in found.items():
        cells = []
        for setting in settings:
            value = values.get(setting)
            apart = "" if setting == exactly or value is None else f" ({value / values[exactly] - 1:+.2%})"
            cells.append("" if value is None else f"{value:.4f}{apart}")
        lines.append(f"| {checkpoint} | {metrics[checkpoint]} | {' | '.join(cells)} |")
    return lines


def _checkpoint_and_setting(body: _Body) -> tuple[str, str]:
    """For example "depth-d" and "int8, openvino", from the bundle's name; the name alone where it has no size."""
    checkpoint, *setting = re.split(r"-\d+x\d+-", body["rows"][0]["bundle"], maxsplit=1)
    return checkpoint, "".join(setting).replace("-", ", ", 1)


def _forms(bodies: list[_Body]) -> list[str]:
    """Seconds of each fold's forms, a line for each backend; a cell has one number for each layer."""
    lines: list[str] = []
    rows = [row for body in bodies for row in body["rows"]]
    for fold in dict.fromkeys(row["fold"] for row in rows):
        own = {(row["backend"], row["form"], row["channels"], row["edge"]): row for row in rows if row["fold"] == fold}
        backends, forms = (dict.fromkeys(key[place] for key in own) for place in (0, 1))
        layers = dict.fromkeys(key[2:] for key in own)
        names = ", ".join(f"{channels} channels at {edge}" for channels, edge in layers)
        lines += ["", f"{fold}: {names} pixels", "", "| | " + " | ".join(forms) + " |", "|---|" + "---|" * len(forms)]
        for backend in backends:
            found = [[own.get((backend, form, *layer)) for layer in layers] for form in forms]
            cells = [" ".join("-" if row is None else f"{row['p50_s']:.2f}" for row in cell) for cell in found]
            lines.append(f"| {backend} | " + " | ".join(cells) + " |")
    return lines[1:]


_TABLES: dict[str, Callable[[list[_Body]], list[str]]] = {
    "latency": _latency,
    "accuracy": _accuracy,
    "precisions": _precisions,
    "forms": _forms,
}


def _pyplot() -> Any:
    """Matplotlib without a window; only the plots need it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plot_latency(body: _Body, path: Path) -> Path:
    """Bars of the medians of measured rows, one for each contender, and beside them latency against the difference from
    the reference, by the bars' numbers."""
    pyplot = _pyplot()
    rows = body["rows"]
    figure, (bars, scatter) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    names = [f"{row['what']}  {place}" for place, row in enumerate(rows, 1)]
    bars.barh(names, [row["p50_s"] for row in rows], color="#4477aa")
    bars.margins(x=0.15)
    for place, row in enumerate(rows):
        bars.annotate(f" {row['ratio']:.2f}x", (row["p50_s"], place), va="center")
    bars.invert_yaxis()
    bars.set_xlabel("seconds per image, median")
    for place, row in enumerate(rows, 1):
        if row["max_abs_error"] > 0:
            point = (row["p50_s"], row["max_abs_error"])
            scatter.plot(*point, "o", color="#4477aa")
            where = (0, 7 + 11 * (place % 2))  # neighbours stand at two heights
            scatter.annotate(str(place), point, where, textcoords="offset points", ha="center", fontsize=8)
    scatter.set_yscale("log")
    scatter.margins(0.2)
    scatter.set_xlabel("seconds per image, median")
    scatter.set_ylabel("largest difference from PyTorch")
    figure.suptitle(f"{rows[0]['checkpoint']}, {rows[0]['resolution']}, batch {rows[0]['batch']}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _plot_scaling(bodies: list[_Body], path: Path) -> Path:
    """Seconds for one image over the edge of square images, and over the batch at the resolution that has batches."""
    pyplot = _pyplot()
    rows = _measured(bodies)
    batched = {row["resolution"] for row in rows if row["batch"] > 1}
    figure, (sizes, batches) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == what]
        by_edge = {int(row["resolution"].split("x")[0]): row["p50_s"] for row in own if row["batch"] == 1}
        by_batch = {row["batch"]: row["p50_s"] / row["batch"] for row in own if row["resolution"] in batched}
        for axes, points in ((sizes, by_edge), (batches, by_batch)):
            if len(points) > 1:
                axes.plot(*zip(*sorted(points.items()), strict=True), "o-", label=what)
    sizes.set(xlabel="edge of a square image, pixels", ylabel="seconds, median", xscale="log", yscale="log")
    batches.set(xlabel="images in one call", ylabel="seconds per image, median", ylim=(0, None))
    sizes.legend(fontsize=8)
    figure.suptitle(rows[0]["checkpoint"])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _plot_stages(bodies: list[_Body], path: Path) -> Path:
    """Stacked bars of the stages' seconds, a bar for each profiled bundle."""
    from export.to_onnx import STAGES

    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(bodies) + 1.2), layout="constrained")
    names = [body["rows"][0]["bundle"] for body in bodies]
    start = [0.0] * len(bodies)
    for stage, colour in zip(STAGES, ("#4477aa", "#66ccee", "#228833"), strict=True):
        seconds = [sum(row["seconds"] for row in body["rows"] if row["stage"] == stage) for body in bodies]
        axes.barh(names, seconds, left=start, label=stage, color=colour)
        start = [before + more for before, more in zip(start, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds per image, by the engine's own profiler")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _plot_policies(bodies: list[_Body], path: Path) -> Path:
    """Share of multiply-adds in int8 against the distance over the budget, a point for each step of the search."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 3.8), layout="constrained")
    colours: dict[str, str] = {}
    styles: dict[str, Any] = {}
    for body in bodies:
        steps = [row for row in body["rows"] if "int8_share" in row]
        points = sorted((row["int8_share"], row["distance"] / row["budget"]) for row in steps)
        checkpoint, setting = _checkpoint_and_setting(body)
        colour = colours.setdefault(checkpoint, f"C{len(colours)}")
        style = styles.setdefault(setting, ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))[len(styles) % 4])
        label = f"{checkpoint}, {setting}".removesuffix(", ")
        axes.plot(*zip(*points, strict=True), linestyle=style, marker="o", color=colour, label=label)
    axes.axhline(1, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="share of the layers' multiply-adds in int8", ylabel="distance from fp32 / budget", ylim=(0, None))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main())
