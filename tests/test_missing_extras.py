"""Where an extra is not installed, every command says which one and how to get it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from runtime.extras import EXTRAS, how_to_get

# Stands before every other finder: to the commands below these packages are not installed.
BLOCK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
OUTSIDE = {"numpy", "PIL", "mkdocs", "griffe", "atheris", "triton_python_backend_utils"}
"""The runtime's own, those of docs/, and what a server brings."""
ROS = {"rclpy", "sensor_msgs"}  # of an installation of ROS, which no package index has

OURS = {"runtime", "export", "apps", "benchmarks", "tiny", "lotus_edge", "tools", "tests", "docs"}
ROOMS = ("runtime", "export", "apps", "benchmarks", "tiny", "lotus_edge")
ENTRIES = sorted(
    path.relative_to(ROOT)
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text()
)
COMPLETE = {
    "export/build_engine.py": ["tiny/disparity-d", "--output", "{folder}/built"],
    "export/inspect_bundle.py": ["{bundle}"],
    "benchmarks/accuracy.py": ["--bundle", "{bundle}", "--dirty"],
    "benchmarks/build_variant.py": ["{{}}", "tiny/disparity-d", "--output", "{folder}/built"],
    "benchmarks/cold_start.py": ["--bundle", "{bundle}", "--dirty"],
    "benchmarks/emulate.py": ["{bundle}", "--output", "{folder}/emulated"],
    "benchmarks/evaluate.py": ["{bundle}", "--data", "{folder}"],
    "benchmarks/full_size.py": ["--dirty"],
    "benchmarks/host.py": ["--rounds", "1", "--dirty"],
    "benchmarks/kill_build.py": ["--count", "1", "--dirty"],
    "benchmarks/latency.py": ["--checkpoint", "tiny/disparity-d", "--resolution=64x64", "--dirty"],
    "benchmarks/nncf_peer.py": ["{bundle}", "--output", "{folder}/nncf"],
    "benchmarks/parity.py": ["tiny/samples/room.png", "--dirty"],
    "benchmarks/profile.py": ["--bundle", "{bundle}", "--backend", "onnxruntime", "--dirty"],
    "benchmarks/replay.py": [],
    "benchmarks/soak.py": ["--count", "1", "--dirty"],
    "benchmarks/serve.py": ["--dirty"],
    "benchmarks/report.py": [],
}
"""Arguments with which a command gets as far as it can without any extra. The others ask for one
with `--help` already, or need none.
"""

NEED_NONE = {
    "runtime/__main__.py",
    "apps/__main__.py",
    "apps/ros/node.py",
    "lotus_edge/__main__.py",
    "benchmarks/all_rows.py",
    "benchmarks/ambiguity.py",
    "benchmarks/device.py",
    "benchmarks/evaluate_long.py",
    "benchmarks/fuzz.py",
    "benchmarks/fuzzing/worker.py",
    "benchmarks/gallery.py",
    "benchmarks/geometry.py",
    "benchmarks/latency_worker.py",
    "benchmarks/on_device/worker.py",
    "benchmarks/opening.py",
    "benchmarks/tiles.py",
    "benchmarks/video.py",
    "benchmarks/video_run.py",
    "benchmarks/views.py",
}


def without(folder: Path, *packages: str) -> dict[str, str]:
    """An environment whose Python does not find these packages."""
    (folder / "sitecustomize.py").write_text(BLOCK.format(names=set(packages)))
    return dict(os.environ, PYTHONPATH=str(folder))


def run(entry: Path, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As people type it: files of export/ by their path, others as modules."""
    module = ".".join(entry.with_suffix("").parts).removesuffix(".__main__")
    program = [str(entry)] if entry.parts[0] == "export" else ["-m", module]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def all_extras() -> tuple[str, ...]:
    return tuple(name for names in EXTRAS.values() for name in names)


def test_the_table_has_every_package_that_the_code_imports() -> None:
    imported = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    imported.add(node.module.partition(".")[0])
                elif isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
    known = OUTSIDE | ROS | OURS | sys.stdlib_module_names | {"setuptools"}
    assert imported - known - set(all_extras()) == set()


def test_the_table_agrees_with_the_project_file() -> None:
    tomllib = pytest.importorskip("tomllib", reason="in Python since 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    called = {"yaml": "pyyaml", "cuda": "cuda-bindings", "onnx_ir": "onnx-ir"}
    called["cv2"] = "opencv-python-headless"
    for extra, names in EXTRAS.items():
        listed = {
            re.split(r"[\[>=;]", line)[0].replace("-gpu", "")
            for line in project["optional-dependencies"][extra]
        }
        for name in names:
            assert called.get(name, name.replace("_", "-")) in listed, (extra, name)


def test_no_message_names_an_extra_in_words_of_its_own() -> None:
    """`how_to_install` is right in a clone and installed."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert [str(path) for path in files if "lotus-edge[" in path.read_text()] == []


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_a_command_without_any_extra_ends_in_a_sentence(
    entry: Path, null_bundle: Path, tmp_path: Path
) -> None:
    arguments = [
        word.format(bundle=null_bundle, folder=tmp_path)
        for word in COMPLETE.get(entry.as_posix(), ["--help"])
    ]
    done = run(entry, *arguments, env=without(tmp_path, *all_extras()))
    assert "Traceback" not in done.stderr
    if entry.as_posix() in NEED_NONE:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        of_no_extra = "error: this needs the package 'atheris': `pip install atheris`"
        assert last == of_no_extra or re.fullmatch(
            r"error: this needs the extra `(\w+)` \(there is no package '\w+'\): "
            r'`pip install -e "\.\[\1\]"` in the clone',
            last,
        ), done.stderr


@pytest.mark.parametrize(("backend", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino")])
def test_a_backend_alone_is_missing(
    backend: str, extra: str, null_bundle: Path, tmp_path: Path
) -> None:
    """It is imported by the runtime, whose error has words of its own."""
    words = ["--bundle", str(null_bundle), "--backend", backend, "--dirty"]
    done = run(Path("benchmarks/profile.py"), *words, env=without(tmp_path, backend))
    assert done.returncode == 1
    assert done.stderr == f"error: {how_to_get(backend)}\n"
    assert f"this needs the extra `{extra}`" in done.stderr


@pytest.mark.parametrize("entry", [Path("apps/__main__.py"), Path("runtime/__main__.py")], ids=str)
def test_a_command_without_pillow(entry: Path, tmp_path: Path) -> None:
    done = run(entry, "--help", env=without(tmp_path, "PIL"))
    assert done.returncode == 1
    assert done.stderr == "error: this needs the package 'PIL': `pip install pillow`\n"


def test_smoothing_without_its_extra(null_bundle: Path, tmp_path: Path) -> None:
    """Without `--smooth` a film needs no more than the extra video."""
    pytest.importorskip("av", reason="extra `video`")
    words = ["video", str(null_bundle), "no.mp4", "--output", str(tmp_path / "out.mp4")]
    env = without(tmp_path, "cv2")
    done = run(Path("apps/__main__.py"), *words, "--smooth", env=env)
    assert (done.returncode, done.stderr) == (
        1,
        "error: this needs the extra `flow` (there is no package 'cv2'): "
        '`pip install -e ".[flow]"` in the clone\n',
    )
    done = run(Path("apps/__main__.py"), *words, env=env)
    assert "cannot open no.mp4 as a video" in done.stderr


def test_another_missing_package_is_a_traceback(tmp_path: Path) -> None:
    """It is a fault of the code, and its place is wanted."""
    done = run(ENTRIES[0], "--help", env=without(tmp_path, "argparse"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert how_to_get("argparse") is None
