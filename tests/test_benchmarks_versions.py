"""What `benchmarks.versions` says of a run of the contract."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import arm, versions


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


def test_without_an_emulator_a_line_for_arm_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(arm.shutil, "which", lambda name: None)
    monkeypatch.setattr(versions, "FOLDER", tmp_path)
    line = versions.Line(backend="numba", version="1.0", machine=arm.NAME)
    outcome, fine = versions._run(line)
    assert outcome.startswith("not run: needs qemu-aarch64")
    assert not fine
    assert not list(tmp_path.rglob(".ready"))


def test_lines_that_share_an_environment_need_the_same() -> None:
    """They differ in the opset, or in what is expected."""
    assert versions.LINES[0].tests[:2] == [versions.CONTRACT, "-k"]
    for backend, files in versions.OTHERS.items():
        assert all((versions.ROOT / name).exists() for name in files)
        assert all(each.tests == files for each in versions.LINES if each.backend == backend)
    names = {line.name: (line.packages, line.python, line.machine) for line in versions.LINES}
    for line in versions.LINES:
        expected = names[line.name]
        assert ({*line.packages} - {*versions.TOOLS}) == {*expected[0]} - {*versions.TOOLS}
        assert (line.python, line.machine) == expected[1:]
