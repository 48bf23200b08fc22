"""The command `lotus-edge`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from apps.__main__ import COMMANDS, main
from runtime.__main__ import COMMANDS as RUNTIME_COMMANDS
from runtime.__main__ import main as runtime_main
from runtime.__main__ import run


def names(commands: tuple) -> list[str]:
    subparsers = argparse.ArgumentParser().add_subparsers()
    for add_command in commands:
        add_command(subparsers)
    return list(subparsers.choices)


def test_it_has_the_commands_of_the_runtime() -> None:
    assert names(COMMANDS)[:3] == names(RUNTIME_COMMANDS) == ["predict", "verify", "info"]


def test_it_predicts_verifies_and_describes_as_the_runtime_does(
    null_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    predict = ["predict", str(null_bundle), str(tmp_path / "a.png"), "--output"]
    assert main([*predict, str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    for command in ("verify", "info"):
        capsys.readouterr()
        assert main([command, str(null_bundle)]) == 0
        shown = capsys.readouterr().out
        assert runtime_main([command, str(null_bundle)]) == 0
        assert capsys.readouterr().out == shown


def test_a_command_is_a_function_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    def add_count(commands) -> None:
        count = commands.add_parser("count")
        count.add_argument("number", type=int)
        count.set_defaults(run=lambda arguments: arguments.number)

    assert run((*COMMANDS, add_count), ["count", "3"]) == 3
    with pytest.raises(SystemExit) as wrong_usage:
        run(COMMANDS, ["count", "3"])
    assert wrong_usage.value.code == 2


def test_as_a_module_and_as_the_installed_command(null_bundle: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="in Python since 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["lotus-edge"] == "lotus_edge.__main__:main"
    for module in ("apps", "lotus_edge"):
        command = [sys.executable, "-m", module, "verify", str(null_bundle)]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
