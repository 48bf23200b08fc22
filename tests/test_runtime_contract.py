"""One contract for every backend. Those that need a device are skipped with the vendor's reason."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import build_bundle, write_null_bundle

from export.targets import TARGETS
from runtime import LotusEngine
from runtime.backends import BACKENDS, Session, installed, open_session
from runtime.backends.session import Arrays
from runtime.engine import draw_noise
from runtime.errors import (
    BackendError,
    DamagedBundleError,
    DeviceMissingError,
)
from runtime.golden import golden_on
from runtime.manifest import Bucket, Manifest

CONTRACT = [
    pytest.param(
        name,
        marks=[pytest.mark.gpu] if name in ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx") else [],
    )
    for name, backend in BACKENDS.items()
    if backend.extra or not backend.package  # what the project installs, and the null backend
]


KINDS = ("d", "g", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundles:
    """A backend, and bundles it can open: mode D (depth, a square and a wide bucket), mode G
    (normals, seed 7), and mode D in int8, where it has a target of its own on the CPU.
    """

    backend: str
    d: Path
    g: Path
    int8: Path | None = None


@pytest.fixture(scope="module", params=CONTRACT)
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    name = str(request.param)
    if name not in installed():
        pytest.skip(f"the package of {name} is not installed")
    if name == "null":
        folder = tmp_path_factory.mktemp("null")
        square, wide = (
            Bucket(height=64, width=width, graph="model-64x96.onnx") for width in (64, 104)
        )
        d = write_null_bundle(folder / "d", task="depth", buckets=[square, wide])
        g = write_null_bundle(folder / "g", task="normal", mode="g", buckets=[square], noise_seed=7)
        return Bundles(backend=name, d=d, g=g)
    if ready := os.environ.get("LOTUS_EDGE_CONTRACT"):  # benchmarks/versions.py: nothing to build
        return Bundles(backend=name, **{kind: Path(ready, name, kind) for kind in KINDS})
    try:
        if name in TARGETS and name != "onnxruntime":
            return _built_for(name, request, tmp_path_factory.mktemp(name))
        both = {mode: request.getfixturevalue(f"bundle_{mode}") for mode in ("d", "g")}
        with LotusEngine(both["d"], backend=name) as engine, first(engine):
            pass
    except DeviceMissingError as error:
        pytest.skip(f"never run here: {error}")
    except BackendError as error:
        if f"has no {BACKENDS[name].option}" not in str(error):
            raise
        pytest.skip(f"never run here: {error}")
    int8 = request.getfixturevalue("bundle_int8") if name == "onnxruntime" else None
    return Bundles(backend=name, **both, int8=int8)


def _built_for(name: str, request: pytest.FixtureRequest, folder: Path) -> Bundles:
    """Bundles of the backend's own target, whose manifests hold the tolerance of that target."""
    square, wide = (64, 64), (64, 104)
    if name.startswith("tensorrt"):
        from runtime.backends.cuda import Cuda

        Cuda(name)  # without a GPU there is nothing to build for
        # At 64x64 the lowest level of the UNet has one pixel; TensorRT-RTX 1.7.1 fails on it.
        square, wide = (128, 128), (128, 208)
    d = (
        request.getfixturevalue("bundle_openvino")
        if name == "openvino"
        else build_bundle(
            request.getfixturevalue("checkpoint_d"),
            folder / "d",
            task="depth",
            resolutions=(square, wide),
            target=name,
        )
    )
    g = build_bundle(
        request.getfixturevalue("checkpoint_g"),
        folder / "g",
        task="normal",
        resolutions=(square,),
        target=name,
        seed=7,
    )
    int8 = request.getfixturevalue("bundle_int8_openvino") if name == "openvino" else None
    return Bundles(backend=name, d=d, g=g, int8=int8)


def first(engine: LotusEngine) -> AbstractContextManager[Session]:
    """The session of the engine's first bucket."""
    return engine._sessions.lease(engine.manifest.buckets[0])


def open_square(bundles: Bundles, parallel: int = 1) -> Session:
    """The first bucket of the bundle of mode D."""
    manifest = Manifest.load(bundles.d)
    return open_session(
        bundles.backend, bundles.d, manifest, manifest.buckets[0], parallel=parallel
    )


def noisy(session: Session, seed: int) -> Arrays:
    """A picture of noise as the network takes it."""
    shape = session.input_shapes["image"]
    return {"image": np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)}


def wait_for(child: int) -> int:
    """The exit status of a forked child; one that hangs is killed and fails the test."""
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.mark.slow
class TestContract:
    """What a backend must do, whichever it is."""

    def test_verifies(self, bundles: Bundles) -> None:
        for bundle in (bundles.d, bundles.g):
            manifest = Manifest.load(bundle)
            with LotusEngine(bundle, backend=bundles.backend) as engine:
                result = engine.verify()
            assert result.backend == bundles.backend
            assert result.tolerance == golden_on(manifest, bundles.backend).tolerance
            assert set(result.errors) == {str(bucket) for bucket in manifest.buckets}

    def test_verifies_in_int8(self, bundles: Bundles) -> None:
        if bundles.int8 is None:
            pytest.skip(f"no int8 on a CPU with {bundles.backend}")
        with LotusEngine(bundles.int8, backend=bundles.backend) as engine:
            (error,) = engine.verify().errors.values()
        assert error.mean < 0.1

    def test_is_deterministic_and_depends_on_its_input(
        self, bundles: Bundles, photo: np.ndarray
    ) -> None:
        with LotusEngine(bundles.d, backend=bundles.backend) as engine:
            first, second = engine([photo, photo])
            other = engine(photo[::-1])
        assert np.array_equal(first.values, second.values)
        assert np.abs(first.values - other.values).max() > 0.01

    def test_opens_several_buckets(self, bundles: Bundles, photo: np.ndarray) -> None:
        with LotusEngine(bundles.d, backend=bundles.backend) as engine:
            square, wide = engine.manifest.buckets
            assert engine(photo, resize=None).values.shape == (square.height, square.width)
            assert engine(photo[: wide.height, : wide.width], resize=None).values.shape == (
                wide.height,
                wide.width,
            )

    def test_noise_steers_mode_g(self, bundles: Bundles, photo: np.ndarray) -> None:
        with LotusEngine(bundles.g, backend=bundles.backend) as engine:
            default, named, other = engine(photo), engine(photo, seed=7), engine(photo, seed=8)
            shape = engine.manifest.input_shapes(engine.manifest.buckets[0])["noise"]
            given = engine(photo, noise=draw_noise(8, shape))
        assert np.array_equal(default.values, named.values), "the manifest's noise seed is 7"
        assert np.array_equal(other.values, given.values)
        assert np.abs(default.values - other.values).max() > 1e-3

    def test_wrong_inputs_are_refused_before_the_vendor_sees_them(self, bundles: Bundles) -> None:
        with LotusEngine(bundles.g, backend=bundles.backend) as engine, first(engine) as session:
            image, noise = (
                np.zeros(session.input_shapes[name], np.float32) for name in ("image", "noise")
            )
            for feeds in (
                {"image": image},
                {"image": image[:, :, :32], "noise": noise},
                {"image": image.astype(np.float64), "noise": noise},
                {"picture": image, "noise": noise},
            ):
                with pytest.raises(BackendError, match="takes float32"):
                    session(feeds)

    def test_nan_inputs_are_refused(self, bundles: Bundles) -> None:
        with (
            LotusEngine(bundles.d, backend=bundles.backend) as engine,
            first(engine) as session,
            pytest.raises(BackendError, match=r"input of bucket .* holds NaN"),
        ):
            session({"image": np.full(session.input_shapes["image"], np.nan, np.float32)})

    @pytest.mark.parametrize("parallel", [1, 3])
    def test_threads_get_the_answers_of_their_own_inputs(
        self, bundles: Bundles, parallel: int
    ) -> None:
        """Bit by bit: every backend adds in the same order each time."""
        with open_square(bundles, parallel) as session:
            feeds = [noisy(session, seed) for seed in range(8)]
            alone = [session(inputs) for inputs in feeds]
            start = threading.Barrier(8)

            def repeat(index: int) -> list[Arrays]:
                start.wait(timeout=60)
                return [session(feeds[index]) for _ in range(4)]

            with ThreadPoolExecutor(8) as threads:
                together = list(threads.map(repeat, range(8)))
        assert not np.array_equal(alone[0]["depth"], alone[1]["depth"])
        for expected, answers in zip(alone, together, strict=True):
            for answer in answers:
                np.testing.assert_array_equal(answer["depth"], expected["depth"])

    def test_closing_waits_for_the_runs_in_flight_and_refuses_the_rest(
        self, bundles: Bundles
    ) -> None:
        session = open_square(bundles, parallel=2)
        inputs = noisy(session, 0)
        expected, answered = session(inputs)["depth"], threading.Semaphore(0)

        def until_closed() -> str:
            while True:
                try:
                    answer = session(inputs)["depth"]
                except BackendError as error:
                    return str(error)
                np.testing.assert_array_equal(answer, expected)
                answered.release()

        with ThreadPoolExecutor(4) as threads:
            ends = [threads.submit(until_closed) for _ in range(4)]
            for _ in range(4):
                assert answered.acquire(timeout=60)
            session.close()
            session.close()
        assert all("is closed; open the bundle again" in end.result() for end in ends)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    def test_a_forked_child_is_told_to_open_its_own(self, bundles: Bundles) -> None:
        """Told, and not left hanging: neither by a call nor by closing and dropping the session."""
        session = open_square(bundles)
        inputs = noisy(session, 0)
        expected = session(inputs)["depth"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
            child = os.fork()
        if child == 0:
            status = 1
            with suppress(BaseException):
                try:
                    session(inputs)
                except BackendError as error:
                    session.close()
                    del session
                    status = 0 if "opened before the process was forked" in str(error) else 2
            os._exit(status)
        assert wait_for(child) == 0
        np.testing.assert_array_equal(session(inputs)["depth"], expected)
        session.close()

    def test_pickling_is_refused(self, bundles: Bundles) -> None:
        with (
            open_square(bundles) as session,
            pytest.raises(BackendError, match="open it in each process"),
        ):
            pickle.dumps(session)

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
