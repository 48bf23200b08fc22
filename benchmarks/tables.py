"""Markdown tables of rows, by kind. A body is what `benchmarks.rows.write_rows` wrote."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.baselines import REFERENCE
from benchmarks.ground_truth import GROUND_TRUTHS
from benchmarks.tables_around import AROUND, Body, machine_of, made_by, made_on

_SHOWN = ("abs_rel", "delta1", "mean", "median", "below_11.25", "rmse")
"""Metrics in a table of accuracy, where a body has them."""
_FIRST = tuple(dict.fromkeys(kind.ranked_by for kind in GROUND_TRUTHS.values()))


def latency_table(bodies: list[Body]) -> list[str]:
    """One line for each baseline, resolution and batch. The ratio is to the reference that ran in
    the same group; the seconds of that run stand beside it.
    """
    lines = [
        "| | p50 | against PyTorch | first prediction | peak memory | GFLOP/s | off PyTorch by |",
        "|---|---|---|---|---|---|---|",
    ]
    label = _labels(bodies)
    for row in last_rows(bodies).values():
        if "p50_s" not in row:
            lines.append(
                f"| {row['meaning']} | not measured: {_plain(row['not_measured'])} | | | | | |"
            )
            continue
        rate = f"{row['gflops']:.0f}" if "gflops" in row else ""
        lines.append(
            f"| {label(row)} | {row['p50_s']:.2f} s | {_beside(row)} | {row['first_s']:.1f} s | "
            f"{row['peak_gb']:.1f} GB | {rate} | {row['max_abs_error']:.1e} |"
        )
    for body in bodies:
        ceiling = body["rows"][0]["gflops"]
        rates = f"{ceiling['float32']:.0f} GFLOP/s in fp32, {ceiling['bfloat16']:.0f} in bf16"
        rates += f", {ceiling['int8']:.0f} in int8" if "int8" in ceiling else ""
        where = f"{machine_of(body)}, commit {body['commit']}, {body['date']}"
        lines += ["", f"{where}; one large product ran at {rates}. `{body['command']}`"]
    return lines


def _labels(bodies: list[Body]) -> Callable[[Body], str]:
    """What the line of a row begins with: its meaning, and its size where there are several."""
    several = len({_size(row) for row in measured_rows(bodies)}) > 1
    return lambda row: row["meaning"] + (f", {_size(row)}" if several else "")


def _size(row: Body) -> str:
    return row["resolution"] + (f", for {row['batch']} images" if row["batch"] > 1 else "")


def _beside(row: Body) -> str:
    """How many times as fast as the reference of the same group, and the seconds of that."""
    of = "" if row["what"] == REFERENCE else f" of {row['ratio'] * row['p50_s']:.1f} s"
    return f"{row['ratio']:.2f}x{of}"


def sizes_table(bodies: list[Body]) -> list[str]:
    """One line for each resolution and batch: seconds by baseline, and how many times as fast as
    the reference of the same group, which may be another run than the one in its column. Below, one
    command of each commit.
    """
    rows = [(_size(row), row) for row in measured_rows(bodies)]
    return _seconds(rows) + made_on(_of_each_commit(bodies))


def families_table(bodies: list[Body]) -> list[str]:
    """The same with a line for each checkpoint and size."""
    of_each: dict[str, list[Body]] = {}
    for body in bodies:
        of_each.setdefault(measured_rows([body])[0]["checkpoint"], []).append(body)
    rows = [
        (f"{checkpoint}, {_size(row)}", row)
        for checkpoint, own in of_each.items()
        for row in measured_rows(own)
    ]
    return _seconds(rows) + made_on(_of_each_commit(bodies))


def _seconds(rows: list[tuple[str, Body]]) -> list[str]:
    """One line for each label, a column for each baseline; three lines or more leave out what is in
    one of them only.
    """
    table: dict[str, dict[str, str]] = {}
    for label, row in rows:
        beside = "" if row["what"] == REFERENCE else f", {_beside(row)}"
        table.setdefault(label, {})[row["what"]] = f"{row['p50_s']:.2f} s{beside}"
    counts = Counter(name for cells in table.values() for name in cells)
    names = [name for name in counts if counts[name] > 1 or len(table) < 3]
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for label, cells in table.items():
        lines.append(f"| {label} | {' | '.join(cells.get(name, '') for name in names)} |")
    return lines


def _of_each_commit(bodies: list[Body]) -> list[Body]:
    """The first body of each commit."""
    return [*{body["commit"]: body for body in reversed(bodies)}.values()][::-1]


def together_table(bodies: list[Body]) -> list[str]:
    """A joint bundle against one bundle for each task: time, memory, size."""
    lines = [
        "| | p50 | of the first | first prediction | peak memory | on the disk |",
        "|---|---|---|---|---|---|",
    ]
    label = _labels(bodies)
    for body in bodies:
        rows = [row for row in body["rows"] if "p50_s" in row]
        lines += [
            f"| {label(row)} | {row['p50_s']:.2f} s | {row['p50_s'] / rows[0]['p50_s']:.3f} | "
            f"{row['first_s']:.1f} s | {row['peak_gb']:.1f} GB | {row['bundle_gb']:.2f} GB |"
            for row in rows
        ]
    return lines + made_on(bodies)


def last_rows(bodies: list[Body]) -> dict[tuple[Any, ...], Body]:
    """One row for each baseline, resolution and batch, by these three.

    Of several files with such a row the last counts, but of the reference the first. Of several
    rows in one file (the reference runs in every group) the first counts.
    """
    chosen: dict[tuple[Any, ...], Body] = {}
    for body in bodies:
        own: dict[tuple[Any, ...], Body] = {}
        for row in body["rows"]:
            if row["what"] != "ceiling":
                own.setdefault((row["what"], row.get("resolution"), row.get("batch")), row)
        chosen |= {
            key: row for key, row in own.items() if key not in chosen or row["what"] != REFERENCE
        }
    return chosen


def measured_rows(bodies: list[Body]) -> list[Body]:
    """The rows of `last_rows` that hold a measurement."""
    return [row for row in last_rows(bodies).values() if "p50_s" in row]


def _plain(reason: str) -> str:
    return reason.split(". ")[0].replace("|", "/")[:100]


def accuracy_table(bodies: list[Body]) -> list[str]:
    """One line for each bundle and group, its constant prediction beside it."""
    keys = list(bodies[0]["rows"][-1]["metrics"])
    shown = [key for key in _SHOWN if key in keys]
    lines = [
        "| | " + " | ".join(shown) + " | the constant's |",
        "|---|" + "---|" * (len(shown) + 1),
    ]
    for body in bodies:
        groups = {row["name"]: row for row in body["rows"] if row["images"] != 1}
        first = body["rows"][0]
        label = first["bundle"] + (
            f", mean of {first['mean_of']} seeds" if first["mean_of"] > 1 else ""
        )
        label += f", ensemble of {first['ensemble']}" if "ensemble" in first else ""
        for name, row in groups.items():
            if name.startswith(("constant", "all")):
                continue
            constant = groups.get(f"constant map: {name}", {"metrics": {}})["metrics"].get(shown[0])
            numbers = " | ".join(f"{row['metrics'][key]:.3f}" for key in shown)
            beside = "" if constant is None else f"{constant:.3f}"
            lines.append(f"| {label}, {name} | {numbers} | {beside} |")
    return lines


def precisions_table(bodies: list[Body]) -> list[str]:
    """One line for each checkpoint, in style: the first metric by precision and target, and its
    difference from that of fp32.
    """
    table: dict[str, dict[str, float]] = {}
    metrics, settings = {}, dict[str, None]()
    for body in bodies:
        checkpoint, setting = checkpoint_and_setting(body)
        group = next(row for row in body["rows"] if row["name"].startswith("in-style ("))
        metrics[checkpoint] = next(key for key in _FIRST if key in group["metrics"])
        settings[setting] = None
        table.setdefault(checkpoint, {})[setting] = group["metrics"][metrics[checkpoint]]
    lines = [
        f"| in style, 100 images | | {' | '.join(settings)} |",
        "|---|---|" + "---|" * len(settings),
    ]
    exactly = next(setting for setting in settings if setting.startswith("fp32"))
    for checkpoint, values in table.items():
        cells = []
        for setting in settings:
            value = values.get(setting)
            difference = (
                ""
                if setting == exactly or value is None
                else f" ({value / values[exactly] - 1:+.2%})"
            )
            cells.append("" if value is None else f"{value:.4f}{difference}")
        lines.append(f"| {checkpoint} | {metrics[checkpoint]} | {' | '.join(cells)} |")
    return lines


def contenders_table(bodies: list[Body]) -> list[str]:
    """One line for each baseline, in style: the first metric by checkpoint, and its difference from
    that of the first line. Below, one command of each commit.
    """
    table: dict[str, dict[str, float]] = {}
    heads: dict[str, str] = {}
    count = 0
    for body in bodies:
        group = next(row for row in body["rows"] if row["name"].startswith("in-style ("))
        checkpoint = group["checkpoint"].removeprefix("tiny/")
        metric = next(key for key in _FIRST if key in group["metrics"])
        heads[checkpoint], count = f"{checkpoint}, {metric}", group["images"]
        table.setdefault(group["meaning"], {})[checkpoint] = group["metrics"][metric]
    lines = [
        f"| in style, {count} images | {' | '.join(heads.values())} |",
        "|---|" + "---|" * len(heads),
    ]
    exact = next(iter(table.values()))
    for meaning, values in table.items():
        cells = [
            f"{values[name]:.4f}"
            + ("" if values is exact else f" ({values[name] / exact[name] - 1:+.2%})")
            if name in values
            else ""
            for name in heads
        ]
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return lines + made_on(_of_each_commit(bodies))


def checkpoint_and_setting(body: Body) -> tuple[str, str]:
    """For example "depth-d" and "int8, openvino", from the bundle's name; the name alone where it
    has no size.
    """
    checkpoint, *setting = re.split(r"-\d+x\d+-", body["rows"][0]["bundle"], maxsplit=1)
    return checkpoint, "".join(setting).replace("-", ", ", 1)


def forms_table(bodies: list[Body]) -> list[str]:
    """Seconds of each fold's forms, a line for each backend; a cell has one number for each
    layer.
    """
    lines: list[str] = []
    rows = [row for body in bodies for row in body["rows"]]
    for fold in dict.fromkeys(row["fold"] for row in rows):
        own = {
            (row["backend"], row["form"], row["channels"], row["edge"]): row
            for row in rows
            if row["fold"] == fold
        }
        backends, forms = (dict.fromkeys(key[index] for key in own) for index in (0, 1))
        layers = dict.fromkeys(key[2:] for key in own)
        names = ", ".join(f"{channels} channels at {edge}" for channels, edge in layers)
        lines += [
            "",
            f"{fold}: {names} pixels",
            "",
            "| | " + " | ".join(forms) + " |",
            "|---|" + "---|" * len(forms),
        ]
        for backend in backends:
            layer_rows = [[own.get((backend, form, *layer)) for layer in layers] for form in forms]
            cells = [
                " ".join("-" if row is None else f"{row['p50_s']:.2f}" for row in cell)
                for cell in layer_rows
            ]
            lines.append(f"| {backend} | " + " | ".join(cells) + " |")
    return lines[1:]


def fuzz_table(bodies: list[Body]) -> list[str]:
    """One line for each kind of damage, the last rows of it. "by the engine" is what a vendor's
    library did that was given a hostile graph.
    """
    lines = [
        "| | cases | answered | refused | by the engine | findings | slowest | most memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    last = {row["kind"]: row for body in bodies for row in body["rows"]}
    for row in last.values():
        cells = [
            ", ".join(f"{count:,} {word}" for word, count in row[key].items()) or "0"
            for key in ("answered", "refused")
        ]
        limits = f"{row['slowest_s']:.1f} s | {row['largest_mb']:.0f} MB"
        lines.append(
            f"| {row['kind']} | {row['cases']:,} | {' | '.join(cells)} | {row['engine']} | "
            f"{row['findings']} | {limits if row['largest_mb'] else ' | '} |"
        )
    for body in bodies:
        versions = body["versions"]
        names = ("numpy", "pillow", "onnxruntime", "openvino")
        with_what = ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))
        lines += ["", f"{with_what}, commit {body['commit']}, {body['date']}. `{body['command']}`"]
    return lines


def kills_table(bodies: list[Body]) -> list[str]:
    """One line for each moment at which builds were killed: what lay there afterwards."""
    lines = [
        "| killed | old or none, as before | new, and it verifies | anything else |",
        "|---|---|---|---|",
    ]
    for row in (row for body in bodies for row in body["rows"]):
        lines.append(f"| {row['moment']} | {row['as_before']} | {row['new']} | {row['faults']} |")
    return lines + made_by(bodies)


def versions_table(bodies: list[Body]) -> list[str]:
    """One line for each environment: what was expected of it, and what came out."""
    lines = [
        "| library | opset | Python | NumPy | Pillow | expected | came out |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (row for body in bodies for row in body["rows"]):
        cells = [f"{row['backend']} {row['version']}"]
        cells[0] += f", {row['machine']}" if row["machine"] else ""
        cells += [str(row[key] or "") for key in ("opset", "python", "numpy", "pillow", "expected")]
        outcome = row["outcome"].replace("|", "\\|")
        cells.append(outcome if row["as_expected"] else f"**{outcome}**")
        lines.append("| " + " | ".join(cells) + " |")
    return lines + made_by(bodies)


TABLES: dict[str, Callable[[list[Body]], list[str]]] = {
    "latency": latency_table,
    "sizes": sizes_table,
    "families": families_table,
    "accuracy": accuracy_table,
    "precisions": precisions_table,
    "contenders": contenders_table,
    "forms": forms_table,
    "fuzz": fuzz_table,
    "together": together_table,
    "kills": kills_table,
    "versions": versions_table,
    **AROUND,
}
"""The lines of a table of bodies, by its kind."""
