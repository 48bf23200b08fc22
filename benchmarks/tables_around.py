"""Markdown tables of what stands around the network: geometry, films, servers, whole calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Body = dict[str, Any]


def made_by(bodies: list[Body]) -> list[str]:
    """Below a table: commit, date and command of each body."""
    return _below(bodies, lambda body: "Commit")


def made_on(bodies: list[Body]) -> list[str]:
    """The same, with the machine."""
    return _below(bodies, lambda body: f"{machine_of(body)}, commit")


def machine_of(body: Body) -> str:
    """For example "2 cores (AMD EPYC: avx2, avx512f)"."""
    machine = body["machine"]
    sets = ", ".join(machine.get("isa", "").split())
    return f"{machine['cores']} cores ({machine['cpu']}{f': {sets}' if sets else ''})"


def _below(bodies: list[Body], begin: Callable[[Body], str]) -> list[str]:
    return [
        line
        for body in bodies
        for line in ("", f"{begin(body)} {body['commit']}, {body['date']}. `{body['command']}`")
    ]


def geometry_table(bodies: list[Body]) -> list[str]:
    """What exact maps give back, then a line for each way from predicted maps to depth."""
    rows = [row for body in bodies for row in body["rows"]]
    exact = {"anchors": "scale and shift", "shift": "shift", "fov": "field of view"}
    lines = ["| | " + " | ".join(exact.values()) + " |", "|---|" + "---|" * len(exact)]
    for row in (row for row in rows if "anchors" in row):
        cells = [f"{row[key]['median']:.1g} (at most {row[key]['largest']:.1g})" for key in exact]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    names = "AbsRel | over the first | without turned maps | median | largest | planes | fell back"
    lines += ["", f"| | {names} |", "|---|" + "---|" * 7]
    for row in (row for row in rows if "abs_rel" in row):
        flat = " / ".join(f"{value:.1%}" for value in row["flatness"].values())
        others = f"{row['ratio_others']:.2f} ({row['turned']})"
        lines.append(
            f"| {row['name'].removeprefix('predicted ')} | {row['abs_rel']:.3f} | "
            f"{row['ratio']:.2f} | {others} | {row['median']:.3f} | {row['largest']:.3f} | "
            f"{flat} | {row.get('fallbacks', '')} |"
        )
    for row in (row for row in rows if "fov_off" in row):
        lines += [
            "",
            f"{row['name'].removeprefix('predicted ')}: {row['fov_off']:.0f} degrees off in the "
            f"median, with a stated uncertainty of {row['fov_error']:.0f}, which holds in "
            f"{row['covered']:.0%} of the rooms.",
        ]
    return lines + made_by(bodies)


def views_table(bodies: list[Body]) -> list[str]:
    """One line for each kind of maps: how far the fused mesh lies from the true surface."""
    names = (
        "off, median | worst room | 9 of 10 within | surface covered | confirmed | views left out"
    )
    lines = [f"| | {names} |", "|---|" + "---|" * 6]
    for row in (row for body in bodies for row in body["rows"]):
        lines.append(
            f"| {row['name']} | {row['off']:.2%} | {row['off_worst']:.2%} | {row['behind']:.2%} | "
            f"{row['covered']:.0%} | {row['confirmed']:.0%} | "
            f"{row['left_out']} of {row['rooms'] * row['views']} |"
        )
    return lines + made_by(bodies)


def tiles_table(bodies: list[Body]) -> list[str]:
    """One line for each task and way, the mean over the scenes."""
    lines = ["| | error | edges | seams | tiles refused | seconds |", "|---|---|---|---|---|---|"]
    for row in (row for body in bodies for row in body["rows"] if row["scene"] == "mean"):
        error = f"AbsRel {row['abs_rel']:.4f}" if "abs_rel" in row else f"{row['mean']:.2f} degrees"
        refused = f"{row['refused']:.0%}" if "refused" in row else ""
        lines.append(
            f"| {row['task']}, {row['way']} | {error} | {row['edges']:.2f} | {row['seams']:.2f} | "
            f"{refused} | {row['seconds']:.1f} |"
        )
    return lines + made_by(bodies)


def opening_table(bodies: list[Body]) -> list[str]:
    """A line for each bundle and way of opening it."""
    lines = [
        "| bundle | | opening | one run | peak memory | estimated | bundle | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for body in bodies for row in body["rows"]):
        estimated = f"{row['estimate_gb']:.1f} GB" if "estimate_gb" in row else ""
        kept = f"{row['kept_gb']:.1f} GB" if row["kept_gb"] else ""
        lines.append(
            f"| {row['bundle']}, {row['backend']} | {row['way']} | {row['opening_s']:.1f} s | "
            f"{row['run_s']:.1f} s | {row['peak_gb']:.1f} GB | {estimated} | "
            f"{row['bundle_gb']:.1f} GB | {kept} |"
        )
    return lines + made_on(bodies)


def host_table(bodies: list[Body]) -> list[str]:
    """One line for each stage and size: milliseconds of the processor, by the clock in brackets,
    and the processor's against those of the first way; then `predict` on a folder.
    """
    rows = [row for body in bodies for row in body["rows"]]
    ways = dict.fromkeys(row["way"] for row in rows)
    lines = [f"| | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    stages = {(row["size"], row["stage"], row["way"]): row for row in rows if "stage" in row}
    for size, stage in dict.fromkeys(key[:2] for key in stages):
        found = [stages[size, stage, way] for way in ways]
        cells = [f"{row['cpu_ms']:.1f} ({row['wall_ms']:.1f})" for row in found]
        for at, row in enumerate(found[1:], 1):
            cells[at] += f", {row['cpu_ms'] / found[0]['cpu_ms']:.2f}x"
        lines.append(f"| {size}, {stage} | {' | '.join(cells)} |")
        if "files" in found[0]:
            sums = [f"{sum(row['files'].values()) / 1e6:.1f} MB" for row in found]
            lines.append(f"| {size}, size of the files | {' | '.join(sums)} |")
    folders = {row["way"]: row for row in rows if row["what"] == "predict"}
    if folders:
        first = folders[next(iter(ways))]
        cells = [
            f"{row['pictures_per_s']:.1f} a second, {row['of_the_network']:.0%}; "
            f"{row['cpu_s'] / row['pictures'] * 1e3:.0f} ms of the processor each"
            for row in map(folders.__getitem__, ways)
        ]
        what = f"`predict`, {first['pictures']:.0f} of {first['size']}, a network of "
        lines.append(f"| {what}{first['network_s'] * 1e3:.0f} ms | {' | '.join(cells)} |")
    return lines + made_on(bodies)


def video_table(bodies: list[Body]) -> list[str]:
    """Flicker of each bundle by the way against it; what films cost; what a long one did."""
    rows = [row for body in bodies for row in body["rows"]]
    lines = _flicker_table([row for row in rows if "flicker" in row])
    forms = [row for row in rows if "form" in row]
    if forms:
        what = f"film of {forms[0]['size']}, network of {forms[0]['network']}"
        lines += [
            f"| {what} | engine, null backend | whole | beside the engine |",
            "|---|---|---|---|",
        ]
    for row in forms:
        cells = [f"{row[key]:.1f} ms" for key in ("predicting_ms", "whole_ms", "beside_ms")]
        lines.append(f"| {row['form']}, {row['steady']} | {' | '.join(cells)} |")
    for row in (row for row in rows if "kills" in row):
        low, high = row["memory_mb_from_frame_200"]
        lines += [
            "",
            f"{row['frames']:,} frames, {row['steady']}: {low:.0f} to {high:.0f} MB from frame 200 "
            f"on; killed {row['kills']} times and resumed, the film "
            + ("has the same bytes." if row["same_bytes"] else "differs."),
        ]
    return lines + made_by(bodies)


def serve_table(bodies: list[Body]) -> list[str]:
    """A line for each part of the server's test under load."""
    rows = {row["part"]: row for body in bodies for row in body["rows"]}
    load, stop, bad = rows["load"], rows["stop"], rows["malformed"]
    memory = " MB, then ".join(f"{load['memory_mb'][when]:.0f}" for when in ("before", "after"))
    seconds = {name: _shares(load[f"{name}_ms"]) for name in ("queue", "latency")}
    statuses = ", ".join(f"{count:,} of {status}" for status, count in bad["statuses"].items())
    parts = {
        "load": (
            f"{load['clients']} clients for {load['seconds']:.0f} s",
            f"{load['answers']:,} answers ({load['per_second']:.0f} a second), each the engine's "
            f"bit by bit, and {load['busy']:,} times 503; queueing {seconds['queue']}; from the "
            f"request to the answer {seconds['latency']}; memory {memory} MB",
        ),
        "stop": (
            f"SIGTERM under that load, {stop['stops']} times",
            f"{stop['accepted']:,} accepted, {stop['answered']:,} answered in full; ended within "
            f"{stop['slowest_s']:.1f} s",
        ),
        "malformed": (f"{bad['requests']:,} malformed requests", statuses),
    }
    lines = ["| | what came out | problems |", "|---|---|---|"]
    for name, (what, outcome) in parts.items():
        lines.append(f"| {what} | {outcome} | {'; '.join(rows[name]['problems']) or 'none'} |")
    return lines + made_on(bodies)


def evaluate_table(bodies: list[Body]) -> list[str]:
    """One line for each bundle that was measured at full length, stopped and resumed."""
    lines = [
        "| | pictures | read | predict | measure | peak memory | killed after | resumed | "
        "the same as without a stop |",
        "|---|" + "---|" * 8,
    ]
    for body in bodies:
        for row in body["rows"]:
            same = {True: f"yes, in {row.get('whole_s', 0):.0f} s", False: "NO", None: "not run"}
            each = {name: 1000 * total / row["images"] for name, total in row["seconds"].items()}
            stages = " | ".join(f"{value:.0f} ms" for value in each.values())
            lines.append(
                f"| {row['bundle']}, {row['backend']} | {row['images']} | {stages} | "
                f"{row['peak_gb']:.2f} GB | {row['kept_at_the_kill']} pictures, "
                f"{row['killed_after_s']:.0f} s | {row['resumed_s']:.0f} s | "
                f"{same[row.get('same_numbers')]} |"
            )
    return lines + made_by(bodies)


def _flicker_table(rows: list[Body]) -> list[str]:
    if not rows:
        return []
    head = "toy network | off | causal | clip | AbsRel of a frame | with a cut: off | causal | clip"
    lines = [f"| {head} |", "|---|" + "---|" * 7]
    for bundle in dict.fromkeys(row["bundle"] for row in rows):
        own = {
            row["steady"]: row for row in rows if row["bundle"] == bundle and not row.get("smooth")
        }
        cells = []
        for key in ("flicker", "cut_clip_flicker"):
            off = own["off"][key]
            cells.append([f"{off:.1%}"])
            for mode in ("causal", "clip"):
                ratio = f" ({own[mode][key] / off:.2f}x)" if off > 0.02 else ""  # else it is noise
                cells[-1].append(f"{own[mode][key]:.1%}{ratio}")
        error = own["off"]["per_frame_abs_rel"]
        lines.append(f"| {' | '.join([bundle, *cells[0], f'{error:.4f}', *cells[1]])} |")
    return lines + _smoothing_table(rows)


def _smoothing_table(rows: list[Body]) -> list[str]:
    """What is smoothed along motion beside what is not."""
    if not any(row.get("smooth") for row in rows):
        return []
    lines = [
        "",
        "| toy network | way | change along the motion | beyond exact maps | flicker | "
        "AbsRel of a frame | ms of a core |",
        "|---|---|" + "---|" * 5,
    ]
    for row in rows:
        now, exact = row["change_along_motion"], row["change_of_exact_maps"]
        way = f"{row['steady']}, smooth" if row["smooth"] else row["steady"]
        lines.append(
            f"| {row['bundle']} | {way} | {now:.2%} | {now - exact:.2%} | {row['flicker']:.1%} | "
            f"{row['per_frame_abs_rel']:.4f} | {row['cpu_ms_per_frame']:.1f} |"
        )
    return lines


def _shares(milliseconds: dict[str, float]) -> str:
    return ", ".join(f"{share} {value:.0f} ms" for share, value in milliseconds.items())


AROUND: dict[str, Callable[[list[Body]], list[str]]] = {
    "geometry": geometry_table,
    "views": views_table,
    "tiles": tiles_table,
    "host": host_table,
    "opening": opening_table,
    "video": video_table,
    "serve": serve_table,
    "evaluate": evaluate_table,
}
"""The lines of a table of bodies, by its kind."""
