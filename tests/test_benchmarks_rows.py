"""Rows of a tree with changes are refused: a row names a commit, and somebody must be able to get
the code that made it.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import rows
from runtime.errors import LotusError


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, into which rows are written."""
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("words\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(rows, "REFUSED", tmp_path / "refused")
    return tmp_path


def test_a_clean_tree_gives_a_commit_and_no_mark(tree: Path) -> None:
    assert rows.parse_arguments(argparse.ArgumentParser(), []).dirty is False
    body = json.loads(rows.write_rows("a", [{"x": 1}]).read_text())
    assert body["rows"] == [{"x": 1}]
    assert "+changes" not in body["commit"]
    assert "dirty" not in body


def test_a_change_is_refused_before_anything_is_measured(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "code.py").write_text("x = 2\n")
    with pytest.raises(SystemExit) as ended:
        rows.parse_arguments(argparse.ArgumentParser(), [])
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert "code.py" in message
    assert "--dirty" in message
    assert rows.parse_arguments(argparse.ArgumentParser(), ["--dirty"]).dirty is True


def test_rows_of_a_changed_tree_are_refused_but_not_lost(tree: Path) -> None:
    (tree / "code.py").write_text("x = 2\n")
    with pytest.raises(rows.DirtyTreeError, match=r"code\.py") as refused:
        rows.write_rows("a", [{"x": 1}])
    assert isinstance(refused.value, LotusError)
    assert not rows.RESULTS.exists()
    assert json.loads((rows.REFUSED / "a.json").read_text())["rows"] == [{"x": 1}]


def test_with_the_option_the_row_says_so(tree: Path) -> None:
    (tree / "code.py").write_text("x = 2\n")
    body = json.loads(rows.write_rows("a", [], dirty=True).read_text())
    assert body["commit"].endswith("+changes")
    assert body["dirty"] is True


def test_rows_and_text_may_differ_from_the_commit(tree: Path) -> None:
    """Several benchmarks run one after the other; each writes rows."""
    rows.write_rows("a", [{"x": 1}])
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "rows")
    rows.write_rows("a", [{"x": 2}])
    (tree / "README.md").write_text("other words\n")
    (tree / "untracked.py").write_text("y = 1\n")
    assert "dirty" not in json.loads(rows.write_rows("a", [{"x": 3}]).read_text())


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(rows, "_git", lambda *words: "")
    assert json.loads(rows.write_rows("a", []).read_text())["commit"] == "unknown"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted((ROOT / "benchmarks").glob("*.py"))
        if path.name != "rows.py" and "write_rows(" in path.read_text()
    ],
    ids=lambda path: path.stem,
)
def test_every_benchmark_that_writes_rows_asks_first(path: Path) -> None:
    """It parses with `parse_arguments`, and hands `dirty` on."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [(getattr(call.func, "id", ""), call) for call in calls]
    assert "parse_arguments" in [name for name, _ in named]
    for name, call in named:
        if name == "write_rows":
            assert "dirty" in [keyword.arg for keyword in call.keywords]
