"""What a user gets of an evaluation: a report beside the paper's row, rows as JSON, a CSV with each
picture, a sheet and bars.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.evaluation.paper import family_of, published
from benchmarks.evaluation.pictures import write_histogram, write_sheet
from benchmarks.evaluation.run import Evaluation, Result
from benchmarks.rows import describe
from runtime.files import write_atomic

_NO_ROW = "the paper has no row for"
_SIZES = 6  # that are told one by one


def write_report(evaluation: Evaluation) -> tuple[str, list[dict[str, Any]]]:
    """Write all of it. The table as Markdown, and the rows, one for each set and task."""
    rows = [_row(evaluation, result) for result in evaluation.results]
    body = describe(rows)
    for result in evaluation.results:
        write_atomic(result.folder / "images.csv", _csv(result).encode())
        write_histogram(result)
        write_sheet(evaluation, result)
    write_atomic(
        evaluation.folder / "rows.json", (json.dumps(_finite(body), indent=2) + "\n").encode()
    )
    table = "\n".join(_table(evaluation))
    text = "\n".join((*_head(evaluation, body), table, "", *_sections(evaluation)))
    write_atomic(evaluation.folder / "report.md", text.encode())
    return table, _finite(rows)


def _row(evaluation: Evaluation, result: Result) -> dict[str, Any]:
    manifest = evaluation.engine.manifest
    return {
        "bundle": manifest.name,
        "checkpoint": manifest.checkpoint.id,
        "family": family_of(manifest, result.task),
        "precision": manifest.precision,
        "target": manifest.target,
        "backend": evaluation.engine.backend,
        "seed": evaluation.settings.seed,
        "ensemble": evaluation.settings.ensemble,
        "set": result.data.name,
        "task": result.task.name,
        "images": len(result.records),
        "images_that_count": sum(record["pixels"] > 0 for record in result.records),
        "images_of_the_paper": result.data.count,
        "pixels": sum(record["pixels"] for record in result.records),
        "metrics": result.metrics,
        "paper": published(manifest, result.task, result.data),
        "list": None if result.opened.listed is None else Path(result.opened.listed).name,
        "left_out": _left_out(result),
        "fed": dict(_feeding(result)),
        "no_multiple_of_8": _odd(result),
        "seconds": {stage: round(value, 3) for stage, value in result.seconds.items()},
    }


def _head(evaluation: Evaluation, body: dict[str, Any]) -> Iterator[str]:
    manifest, settings = evaluation.engine.manifest, evaluation.settings
    noise = "" if settings.seed is None else f", noise of seed {settings.seed}"
    noise += "" if settings.ensemble == 1 else f", middle of {settings.ensemble} answers"
    buckets = ", ".join(f"{bucket.height}x{bucket.width}" for bucket in manifest.buckets)
    yield f"# {manifest.name} on the data sets of the paper"
    yield ""
    machine = body["machine"]
    yield (
        f"- bundle: {manifest.name}, of {manifest.checkpoint.id} (mode {manifest.mode.upper()}"
        f"{noise})"
    )
    yield (
        f"- precision {manifest.precision}, target {manifest.target}, run by "
        f"{evaluation.engine.backend}, buckets {buckets}"
    )
    yield (
        f"- commit {body['commit']}, {body['date']}, Python {machine['python']}, "
        f"{machine.get('cpu', machine['arch'])}, {machine['cores']} cores"
    )
    yield "- the paper's numbers: Lotus, arXiv 2409.18124v5; its networks ran in half precision"
    yield ""


def _table(evaluation: Evaluation) -> Iterator[str]:
    """Ours, the paper's and the difference, for each set: a table for each task."""
    manifest = evaluation.engine.manifest
    for task in dict.fromkeys(result.task.name for result in evaluation.results):
        results = [result for result in evaluation.results if result.task.name == task]
        titles = results[0].data.protocol.titles
        names = list(titles)
        yield (
            f"| {task} | images | "
            + " | ".join(f"{titles[name]} | paper | difference" for name in names)
            + " |"
        )
        yield "|---|---" + "|---" * 3 * len(names) + "|"
        for result in results:
            paper = published(manifest, result.task, result.data)
            cells = [_cells(result, name, paper) for name in names]
            yield f"| {result.data.title} | {_counted(result)} | " + " | ".join(cells) + " |"
        yield ""
        whole = all(len(result.records) == result.data.count for result in results)
        if not whole:
            yield "Fewer or other pictures than the paper's: the difference is not one of networks."
        family = family_of(manifest, results[0].task)
        if all(published(manifest, result.task, result.data) is None for result in results):
            yield f"There is nothing beside ours: {_NO_ROW} {family}, {task}."
        yield ""


def _cells(result: Result, name: str, paper: dict[str, float] | None) -> str:
    ours = result.metrics[name] * result.data.protocol.headline[name]
    if paper is None:
        return f"{ours:.2f} | - | -"
    return f"{ours:.2f} | {paper[name]:.1f} | {ours - paper[name]:+.2f}"


def _counted(result: Result) -> str:
    total = result.data.count
    return (
        f"{len(result.records)}"
        if len(result.records) == total
        else (f"{len(result.records)} of {total}")
    )


def _sections(evaluation: Evaluation) -> Iterator[str]:
    for result in evaluation.results:
        where = result.folder.relative_to(evaluation.folder).as_posix()
        yield f"## {result.data.title}, {result.task.name}"
        yield ""
        yield "| " + " | ".join(result.metrics) + " |"
        yield "|---" * len(result.metrics) + "|"
        yield "| " + " | ".join(f"{value:.4f}" for value in result.metrics.values()) + " |"
        yield ""
        yield from _facts(result)
        yield ""
        yield f"![The best, the median and the worst picture]({where}/sheet.png)"
        yield ""
        yield f"![Errors of pictures and of pixels]({where}/histogram.png)"
        yield ""
    if evaluation.missing:
        yield "## Not measured"
        yield ""
        for data in evaluation.missing:
            yield f"- {data.title} ({data.kind}): not under the root"
        yield ""


def _facts(result: Result) -> Iterator[str]:
    """How the numbers came about, as a list."""
    listed = result.opened.listed
    yield (
        f"- {len(result.records)} pictures, "
        + (
            f"of the list {Path(listed).name}"
            if listed
            else "all that are there: the authors' list is not at hand"
        )
        + f"; the paper's split has {result.data.count}"
    )
    for reason, count in _left_out(result).items():
        yield f"- left out: {count} ({reason})"
    for text, count in _feeding(result):
        yield f"- {count} went in {text}"
    yield f"- {_odd(result)} of them at a size that is no multiple of 8"
    seconds = result.seconds
    each = ", ".join(
        f"{stage} {value:.1f} s ({1000 * value / len(result.records):.0f} ms each)"
        for stage, value in seconds.items()
    )
    yield f"- time: {each}"
    yield f"- each picture: images.csv in {result.folder.name}"


def _left_out(result: Result) -> dict[str, int]:
    reasons = dict(result.opened.left_out)
    unused = len(result.opened.items) - len(result.records)
    empty = sum(not record["pixels"] for record in result.records)
    reasons |= {"--count": unused} if unused else {}
    return reasons | ({"no pixel that counts": empty} if empty else {})


def _feeding(result: Result) -> list[tuple[str, int]]:
    """How pictures went in, the most frequent first; a set of many sizes in few lines."""
    texts = Counter(
        f"at {record['fed'][0]}x{record['fed'][1]}"
        + (
            ""
            if record["fed"] == record["size"]
            else f" (their own size: {record['size'][0]}x{record['size'][1]})"
        )
        + f" into the bucket {record['bucket']}, {record['how']}"
        for record in result.records
    )
    often, rest = texts.most_common(_SIZES), texts.most_common()[_SIZES:]
    others = Counter(
        {
            how: sum(count for text, count in rest if text.endswith(f", {how}"))
            for how in ("as it is", "padded", "resized", "resized and padded")
        }
    )
    often += [
        (f"at {len(rest)} other sizes together, {how}", count)
        for how, count in others.items()
        if count
    ]
    return often


def _odd(result: Result) -> int:
    return sum(any(edge % 8 for edge in record["fed"]) for record in result.records)


def _csv(result: Result) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(result.metrics)
    stages = list(result.records[0]["seconds"])
    writer.writerow(
        ["name", "pixels", *names, "height", "width", "fed_height", "fed_width", "bucket", "how"]
        + [f"{stage}_s" for stage in stages]
    )
    for record in result.records:
        writer.writerow(
            [record["name"], record["pixels"]]
            + [repr(record["metrics"][name]) for name in names]
            + [*record["size"], *record["fed"], record["bucket"], record["how"]]
            + [f"{record['seconds'][stage]:.4f}" for stage in stages]
        )
    return text.getvalue()


def _finite(value: Any) -> Any:
    """For JSON, which has no NaN: None in its place."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
