"""The plot of a run on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.on_device.contenders import PYTORCH
from benchmarks.on_device.page import Body
from benchmarks.plots import open_pyplot
from export.graph.stages import STAGES

_COLOURS = dict(zip(STAGES, ("#4477aa", "#66ccee", "#228833"), strict=True))
_REST, _LEAST = "#bbbbbb", "#cc3311"


def plot_device(body: Body, path: Path) -> None:
    """Bars of one prediction's milliseconds by stage, one for each that was measured, with what the
    roofline allows. Nothing measured is a plot that says so.
    """
    pyplot = open_pyplot()
    timed = sorted(
        (row for row in body["rows"] if "latency" in row),
        key=lambda row: float(row["latency"]["p50_s"]),
    )
    device = body["rows"][0]
    figure, axes = pyplot.subplots(
        figsize=(9, 0.55 * max(len(timed), 1) + 1.7), layout="constrained"
    )
    for height, row in enumerate(timed):
        _bar(axes, height, row, timed)
    for stage, colour in (*_COLOURS.items(), ("host and the rest", _REST)):
        axes.barh(0, 0, color=colour, label=stage)
    if any(_least(row) is not None for row in timed):
        axes.plot([], [], "|", color=_LEAST, markersize=13, label="least by roofline, all fused")
    axes.set_yticks(range(len(timed)), [row["what"] for row in timed])
    axes.invert_yaxis()
    longest = max((1e3 * float(row["latency"]["p50_s"]) for row in timed), default=1.0)
    axes.set_xlim(0, 1.2 * longest)
    axes.set_xlabel("milliseconds of one prediction, median")
    axes.set_title(f"{device['device']}, {device['resolution']}", loc="left", fontsize=11)
    if timed:
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, "nothing was measured", ha="center", transform=axes.transAxes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _bar(axes: Any, height: int, row: dict[str, Any], timed: list[dict[str, Any]]) -> None:
    whole = 1e3 * row["latency"]["p50_s"]
    stages = row["latency"].get("stages_s") or row.get("stages", {}).get("stages_s", {})
    total = 1e3 * sum(stages.values())
    shrink = min(1.0, whole / total) if total else 1.0  # a profiler slows what it counts
    start = 0.0
    for stage in STAGES:
        length = shrink * 1e3 * stages.get(stage, 0.0)
        axes.barh(height, length, left=start, color=_COLOURS[stage])
        start += length
    axes.barh(height, whole - start, left=start, color=_REST)
    least = _least(row)
    if least is not None:
        axes.plot([least, least], [height - 0.45, height + 0.45], color=_LEAST, linewidth=2)
    words = f" {whole / 1e3:.2f} s" if whole >= 1000 else f" {whole:.3g} ms"
    reference = [each for each in timed if each["what"] == PYTORCH[0]]
    if reference and row is not reference[0]:
        words += f", {reference[0]['latency']['p50_s'] / row['latency']['p50_s']:.2f}x"
    axes.annotate(words, (whole, height), va="center", fontsize=9)


def _least(row: dict[str, Any]) -> float | None:
    bound = row.get("bound", {})
    for name in ("peak", "measured"):
        if name in bound:
            return float(bound[name]["fused_ms"])
    return None
