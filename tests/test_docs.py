"""The documents are right: each row of the troubleshooting tables is the message of a real error,
and the site builds without a broken link.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import types
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from bad_images import BAD_IMAGES
from conftest import ROOT, write_null_bundle
from troubleshooting_results import RESULTS

import runtime.layout
from export.families import Configs, find_family
from runtime import LotusEngine, Prediction
from runtime.__main__ import main as lotus_edge
from runtime.backends.null import BackendSession
from runtime.errors import LotusError
from runtime.extras import how_to_get
from runtime.manifest import Bucket, EngineInfo, Manifest, describe_file

RGB = np.full((64, 96, 3), 127, dtype=np.uint8)
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


class Try(NamedTuple):
    """Where a row is provoked: a writable null bundle, an empty folder, pytest's helpers."""

    bundle: Path
    folder: Path
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def open(self, bundle: Path | None = None, **settings: Any) -> LotusEngine:
        return LotusEngine(bundle or self.bundle, **settings)

    def predict(self, image: Any = RGB, bundle: Path | None = None, **settings: Any) -> Prediction:
        with self.open(bundle) as engine:
            return engine(image, **settings)

    def edit(self, **fields: object) -> None:
        """Change fields of the manifest as an editor would, checksum left alone."""
        path = self.bundle / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def build(self, *words: str) -> None:
        """`python export/build_engine.py`, its message raised."""
        from export.build_engine import main

        status = main([*map(str, words)])
        raise LotusError(f"status {status}: {self.capsys.readouterr().err}")

    def command(self, *words: object) -> None:
        """`lotus-edge`, its message raised."""
        status = lotus_edge([*map(str, words)])
        raise LotusError(f"status {status}: {self.capsys.readouterr().err}")


def no_schema(t: Try) -> None:
    t.edit(schema=99)
    t.open()


def changed(t: Try) -> None:
    t.edit(command="another")
    t.open()


def cut_short(t: Try) -> None:
    with (t.bundle / "golden.npz").open("ab") as stream:
        stream.truncate(100)
    t.open()


def missing(t: Try) -> None:
    (t.bundle / "golden.npz").unlink()
    t.open()


def outside(t: Try) -> None:
    body = json.loads((t.bundle / "manifest.json").read_text())
    t.edit(golden=body["golden"] | {"file": "../golden.npz"})
    t.open()


def not_installed(t: Try) -> None:
    t.patch.setattr(importlib.util, "find_spec", lambda name: None)
    t.open(backend="openvino")


def no_cuda(t: Try) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    t.patch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with t.open(backend="onnxruntime-cuda") as engine:
        engine(RGB)


def _with_engine(t: Try, target: str, **fields: object) -> None:
    t.patch.setattr(importlib.util, "find_spec", lambda name: name)
    bundle = write_null_bundle(t.folder / "engine", **fields)
    with t.open(bundle, backend=target) as engine:
        engine(RGB)


def unfinished(t: Try) -> None:
    _with_engine(t, "tensorrt")


def foreign(t: Try) -> None:
    built = EngineInfo(flavour="tensorrt", version="10.3.0", compute_capability="8.7", settings={})
    name = "model-64x96.onnx"
    bucket = Bucket(height=64, width=96, graph=name, engine=name)
    _with_engine(t, "tensorrt-rtx", engine=built, buckets=[bucket])


def closed(t: Try) -> None:
    engine = t.open()
    engine.close()
    engine(RGB)


def old_library(t: Try, version: str = "2026.2.1") -> None:
    t.patch.setattr(importlib.util, "find_spec", lambda name: name)
    library = types.SimpleNamespace(__version__=version)
    t.patch.setattr("runtime.backends.session.import_vendor", lambda backend: library)
    with t.open(backend="openvino") as engine:
        engine(RGB)


def int8_on_arm(t: Try) -> None:
    t.patch.setattr("runtime.backends.openvino.is_arm", lambda: True)
    bundle = write_null_bundle(t.folder / "b", precision="int8")
    old_library(t._replace(bundle=bundle), "2026.4.1")


def smaller(t: Try) -> None:
    answer = {"disparity": np.zeros((1, 1, 32, 96), np.float32)}
    t.patch.setattr(BackendSession, "_run", lambda self, runner, inputs: answer)
    t.predict()


def damaged(t: Try) -> None:
    path = t.bundle / "model-64x96.onnx"
    path.write_bytes(b"x" * path.stat().st_size)
    t.open().verify()


def wrong_golden(t: Try) -> None:
    """Every answer is mirrored, and the manifest describes the new file."""
    manifest, path = Manifest.load(t.bundle), t.bundle / "golden.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    mirrored = {name: a[..., ::-1] for name, a in arrays.items() if name.startswith("disparity")}
    np.savez(path, **(arrays | mirrored))
    files = [describe_file(t.bundle, file.path) for file in manifest.files]
    dataclasses.replace(manifest, files=files).save(t.bundle)
    t.open().verify()


def not_finite(t: Try) -> None:
    from runtime.backends import null

    answer = np.full((1, 1, 64, 96), np.nan, np.float32)
    t.patch.setattr(null.BackendSession, "_run", lambda self, runner, inputs: {"disparity": answer})
    t.predict()


def bad_image(make: Callable[[Path], tuple[Any, dict[str, Any]]], t: Try) -> None:
    image, settings = make(t.folder)
    t.predict(image, **settings)


def negative_seed(t: Try) -> None:
    t.predict(bundle=write_null_bundle(t.folder / "g", mode="g"), seed=-1)


def no_download(t: Try) -> None:
    import huggingface_hub

    def refuse(*words: object, **settings: object) -> None:
        raise OSError("no network")

    t.patch.setattr(huggingface_hub, "snapshot_download", refuse)
    t.patch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    t.build("nobody/nothing", "--task", "depth")


def half_folder(t: Try) -> None:
    (t.folder / "unet").mkdir()
    (t.folder / "unet" / "config.json").write_text("{}")
    (t.folder / "unet" / "diffusion_pytorch_model.bin").write_text("pickled")
    t.build(str(t.folder), "--task", "depth")


def foreign_files(t: Try) -> None:
    (t.bundle / "holiday.jpg").write_text("")
    t.build("tiny/depth-d", "--output", str(t.bundle), "--overwrite")


def no_bundle(t: Try) -> None:
    (t.folder / "thesis.txt").write_text("")
    t.build("tiny/depth-d", "--output", str(t.folder), "--overwrite")


def full_disk(t: Try) -> None:
    usage = namedtuple("usage", "total used free")
    t.patch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    t.build("tiny/depth-d", "--output", str(t.folder / "new"))


def frozen_option(t: Try) -> None:
    try:
        t.build("--from-bundle", str(t.bundle), "--precision", "fp16")
    except SystemExit as stopped:
        raise LotusError(t.capsys.readouterr().err) from stopped


def no_regular_file(t: Try) -> None:
    (t.bundle / "golden.npz").unlink()
    (t.bundle / "golden.npz").mkdir()
    t.open()


def no_links(t: Try) -> None:
    def refuse(*words: object, **settings: object) -> None:
        raise OSError("no links")

    (t.bundle / "golden.npz").rename(t.folder / "golden.npz")
    (t.bundle / "golden.npz").symlink_to(t.folder / "golden.npz")
    t.patch.setattr(os, "link", refuse)
    t.patch.setattr(runtime.layout, "_SMALL", 0)
    t.predict()


def exchanged(t: Try) -> None:
    opened = BackendSession._open

    def touched(session: BackendSession) -> dict[str, tuple[int, ...]]:
        (t.bundle / "golden.npz").touch()
        return opened(session)

    t.patch.setattr(BackendSession, "_open", touched)
    t.predict()


def too_slow(t: Try) -> None:
    opened = BackendSession._open

    def slow(session: BackendSession) -> dict[str, tuple[int, ...]]:
        time.sleep(0.2)
        return opened(session)

    t.patch.setattr(BackendSession, "_open", slow)
    with LotusEngine(t.bundle, deadline=0.05) as engine:
        engine(RGB)


def forked(t: Try) -> None:
    with LotusEngine(t.bundle) as engine:
        t.patch.setattr(os, "getpid", lambda: -1)  # what a child would see
        try:
            engine(RGB)
        finally:
            t.patch.undo()


def pickled(t: Try) -> None:
    with LotusEngine(t.bundle) as engine:
        pickle.dumps(engine)


def no_extra(t: Try) -> None:
    raise LotusError(how_to_get("torch"))  # tests/test_missing_extras.py runs the commands


def no_tiny(t: Try) -> None:
    t.patch.setitem(sys.modules, "tiny", None)
    t.build("tiny/depth-d", "--dry-run")


ROWS: dict[str, Callable[[Try], object]] = {
    "there is no folder": lambda t: t.open(t.folder / "nothing"),
    "a bundle is a folder": lambda t: t.open(t.bundle / "model-64x96.onnx"),
    "is no regular file": no_regular_file,
    "put together without copying": no_links,
    "was changed while it was opened": exchanged,
    "Its thread cannot be stopped": too_slow,
    "before the process was forked": forked,
    "cannot be pickled or copied": pickled,
    "this bundle is of mode D, which answers the same": lambda t: t.predict(seed=1),
    "is not a bundle: it has no manifest.json": lambda t: t.open(t.folder),
    "has schema": no_schema,
    "was changed after it was written": changed,
    "the copy was cut short": cut_short,
    "is missing. Copy or build the bundle again": missing,
    "leads outside the bundle": outside,
    "unknown backend": lambda t: t.open(backend="cuda"),
    "which is not installed": not_installed,
    "this onnxruntime has no CUDAExecutionProvider": no_cuda,
    "engine for bucket": unfinished,
    "asked to run it is": foreign,
    "is closed; open the bundle again": closed,
    "cannot open int8 bundles on ARM": int8_on_arm,
    "cannot open or answers wrong a graph of ONNX opset": old_library,
    "the manifest says": smaller,
    "is damaged: SHA-256 is": damaged,
    "answers the golden sample wrong on this machine": wrong_golden,
    "holds NaN or infinite values": not_finite,
    "resize must be 'bilinear', 'nearest' or None": lambda t: t.predict(resize="cubic"),
    "this bundle takes no noise": lambda t: t.predict(noise=np.zeros((1, 4, 8, 12), np.float32)),
    "a seed is a non-negative integer": negative_seed,
    **RESULTS,
    "cannot be read from its weights; pass --task": lambda t: t.build(
        str(ROOT / "tiny" / "checkpoints" / "depth-d")
    ),
    "is known to predict": lambda t: t.build("tiny/depth-d", "--task", "normal"),
    "Pass a diffusers folder": lambda t: t.build("./nowhere", "--task", "depth"),
    "Wanted is a diffusers folder": lambda t: t.build(str(t.bundle), "--task", "depth"),
    "Pickled weights are not read": half_folder,
    "pass --family with one of": lambda t: find_family(
        "./mine", Configs(unet={"in_channels": 8}, vae={})
    ),
    "which is not built": lambda t: t.build("lemonaddie/geowizard", "--task", "depth"),
    "cannot download": no_download,
    "this needs the extra": no_extra,
    "are a package of their own, which is not installed": no_tiny,
    "no embedded checkpoint": lambda t: t.build("tiny/depth", "--task", "depth"),
    "is not a multiple of 8 pixels": lambda t: t.build("tiny/depth-d", "--resolution", "500x500"),
    "has no precision": lambda t: t.build(
        "tiny/depth-d", "--target", "openvino", "--precision", "fp16"
    ),
    "exists; pass --overwrite to replace it": lambda t: t.build(
        "tiny/depth-d", "--output", str(t.bundle)
    ),
    "is not a whole bundle, so it is not overwritten": no_bundle,
    "holds files that are not the bundle's": foreign_files,
    "Free some, or pass --output on another disk": full_disk,
    "holds no images to calibrate with": lambda t: t.build(
        "tiny/depth-d", "--calibration", str(t.folder)
    ),
    "is of mode D: it has no noise to fix": lambda t: t.build("tiny/depth-d", "--fixed-noise"),
    "needs no engine: open the bundle with backend=": lambda t: t.build(
        "--from-bundle", str(t.bundle), "--target", "openvino"
    ),
    "cannot be changed with --from-bundle": frozen_option,
    **{quoted: partial(bad_image, make) for quoted, make in BAD_IMAGES.items()},
}


def test_every_row_is_provoked() -> None:
    assert sorted(QUOTED) == sorted(ROWS)


@pytest.mark.parametrize("quoted", ROWS)
def test_message_of_the_row(
    quoted: str,
    null_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LotusError) as caught:
        ROWS[quoted](Try(null_bundle, folder, monkeypatch, capsys))
    assert quoted in str(caught.value)


@pytest.mark.slow
def test_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("needs the extra docs (`pip install -e '.[docs]'`)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in tmp_path.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= pages
    api = (tmp_path / "api.html").read_text()
    for name in ("LotusEngine", "Prediction", "VerificationError", "Manifest", "Quantisation"):
        assert f">{name}<" in api, f"{name} is not on the page of the API"
