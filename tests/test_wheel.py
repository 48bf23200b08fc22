"""What is installed from a wheel: nothing that collides with other projects, and all that works in
a clone.
"""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

ROOMS = {"runtime", "export", "apps", "benchmarks", "tiny", "tests"}
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
FLOOR = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime", "flatbuffers", "google")


def build(source: Path, output: Path, what: str = "build_wheel") -> Path:
    """The wheel, or with `build_sdist` the archive, of the project in the folder `source`."""
    output.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, what, str(output)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(output.iterdir())


def copy_project(folder: Path, *without: str) -> Path:
    """What a clone holds, where a build may leave files behind."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    for path in filter(None, done.stdout.split("\0")):
        if (ROOT / path).is_file() and not path.startswith(without):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("source"), "tiny/", "tests/", "benchmarks/results/")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stale = source / "build" / "lib" / "runtime" / "of_an_earlier_build.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    return build(source, tmp_path_factory.mktemp("wheel"))


class Installed:
    """An environment that has this wheel, NumPy, Pillow and ONNX Runtime, and nothing else."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        (self.packages,) = folder.glob("lib/python*/site-packages")
        for name in FLOOR:
            if (here := Path(np.__file__).parents[1] / name).exists():
                (self.packages / name).symlink_to(here)
        self.install(wheel)

    def install(self, wheel: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install"]
        command = [*pip, "--quiet", "--no-deps", "--no-index", str(wheel)]
        subprocess.run(command, check=True, capture_output=True)

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        program = [str(self.bin / command[0]), *command[1:]]
        return subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=False)

    def python(self, code: str, cwd: Path) -> str:
        done = self.run("python", "-c", code, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("venv"), wheel)


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    """A user's folder with a picture."""
    folder = tmp_path / "quiet"
    folder.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "photo.png")
    return folder


@pytest.fixture
def crowded(quiet: Path) -> Path:
    """One with packages that would shadow ours."""
    folder = quiet.rename(quiet.with_name("crowded"))
    for room in ("runtime", "apps", "benchmarks"):
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text(f"raise ImportError('of the user: {room}')")
    for name in ("export", "tiny"):
        (folder / f"{name}.py").write_text(f"raise ImportError('of the user: {name}')")
    return folder


@pytest.fixture(params=["quiet", "crowded"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Where something is called that must work in both."""
    path: Path = request.getfixturevalue(request.param)
    return path


def modules(wheel: Path) -> Iterator[tuple[str, ast.Module]]:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                yield name, ast.parse(archive.read(name))


def docstrings(tree: ast.Module) -> set[ast.AST]:
    """Strings that are statements; those below an assignment too."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def test_it_holds_the_packages_under_one_name_and_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        words = archive.read("lotus_edge-0.1.0.dist-info/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "lotus_edge",
        "runtime",
    }
    assert {name for name in names if name.startswith("runtime/")} == {
        "runtime/__init__.py",
        "runtime/__main__.py",
        "runtime/py.typed",
    }
    inside = {name.split("/")[1] for name in names if name.startswith("lotus_edge/")}
    assert inside == {"__init__.py", "__main__.py", "py.typed", "runtime", "export", "apps"}
    assert {name.partition(" = ")[0] for name in words.splitlines()[1:]} == {
        "lotus-edge",
        "lotus-edge-build",
    }
    assert wheel.stat().st_size < 1_000_000


def test_no_module_imports_a_package_of_the_clone(wheel: Path) -> None:
    found = set()
    for name, tree in modules(wheel):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add((name, node.module.partition(".")[0]))
            elif isinstance(node, ast.Import):
                found |= {(name, alias.name.partition(".")[0]) for alias in node.names}
    assert {room for _, room in found} & ROOMS == set()
    assert ("lotus_edge/runtime/__main__.py", "lotus_edge") in found


def test_no_text_names_what_only_a_clone_has(wheel: Path) -> None:
    """Messages and help: a module's name, or a command that would not work."""
    wrong = re.compile(
        r"^(runtime|export|apps|tiny)\.\w+(\.\w+)*$"
        r"|python -m (runtime|apps|export|benchmarks|tiny|tools)|python export/|pip install -e"
    )
    found = [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in modules(wheel)
        for node in set(ast.walk(tree)) - docstrings(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and wrong.search(" ".join(node.value.split()))
        and "in a clone" not in node.value
    ]
    assert found == []


def test_it_predicts(installed: Installed, null_bundle: Path, folder: Path) -> None:
    code = f"""
from lotus_edge import LotusEngine, LotusError, Prediction, Verification
with LotusEngine({str(null_bundle)!r}) as engine:
    assert isinstance(engine("photo.png"), Prediction) and isinstance(engine.verify(), Verification)
print(LotusEngine.__module__, issubclass(LotusError, Exception))
"""
    assert installed.python(code, folder) == "lotus_edge.runtime.engine True"


@pytest.mark.parametrize("command", ["lotus-edge", "python -m lotus_edge"])
def test_its_commands_work(
    installed: Installed, null_bundle: Path, folder: Path, command: str
) -> None:
    run = command.split()
    for action in (["verify"], ["info"], ["predict", "photo.png", "--output", "out"]):
        done = installed.run(*run, action[0], str(null_bundle), *action[1:], cwd=folder)
        assert done.returncode == 0, done.stderr
    assert len(list((folder / "out").iterdir())) == 3


def test_build_says_what_it_needs(installed: Installed, crowded: Path) -> None:
    assert (
        "usage: lotus-edge-build" in installed.run("lotus-edge-build", "--help", cwd=crowded).stdout
    )
    done = installed.run("lotus-edge-build", "random/lotus-d", cwd=crowded)
    assert done.returncode == 1
    assert done.stderr == (
        "error: this needs the extra `export` (there is no package 'torch'): "
        '`pip install "lotus-edge[export]"`\n'
    )
    done = installed.run("lotus-edge-build", "tiny/disparity-d", "--dry-run", cwd=crowded)
    assert done.returncode == 1
    assert "pip install ./tiny" in done.stderr
    done = installed.run("python", "-m", "lotus_edge.export.inspect_bundle", "bundle", cwd=crowded)
    assert done.returncode == 1
    assert 'pip install "lotus-edge[export]"' in done.stderr


def test_runtime_is_the_same_where_nothing_shadows_it(
    installed: Installed, null_bundle: Path, tmp_path: Path
) -> None:
    code = "import lotus_edge, runtime; print(runtime.LotusEngine is lotus_edge.LotusEngine)"
    assert installed.python(code, tmp_path) == "True"
    done = installed.run("python", "-m", "runtime", "verify", str(null_bundle), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_clone_has_the_same_names() -> None:
    import lotus_edge
    import runtime

    assert lotus_edge.__all__ == runtime.__all__
    for name in lotus_edge.__all__:
        assert getattr(lotus_edge, name) is getattr(runtime, name)
    with pytest.raises(AttributeError, match=r"lotus_edge.*nothing"):
        _ = lotus_edge.nothing


@pytest.mark.slow
def test_every_module_imports(wheel: Path, installed: Installed, crowded: Path) -> None:
    """With the packages of the extra `export` in reach."""
    names = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name, _ in modules(wheel)
        if name.startswith("lotus_edge/")
    )
    code = f"""
import importlib, sys
sys.path.append({str(Path(np.__file__).parents[1])!r})
for name in {names!r}:
    importlib.import_module(name)
print(*sorted({ROOMS!r} & set(sys.modules)))
"""
    assert installed.python(code, crowded) == ""


@pytest.mark.slow
def test_the_toy_networks_are_a_wheel_of_their_own(
    wheel: Path, tmp_path: Path, crowded: Path
) -> None:
    toys = build(copy_project(tmp_path / "source") / "tiny", tmp_path / "out")
    with zipfile.ZipFile(toys) as archive:
        code = {name for name in archive.namelist() if name.endswith(".py")}
    assert code == {f"lotus_edge_tiny/{name}.py" for name in ("__init__", "render", "scene")}
    environment = Installed(tmp_path / "venv", wheel)
    environment.install(toys)
    build_plan = ["lotus-edge-build", "tiny/disparity-d", "--vae", "tiny/taesd", "--dry-run"]
    done = environment.run(*build_plan, "--precision", "int8", cwd=crowded)
    assert done.returncode == 0, done.stderr
    assert "rendered scenes" in done.stdout


@pytest.mark.slow
def test_a_source_distribution_gives_the_same_wheel(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    archive = build(source, tmp_path / "sdist", "build_sdist")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build(unpacked, tmp_path / "again")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        for name in first.namelist():
            if not name.endswith("/RECORD"):
                assert first.read(name) == second.read(name), name


@pytest.mark.slow
def test_its_types_are_seen(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from lotus_edge import LotusEngine\n"
        "from runtime import Prediction\n"
        "def shape(engine: LotusEngine) -> tuple[int, ...]:\n"
        "    prediction: Prediction = engine('a.png')\n"
        "    reveal_type(prediction.task)\n"
        "    return prediction.values.shape\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*mypy, "--python-executable", str(installed.bin / "python"), "mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'Revealed type is "str"' in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_pip_installs_it(wheel: Path, null_bundle: Path, crowded: Path, tmp_path: Path) -> None:
    """As a user does it, with an index."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv" / "bin" / "pip"), "install", "--quiet"]
    done = subprocess.run(
        [*pip, "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[cpu]"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "from versions: none" in done.stderr:
        pytest.skip("no package index in reach")
    assert done.returncode == 0, done.stderr
    scripts = tmp_path / "venv" / "bin"
    predict = [str(scripts / "lotus-edge"), "predict", str(null_bundle), "photo.png"]
    build_bundle = [str(scripts / "lotus-edge-build"), "tiny/disparity-d"]
    for command, status, said in (
        ([*predict, "--output", "out"], 0, "photo.png"),
        (
            build_bundle,
            1,
            "needs the extra `export` (there is no package 'torch'): `pip install \"",
        ),
    ):
        done = subprocess.run(command, cwd=crowded, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_what_the_build_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    rewrite = runpy.run_path(str(ROOT / "setup.py"))["installed_source"]
    assert rewrite("from runtime.x import a\n") == "from lotus_edge.runtime.x import a\n"
    assert rewrite("if True:\n    import export\n") == (
        "if True:\n    import lotus_edge.export as export\n"
    )
    assert rewrite("import apps.x as y\n") == "import lotus_edge.apps.x as y\n"
    assert rewrite("from tiny.x import a") == "from lotus_edge_tiny.x import a"
    for same in ("from torch.export import a\n", "from .runtime import a\n", "'from runtime'\n"):
        assert rewrite(same) == same
    with pytest.raises(ValueError, match="from"):
        rewrite("import runtime.x\n")
