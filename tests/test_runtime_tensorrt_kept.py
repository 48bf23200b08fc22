"""The kernels that TensorRT-RTX compiles, kept for the next opening: against a fake vendor."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import tensorrt_fakes
from tensorrt_fakes import (
    BUCKET,
    FakeConfig,
    FakeCudart,
    FakeKernels,
    FakeVendor,
    assert_mean,
    make_manifest,
)

from runtime import compiled, opening
from runtime.backends import BACKENDS
from runtime.backends import tensorrt as backend
from runtime.opening import Opening

fakes = tensorrt_fakes.fakes  # the fixture


@pytest.fixture
def rtx_opening(
    fakes: tuple[FakeVendor, FakeCudart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Opening:
    """Of an engine that counts as large, on a GPU that counts as known."""
    pytest.importorskip("tensorrt_rtx", reason="names the version of what is kept")
    fakes[0].CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    monkeypatch.setenv("LOTUS_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "SMALLEST", 0)
    monkeypatch.setattr(opening, "knows_target", lambda *_: True)
    return Opening(
        folder=tmp_path,
        manifest=make_manifest("tensorrt-rtx", "10.3.0"),
        backend="tensorrt-rtx",
        prove=False,
        parallel=2,
    )


def test_fake_rtx_compiles_once_and_keeps_its_kernels(fakes, rtx_opening, tmp_path):
    vendor, _ = fakes
    for _ in range(2):
        with rtx_opening(BUCKET) as session:
            assert_mean(session, 0)
            assert session.opened_from
    (entry,) = (tmp_path / "cache" / "compiled").iterdir()
    assert (entry / "kernels").read_bytes() == b"all"
    assert vendor.compilations == 1
    assert vendor.strategies == ["whole"] * 3  # to keep, and two openings


def test_fake_rtx_runners_share_the_kernels_and_all_goes_in_order(fakes, rtx_opening, monkeypatch):
    vendor, _ = fakes
    gone = []

    class Watched(backend._Runner):
        def __setattr__(self, name, value):
            if value is None and getattr(self, name, None) is not None:
                gone.append(name)
            super().__setattr__(name, value)

    monkeypatch.setattr(backend, "_Runner", Watched)
    with rtx_opening(BUCKET) as session:
        first, second = session._new_runner(), session._new_runner()
        assert first.config._kernels is second.config._kernels is session._kernels
        gone.clear()
    assert gone == ["context", "config"] * 3
    assert session._kernels is session._engine is session._runtime is None
    assert vendor.compilations == 1


def test_fake_rtx_that_refuses_what_was_kept_compiles_and_keeps_anew(
    fakes, rtx_opening, tmp_path, monkeypatch
):
    vendor, _ = fakes
    rtx_opening(BUCKET).close()
    folder = tmp_path / "cache" / "compiled"
    with monkeypatch.context() as patch:
        patch.setattr(FakeKernels, "deserialize", lambda *_: False)
        with rtx_opening(BUCKET) as session:
            assert_mean(session, 0)
            assert not session.opened_from
    assert not [*folder.iterdir()]
    with rtx_opening(BUCKET) as session:
        assert session.opened_from
    assert vendor.compilations == 3


@pytest.mark.parametrize("fault", ["writes nothing", "writes no bytes", "takes none"])
def test_fake_rtx_that_keeps_nothing_opens_the_engine(
    fakes, rtx_opening, tmp_path, monkeypatch, fault
):
    if fault == "takes none":
        monkeypatch.setattr(FakeConfig, "set_runtime_cache", lambda *_: False)
    else:
        monkeypatch.setattr(FakeKernels, "writes", b"" if fault == "writes no bytes" else None)
    with rtx_opening(BUCKET) as session:
        assert_mean(session, 0)
        assert not session.opened_from
    assert not [*(tmp_path / "cache" / "compiled").iterdir()]
    # No entry was made that is refused later.
    assert len(fakes[0].strategies) == (1 if fault == "takes none" else 2)


def test_fake_rtx_without_graph_strategies_keeps_its_kernels(fakes, rtx_opening):
    del fakes[0].CudaGraphStrategy
    with rtx_opening(BUCKET) as session:
        assert_mean(session, 0)
        assert session.opened_from
    assert fakes[0].strategies == ["disabled"] * 2


def test_fake_rtx_takes_room_for_kernels_alone_and_keeps_them_for_any_core(
    rtx_opening, monkeypatch
):
    sizes, keys = [], []
    monkeypatch.setattr(compiled, "make", lambda key, size, write: sizes.append(size))
    monkeypatch.setattr(compiled, "find", keys.append)
    monkeypatch.setattr(opening, "bytes_of", lambda *_: 1000)
    for cores in (2, 3):
        monkeypatch.setattr(opening, "usable_cores", lambda cores=cores: cores)
        rtx_opening(BUCKET).close()
    assert sizes == [200, 200]
    assert keys[0] == keys[-1]


def test_tensorrt_keeps_nothing_since_its_engine_is_compiled():
    assert BACKENDS["tensorrt"].keeps == ()
