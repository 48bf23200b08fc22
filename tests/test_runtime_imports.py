"""The run time needs NumPy, Pillow and one engine; the import direction is checked by machine."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT

# The guard stands before every other finder, so that a banned package fails even where it is
# installed.
GUARD = """
import sys
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BANNED:
            raise ImportError(f"{name} is banned in this test")
sys.meta_path.insert(0, Ban())
"""
EXPORT_ONLY = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
)


def child(code: str, *, banned: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    program = f"BANNED = {set(banned)!r}{GUARD}{textwrap.dedent(code)}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_guard_works() -> None:
    assert "banned" in child("import torch", banned=("torch",)).stderr


def test_prediction_with_the_export_packages_out_of_reach(
    null_bundle: Path, tmp_path: Path
) -> None:
    code = f"""
    import numpy as np
    from runtime import LotusEngine, LotusError, Prediction, Verification
    import runtime.__main__
    with LotusEngine({str(null_bundle)!r}) as engine:
        engine.verify()
        engine(np.zeros((10, 10, 3), np.uint8)).save({str(tmp_path / "out" / "a")!r})
    assert not set(sys.modules) & {set(EXPORT_ONLY)!r}
    """
    done = child(code, banned=(*EXPORT_ONLY, "export", "benchmarks", "tiny", "matplotlib", "scipy"))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_every_runtime_module_imports_without_any_vendor() -> None:
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "runtime").rglob("*.py")
        if path.name != "__init__.py"
    ]
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    vendors = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda")
    done = child(code, banned=(*EXPORT_ONLY, *vendors))
    assert done.returncode == 0, done.stderr


def test_apps_import_nothing_of_the_build_and_no_vendor() -> None:
    """Each module of apps, so that the command starts on a machine that only predicts."""
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "apps").rglob("*.py")
    ]
    assert "apps.__main__" in modules
    vendors = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda")
    banned = {*EXPORT_ONLY, *vendors, "export", "benchmarks", "tiny"}
    page = {name for name in modules if name.startswith("apps.web")} | {"apps.__main__"}
    for some, needed in (
        ({*modules} - page, set[str]()),
        (page, {"huggingface_hub", "tqdm"}),  # Gradio's own
    ):
        code = f"import importlib\nfor name in {sorted(some)!r}: importlib.import_module(name)"
        done = child(code, banned=tuple(banned - needed))
        assert done.returncode == 0, done.stderr


def test_import_loads_nothing_but_the_standard_library_numpy_and_pillow() -> None:
    """That is what makes it quick; `benchmarks.cold_start` measures the seconds."""
    code = """
    before = set(sys.modules)  # how this environment finds packages
    from runtime import LotusEngine
    print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
    """
    loaded = set(child(code, banned=()).stdout.split())
    assert {"runtime", "numpy", "PIL"} <= loaded
    compiled = {name for name in loaded if name.startswith(("_cython", "cython_"))}  # NumPy's own
    assert loaded - compiled - sys.stdlib_module_names == {"runtime", "numpy", "PIL"}


def test_finishing_a_bundle_imports_neither_pillow_nor_torch() -> None:
    """What a Jetson with NumPy and TensorRT alone imports for `--from-bundle`."""
    code = """
    import export.build_engine, export.bundle.finalize, export.targets.tensorrt_builder
    import runtime.golden
    """
    done = child(code, banned=(*EXPORT_ONLY, "PIL", "onnxruntime", "openvino", "polygraphy"))
    assert done.returncode == 0, done.stderr


def test_a_plan_needs_no_torch() -> None:
    """`--dry-run` decides and checks a build without loading a weight."""
    code = """
    from export.build_engine import main
    main(["tiny/disparity-d", "--precision", "int8", "--output", "no-such-folder", "--dry-run"])
    """
    done = child(code, banned=EXPORT_ONLY)
    assert done.returncode == 0, done.stderr
    assert "disparity-d (lotus-d)" in done.stdout
    assert not (ROOT / "no-such-folder").exists()


def test_openvino_tells_nobody() -> None:
    """Its telemetry forks a process at each import, which can stay for ever."""
    pytest.importorskip("openvino", reason="extra `openvino`")
    code = (
        "import sys\n"
        "from runtime.backends import BACKENDS\n"
        "from runtime.backends.session import import_vendor\n"
        "vendor = import_vendor(BACKENDS['openvino'])\n"
        "assert vendor.Core().available_devices\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])\n"
        "import openvino_telemetry  # who wants it has it\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
