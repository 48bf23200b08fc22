"""A few builds of the replay list: what a refactor may not change."""

from __future__ import annotations

import pytest

from benchmarks import replay


def test_every_entry_is_in_the_committed_list() -> None:
    assert list(replay.read_list()[1]) == list(replay.ENTRIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", replay.QUICK)
def test_graph_and_golden_are_as_committed(name: str) -> None:
    made_on, entries = replay.read_list()
    exactly = made_on == replay.machine()
    verdict = replay.compare(entries[name], replay.build(name), exactly=exactly)
    assert verdict.startswith("same"), verdict


def entry(**changes: object) -> dict[str, object]:
    graph = {"structure": "a", "weights": "b", "sums": {"unet": [100.0, 150.0]}}
    return {"model.onnx": graph | changes}


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (entry(), "same"),
        (entry(weights="c", sums={"unet": [100.001, 150.0]}), "same, but for the last digits"),
        (entry(weights="c", sums={"unet": [100.1, 150.0]}), "DIFFERENT values in model.onnx"),
        (entry(weights="c", sums={"decoder": [100.0, 150.0]}), "DIFFERENT values in model.onnx"),
        (entry(structure="c"), "DIFFERENT structure of model.onnx"),
        ({"other.onnx": entry()["model.onnx"]}, "DIFFERENT files"),
        ({"error": "disk full"}, "FAILED: disk full"),
    ],
)
def test_verdicts(found: dict[str, object], verdict: str) -> None:
    assert replay.compare(entry(), found, exactly=False).startswith(verdict)


def test_where_the_list_was_made_every_byte_counts() -> None:
    assert replay.compare(entry(), entry(), exactly=True) == "same"
    other = replay.compare(entry(), entry(weights="c"), exactly=True)
    assert other == "DIFFERENT values in model.onnx, on the kind of machine of the list"
    turned = replay.compare(entry(), entry(structure="c"), exactly=True)
    assert turned == "DIFFERENT structure of model.onnx"


def test_an_entry_that_is_not_listed_is_no_success() -> None:
    assert replay.compare(None, entry(), exactly=True) == "not in the list"
