"""A bundle that was damaged, moved or tampered with is refused, each way with its own error."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import LotusEngine
from runtime.errors import DamagedBundleError, LotusError, SchemaError, UnsafePathError
from runtime.golden import GoldenError
from runtime.manifest import MANIFEST, Manifest
from runtime.manifest_json import checksum


def edit(bundle: Path, change: Callable[[dict[str, Any]], None], *, sign: bool = True) -> None:
    """Change the manifest; `sign` renews its own checksum, so that the change itself is what is
    found.
    """
    body = json.loads((bundle / MANIFEST).read_text())
    body.pop("manifest_sha256")
    change(body)
    body["manifest_sha256"] = checksum(body) if sign else "0" * 64
    (bundle / MANIFEST).write_text(json.dumps(body))


def test_what_is_written_is_what_is_read(null_bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(null_bundle)
    text = (null_bundle / MANIFEST).read_text()
    manifest.save(null_bundle)
    assert (null_bundle / MANIFEST).read_text() == text
    assert Manifest.load(null_bundle) == manifest


@pytest.mark.parametrize("schema", [0, 1, 2, 5, 999, "3", None, True, 3.0])
def test_other_schema(null_bundle: Path, schema: object) -> None:
    edit(null_bundle, lambda body: body.update(schema=schema))
    with pytest.raises(SchemaError, match="this runtime reads schemas 3 to 4"):
        LotusEngine(null_bundle)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", "\x00\x01", '{"schema": 3}', '{"schema": 4}', "[" * 100_000]
)
def test_unreadable_manifest(null_bundle: Path, content: str) -> None:
    (null_bundle / MANIFEST).write_text(content)
    with pytest.raises(SchemaError):
        LotusEngine(null_bundle)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    for path, message in (
        (tmp_path, "not a bundle"),
        (tmp_path / "none", "no folder"),
        (tmp_path / "model.onnx", f"a bundle is a folder: pass {tmp_path}"),
    ):
        with pytest.raises(SchemaError, match=message):
            LotusEngine(path)


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/y", "x/" * 3000])
def test_a_name_that_no_folder_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(SchemaError, match=r"cannot read|no folder"):
        LotusEngine(tmp_path / name)


def test_what_can_be_read_of_deep_settings_can_be_used(null_bundle: Path) -> None:
    body = json.loads((null_bundle / MANIFEST).read_text())
    body.pop("manifest_sha256")
    body["engine"] = {"flavour": "a", "version": "1", "compute_capability": None}
    body["engine"]["settings"] = {"deep": "HERE"}
    refused = []
    for depth in (50, 600, 970):
        nest = "[" * depth + "]" * depth  # by hand: json.dumps has its limit too
        text = json.dumps(body, sort_keys=True).replace('"HERE"', nest)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (null_bundle / MANIFEST).write_text(f'{{"manifest_sha256": "{digest}", {text[1:]}')
        try:
            manifest = Manifest.read(null_bundle)
        except SchemaError:
            refused.append(depth)
        else:
            assert len(manifest.checksum) == 64
    assert 50 not in refused
    assert 970 in refused


@pytest.mark.parametrize(
    "path",
    [
        "../golden.npz",
        "/etc/hostname",
        "a/../../b",
        "..\\b",
        "C:b",
        "",
        ".",
        "a\0b",
        "x" * 300,
    ],
)
def test_paths_that_lead_outside(null_bundle: Path, path: str) -> None:
    for change in (
        lambda body: body["files"][0].update(path=path),
        lambda body: body["golden"].update(file=path),
        lambda body: body["buckets"][0].update(graph=path),
        lambda body: body["buckets"][0].update(engine=path),
    ):
        original = (null_bundle / MANIFEST).read_text()
        edit(null_bundle, change)
        with pytest.raises(UnsafePathError, match="outside the bundle"):
            LotusEngine(null_bundle)
        (null_bundle / MANIFEST).write_text(original)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.update(mode="x"), "unknown mode"),
        (lambda body: body.update(tasks=["flow"]), "unknown task"),
        (lambda body: body.update(tasks=[]), "at least one"),
        (lambda body: body.update(buckets=[]), "at least one"),
        (lambda body: body["buckets"][0].update(height=60), "multiple of 8"),
        (lambda body: body["buckets"][0].update(width=-8), "multiple of 8"),
        (lambda body: body["buckets"][0].update(width="96"), "expected int"),
        (lambda body: body["buckets"][0].update(height=True), "expected int"),
        (lambda body: body["latent"].update(downscale=0), "1 to 64"),
        (lambda body: body["latent"].update(downscale=128), "1 to 64"),
        (lambda body: body["golden"].update(tolerance=float("nan")), "not a finite number"),
        (lambda body: body["golden"].update(tolerance=0), "tolerance"),
        (lambda body: body["buckets"][0].update(graph="other.onnx"), "not listed"),
        (lambda body: body["golden"].update(tolerance=float("inf")), "not a finite number"),
        (lambda body: body["golden"].update(tolerance=10**400), "expected float"),
        (lambda body: body["golden"].update(tolerance=0.9), "tolerance"),
        (lambda body: body["golden"].update(mean_tolerance=0.06), "mean_tolerance"),
        (lambda body: body["preprocess"].update(scale=float("nan")), "finite"),
        (lambda body: body["preprocess"].update(scale=1e300), "1e-06 to 1000"),
        (lambda body: body["preprocess"].update(scale=0.0), "1e-06 to 1000"),
        (lambda body: body["preprocess"].update(offset=-1e9), "0 to 1000"),
        (lambda body: body["latent"].update(scaling_factor=1e-300), "1e-06 to 1000"),
        (lambda body: body["latent"].update(channels=0), "1 to 64"),
        (lambda body: body["latent"].update(channels=10**9), "1 to 64"),
        (lambda body: body["buckets"][0].update(height=30000, width=30000), "more than 16384"),
        (lambda body: body["buckets"][0].update(width=1 << 31), "more than 16384"),
        (lambda body: body["buckets"][0].update(height=16384, width=8192), "more than 67108864"),
        (lambda body: body.update(buckets=body["buckets"] * 40), "at most 64"),
        (lambda body: body.update(files=body["files"] * 999), "at most 1024"),
        (lambda body: body.update(name="\ud800"), "surrogates not allowed"),
        (lambda body: body["files"][0].update(path="\ud800"), "surrogates not allowed"),
        (lambda body: body.update(tools={"\udfff": "1"}), "surrogates not allowed"),
        (lambda body: body.update(noise_seed=-1), "noise_seed"),
        (lambda body: body.update(name=""), "name must have"),
        (lambda body: body.update(name="x" * 10**6), "name must have"),
        (lambda body: body.update(opset=10**9), "opset must lie"),
        (lambda body: body.update(opset=-1), "opset must lie"),
        (lambda body: body.update(noise_seed=10**400), "noise_seed"),
        (lambda body: body["buckets"].append(body["buckets"][0]), "twice"),
        (lambda body: body["files"].append(body["files"][0]), "twice"),
        (lambda body: body.update(outputs={}), "describes"),
        (lambda body: body.pop("precision"), "missing fields"),
        (lambda body: body.update(files={}), "expected"),
    ],
)
def test_values_that_make_no_sense(
    null_bundle: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(null_bundle, change)
    with pytest.raises(SchemaError, match=message):
        LotusEngine(null_bundle)


def test_changed_manifest_is_noticed(null_bundle: Path) -> None:
    edit(null_bundle, lambda body: body.update(noise_seed=4), sign=False)
    with pytest.raises(DamagedBundleError, match="was changed"):
        LotusEngine(null_bundle)


@pytest.mark.parametrize("name", ["golden.npz", "model-64x96.onnx"])
def test_missing_and_truncated_files_are_found_at_opening(null_bundle: Path, name: str) -> None:
    content = (null_bundle / name).read_bytes()
    (null_bundle / name).write_bytes(content[:-1])
    with pytest.raises(DamagedBundleError, match="cut short"):
        LotusEngine(null_bundle)
    (null_bundle / name).unlink()
    with pytest.raises(DamagedBundleError, match="missing"):
        LotusEngine(null_bundle)


def test_any_flipped_bit_in_any_file_is_found_by_verify(null_bundle: Path) -> None:
    for path in sorted(null_bundle.iterdir()):
        clean = path.read_bytes()
        for position in range(0, len(clean), max(1, len(clean) // 97)):
            damaged = bytearray(clean)
            damaged[position] ^= 1 << (position % 8)
            path.write_bytes(damaged)
            with pytest.raises(LotusError), LotusEngine(null_bundle) as engine:
                engine.verify()
        path.write_bytes(clean)
    with LotusEngine(null_bundle) as engine:
        exact = GoldenError(largest=0.0, mean=0.0)
        assert engine.verify().errors == {"64x96": exact, "96x64": exact}


def test_huge_numbers_and_manifests(null_bundle: Path) -> None:
    text = (null_bundle / MANIFEST).read_text()
    (null_bundle / MANIFEST).write_text(text.replace('"opset": 23', '"opset": 1e999'))
    with pytest.raises(SchemaError, match="not a finite number"):
        LotusEngine(null_bundle)
    (null_bundle / MANIFEST).write_text(text + " " * (4 << 20))
    with pytest.raises(DamagedBundleError, match="at most"):
        LotusEngine(null_bundle)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("name", [MANIFEST, "golden.npz", "model-64x96.onnx"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(
    null_bundle: Path, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other"
    (null_bundle / name).rename(other)
    made = {
        "pipe": lambda: os.mkfifo(null_bundle / name),
        "link to a pipe": lambda: (null_bundle / name).symlink_to(tmp_path / "pipe"),
        "device": lambda: (null_bundle / name).symlink_to("/dev/zero"),
        "folder": lambda: (null_bundle / name).mkdir(),
        "loop": lambda: (null_bundle / name).symlink_to(null_bundle / name),
    }
    os.mkfifo(tmp_path / "pipe")
    for make in made.values():
        make()
        with pytest.raises((DamagedBundleError, SchemaError)):
            LotusEngine(null_bundle)
        if (null_bundle / name).is_dir() and not (null_bundle / name).is_symlink():
            (null_bundle / name).rmdir()
        else:
            (null_bundle / name).unlink()
    (null_bundle / name).symlink_to(other)  # a link to a file is followed
    with LotusEngine(null_bundle) as engine:
        engine.verify()


def test_a_message_does_not_repeat_megabytes(null_bundle: Path) -> None:
    for change in (
        lambda body: body.update(mode="x" * 1_000_000),
        lambda body: body["latent"].update(channels=["x" * 1_000_000]),
        lambda body: body["golden"].update(file="x" * 1_000_000),
    ):
        original = (null_bundle / MANIFEST).read_text()
        edit(null_bundle, change)
        with pytest.raises(LotusError, match="characters left out") as caught:
            LotusEngine(null_bundle)
        assert len(str(caught.value)) < 5000
        (null_bundle / MANIFEST).write_text(original)
