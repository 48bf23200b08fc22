"""What `benchmarks.versions` says of a run of the contract."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import versions


@pytest.mark.parametrize(
    ("status", "printed", "errors", "outcome"),
    [
        (0, "...\n3 passed, 1 skipped in 1.0s\n", "", ("3 passed, 1 skipped", True)),
        (1, "F\n1 failed, 2 passed in 1.0s\n", "", ("1 failed, 2 passed", False)),
        (-9, "", "", ("status -9, no output", False)),  # killed
        (1, "\n", "No module\nnamed pytest\n", ("No module named pytest", False)),
    ],
)
def test_every_run_has_an_outcome_in_one_line(
    status: int,
    printed: str,
    errors: str,
    outcome: tuple[str, bool],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    done = subprocess.CompletedProcess([], status, printed, errors)
    monkeypatch.setattr(versions, "_call", lambda *_: done)
    monkeypatch.setattr(versions, "_bundles", lambda opset: tmp_path)
    assert versions._contract(versions.LINES[0], Path("python")) == outcome
