"""Two evaluations of the same pictures: the difference of their metrics, and its interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.evaluation.protocol import Record
from benchmarks.evaluation.run import Evaluation, Result
from export.data_sets import DataSetError

RESAMPLES = 2000
_AT_ONCE = 200


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`second` less `first` of one metric lies between `low` and `high` with 95 %."""

    metric: str
    first: float
    second: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """In words."""
        if self.low == self.high == 0:
            return "none"
        if self.low <= 0 <= self.high:
            return "may be chance"
        return "certain"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One set and task. On `better` of the `pictures` the second bundle is better."""

    first: Result
    second: Result
    pictures: int
    better: int
    differences: list[Difference]


def compare(first: Evaluation, second: Evaluation) -> list[Comparison]:
    """Every set and task that both have. Raises: DataSetError where there is none, or where their
    pictures differ.
    """
    others = {(result.data.key, result.task.name): result for result in second.results}
    pairs = [
        (result, others[result.data.key, result.task.name])
        for result in first.results
        if (result.data.key, result.task.name) in others
    ]
    if not pairs:
        raise DataSetError("the two bundles have no set and task in common that was measured")
    return [compare_results(*pair) for pair in pairs]


def compare_results(first: Result, second: Result, resamples: int = RESAMPLES) -> Comparison:
    """The paired bootstrap: pictures are drawn with replacement, the same for both sides, and the
    metric of the set is computed anew each time; the interval is between the percentiles 2.5 and
    97.5. The draws are the same in every run.
    """
    sides = _pairs(first, second)
    protocol, count = first.data.protocol, len(sides[0])
    drawn: dict[str, list[Any]] = {metric: [] for metric in first.metrics}
    random = np.random.default_rng(0)
    for start in range(0, resamples if count else 0, _AT_ONCE):
        draws = min(_AT_ONCE, resamples - start)
        weights = random.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
        for metric, differences in drawn.items():
            values = [protocol.resample(metric, side, weights) for side in sides]
            differences.append(values[1] - values[0])
    key = protocol.ranked_by
    return Comparison(
        first=first,
        second=second,
        pictures=count,
        better=sum(b["metrics"][key] < a["metrics"][key] for a, b in zip(*sides, strict=True)),
        differences=[
            Difference(
                metric=metric,
                first=first.metrics[metric],
                second=second.metrics[metric],
                low=float(np.percentile(np.concatenate(differences), 2.5)),
                high=float(np.percentile(np.concatenate(differences), 97.5)),
            )
            for metric, differences in drawn.items()
            if differences
        ],
    )


def comparison_table(comparisons: list[Comparison], names: tuple[str, str]) -> Iterator[str]:
    """Markdown, a table for each set and task; the paper's metrics come first."""
    yield f"A is {names[0]}, B is {names[1]}."
    for each in comparisons:
        headline = each.first.data.protocol.headline
        order = sorted(each.differences, key=lambda one: one.metric not in headline)
        yield ""
        yield f"| {each.first.data.title}, {each.first.task.name} | A | B | B - A | 95 % | |"
        yield "|---|---|---|---|---|---|"
        for one in order:
            factor = headline.get(one.metric, 1.0)
            unit = ", %" if factor == 100 else ""
            a, b, low, high = (factor * v for v in (one.first, one.second, one.low, one.high))
            yield (
                f"| {one.metric}{unit} | {a:.4f} | {b:.4f} | {b - a:+.4f} | {low:+.4f} to "
                f"{high:+.4f} | {one.verdict} |"
            )
        yield ""
        yield (
            f"B is better on {each.better} of {each.pictures} pictures. The interval is that of a "
            f"paired bootstrap over pictures, {RESAMPLES} times."
        )


def comparison_rows(comparisons: list[Comparison], names: tuple[str, str]) -> list[dict[str, Any]]:
    """One for each set and task."""
    return [
        {
            "first": names[0],
            "second": names[1],
            "set": each.first.data.name,
            "task": each.first.task.name,
            "images": each.pictures,
            "second_is_better_on": each.better,
            "resamples": RESAMPLES,
            "differences": {
                one.metric: {
                    "first": one.first,
                    "second": one.second,
                    "difference": one.second - one.first,
                    "low": one.low,
                    "high": one.high,
                }
                for one in each.differences
            },
        }
        for each in comparisons
    ]


def _pairs(first: Result, second: Result) -> tuple[list[Record], list[Record]]:
    """The records of pictures that count on both sides, in one order."""
    others = {record["name"]: record for record in second.records}
    names = {record["name"] for record in first.records}
    if different := sorted(names ^ set(others)):
        raise DataSetError(
            f"{first.data.title}: only one of the two measured {different[0]}, so they cannot be "
            "compared; measure both with the same --sets and --count"
        )
    pairs = [(record, others[record["name"]]) for record in first.records]
    counted = [pair for pair in pairs if pair[0]["pixels"] and pair[1]["pixels"]]
    return [pair[0] for pair in counted], [pair[1] for pair in counted]
