"""A bundle appears whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, build_bundle, write_null_bundle

from export.bundle.finalize import finish_on_device
from export.bundle.write import staged
from export.errors import BuildError, CheckpointError
from runtime import LotusEngine
from runtime.errors import BackendMissingError, SchemaError, VerificationError
from runtime.manifest import OLDEST_SCHEMA, Manifest


def fill(stage: Path, name: str = "new") -> None:
    write_null_bundle(stage, name=name)


def name_of(bundle: Path) -> str:
    return Manifest.load(bundle).name


def test_stage_takes_its_place_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with staged(target, overwrite=False) as stage:
        fill(stage)
        assert not target.exists()
        with pytest.raises(SchemaError):
            LotusEngine(target)
    assert name_of(target) == "new"
    assert os.listdir(target.parent) == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged(tmp_path / "bundle", overwrite=False) as stage:
        fill(stage)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_old_bundle_survives_a_failed_overwrite(tmp_path: Path) -> None:
    with staged(tmp_path / "b", overwrite=False) as stage:
        fill(stage, "old")
    with pytest.raises(RuntimeError), staged(tmp_path / "b", overwrite=True) as stage:
        fill(stage, "new")
        raise RuntimeError
    assert name_of(tmp_path / "b") == "old"
    with staged(tmp_path / "b", overwrite=True) as stage:
        fill(stage, "new")
    assert name_of(tmp_path / "b") == "new"
    assert os.listdir(tmp_path) == ["b"]


def test_existing_folders_are_protected(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(BuildError, match="--overwrite"),
        staged(tmp_path / "precious", overwrite=False),
    ):
        pass
    with (
        pytest.raises(BuildError, match="not a whole bundle"),
        staged(tmp_path / "precious", overwrite=True),
    ):
        pass
    (tmp_path / "precious" / "manifest.json").write_text('{"name": "a web app"}')
    with (
        pytest.raises(BuildError, match="not a whole bundle"),
        staged(tmp_path / "precious", overwrite=True),
    ):
        pass
    assert (tmp_path / "precious" / "thesis.txt").exists()
    write_null_bundle(tmp_path / "precious")
    with (
        pytest.raises(BuildError, match=r"not the bundle's: \['thesis.txt'\]"),
        staged(tmp_path / "precious", overwrite=True),
    ):
        pass
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_a_bundle_of_an_older_release_is_replaced_with_its_own_files_alone(tmp_path: Path) -> None:
    """`make demo` after an upgrade meets what the release before it built."""
    manifest = write_null_bundle(tmp_path / "b") / "manifest.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"schema": OLDEST_SCHEMA - 1})
    )
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(BuildError, match=r"notes\.txt"), staged(tmp_path / "b", overwrite=True):
        pass
    (tmp_path / "b" / "notes.txt").unlink()
    with staged(tmp_path / "b", overwrite=True) as stage:
        fill(stage, "new")
    assert name_of(tmp_path / "b") == "new"


def test_a_bundle_that_came_in_the_meantime_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(BuildError, match="exists"),
        staged(tmp_path / "b", overwrite=False) as stage,
    ):
        fill(stage, "late")
        fill(tmp_path / "b", "first")
    assert name_of(tmp_path / "b") == "first"
    assert os.listdir(tmp_path) == ["b"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged(tmp_path / "link", overwrite=True) as stage:
        fill(stage, "new")
    assert (tmp_path / "link").is_symlink()
    assert name_of(tmp_path / "real") == "new"


def test_a_link_to_itself_is_refused_before_the_work(tmp_path: Path) -> None:
    """`Path.resolve` raises a RuntimeError for it up to Python 3.12."""
    loop, source = tmp_path / "loop", write_null_bundle(tmp_path / "x", target="onnxruntime")
    loop.symlink_to(loop)
    with (
        pytest.raises(BuildError, match="a link that leads to itself"),
        staged(loop, overwrite=True),
    ):
        pytest.fail("the block must not run")
    with pytest.raises(BuildError, match="a link that leads to itself"):
        finish_on_device(source, target_name="tensorrt", output=loop, overwrite=True, command="")
    assert sorted(os.listdir(tmp_path)) == ["loop", "x"]


def test_too_small_a_disk_is_refused_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(BuildError, match="GB free; this bundle needs about"),
        staged(tmp_path / "b", overwrite=False, needed_bytes=1 << 60),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_disk_that_fills_up_half_way(checkpoint_d: Path, tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: writing the weights fails with an OSError, as
    ENOSPC does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(BuildError, match="cannot write the bundle"):
            build_bundle(checkpoint_d, tmp_path / "b", task="depth", resolutions=((64, 64),))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "when"),
    [
        (signal.SIGINT, "tracing"),
        (signal.SIGTERM, "tracing"),
        (signal.SIGKILL, "running the golden"),
    ],
)
def test_a_stopped_build_leaves_nothing_that_opens(
    checkpoint_d: Path, tmp_path: Path, stop: signal.Signals, when: str
) -> None:
    command = [
        sys.executable,
        "export/build_engine.py",
        str(checkpoint_d),
        "--task",
        "depth",
        "--resolution",
        "64x64",
    ]
    output = tmp_path / "b"
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores SIGINT
    )
    assert process.stderr is not None
    for line in process.stderr:
        if when in line:
            break
    process.send_signal(stop)
    process.stderr.read()
    assert process.wait() != 0
    process.stderr.close()
    assert not output.exists()
    left = list(tmp_path.iterdir())
    if stop == signal.SIGKILL:
        assert all(path.name.startswith(".b.partial-") for path in left)
        for path in left:
            with pytest.raises(SchemaError):
                LotusEngine(path)
    else:
        assert left == []


@pytest.mark.slow
def test_build_that_answers_wrong_is_not_delivered(
    checkpoint_d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.families import lotus_reference

    right = lotus_reference.predict_reference
    monkeypatch.setattr(lotus_reference, "predict_reference", lambda *inputs: right(*inputs) + 2e-4)
    with pytest.raises(VerificationError, match="differs from the PyTorch reference"):
        build_bundle(checkpoint_d, tmp_path / "b", task="depth", resolutions=((64, 64),))
    assert list(tmp_path.iterdir()) == []


def test_requests_that_cannot_be_met(checkpoint_d: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"resolutions": ((100, 64),)}, "the nearest is 96x64"),
        ({"resolutions": ((0, 64),)}, "not a multiple of 8"),
        ({"resolutions": ((64, 64), (64, 64))}, "named twice"),
    ):
        with pytest.raises(BuildError, match=message):
            build_bundle(checkpoint_d, tmp_path / "b", task="depth", **settings)
    with pytest.raises(CheckpointError, match="unknown task"):
        build_bundle(checkpoint_d, tmp_path / "b", task="flow")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_finishing_for_tensorrt_without_tensorrt(bundle_d: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle_d, tmp_path / "b"))
    before = (copy / "manifest.json").read_bytes()
    try:
        import tensorrt  # noqa: F401

        pytest.skip("this machine has TensorRT")
    except ImportError:
        pass
    with pytest.raises(BackendMissingError, match="tensorrt"):
        finish_on_device(copy, target_name="tensorrt", output=None, overwrite=False, command="test")
    assert (copy / "manifest.json").read_bytes() == before
    with pytest.raises(BuildError, match="needs no engine"):
        finish_on_device(copy, target_name="openvino", output=None, overwrite=False, command="test")


@pytest.mark.slow
def test_manifest_records_how_the_bundle_was_made(bundle_g: Path, checkpoint_g: Path) -> None:
    manifest = Manifest.load(bundle_g)
    assert (manifest.mode, manifest.tasks, manifest.noise_seed) == ("g", ["normal"], 7)
    assert manifest.checkpoint.id == checkpoint_g.name
    assert manifest.golden.measured[0].backend == "onnxruntime"
    assert 0 < manifest.golden.measured[0].max_abs_error <= manifest.golden.tolerance == 1e-4
    assert manifest.tools["torch"].startswith("2.")
    assert {file.path for file in manifest.files} == {
        "golden.npz",
        "model-64x64.onnx",
        "model.onnx.data",
    }
