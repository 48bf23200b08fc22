"""`python export/build_engine.py` as a person types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, write_null_bundle

from export.build_engine import main, without_folders
from export.network.what_it_is import what_it_is
from runtime.manifest import Manifest

SCRIPT = str(ROOT / "export" / "build_engine.py")


def run(*arguments: str, cwd: Path, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint, built by a bare copy of the project (not the installed one) from
    another folder.
    """
    folder = tmp_path_factory.mktemp("bare")
    for room in ("export", "runtime"):
        shutil.copytree(
            ROOT / room, folder / "copy" / room, ignore=shutil.ignore_patterns("__pycache__")
        )
    checkpoints = Path("tiny") / "checkpoints"
    shutil.copytree(ROOT / checkpoints, folder / "copy" / checkpoints)
    script = str(folder / "copy" / "export" / "build_engine.py")
    done = run(
        "tiny/disparity-d", "--resolution", "128x160", "--seed", "5", cwd=folder, script=script
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "stdout holds the path and nothing else"
    assert "PyTorch reference" in done.stderr
    bundle = folder / done.stdout.strip()
    assert bundle == folder / "engines" / "disparity-d-128x160-fp32-onnxruntime"
    return bundle


@pytest.mark.slow
def test_manifest_of_the_embedded_checkpoint(tiny_bundle: Path) -> None:
    manifest = Manifest.load(tiny_bundle)
    assert manifest.checkpoint.id == "tiny/disparity-d"
    assert (manifest.tasks, manifest.mode, manifest.noise_seed) == (["disparity"], "d", 5)
    assert (
        manifest.command
        == "python export/build_engine.py tiny/disparity-d --resolution 128x160 --seed 5"
    )
    assert json.loads((tiny_bundle / "manifest.json").read_text())["schema"] == 4


@pytest.mark.slow
def test_prediction_loads_one_engine_and_nothing_of_the_export(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """What a cold start is made of; benchmarks.cold_start measures its seconds."""
    image = str(ROOT / "tiny" / "samples" / "room.png")
    command = [sys.executable, "-X", "importtime", "-m", "runtime", "predict", str(tiny_bundle)]
    done = subprocess.run(
        [*command, image, "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert {"runtime", "numpy", "PIL", "onnxruntime"} <= loaded
    engines = {"openvino", "tensorrt", "tensorrt_rtx", "cuda"}
    makers = {"export", "torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript"}
    assert loaded & (engines | makers | {"benchmarks", "tiny", "scipy", "matplotlib"}) == set()


@pytest.mark.slow
def test_rtx_engine_is_built_here_and_finished_again_from_its_bundle(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    output = tmp_path / "rtx"
    finish = [
        "--from-bundle",
        str(tiny_bundle),
        "--target",
        "tensorrt-rtx",
        "--output",
        str(output),
    ]
    assert main(finish) == 0
    first = Manifest.load(output)
    assert first.engine is not None
    assert (first.target, first.engine.flavour) == ("tensorrt-rtx", "tensorrt-rtx")
    assert (output / "model-128x160.rtx").stat().st_size > 10_000_000
    assert first.golden.measured[0].backend in ("tensorrt-rtx", "onnxruntime")
    assert main(finish) == 1, "an existing folder is not replaced unasked"
    before = (output / "manifest.json").read_bytes()
    assert main(["--from-bundle", str(output), "--target", "tensorrt-rtx"]) == 0
    assert (output / "manifest.json").read_bytes() == before, "a finished bundle stays as it is"
    beside = tmp_path / "rtx-tensorrt-rtx"
    again = Manifest.load(beside)
    assert again.command.count("--from-bundle") == 2
    again.check_contents(beside)
    assert sorted(os.listdir(tmp_path)) == ["rtx", "rtx-tensorrt-rtx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a CHECKPOINT"),
        (["tiny/disparity-d", "--from-bundle", "x"], "name a CHECKPOINT"),
        (["x", "--resolution", "512"], "not HxW"),
        (["x", "--resolution", "axb"], "not HxW"),
        (["x", "--seed", "-1"], "non-negative"),
        (["x", "--seed", str(1 << 63)], "below 2^63"),
        (
            ["--from-bundle", "x", "--resolution", "64x64", "--opset", "20"],
            "--resolution, --opset cannot be changed",
        ),
        (["--from-bundle", "x", "--no-engine"], "--no-engine leaves nothing to do"),
        (["x", "--target", "tflite"], "invalid choice"),
    ],
)
def test_wrong_usage_is_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_place_that_cannot_be_looked_at_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_null_bundle(tmp_path / "x", target="onnxruntime")
    words = ["--from-bundle", str(source), "--target", "tensorrt", "--output", "x" * 300]
    assert main(words) == 1
    assert "too long" in capsys.readouterr().err


def test_a_dangling_link_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model_index.json").symlink_to("nowhere")
    assert "pass one of" not in what_it_is(tmp_path, "model_index.json")


def test_paths_of_the_machine_stay_out_of_the_recorded_command() -> None:
    words = [
        "/home/me/lotus",
        "--output=/data/out",
        "../up/model",
        "tiny/disparity-d",
        "--output",
        "engines/x",
        "512x512",
    ]
    shown = [
        "lotus",
        "--output=out",
        "model",
        "tiny/disparity-d",
        "--output",
        "engines/x",
        "512x512",
    ]
    assert [without_folders(word) for word in words] == shown


@pytest.mark.slow
def test_errors_are_one_message_and_status_1(tmp_path: Path) -> None:
    done = run("./no-such-folder", "--task", "depth", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: no such folder: './no-such-folder'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_from_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    done = run("--from-bundle", str(tmp_path), "--target", "tensorrt-rtx", cwd=tmp_path)
    assert done.returncode == 1
    assert "is not a bundle" in done.stderr
