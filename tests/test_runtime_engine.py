"""The engine around a network (null backend), and one contract for every backend that opens here."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_bundle, write_null_bundle
from PIL import Image

from runtime import LotusEngine, Prediction
from runtime.backends import BACKENDS, installed
from runtime.engine import draw_noise
from runtime.errors import (
    BackendError,
    BackendMissingError,
    DamagedBundleError,
    DeviceMissingError,
    ImageError,
    SchemaError,
    VerificationError,
)
from runtime.manifest import Bucket, Manifest, describe_file

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
        assert [type(one) for one in many] == [Prediction] * 4
        assert all(np.array_equal(one.values, many[0].values) for one in many)
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


def test_noise_is_refused_in_mode_d_and_checked_in_mode_g(null_bundle: Path, tmp_path: Path) -> None:
    noise = np.zeros((1, 4, 8, 12), np.float32)
    with LotusEngine(null_bundle) as engine, pytest.raises(ImageError, match="mode D"):
        engine(RGB, noise=noise)
    with LotusEngine(write_null_bundle(tmp_path / "g", mode="g")) as engine:
        engine(RGB, noise=noise)
        engine(RGB, noise=noise.astype(np.float64))
        for bad in (noise[..., :-1], noise.tolist(), noise.astype(complex), noise.astype(object), "noise"):
            with pytest.raises(ImageError, match="takes noise as a float array"):
                engine(RGB, noise=bad)
        for bad in (noise + np.nan, noise + np.inf, noise + 1e5):
            with pytest.raises(ImageError, match="NaN, infinite or absurd"):
                engine(RGB, noise=bad)
        for seed in (-1, 1.5, True, "7"):
            with pytest.raises(ImageError, match="non-negative integer"):
                engine(RGB, seed=seed)


def test_noise_is_the_same_on_every_machine() -> None:
    """The first values of Philox with key from seed 0 and 7, recorded once; and the statistics of a normal."""
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
    with LotusEngine(null_bundle) as engine, pytest.raises(VerificationError, match="96x64"):
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
def test_golden_of_another_shape_is_damage(null_bundle: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with np.load(null_bundle / "golden.npz") as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(null_bundle / "golden.npz", **arrays)
    _resign(null_bundle)
    with LotusEngine(null_bundle) as engine, pytest.raises(DamagedBundleError, match="golden"):
        engine.verify()


def test_unknown_and_missing_backends(null_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendMissingError, match=r"known:.*onnxruntime"):
        LotusEngine(null_bundle, backend="tflite")
    missing = dataclasses.replace(BACKENDS["openvino"], package="no_such_package_here")
    monkeypatch.setitem(BACKENDS, "openvino", missing)
    with pytest.raises(BackendMissingError, match=r"pip install 'lotus-edge\[openvino\]'"):
        LotusEngine(null_bundle, backend="openvino")


def test_nan_from_a_network_is_an_error_not_a_picture(null_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.backends.null import BackendSession

    monkeypatch.setattr(BackendSession, "_run", lambda self, inputs: {"disparity": inputs["image"][:, :1] * np.nan})
    with LotusEngine(null_bundle) as engine, pytest.raises(BackendError, match="cannot run this bundle in fp32"):
        engine(RGB)


def test_backend_that_is_installed_but_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brokenvendor.py").write_text("raise ImportError('wrong glibc')")
    monkeypatch.syspath_prepend(tmp_path)
    from runtime.backends import session

    with pytest.raises(BackendMissingError, match=r"wrong glibc.*lotus-edge\[cpu\]"):
        session.import_vendor("brokenvendor", extra="cpu")


@pytest.mark.parametrize("path", [None, 7, b"engines", ["a"]])
def test_bundle_paths_of_another_type(path: object) -> None:
    with pytest.raises(SchemaError, match="expected the path of a bundle"):
        LotusEngine(path)  # type: ignore[arg-type]


def test_verify_leaves_no_bucket_open(null_bundle: Path) -> None:
    with LotusEngine(null_bundle) as engine:
        engine(RGB)
        engine.verify()
        assert len(engine._sessions) == 1


def test_closed_engine_says_so(null_bundle: Path) -> None:
    engine = LotusEngine(null_bundle)
    engine(RGB)
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine(RGB)


def test_a_graph_that_is_no_graph_is_a_backend_error(null_bundle: Path) -> None:
    for backend in {"onnxruntime", "openvino"} & set(installed()):
        with LotusEngine(null_bundle, backend=backend) as engine, pytest.raises(BackendError, match="cannot open"):
            engine(RGB)


def test_cuda_provider_is_never_replaced_by_the_cpu(null_bundle: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with LotusEngine(null_bundle, backend="onnxruntime-cuda") as engine, pytest.raises(BackendError, match="CUDA"):
        engine(RGB)


def _resign(bundle: Path) -> None:
    """Write a manifest whose checksums agree with the files as they now are."""
    body = json.loads((bundle / "manifest.json").read_text())
    from runtime.manifest import _checksum

    body.pop("manifest_sha256")
    body["files"] = [dataclasses.asdict(describe_file(bundle, file["path"])) for file in body["files"]]
    body["manifest_sha256"] = _checksum(body)
    (bundle / "manifest.json").write_text(json.dumps(body))


# One contract, every backend. Those that need a device are skipped with the vendor's reason.

CONTRACT = [
    pytest.param(name, marks=[pytest.mark.gpu] if name in ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx") else [])
    for name in BACKENDS
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundles:
    """A backend, and two bundles it can open: mode D (depth, a square and a wide bucket), mode G (normals, seed 7)."""

    backend: str
    d: Path
    g: Path


@pytest.fixture(scope="module", params=CONTRACT)
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    name = str(request.param)
    if name not in installed():
        pytest.skip(f"the package of {name} is not installed")
    if name == "null":
        folder = tmp_path_factory.mktemp("null")
        square, wide = (Bucket(height=64, width=width, graph="model-64x96.onnx") for width in (64, 104))
        d = write_null_bundle(folder / "d", task="depth", buckets=[square, wide])
        g = write_null_bundle(folder / "g", task="normal", mode="g", buckets=[square], noise_seed=7)
        return Bundles(backend=name, d=d, g=g)
    try:
        if name.startswith("tensorrt"):
            return _with_engines(name, request, tmp_path_factory.mktemp(name))
        both = {mode: request.getfixturevalue(f"bundle_{mode}") for mode in ("d", "g")}
        with LotusEngine(both["d"], backend=name) as engine:
            engine._session(engine.manifest.buckets[0])
    except DeviceMissingError as error:
        pytest.skip(f"never run here: {error}")
    except BackendError as error:
        if "has no CUDAExecutionProvider" not in str(error):
            raise
        pytest.skip(f"never run here: {error}")
    return Bundles(backend=name, **both)


def _with_engines(name: str, request: pytest.FixtureRequest, folder: Path) -> Bundles:
    """Larger buckets: at 64x64 the lowest level of the UNet has one pixel, and TensorRT-RTX 1.7.1 fails on it."""
    from runtime.backends.tensorrt import Cuda

    Cuda(name)  # without a GPU there is nothing to build for
    d = build_bundle(
        request.getfixturevalue("checkpoint_d"),
        folder / "d",
        task="depth",
        resolutions=((128, 128), (128, 208)),
        target=name,
    )
    g = build_bundle(
        request.getfixturevalue("checkpoint_g"),
        folder / "g",
        task="normal",
        resolutions=((128, 128),),
        target=name,
        seed=7,
    )
    return Bundles(backend=name, d=d, g=g)


@pytest.mark.slow
class TestContract:
    """What a backend must do, whichever it is."""

    def test_verifies(self, bundles: Bundles) -> None:
        for bundle in (bundles.d, bundles.g):
            manifest = Manifest.load(bundle)
            with LotusEngine(bundle, backend=bundles.backend) as engine:
                if bundles.backend == "openvino":  # the bundle was built for a target with a tighter tolerance
                    loose = dataclasses.replace(manifest.golden, tolerance=1e-3)
                    engine.manifest = dataclasses.replace(manifest, golden=loose)
                result = engine.verify()
            assert result.backend == bundles.backend
            assert set(result.errors) == {str(bucket) for bucket in manifest.buckets}

    def test_is_deterministic_and_depends_on_its_input(self, bundles: Bundles, photo: np.ndarray) -> None:
        with LotusEngine(bundles.d, backend=bundles.backend) as engine:
            first, second = engine([photo, photo])
            other = engine(photo[::-1])
        assert np.array_equal(first.values, second.values)
        assert np.abs(first.values - other.values).max() > 0.01

    def test_opens_several_buckets(self, bundles: Bundles, photo: np.ndarray) -> None:
        with LotusEngine(bundles.d, backend=bundles.backend) as engine:
            square, wide = engine.manifest.buckets
            assert engine(photo, resize=None).values.shape == (square.height, square.width)
            assert engine(photo[: wide.height, : wide.width], resize=None).values.shape == (wide.height, wide.width)

    def test_noise_steers_mode_g(self, bundles: Bundles, photo: np.ndarray) -> None:
        with LotusEngine(bundles.g, backend=bundles.backend) as engine:
            default, named, other = engine(photo), engine(photo, seed=7), engine(photo, seed=8)
            shape = engine.manifest.input_shapes(engine.manifest.buckets[0])["noise"]
            given = engine(photo, noise=draw_noise(8, shape))
        assert np.array_equal(default.values, named.values), "the manifest's noise seed is 7"
        assert np.array_equal(other.values, given.values)
        assert np.abs(default.values - other.values).max() > 1e-3

    def test_wrong_inputs_are_refused_before_the_vendor_sees_them(self, bundles: Bundles) -> None:
        with LotusEngine(bundles.g, backend=bundles.backend) as engine:
            session = engine._session(engine.manifest.buckets[0])
            image, noise = (np.zeros(session.input_shapes[name], np.float32) for name in ("image", "noise"))
            for feeds in (
                {"image": image},
                {"image": image[:, :, :32], "noise": noise},
                {"image": image.astype(np.float64), "noise": noise},
                {"picture": image, "noise": noise},
            ):
                with pytest.raises(BackendError, match="takes float32"):
                    session(feeds)

    def test_nan_inputs_are_refused(self, bundles: Bundles) -> None:
        with LotusEngine(bundles.d, backend=bundles.backend) as engine:
            session = engine._session(engine.manifest.buckets[0])
            with pytest.raises(BackendError, match=r"input of bucket .* holds NaN"):
                session({"image": np.full(session.input_shapes["image"], np.nan, np.float32)})

    def test_damaged_model(self, bundles: Bundles, photo: np.ndarray, tmp_path: Path) -> None:
        if bundles.backend == "null":
            pytest.skip("the null backend reads no model")
        copy = Path(shutil.copytree(bundles.d, tmp_path / "copy"))
        bucket = Manifest.load(copy).buckets[0]
        model = copy / (bucket.engine or bucket.graph)
        content = model.read_bytes()
        model.write_bytes(bytes(len(content) // 2) + content[len(content) // 2 :])
        with LotusEngine(copy, backend=bundles.backend) as engine:
            with pytest.raises(DamagedBundleError, match="SHA-256"):
                engine.verify()
            with pytest.raises((BackendError, DamagedBundleError)):
                engine(photo)
