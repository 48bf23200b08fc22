"""The TensorRT backend against a fake vendor and a fake CUDA runtime.

This proves our control flow and nothing about TensorRT: see test_runtime_tensorrt_vendor.py and
test_runtime_tensorrt_gpu.py.
"""

from __future__ import annotations

import dataclasses
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorrt_fakes
from tensorrt_fakes import (
    BUCKET,
    SHAPES,
    FakeContext,
    assert_mean,
    image,
    make_manifest,
    open_session,
)

from runtime.errors import (
    BackendError,
    DamagedBundleError,
    ForeignEngineError,
    UnfinishedBundleError,
)

fakes = tensorrt_fakes.fakes  # the fixture


def test_fake_tensorrt_runs_plain_once_then_launches_one_captured_graph(fakes, tmp_path):
    _, cudart = fakes
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        runs = []
        for seed in range(4):
            cudart.calls.clear()
            assert_mean(session, seed)
            runs.append(list(cudart.calls))
    plain = ["cudaMemcpyAsync", "execute", "cudaMemcpyAsync"]
    launch = ["cudaGraphLaunch", "cudaStreamSynchronize"]
    capture = [
        "cudaStreamBeginCapture",
        *plain,
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]
    assert runs == [[*plain, "cudaStreamSynchronize"], capture + launch, launch, launch]


def test_fake_rtx_leaves_the_capture_to_the_vendor(fakes, tmp_path):
    vendor, cudart = fakes
    vendor.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    with open_session(tmp_path, make_manifest("tensorrt-rtx", "10.3.0")) as session:
        for seed in range(3):
            assert_mean(session, seed)
    assert vendor.strategies == ["whole"]
    assert "cudaStreamBeginCapture" not in cudart.calls


def test_fake_rtx_without_graph_strategies_runs_plain(fakes, tmp_path):
    vendor, cudart = fakes
    with open_session(tmp_path, make_manifest("tensorrt-rtx", "10.3.0")) as session:
        assert_mean(session, 0)
        assert_mean(session, 1)
    assert vendor.strategies == [None]
    assert "cudaStreamBeginCapture" not in cudart.calls


def test_fake_answers_are_copies_and_inputs_may_have_any_layout(fakes, tmp_path):
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        first = session(image(1))["disparity"]
        kept = first.copy()
        session(image(2))
        np.testing.assert_array_equal(first, kept)
        given = np.asfortranarray(image(3)["image"])
        expected = given.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(
            session({"image": given})["disparity"], expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_fake_threads_have_contexts_streams_and_buffers_of_their_own(fakes, tmp_path, flavour):
    vendor, cudart = fakes
    manifest = make_manifest(flavour, "10.3.0", capability="8.7")
    with open_session(tmp_path, manifest, parallel=3) as session:
        meet, run = threading.Barrier(3, timeout=30), session._run

        def together(runner, inputs):
            meet.wait()  # three at once, each with its own runner
            return run(runner, inputs)

        session._run = together
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda seed: assert_mean(session, seed), range(24)))
    assert len(vendor.contexts) == 3
    addresses = [address for context in vendor.contexts for address in context.addresses.values()]
    assert len(set(addresses)) == 6
    assert cudart.calls.count("cudaStreamCreateWithFlags") == 3


def test_fake_runner_that_cannot_be_made_frees_what_it_had(fakes, tmp_path):
    """The second of two runs at once finds no memory on the device; the first goes on."""
    _, cudart = fakes
    manifest = make_manifest("tensorrt", "10.3.0", capability="8.7")
    with open_session(tmp_path, manifest, parallel=2) as session:
        assert_mean(session, 0)
        alive = dict(cudart.alive)
        with session._runners.borrow(session._new_runner), ThreadPoolExecutor(1) as threads:
            cudart.fail["cudaMalloc"] = 1
            failed = threads.submit(session, image(1)).exception()
        assert isinstance(failed, BackendError)
        assert cudart.alive == alive
        assert_mean(session, 2)


def test_fake_capture_leaves_the_legacy_stream_to_other_threads(fakes, tmp_path, monkeypatch):
    _, cudart = fakes
    plain, captures = FakeContext.execute_async_v3, []
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        _, address = cudart.cudaMalloc(4)

        def meanwhile(context: FakeContext, stream: int) -> bool:
            with ThreadPoolExecutor(1) as thread:
                (status,) = thread.submit(cudart.cudaMemset, address, 0, 4).result()
            captures.append((cudart.capturing is not None, status))
            return plain(context, stream)

        monkeypatch.setattr(FakeContext, "execute_async_v3", meanwhile)
        for seed in range(3):
            assert_mean(session, seed)
        cudart.cudaFree(address)
    assert captures == [(False, 0), (True, 0)]


def test_fake_close_is_safe_twice_and_a_closed_session_refuses(fakes, tmp_path):
    _, cudart = fakes
    session = open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))
    session(image(0))
    session(image(0))
    session.close()
    session.close()
    assert cudart.alive == {}
    order = [
        name for name in cudart.calls if name.endswith("Destroy") or name.startswith("cudaFree")
    ]
    assert order[-1] == "cudaStreamDestroy"
    assert order[:2] == ["cudaGraphDestroy", "cudaGraphExecDestroy"]
    with pytest.raises(BackendError, match="closed"):
        session(image(0))


@pytest.mark.parametrize(
    ("call", "successes"),
    [
        ("cudaStreamCreateWithFlags", 0),
        ("cudaMallocHost", 0),
        ("cudaMallocHost", 1),
        ("cudaMalloc", 0),
        ("cudaMalloc", 1),
    ],
)
def test_fake_half_opened_session_frees_what_it_had(fakes, tmp_path, call, successes):
    _, cudart = fakes
    cudart.fail[call] = successes
    with pytest.raises(
        BackendError, match=f"{call} failed with cudaErrorFake: the fake was told to fail"
    ):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))


@pytest.mark.parametrize(
    ("call", "run"),
    [
        ("cudaMemcpyAsync", 1),
        ("cudaStreamSynchronize", 1),
        ("cudaStreamBeginCapture", 2),
        ("cudaGraphInstantiate", 2),
        ("cudaGraphLaunch", 2),
    ],
)
def test_fake_failing_call_while_running_is_our_error(fakes, tmp_path, call, run):
    _, cudart = fakes
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        if run == 2:
            session(image(0))
        cudart.fail[call] = 0
        with pytest.raises(BackendError, match=f"{call} failed with cudaErrorFake"):
            session(image(1))


def test_fake_failure_inside_a_capture_ends_the_capture_and_keeps_the_vendors_words(
    fakes, tmp_path
):
    vendor, cudart = fakes
    with open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7")) as session:
        session(image(0))
        vendor.executes = False
        with pytest.raises(
            BackendError, match=r"tensorrt 10\.3\.0 failed on bucket 16x16: enqueue failed"
        ):
            session(image(1))
        assert cudart.capturing is None
        vendor.executes = True
        assert_mean(session, 2)


def test_fake_engine_that_does_not_load_gives_the_vendors_errors_only(fakes, tmp_path):
    (tmp_path / "model.engine").write_bytes(b"rubbish")
    with pytest.raises(BackendError, match="bad magic tag") as caught:
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))
    assert "a warning" not in str(caught.value)


def test_fake_context_that_cannot_be_made(fakes, tmp_path):
    fakes[0].context_possible = False
    with pytest.raises(
        BackendError, match=r"cannot create an execution context.*out of device memory"
    ):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_fake_unreadable_engine_file(fakes, tmp_path, damage):
    damage(tmp_path / "model.engine")
    with pytest.raises(DamagedBundleError, match=r"cannot read .*model\.engine"):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))


def test_fake_engine_with_other_tensors_is_refused(fakes, tmp_path):
    manifest = make_manifest("tensorrt", "10.3.0", capability="8.7")
    fakes[0].shapes["image"] = (1, 3, -1, -1)
    with pytest.raises(DamagedBundleError, match="-1"):
        open_session(tmp_path, manifest)
    fakes[0].shapes = dict(SHAPES)
    fakes[0].dtypes["disparity"] = "half"
    with pytest.raises(DamagedBundleError, match=r"disparity half.*disparity float32"):
        open_session(tmp_path, manifest)


def test_fake_device_of_another_compute_capability_is_refused_for_tensorrt_only(fakes, tmp_path):
    _, cudart = fakes
    cudart.capability = (11, 0)
    with pytest.raises(
        ForeignEngineError, match=r"10\.3\.0 for compute capability 8\.7.*compute capability 11\.0"
    ):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0", capability="8.7"))
    assert "cudaStreamCreateWithFlags" not in cudart.calls
    open_session(tmp_path, make_manifest("tensorrt-rtx", "10.3.0")).close()


def test_another_flavour_is_refused(fakes, tmp_path):
    with pytest.raises(
        ForeignEngineError, match=r"tensorrt 10\.3\.0.*is tensorrt-rtx.*--target tensorrt-rtx"
    ):
        open_session(tmp_path, make_manifest("tensorrt", "10.3.0"), "tensorrt-rtx")


def test_a_bundle_without_an_engine_says_how_to_build_it(fakes, tmp_path):
    bucket = dataclasses.replace(BUCKET, engine=None)
    manifest = dataclasses.replace(
        make_manifest("tensorrt", "10.3.0"), buckets=[bucket], engine=None
    )
    command = f"python export/build_engine.py --from-bundle {tmp_path} --target tensorrt"
    with pytest.raises(UnfinishedBundleError, match=command):
        open_session(tmp_path, manifest)
