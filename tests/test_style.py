"""Gates on the tree itself: sizes, names, the direction of imports, and no path of a machine."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 60  # lines, decorators not counted
ALLOWED = {
    "runtime": {"runtime"},
    "tiny": {"tiny"},
    "export": {"export", "runtime"},
    "apps": {"apps", "runtime"},
    "lotus_edge": {"lotus_edge", "apps", "runtime"},
    "tools": {"tools"},
    "benchmarks": {"benchmarks", "apps", "export", "runtime", "tiny"},
    "docs": set(),  # hooks of the site
    "tests": {"tests", "benchmarks", "apps", "export", "runtime", "tiny", "lotus_edge", "tools"},
}
ALSO_ALLOWED = {
    "export/embedded.py": {"tiny"},  # the toy networks, and the default calibration images
    "lotus_edge/__main__.py": {"export"},  # the command lotus-edge-build
    "tiny/train.py": {"runtime"},  # which extra a command needs
    "tiny/distill.py": {"runtime"},
}
MACHINE = re.compile(
    r"/(?:work|tmp|home|root|Users)/\w|https?://[^\s/]*(?:mirror|artifactory|registry)|-index[-]url"
)
VENDORS = {
    "onnxruntime": "runtime/backends/onnxruntime.py",
    "openvino": "runtime/backends/openvino.py",
    "tensorrt": "runtime/backends/tensorrt.py",
    "tensorrt_rtx": "runtime/backends/tensorrt.py",
    "cuda": "runtime/backends/cuda.py",
    "open3d": "apps/views/fuse.py",
    "cv2": "runtime/motion.py",
    "pycolmap": "apps/views/colmap.py",
}
UNSURE = {"exists", "is_file", "is_dir", "is_symlink"}  # of pathlib: see runtime/there.py
DATA = {
    "tests/test_export_command.py": "/home" + "/me",  # goes into a command, and must not come out
}


def tracked(*patterns: str) -> list[str]:
    """Paths from the root of files under version control; a copy without git has no such list."""
    command = ["git", "ls-files", "-z", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return sorted(path for path in done.stdout.split("\0") if path and (ROOT / path).is_file())


def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def long_functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield node.name, lines


def imported(tree: ast.AST) -> set[str]:
    """First names of all imports, those inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def forbidden(path: str, tree: ast.AST) -> set[str]:
    """Packages of the project that the file imports and may not."""
    return (
        (imported(tree) & set(ALLOWED))
        - ALLOWED[path.split("/")[0]]
        - ALSO_ALLOWED.get(path, set())
    )


def test_the_gates_see_what_they_are_for() -> None:
    body = "    x = 1\n" * LONGEST_FUNCTION
    assert list(long_functions(ast.parse(f"@mark\ndef long():\n{body}"))) == [("long", 61)]
    assert list(long_functions(ast.parse(f"@mark\ndef fits():\n{body[:-10]}"))) == []
    inside = ast.parse(
        "def late():\n    from export.folds import FOLDS\n    import torch, tiny.data"
    )
    assert forbidden("apps/video.py", inside) == {"export", "tiny"}
    assert forbidden("export/embedded.py", inside) == set()
    assert forbidden("export/folds/linear.py", inside) == {"tiny"}
    assert MACHINE.search("see /" + "work/notes.md")
    assert MACHINE.search("pip install --extra-index" + "-url")
    assert MACHINE.search("https://" + "mirror.example/pypi")
    assert not MACHINE.search("half of the work/time")


def test_files_are_short() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in tracked("*.py")}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    found = {path: dict(long_functions(parsed(path))) for path in tracked("*.py")}
    assert {path: functions for path, functions in found.items() if functions} == {}


def test_no_file_of_export_hides_a_library() -> None:
    """`python export/build_engine.py` puts export/ first on sys.path."""
    libraries = sys.stdlib_module_names | set(importlib.metadata.packages_distributions())
    names = {Path(path).stem for path in tracked("export/*.py") if path.count("/") == 1}
    assert "build_engine" in names
    assert names & libraries - {"__init__"} == set()


def test_imports_point_one_way() -> None:
    packaged = [path for path in tracked("*.py") if "/" in path]
    assert {path.split("/")[0] for path in packaged} <= set(ALLOWED), "a package without a rule"
    found = {path: forbidden(path, parsed(path)) for path in packaged}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_vendor_is_imported_in_one_file() -> None:
    """In runtime and apps; the exporter and the benchmarks drive vendors' own tools too."""
    wrong = {
        path: vendors
        for path in tracked("runtime/*.py", "apps/*.py")
        if (vendors := {name for name in imported(parsed(path)) if VENDORS.get(name, path) != path})
    }
    assert wrong == {}


def test_nothing_reaches_a_vendor_that_tells_its_maker_past_the_runtime() -> None:
    """`import_vendor` switches the telemetry of these two off. Tests have it off from the start."""
    paths = tracked("benchmarks/*.py", "export/*.py", "tiny/*.py", "tools/*.py")
    wrong = [path for path in paths if {"onnxruntime", "openvino"} & {*imported(parsed(path))}]
    assert wrong == []


def test_no_path_is_asked_whether_it_is_there() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path in tracked("runtime/*.py", "export/*.py", "apps/*.py", "lotus_edge/*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in UNSURE
    ]
    assert wrong == []


def test_conftest_is_imported_one_way() -> None:
    """Two names for it would be two modules, and two copies of its state."""
    assert [path for path in tracked("tests/*.py") if "tests" in imported(parsed(path))] == []


def test_no_file_names_a_path_or_a_host_of_a_machine() -> None:
    found = []
    for path in tracked():
        content = (ROOT / path).read_bytes()
        if path == "LICENSE" or b"\0" in content:
            continue
        text = content.decode()
        if path in DATA:
            assert DATA[path] in text, "an exception that nothing needs any more"
            text = text.replace(DATA[path], "")
        found += [f"{path}: {match[0]}" for match in MACHINE.finditer(text)]
    assert found == []
