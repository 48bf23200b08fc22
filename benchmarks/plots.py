"""Plots of rows, as PNG files. A body is what `benchmarks.rows.write_rows` wrote."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.tables import Body, checkpoint_and_setting, measured_rows


def open_pyplot() -> Any:
    """Matplotlib without a window; only the plots need it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_latency(body: Body, path: Path) -> Path:
    """Bars of the medians of measured rows, one for each baseline, and beside them latency against
    the difference from the reference, by the bars' numbers.
    """
    pyplot = open_pyplot()
    rows = body["rows"]
    figure, (bars, scatter) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    names = [f"{row['what']}  {number}" for number, row in enumerate(rows, 1)]
    bars.barh(names, [row["p50_s"] for row in rows], color="#4477aa")
    bars.margins(x=0.15)
    for height, row in enumerate(rows):
        bars.annotate(f" {row['ratio']:.2f}x", (row["p50_s"], height), va="center")
    bars.invert_yaxis()
    bars.set_xlabel("seconds per image, median")
    for number, row in enumerate(rows, 1):
        if row["max_abs_error"] > 0:
            point = (row["p50_s"], row["max_abs_error"])
            scatter.plot(*point, "o", color="#4477aa")
            where = (0, 7 + 11 * (number % 2))  # neighbours stand at two heights
            scatter.annotate(
                str(number), point, where, textcoords="offset points", ha="center", fontsize=8
            )
    scatter.set_yscale("log")
    scatter.margins(0.2)
    scatter.set_xlabel("seconds per image, median")
    scatter.set_ylabel("largest difference from PyTorch")
    figure.suptitle(f"{rows[0]['checkpoint']}, {rows[0]['resolution']}, batch {rows[0]['batch']}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def plot_scaling(bodies: list[Body], path: Path) -> Path:
    """Seconds for one image over the edge of square images, and over the batch at the resolution
    that has batches; of the checkpoint that most bodies are of.
    """
    pyplot = open_pyplot()
    of = [{row.get("checkpoint") for row in body["rows"]} - {None} for body in bodies]
    most = Counter(name for names in of for name in names).most_common(1)[0][0]
    rows = [
        row
        for row in measured_rows(
            [body for body, names in zip(bodies, of, strict=True) if names == {most}]
        )
        if len({*row["resolution"].split("x")}) == 1
    ]
    batched = {row["resolution"] for row in rows if row["batch"] > 1}
    panels = 2 if batched else 1
    figure, axes = pyplot.subplots(
        1, panels, figsize=(5.5 * panels, 3.6), layout="constrained", squeeze=False
    )
    sizes = axes[0, 0]
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == what]
        by_edge = {
            int(row["resolution"].split("x")[0]): row["p50_s"] for row in own if row["batch"] == 1
        }
        by_batch = {
            row["batch"]: row["p50_s"] / row["batch"] for row in own if row["resolution"] in batched
        }
        for panel, points in zip(axes[0], (by_edge, by_batch), strict=False):
            if len(points) > 1:
                panel.plot(*zip(*sorted(points.items()), strict=True), "o-", label=what)
    sizes.set(xscale="log", yscale="log", ylabel="seconds, median")
    sizes.set_xlabel("edge of a square image, pixels")
    for axis, ticks in (
        (sizes.xaxis, sorted({int(row["resolution"].split("x")[0]) for row in rows})),
        (sizes.yaxis, [1, 2, 5, 10, 20, 50, 100, 200]),
    ):
        low, high = axis.get_view_interval()
        axis.set_ticks([tick for tick in ticks if low <= tick <= high])
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    if batched:
        axes[0, 1].set(ylabel="seconds per image, median", ylim=(0, None))
        axes[0, 1].set_xlabel("images in one call")
    sizes.legend(fontsize=8)
    figure.suptitle(rows[0]["checkpoint"])
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def plot_stages(bodies: list[Body], path: Path) -> Path:
    """Stacked bars of the stages' seconds, a bar for each profiled bundle."""
    from export.graph.stages import STAGES

    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(bodies) + 1.2), layout="constrained")
    names = [body["rows"][0]["bundle"] for body in bodies]
    start = [0.0] * len(bodies)
    for stage, colour in zip(STAGES, ("#4477aa", "#66ccee", "#228833"), strict=True):
        seconds = [
            sum(row["seconds"] for row in body["rows"] if row["stage"] == stage) for body in bodies
        ]
        axes.barh(names, seconds, left=start, label=stage, color=colour)
        start = [before + more for before, more in zip(start, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds per image, by the engine's own profiler")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def plot_policies(bodies: list[Body], path: Path) -> Path:
    """Each line is one search: int8's share of the multiply-adds against the error divided by its
    limit, which is dotted. A point is a step of the search.
    """
    pyplot = open_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 3.8), layout="constrained")
    colours: dict[str, str] = {}
    styles: dict[str, Any] = {}
    for body in bodies:
        steps = [row for row in body["rows"] if "int8_share" in row]
        points = sorted((row["int8_share"], row["distance"] / row["budget"]) for row in steps)
        checkpoint, setting = checkpoint_and_setting(body)
        colour = colours.setdefault(checkpoint, f"C{len(colours)}")
        style = styles.setdefault(
            setting, ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))[len(styles) % 4]
        )
        label = f"{checkpoint}, {setting}".removesuffix(", ")
        axes.plot(
            *zip(*points, strict=True), linestyle=style, marker="o", color=colour, label=label
        )
    axes.axhline(1, color="black", linestyle=":", linewidth=1)
    axes.set(
        xlabel="share of the layers' multiply-adds in int8",
        ylabel="error / its limit",
        ylim=(0, None),
    )
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
