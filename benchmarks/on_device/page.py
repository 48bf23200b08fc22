"""The rows of a run on a device, and the page that is made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.baselines import BASELINES, Work
from benchmarks.on_device.contenders import PYTORCH, Contender
from benchmarks.on_device.plan import ASTRAY, FOLDED, PLUMBING, RATES, Step, build_name
from export.graph.stages import STAGES

_PARTS = ("engine", "verify", "latency", "bound", "stages")
_PROOFS = (PLUMBING, ASTRAY, RATES, FOLDED)
Row = dict[str, Any]
Body = dict[str, Any]
"""What `benchmarks.rows.describe` makes of rows."""


def rows(
    facts: Mapping[str, Any],
    contenders: Sequence[Contender],
    steps: Sequence[Step],
    outcomes: Mapping[str, Mapping[str, Any]],
    work: Work,
) -> list[Row]:
    """One row for the device, one for each proof, each reference and each contender that can be
    measured here, and one for all that was not measured, by its title.
    """
    planned = {step.name for step in steps}
    told = {name: value for name, value in facts.items() if name != "backends"}  # see `missing`
    found: list[Row] = [{"what": "device", "resolution": work.resolution} | told]
    for name in _PROOFS:
        found += [{"what": name} | outcome["result"] for outcome in _done(outcomes, name)]
    for name in PYTORCH:
        for outcome in _done(outcomes, f"{name}.latency"):
            latency = outcome["result"]
            meaning = f"{BASELINES[name].meaning}; on {latency['device']}"
            row: Row = {"what": name, "meaning": meaning, "checkpoint": work.checkpoint}
            found.append(row | {"latency": latency, "when": outcome["when"]})
    for each in contenders:
        parts = {part: _done(outcomes, f"{each.name}.{part}") for part in _PARTS}
        parts["build"] = _done(outcomes, build_name(each))
        if any(parts.values()) and f"{each.name}.verify" in planned:
            row = {"what": each.name, "meaning": each.meaning, "precision": each.precision}
            row |= {part: done[0]["result"] for part, done in parts.items() if done}
            row |= {"when": parts["latency"][0]["when"]} if parts["latency"] else {}
            for part in ("build", "engine"):
                _shorten(row.get(part, {}))
            found.append(row)
    lines = [
        {"step": step.title, "reason": _public(outcomes.get(step.name, _NOT_BEGUN))}
        for step in steps
        if "result" not in outcomes.get(step.name, {})
    ]
    return [*found, {"what": "missing", "lines": lines}]


_NOT_BEGUN = {"not_measured": "the run was stopped before it; the next run goes on from here"}


def _done(outcomes: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [outcomes[name]] if "result" in outcomes.get(name, {}) else []


_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\":,]+)+(?=[/\\])")


def _public(outcome: Mapping[str, Any]) -> str:
    """Why a step has no result, without the folders of paths: a row travels."""
    return _FOLDERS.sub("...", str(outcome["not_measured"]))


def _shorten(build: dict[str, Any]) -> None:
    """Rows travel, folders do not."""
    if "bundle" in build:
        build["bundle"] = str(build["bundle"]).replace("\\", "/").rpartition("/")[2]


def render(body: Body, no_plot: str, *, kept: int = 0) -> str:
    """The page of a body of `rows`, in Markdown. `no_plot` says why there is no plot; `kept` is the
    number of steps that an earlier run had finished.
    """
    by_name = {row["what"]: row for row in body["rows"]}
    device = by_name["device"]
    timed = [row for row in body["rows"] if "latency" in row]
    lines = [f"# lotus-edge on {device['device']}", "", _headline(timed, by_name), ""]
    failed = sum(by_name.get(name, {}).get("failed", 0) for name in (PLUMBING, ASTRAY))
    if failed:
        lines += [f"**Checks of the CUDA plumbing that failed: {failed}**; see below.", ""]
    if timed:
        lines += [*_latency_table(timed, by_name), "", *_device_times(timed)]
        lines += [no_plot or "![Milliseconds of one prediction, by stage](report.png)", ""]
    lines += ["## The machine", "", *_machine(device, by_name.get(RATES)), ""]
    if timed:
        lines += ["## While it was measured", "", *_readings(timed), ""]
    lines += ["## CUDA plumbing without TensorRT", "", *_checks(by_name), ""]
    lines += ["## What the folds are worth in PyTorch", "", *_folds(by_name.get(FOLDED)), ""]
    lines += ["## Not measured", "", *_missing(by_name["missing"]["lines"]), ""]
    lines += ["## How", "", *_how(body, kept), ""]
    return "\n".join(lines)


def _headline(timed: list[Row], by_name: Mapping[str, Row]) -> str:
    ours = [row for row in timed if row["what"] not in PYTORCH]
    if not ours:
        return "No backend of lotus-edge was measured here yet."
    best = min(ours, key=lambda row: row["latency"]["p50_s"])
    text = f"**{best['meaning']}: {_ms(best['latency']['p50_s'])}** for one picture"
    reference = by_name.get(PYTORCH[0])
    if reference is not None:
        latency = reference["latency"]
        ratio = latency["p50_s"] / best["latency"]["p50_s"]
        text += f", {ratio:.2f} times as fast as PyTorch in fp32 on {latency['device']}"
    resolution = by_name["device"]["resolution"]
    return f"{text} ({resolution}, median; from the decoded picture to the finished map)."


def _latency_table(timed: list[Row], by_name: Mapping[str, Row]) -> list[str]:
    columns = ["", "p50", "p90", "against PyTorch", *STAGES, "least by roofline", "first"]
    columns += ["memory", "off PyTorch by, of allowed"]
    reference = by_name.get(PYTORCH[0], {}).get("latency")
    lines = [_cells(columns), "|---" * len(columns) + "|"]
    for row in sorted(timed, key=lambda row: float(row["latency"]["p50_s"])):
        latency = row["latency"]
        stages = latency.get("stages_s") or row.get("stages", {}).get("stages_s", {})
        ratio = reference and reference["p50_s"] / latency["p50_s"]
        lines.append(
            _cells(
                (
                    row["meaning"],
                    _ms(latency["p50_s"]),
                    _ms(latency["p90_s"]),
                    f"{ratio:.2f}x" if ratio else "",
                    *(_ms(stages[stage]) if stage in stages else "" for stage in STAGES),
                    _bound(row.get("bound", {})),
                    f"{latency['first_s']:.1f} s",
                    _memory(latency),
                    _golden(row.get("verify")),
                )
            )
        )
    return [*lines, "", _LEGEND]


_LEGEND = (
    "Stages of PyTorch are by CUDA events on a GPU and by the clock on a CPU; those of a bundle "
    "are by its engine's own profiler, in a run of its own; what an engine merged over several "
    "stages stands in no column. *Least by roofline*: if all is fused - "
    "if every operator is a kernel of its own; bounds, no measurements. *First* is opening and the "
    "first prediction. `verify` opened the bundle before: what is compiled of a large one, with "
    "TensorRT-RTX the kernels, is kept since. "
    "By default PyTorch's convolutions in fp32 use TF32 on GPUs that have it."
)


def _device_times(timed: list[Row]) -> Iterator[str]:
    """What CUDA events tell of an engine: a first, plain run, and those that replay its graph."""
    for row in timed:
        times = row.get("stages", {}).get("device_s")
        if times:
            words = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in times.items())
            yield from (f"On the device, by CUDA events, {row['meaning']}: {words}.", "")


def _bound(bound: Row) -> str:
    """By the peak rates where the device is known, else by what was measured here."""
    for name, words in (("peak", ""), ("measured", ", rates as measured")):
        if name in bound:
            least, most = bound[name]["fused_ms"] / 1e3, bound[name]["kernels_ms"] / 1e3
            return f"{_ms(least)} - {_ms(most)}{words}"
    return ""


def _memory(latency: Row) -> str:
    host, device = latency.get("peak_gb"), latency.get("device_gb")
    words = [f"{host:.1f} GB" if host is not None else "", f"GPU {device:.1f} GB" if device else ""]
    return ", ".join(filter(None, words))


def _golden(verified: Row | None) -> str:
    if verified is None:
        return ""
    return f"{verified['largest']:.1e} of {verified['tolerance']:.0e}"


def _machine(device: Row, rates: Row | None) -> list[str]:
    machine = device["machine"]
    facts: dict[str, Any] = {
        "GPU": device["gpu"],
        "CPU": f"{machine.get('cpu', machine['arch'])}, {machine['cores']} cores",
        "CPU instructions": machine.get("isa", ""),
        "memory": machine.get("memory", ""),
        "system": f"{machine['os']} {machine['arch']}, Python {machine['python']}",
    }
    for gpu in device["gpus"]:
        words = (f"{name} {value}" for name, value in gpu.items())
        facts["GPU, by nvidia-smi"] = ", ".join(words)
    facts |= device["settings"]
    if rates is not None:
        products = ", ".join(
            f"{rate:.3g} in {precision}" for precision, rate in rates["tflops"].items()
        )
        facts["one large product here, TFLOP/s"] = f"{products} ({rates['by']})"
        facts["a copy here, GB/s read and written"] = f"{rates['bandwidth_gb_s']:.0f}"
    facts["versions"] = ", ".join(f"{name} {v}" for name, v in device["versions"].items())
    return ["| | |", "|---|---|", *(_cells((k, v)) for k, v in facts.items() if v)]


def _readings(timed: list[Row]) -> list[str]:
    names = sorted({name for row in timed for name in row["latency"]["readings"]})
    if not names:
        return ["This machine tells neither clocks nor temperatures."]
    lines = [_cells(("least, median and most", *(row["what"] for row in timed)))]
    lines.append("|---" * (len(timed) + 1) + "|")
    for name in names:
        every = [row["latency"]["readings"].get(name) for row in timed]
        lines.append(
            _cells(
                (
                    name,
                    *(
                        ", ".join(f"{each[k]:.4g}" for k in ("least", "median", "most"))
                        if each
                        else ""
                        for each in every
                    ),
                )
            )
        )
    return lines


def _checks(by_name: Mapping[str, Row]) -> list[str]:
    found = [row for name in (PLUMBING, ASTRAY) if (row := by_name.get(name))]
    if not found:
        return ["Not run; see below."]
    lines = ["The TensorRT backend's own code, with an engine whose only layer is a kernel:", ""]
    for check in (check for row in found for check in row["checks"]):
        failed = check.get("failed")
        what = f"**FAILED**: {failed}" if failed else _words(check["found"])
        lines.append(f"- {check['check']}: {what}".replace("\n", " "))
    return lines


def _words(found: Any) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    return str(found)


def _folds(row: Row | None) -> list[str]:
    if row is None:
        return ["Not measured; see below."]
    lines = [_cells(("milliseconds", *STAGES, "all")), "|---" * (len(STAGES) + 2) + "|"]
    for name, times in row["times_s"].items():
        lines.append(_cells((name, *(f"{1e3 * times[stage]:.1f}" for stage in (*STAGES, "all")))))
    apart, plain, folded = row["difference"], row["plain_from_fp32"], row["folded_from_fp32"]
    return [
        *lines,
        "",
        f"In {row['precision']} on {row['device']}, without lotus-edge's engines, the folds are "
        f"worth a factor of **{row['ratio']:.2f}**. Maps differ by at most {apart['largest']:.1e} "
        f"(mean {apart['mean']:.1e}); from the plain network in fp32 the plain one by "
        f"{plain['largest']:.1e} (mean {plain['mean']:.1e}), the folded one by "
        f"{folded['largest']:.1e} (mean {folded['mean']:.1e}). Folds: {', '.join(row['folds'])}.",
    ]


def _missing(lines: list[dict[str, str]]) -> list[str]:
    if not lines:
        return ["Nothing: every step was done."]
    by_reason: dict[str, list[str]] = {}
    for line in lines:
        by_reason.setdefault(line["reason"], []).append(line["step"])
    table = [_cells(("what", "why not")), "|---|---|"]
    return [*table, *(_cells(("; ".join(what), why)) for why, what in by_reason.items())]


def _how(body: Body, kept: int) -> Iterator[str]:
    times = [row["when"] for row in body["rows"] if "when" in row]
    yield f"Commit {body['commit']}, {body['date']}: `{body['command']}`"
    if kept and times:
        yield ""
        yield (
            "Parts of it were kept from earlier runs of the same code on the same machine; the "
            f"latencies are from {min(times)} to {max(times)}."
        )


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _cells(values: Sequence[Any]) -> str:
    words = (str(value).replace("|", "\\|").replace("\n", " ") for value in values)
    return f"| {' | '.join(words)} |"
