"""What `Session` does for every backend: it checks answers, keeps threads apart, and lets no
foreign exception through.
"""

from __future__ import annotations

import copy
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from runtime.backends import BACKENDS, open_session
from runtime.backends import null as backend
from runtime.backends import session as session_module
from runtime.backends.session import Arrays, Session, Tensor, excerpt
from runtime.backends.versions import numbers, too_old
from runtime.errors import BackendError, BackendMissingError, DamagedBundleError
from runtime.golden import golden_error
from runtime.manifest import Manifest

SHAPE = (1, 1, 64, 96)


def opened(bundle: Path, parallel: int = 1) -> Session:
    manifest = Manifest.load(bundle)
    return open_session("null", bundle, manifest, manifest.buckets[0], parallel=parallel)


def feeds(session: Session, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {"image": random.uniform(-1, 1, session.input_shapes["image"]).astype(np.float32)}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"disparity": np.zeros(SHAPE, np.float16)}, r"disparity float16 \[1, 1, 64, 96\]"),
        ({"disparity": np.zeros(SHAPE, ">f4")}, "disparity >f4"),
        ({"disparity": np.zeros((1, 1, 32, 96), np.float32)}, r"float32 \[1, 1, 32, 96\]"),
        ({"disparity": np.zeros((64, 96), np.float32)}, r"float32 \[64, 96\]"),
        ({"depth": np.zeros(SHAPE, np.float32)}, "depth float32"),
        ({}, "answered , the manifest"),
        ({"disparity": [0.0]}, "disparity list"),
    ],
)
def test_an_answer_that_is_not_as_declared_is_damage(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, found: str
) -> None:
    monkeypatch.setattr(backend.BackendSession, "_run", lambda self, runner, inputs: answer)
    with (
        opened(null_bundle) as session,
        pytest.raises(DamagedBundleError, match=rf"{found}.*says disparity float32"),
    ):
        session(feeds(session))


def test_a_model_of_other_types_is_not_opened(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"image": Tensor("float16", (1, 3, 64, 96)), "disparity": Tensor("float32", SHAPE)}
    monkeypatch.setattr(backend.BackendSession, "_open", lambda self: tensors)
    with pytest.raises(DamagedBundleError, match=r"image float16 .*says image float32"):
        opened(null_bundle)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("fault", ["none", "half output", "half input", "smaller answer"])
def test_a_graph_that_is_not_as_declared(null_bundle: Path, name: str, fault: str) -> None:
    """The library's own conversions must not hide it."""
    pytest.importorskip("onnx", reason="writes a graph")
    pytest.importorskip(name, reason="runs a graph")
    manifest = Manifest.load(null_bundle)
    bucket = manifest.buckets[0]
    write_graph(null_bundle / bucket.graph, fault)

    def run() -> Arrays:
        with open_session(name, null_bundle, manifest, bucket) as session:
            return session(feeds(session))

    if fault == "none":
        assert run()["disparity"].shape == SHAPE
    else:
        with pytest.raises(DamagedBundleError, match="the manifest says"):
            run()


def write_graph(path: Path, fault: str) -> None:
    """The first channel of the image. The smaller answer has fewer rows, by a number that is known
    only when the graph runs.
    """
    from onnx import TensorProto, helper, save

    half = {name: fault == f"half {name}" for name in ("input", "output")}
    types = {
        name: TensorProto.FLOAT16 if half[name] else TensorProto.FLOAT
        for name in ("input", "output")
    }
    rows = [
        helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "half the rows"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["end"], to=TensorProto.INT64),
        helper.make_node("Slice", ["channel", "start", "end", "axis"], ["disparity"]),
    ]
    whole = [helper.make_node("Cast", ["channel"], ["disparity"], to=types["output"])]
    nodes = [
        helper.make_node("Slice", ["image", "start", "one", "one"], ["channel"]),
        *(rows if fault == "smaller answer" else whole),
    ]
    constants = [
        helper.make_tensor(key, TensorProto.INT64, [1], [value])
        for key, value in (("start", 0), ("one", 1), ("axis", 2))
    ]
    constants += [
        helper.make_tensor(key, TensorProto.FLOAT, [1], [value])
        for key, value in (("nothing", 0.0), ("half the rows", 32.0))
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", types["input"], [1, 3, 64, 96])],
        [helper.make_tensor_value_info("disparity", types["output"], SHAPE)],
        constants,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


@pytest.mark.parametrize("hook", ["_open", "_new_runner", "_run"])
@pytest.mark.parametrize("error", [RuntimeError, ValueError, MemoryError, KeyError, TypeError])
def test_what_a_vendor_raises_is_a_backend_error(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch, hook: str, error: type[Exception]
) -> None:
    def fail(*words: object) -> None:
        raise error("vendor's words")

    monkeypatch.setattr(backend.BackendSession, hook, fail)
    with pytest.raises(BackendError, match=r"null cannot .*vendor's words"):
        session = opened(null_bundle)
        session(feeds(session))


def test_a_vendors_hundreds_of_lines_are_cut(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: object) -> None:
        raise RuntimeError("\n\n".join(f"line {number}" for number in range(300)))

    monkeypatch.setattr(backend.BackendSession, "_open", fail)
    with pytest.raises(BackendError) as caught:
        opened(null_bundle)
    message = str(caught.value)
    assert "line 19\n(and 280 more lines)" in message
    assert "line 20" not in message
    assert excerpt("a\n\n b ") == "a\n b"
    assert len(excerpt("x" * 10_000)) == 2000
    assert excerpt("") == ""


@pytest.mark.parametrize("parallel", [1, 3])
def test_so_many_runs_are_in_flight_each_with_its_own_runner(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    """`parallel` runs meet at a barrier, which only as many can pass; more would be seen."""
    made: list[object] = []
    busy: set[int] = set()
    most = 0
    meet = threading.Barrier(parallel, timeout=30)
    plain = backend.BackendSession._run

    def make(self: Session) -> object:
        made.append(object())
        return made[-1]

    def run(self: Session, runner: object, inputs: Arrays) -> Arrays:
        nonlocal most
        assert id(runner) not in busy, "a runner was lent twice"
        busy.add(id(runner))
        most = max(most, len(busy))
        meet.wait()
        answer = plain(self, None, inputs)
        busy.remove(id(runner))
        return answer

    monkeypatch.setattr(backend.BackendSession, "_new_runner", make)
    monkeypatch.setattr(backend.BackendSession, "_run", run)
    with opened(null_bundle, parallel) as session, ThreadPoolExecutor(6) as threads:
        inputs = [feeds(session, seed) for seed in range(12)]
        answers = list(threads.map(session, inputs))
    assert most == parallel
    assert len(made) == parallel
    for given, answer in zip(inputs, answers, strict=True):
        mean = given["image"].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(answer["disparity"], mean / 2 + 0.5, atol=1e-6)


def test_a_runner_that_cannot_be_made_leaves_room_for_others(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second runner fails for want of memory; the first goes on, also for the thread that got
    the error.
    """
    inside, go_on = threading.Event(), threading.Event()
    made: list[object] = []
    plain = backend.BackendSession._run

    def make(self: Session) -> object:
        if made:
            raise MemoryError
        made.append(object())
        return made[0]

    def run(self: Session, runner: object, inputs: Arrays) -> Arrays:
        inside.set()
        assert go_on.wait(timeout=30)
        return plain(self, None, inputs)

    monkeypatch.setattr(backend.BackendSession, "_new_runner", make)
    monkeypatch.setattr(backend.BackendSession, "_run", run)
    with opened(null_bundle, 2) as session, ThreadPoolExecutor(1) as threads:
        first = threads.submit(session, feeds(session))
        assert inside.wait(timeout=30)
        with pytest.raises(BackendError, match="MemoryError"):
            session(feeds(session))
        go_on.set()
        assert first.result()["disparity"].shape == SHAPE
        assert session(feeds(session))["disparity"].shape == SHAPE


def test_closing_inside_a_run_of_the_same_thread_does_not_wait_for_itself(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a handler of a signal would."""
    monkeypatch.setattr(
        backend.BackendSession, "_run", lambda self, runner, inputs: self.close() or {}
    )
    session = opened(null_bundle)
    with pytest.raises(BackendError, match="predicting in the thread that closes it"):
        session(feeds(session))
    session.close()


def test_a_session_that_nobody_holds_is_freed_at_once(null_bundle: Path) -> None:
    """It may hold gigabytes, which cannot wait for the garbage collector."""
    session = opened(null_bundle)
    session(feeds(session))
    seen = weakref.ref(session)
    del session
    assert seen() is None


def test_copies_and_odd_numbers_of_runs_are_refused(null_bundle: Path) -> None:
    with pytest.raises(BackendError, match="found 0"):
        opened(null_bundle, 0)
    with opened(null_bundle) as session, pytest.raises(BackendError, match="open it in each"):
        copy.deepcopy(session)


def test_inputs_that_are_no_arrays_are_refused(null_bundle: Path) -> None:
    with opened(null_bundle) as session:
        for given in ([[0.0]], None, np.zeros(session.input_shapes["image"], ">f4")):
            with pytest.raises(BackendError, match="takes float32"):
                session({"image": given})  # type: ignore[dict-item]


def test_the_golden_runs_again_only_where_a_run_is_replayed(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {name for name in BACKENDS if BACKENDS[name].replays} == {"tensorrt", "tensorrt-rtx"}
    plain, runs = backend.BackendSession._run, []

    def run(self: Session, runner: None, inputs: Arrays) -> Arrays:
        runs.append(self.backend.replays)
        return plain(self, runner, inputs)

    monkeypatch.setattr(backend.BackendSession, "_run", run)
    manifest = Manifest.load(null_bundle)
    for replays in (False, True):
        entry = session_module.Backend(name="mine", module="null", replays=replays)
        with backend.BackendSession(null_bundle, manifest, manifest.buckets[0], entry) as session:
            golden_error(session)
    assert runs == [False, True, True]


@pytest.mark.parametrize(
    ("version", "parsed"),
    [
        ("2026.4.1-21920-abc", (2026, 4, 1)),
        ("1.31.1+cu13", (1, 31, 1)),
        ("2026.3.0rc1", (2026, 3, 0)),
        ("10.3", (10, 3)),
        ("unknown", ()),
        ("", ()),
        ("v2", ()),
    ],
)
def test_numbers_of_a_version(version: str, parsed: tuple[int, ...]) -> None:
    assert numbers(version) == parsed


@pytest.mark.parametrize(
    ("name", "version", "opset", "needed"),
    [
        ("openvino", "2026.2.1-21919-ede", 23, "needs 2026.3 or newer, or a bundle of opset 20"),
        ("openvino", "2025.4.0", 23, "needs 2026.3 or newer, or a bundle of opset 20"),
        ("openvino", "2026.1.0", 22, "needs 2026.2 or newer, or a bundle of opset 20"),
        ("openvino", "2026.2.0", 22, None),
        ("openvino", "2025.3.0", 23, "needs 2026.3 or newer"),
        ("openvino", "2024.6.0", 20, "needs 2025.4 or newer"),
        ("openvino", "2026.3.0", 23, None),
        ("openvino", "2026.10.0", 23, None),
        ("openvino", "2030.0.0", 99, None),
        ("openvino", "2025.4.0", 20, None),
        ("openvino", "2025.4.0", 17, None),
        ("openvino", "unknown", 23, None),
        ("onnxruntime", "1.9.0", 23, "needs 1.23 or newer"),
        ("onnxruntime", "1.23.0", 23, None),
        ("onnxruntime-cuda", "1.22.1+cu13", 20, "needs 1.23 or newer"),
        ("onnxruntime-cuda", "1.23.2", 23, "needs 1.24 or newer, or a bundle of opset 20"),
        ("onnxruntime-cuda", "1.23.2", 20, None),
        ("onnxruntime-cuda", "1.24.1", 23, None),
        ("tensorrt", "8.0", 23, None),
    ],
)
def test_versions_that_are_known_to_be_wrong(
    name: str, version: str, opset: int, needed: str | None
) -> None:
    told = too_old(version, BACKENDS[name].known, opset)
    assert told == needed or (needed is not None and told is not None and told.startswith(needed))
    assert (told is None) == (needed is None)
    assert needed != "needs 2026.3 or newer" or told == needed, "no opset to offer"


def test_a_version_that_is_known_to_be_wrong_never_sees_the_graph(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        __version__ = "2026.2.0-21903-52ddc073857-releases/2026/2"

    monkeypatch.setattr(session_module, "import_vendor", lambda entry: Old)
    manifest = Manifest.load(null_bundle)
    with pytest.raises(BackendError) as caught:
        open_session("openvino", null_bundle, manifest, manifest.buckets[0])
    message = str(caught.value)
    assert "OpenVINO 2026.2.0" in message
    assert "needs 2026.3 or newer, or a bundle of opset 20: `--opset 20`" in message
    assert "\n" not in message


def test_the_extras_do_not_install_what_no_bundle_runs_on() -> None:
    """The oldest row of each table is not above the floor that pip is given."""
    floors = dict(
        re.findall(
            r'"(onnxruntime|onnxruntime-gpu|openvino)(?:\[[\w,]+\])?>=([\d.]+)"',
            (ROOT / "pyproject.toml").read_text(),
        )
    )
    for name, package in (
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime-cuda", "onnxruntime-gpu"),
        ("openvino", "openvino"),
    ):
        oldest = min(numbers(row.oldest) for row in BACKENDS[name].known)
        assert numbers(floors[package]) >= oldest


def test_missing_packages_stay_what_they_are(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Session) -> None:
        raise BackendMissingError("not here")

    monkeypatch.setattr(backend.BackendSession, "_open", missing)
    with pytest.raises(BackendMissingError, match="not here"):
        opened(null_bundle)
