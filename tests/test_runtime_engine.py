"""The engine around a network, with the null backend."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from PIL import Image

from runtime import LotusEngine, Prediction
from runtime.backends import BACKENDS, Backend, installed, open_session
from runtime.engine import draw_noise
from runtime.errors import (
    BackendError,
    BackendMissingError,
    DamagedBundleError,
    ImageError,
    SchemaError,
    VerificationError,
)
from runtime.manifest import Manifest, describe_file
from runtime.manifest_json import checksum

RECORDED = {
    0: [-0.24822916090488434, -0.02676701545715332, -1.9444162845611572],
    7: [-0.5023735761642456, 0.5068453550338745, 2.019348621368408],
}
RGB = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_scalar_prediction_through_the_null_backend(null_bundle: Path) -> None:
    with LotusEngine(null_bundle) as engine:
        prediction = engine(RGB)
    assert isinstance(prediction, Prediction)
    assert prediction.values.dtype == np.float32
    assert np.abs(prediction.values - RGB.mean(axis=2) / 255).max() < 1e-6


def test_normals_have_unit_length_at_any_size(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "n", task="normal")
    with LotusEngine(bundle) as engine:
        for image in (RGB, RGB[:31, :77], np.full((5, 5, 3), 200, np.uint8)):
            values = engine(image).values
            assert values.shape == image.shape
            assert np.abs(np.linalg.norm(values, axis=-1) - 1).max() < 1e-5


def test_list_path_pil_and_array(null_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "i.png"
    Image.fromarray(RGB).save(path)
    with LotusEngine(null_bundle) as engine:
        many = engine([path, str(path), Image.fromarray(RGB), RGB])
        assert [type(prediction) for prediction in many] == [Prediction] * 4
        assert all(np.array_equal(item.values, many[0].values) for item in many)
        assert engine([]) == []


def test_resize_none_leaves_the_content_size(null_bundle: Path) -> None:
    with LotusEngine(null_bundle) as engine:
        image = np.zeros((100, 300, 3), np.uint8)
        assert engine(image).values.shape == (100, 300)
        assert engine(image, resize="nearest").values.shape == (100, 300)
        assert engine(image, resize=None).values.shape == (32, 96)
        with pytest.raises(ImageError, match="bicubic"):
            engine(image, resize="bicubic")


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (37, 53)])
def test_any_size(null_bundle: Path, size: tuple[int, int]) -> None:
    with LotusEngine(null_bundle) as engine:
        assert engine(np.zeros((*size, 3), np.uint8)).values.shape == size


def test_noise_is_refused_in_mode_d_and_checked_in_mode_g(
    null_bundle: Path, tmp_path: Path
) -> None:
    noise = np.zeros((1, 4, 8, 12), np.float32)
    with LotusEngine(null_bundle) as engine, pytest.raises(ImageError, match="mode D"):
        engine(RGB, noise=noise)
    with LotusEngine(write_null_bundle(tmp_path / "g", mode="g")) as engine:
        engine(RGB, noise=noise)
        engine(RGB, noise=noise.astype(np.float64))
        for bad in (
            noise[..., :-1],
            noise.tolist(),
            noise.astype(complex),
            noise.astype(object),
            "noise",
        ):
            with pytest.raises(ImageError, match="takes noise as a float array"):
                engine(RGB, noise=bad)
        for bad in (noise + np.nan, noise + np.inf, noise + 1e5):
            with pytest.raises(ImageError, match="NaN, infinite or absurd"):
                engine(RGB, noise=bad)
        for seed in (-1, 1.5, True, "7"):
            with pytest.raises(ImageError, match="non-negative integer"):
                engine(RGB, seed=seed)


def test_noise_is_the_same_on_every_machine() -> None:
    """The first values of Philox with key from seed 0 and 7, recorded once; and the statistics of a
    normal.
    """
    assert np.allclose(draw_noise(0, (1, 1, 1, 3)).ravel(), RECORDED[0], atol=1e-6)
    assert np.allclose(draw_noise(7, (1, 1, 1, 3)).ravel(), RECORDED[7], atol=1e-6)
    large = draw_noise(1, (1, 4, 128, 128))
    assert large.dtype == np.float32
    assert abs(large.mean()) < 0.02
    assert abs(large.std() - 1) < 0.02


@pytest.mark.parametrize(
    ("pixels", "shift"),
    [
        (np.s_[0, 5, 5], 2e-4),  # one pixel beyond the tolerance
        (np.s_[:], 2e-5),  # each within it, the mean not
    ],
)
def test_wrong_golden_is_refused(null_bundle: Path, pixels: Any, shift: float) -> None:
    with np.load(null_bundle / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["disparity_96x64"][pixels] += shift
    np.savez(null_bundle / "golden.npz", **arrays)
    _resign(null_bundle)
    wrong = r"differs from the PyTorch reference by .*96x64"
    with LotusEngine(null_bundle) as engine, pytest.raises(VerificationError, match=wrong):
        engine.verify()


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.clear(),
        lambda arrays: arrays.update({"image_64x96": arrays["image_64x96"][:1]}),
        lambda arrays: arrays.update({"image_64x96": arrays["image_64x96"].astype(float)}),
        lambda arrays: arrays.update({"disparity_64x96": arrays["disparity_64x96"][0]}),
        lambda arrays: arrays.update({"disparity_64x96": arrays["disparity_64x96"].astype(str)}),
    ],
)
def test_golden_of_another_shape_is_damage(
    null_bundle: Path, change: Callable[[dict[str, np.ndarray]], None]
) -> None:
    with np.load(null_bundle / "golden.npz") as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(null_bundle / "golden.npz", **arrays)
    _resign(null_bundle)
    with LotusEngine(null_bundle) as engine, pytest.raises(DamagedBundleError, match="golden"):
        engine.verify()


def test_memory_that_ends_says_nothing_of_the_golden(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("runtime.golden.read_bounded", full)
    with LotusEngine(null_bundle) as engine, pytest.raises(MemoryError):
        engine.verify()


def test_a_header_over_which_python_runs_out_of_memory_is_damage(null_bundle: Path) -> None:
    header = b"-" * 9000 + b"1"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(null_bundle / "golden.npz", "w") as archive:
        archive.writestr("image_64x96.npy", start + header)
    _resign(null_bundle)
    with LotusEngine(null_bundle) as engine, pytest.raises(DamagedBundleError, match="golden"):
        engine.verify()


def test_unknown_and_missing_backends(null_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendMissingError, match=r"known:.*onnxruntime"):
        LotusEngine(null_bundle, backend="tflite")
    missing = dataclasses.replace(BACKENDS["openvino"], package="no_such_package_here")
    monkeypatch.setitem(BACKENDS, "openvino", missing)
    with pytest.raises(BackendMissingError, match=r'pip install -e "\.\[openvino\]"'):
        LotusEngine(null_bundle, backend="openvino")


def test_nan_from_a_network_is_an_error_not_a_picture(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.backends.null import BackendSession

    monkeypatch.setattr(
        BackendSession,
        "_run",
        lambda self, runner, inputs: {"disparity": inputs["image"][:, :1] * np.nan},
    )
    with (
        LotusEngine(null_bundle) as engine,
        pytest.raises(BackendError, match="cannot run this bundle in fp32"),
    ):
        engine(RGB)


@pytest.mark.parametrize(
    ("backend", "extra"), [("onnxruntime", "cpu"), ("onnxruntime-cuda", "gpu")]
)
def test_backend_that_is_installed_but_does_not_load(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch, backend: str, extra: str
) -> None:
    """One package, two extras: the message names the one that brings what was asked for."""
    folder = null_bundle.parent / "packages"
    folder.mkdir()
    (folder / "brokenvendor.py").write_text("raise ImportError('wrong glibc')")
    monkeypatch.syspath_prepend(folder)
    broken = dataclasses.replace(BACKENDS[backend], package="brokenvendor")
    monkeypatch.setitem(BACKENDS, backend, broken)
    with (
        LotusEngine(null_bundle, backend=backend) as engine,
        pytest.raises(BackendMissingError, match=rf"wrong glibc.*\.\[{extra}\]"),
    ):
        engine(RGB)


def test_a_new_backend_is_a_file_and_a_line_in_the_table(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second name for the null backend's file stands for the file."""
    monkeypatch.setitem(BACKENDS, "mine", Backend(name="mine", module="null", option="fast"))
    manifest = Manifest.load(null_bundle)
    with open_session("mine", null_bundle, manifest, manifest.buckets[0]) as session:
        assert session.backend.option == "fast"
    assert "mine" in installed()
    with LotusEngine(null_bundle, backend="mine") as engine:
        assert engine(RGB).values.shape == (64, 96)


def test_names_in_the_table_are_those_of_its_entries() -> None:
    assert all(backend.name == name for name, backend in BACKENDS.items())


@pytest.mark.parametrize("path", [None, 7, b"engines", ["a"]])
def test_bundle_paths_of_another_type(path: object) -> None:
    with pytest.raises(SchemaError, match="expected the path of a bundle"):
        LotusEngine(path)  # type: ignore[arg-type]


def test_verify_leaves_no_bucket_open(null_bundle: Path) -> None:
    with LotusEngine(null_bundle) as engine:
        engine(RGB)
        engine.verify()
        assert not engine._sessions._sessions
        engine(RGB)


def test_closed_engine_says_so(null_bundle: Path) -> None:
    engine = LotusEngine(null_bundle)
    engine(RGB)
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine(RGB)


def test_a_graph_that_is_no_graph_is_a_backend_error(null_bundle: Path) -> None:
    for backend in {"onnxruntime", "openvino"} & set(installed()):
        with (
            LotusEngine(null_bundle, backend=backend) as engine,
            pytest.raises(BackendError, match="is no ONNX graph"),
        ):
            engine(RGB)


def test_cuda_provider_is_never_replaced_by_the_cpu(null_bundle: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with (
        LotusEngine(null_bundle, backend="onnxruntime-cuda") as engine,
        pytest.raises(BackendError, match="CUDA"),
    ):
        engine(RGB)


def _resign(bundle: Path) -> None:
    """Write a manifest whose checksums agree with the files as they now are."""
    body = json.loads((bundle / "manifest.json").read_text())
    body.pop("manifest_sha256")
    body["files"] = [
        dataclasses.asdict(describe_file(bundle, file["path"])) for file in body["files"]
    ]
    body["manifest_sha256"] = checksum(body)
    (bundle / "manifest.json").write_text(json.dumps(body))
