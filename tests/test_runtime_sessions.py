"""One engine, several threads, several buckets: right, bounded, and closed in order."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from open_buckets import watch
from PIL import Image

from runtime import LotusEngine
from runtime.backends.null import BackendSession
from runtime.backends.session import Arrays
from runtime.errors import BackendError, DeadlineError, ImageError
from runtime.manifest import Bucket
from runtime.memory import Room


def sized(bundle_folder: Path, count: int) -> list[np.ndarray]:
    """One image for each of `count` buckets of the bundle."""
    return [np.full((8 * (8 + n), 64, 3), 17 * n, np.uint8) for n in range(count)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A null bundle of five buckets."""
    buckets = [Bucket(height=8 * (8 + n), width=64, graph="model-64x96.onnx") for n in range(5)]
    return write_null_bundle(tmp_path / "many", buckets=buckets)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_than_max_open_buckets_are_open(
    many: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = watch(monkeypatch)
    images = sized(many, 5)
    with LotusEngine(many, max_open=most) as engine:
        wanted = [engine(image).values for image in images]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: engine(images[n % 5]).values, range(60)))
    for n, values in enumerate(found):
        assert np.array_equal(values, wanted[n % 5])
    assert buckets.most == most
    assert not buckets.now


def test_those_who_wait_for_room_do_not_wake_each_other(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []
    delays = [0.2, 0.6, 0.0, 0.0, 0.0]
    real, run = Room.__call__, BackendSession._run

    def look(room: Room, *buckets: Any) -> bool:
        looks.append(buckets)
        return real(room, *buckets)

    def slowly(*arguments: Any) -> Arrays:
        time.sleep(delays.pop(0))
        return run(*arguments)

    monkeypatch.setattr(Room, "__call__", look)
    first, second, third = sized(many, 3)
    with LotusEngine(many, max_open=1, parallel=2) as engine, ThreadPoolExecutor(4) as pool:
        engine(first)
        monkeypatch.setattr(BackendSession, "_run", slowly)
        answers = [pool.submit(engine, image) for image in (first, first)]
        time.sleep(0.1)  # both are under way, and one will be done long before the other
        answers += [pool.submit(engine, image) for image in (second, third)]
        for answer in answers:
            answer.result(timeout=10)
    assert len(looks) < 50


def test_the_least_recently_used_bucket_makes_room(many: Path) -> None:
    images = sized(many, 3)
    with LotusEngine(many, max_open=2) as engine:
        for n in (0, 1, 0, 2):
            engine(images[n])
        assert [b.height for b in engine._sessions._sessions] == [64, 80]


def test_closing_waits_for_predictions_under_way(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, answered = threading.Event(), BackendSession._run

    def slow(session: BackendSession, runner: None, inputs: Arrays) -> Arrays:
        running.set()
        time.sleep(0.3)
        return answered(session, runner, inputs)

    monkeypatch.setattr(BackendSession, "_run", slow)
    engine = LotusEngine(null_bundle)
    with ThreadPoolExecutor(1) as pool:
        prediction = pool.submit(engine, photo)
        running.wait()
        engine.close()
        assert prediction.done() or prediction.result(1) is not None
    with pytest.raises(BackendError, match="closed"):
        engine(photo)
    engine.close()


def test_closing_within_a_prediction_is_an_error_and_no_deadlock(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LotusEngine(null_bundle)
    monkeypatch.setattr(BackendSession, "_run", lambda session, runner, inputs: engine.close())
    with pytest.raises(BackendError, match="after the prediction"):
        engine(photo)
    monkeypatch.undo()
    assert not engine._sessions._leases
    engine(photo)
    engine.close()


def test_predicting_within_a_prediction_is_an_error_and_no_deadlock(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LotusEngine(null_bundle) as engine:
        monkeypatch.setattr(BackendSession, "_run", lambda session, runner, inputs: engine(photo))
        with pytest.raises(BackendError, match="in this thread already"):
            engine(photo)


@pytest.mark.parametrize("step", ["_open", "_run"])
def test_predicting_within_a_prediction_of_another_bucket(
    many: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is that of the first, which would wait for itself."""
    first, second = sized(many, 2)
    engine, said = LotusEngine(many, max_open=1), list[str]()

    def predict() -> None:
        with pytest.raises(BackendError) as caught:
            engine(first)
        said.append(str(caught.value))

    monkeypatch.setattr(BackendSession, step, lambda *_: engine(second))
    thread = threading.Thread(target=predict, daemon=True)
    thread.start()
    thread.join(10)
    assert len(said) == 1, "it hangs"
    assert "in this thread already" in said[0]
    monkeypatch.undo()
    engine(second)
    engine.close()


def test_where_warnings_are_errors_a_list_goes_on(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Image.fromarray(photo).convert("L").convert("I")
    with LotusEngine(null_bundle) as engine, warnings.catch_warnings():
        warnings.simplefilter("error")
        bad, good = engine([odd, photo], on_error="return")
    assert isinstance(bad, ImageError)
    assert not isinstance(good, ImageError)


@pytest.mark.parametrize("parallel", [1, 3])
def test_parallel_is_how_many_predictions_run_at_once(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    answered = BackendSession._run
    now, seen, lock = [0], [0], threading.Lock()

    def counted(session: BackendSession, runner: None, inputs: Arrays) -> Arrays:
        with lock:
            now[0] += 1
            seen[0] = max(seen[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return answered(session, runner, inputs)

    monkeypatch.setattr(BackendSession, "_run", counted)
    with LotusEngine(null_bundle, parallel=parallel) as engine, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: engine(photo), range(24)))
    assert seen[0] == parallel


def test_pickling_and_copying_say_what_to_do(null_bundle: Path) -> None:
    with LotusEngine(null_bundle) as engine:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(BackendError, match="in each process"):
                attempt(engine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_to_open_the_bundle_itself(
    null_bundle: Path, photo: np.ndarray
) -> None:
    with LotusEngine(null_bundle) as engine:
        engine(photo)
        child = os.fork()
        if child == 0:  # no assertion may leave the child
            status = 1
            try:
                engine(photo)
            except BackendError as error:
                status = 0 if "forked" in str(error) else 2
            finally:
                engine.close()
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        engine(photo)


def test_a_deadline_for_opening_and_for_the_golden(
    null_bundle: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that never ends, the worst that a bundle can hold."""
    released, opened = threading.Event(), BackendSession._open

    def hangs(session: BackendSession) -> dict[str, tuple[int, ...]]:
        released.wait(10)
        return opened(session)

    monkeypatch.setattr(BackendSession, "_open", hangs)
    raised = []
    with LotusEngine(null_bundle, deadline=0.2) as engine:
        for _ in range(3):  # the second does not start another thread
            with pytest.raises(DeadlineError, match=r"more than 0\.2 s") as caught:
                engine(photo)
            raised.append(caught.value)
    assert len({str(error) for error in raised}) == 1
    assert len({id(error) for error in raised}) == 3, "one error would hold the frames of all"
    assert sum("opening" in thread.name for thread in threading.enumerate()) == 1
    released.set()
    with LotusEngine(null_bundle, deadline=5) as engine:
        assert engine(photo).values.shape == photo.shape[:2]
        engine.verify()


def test_a_deadline_ends_the_wait_for_a_golden_that_never_ends(
    null_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that is left behind closes its session, once it can."""
    buckets, released, run = watch(monkeypatch), threading.Event(), BackendSession._run
    ended: list[bool] = []

    def hangs(*words: Any) -> Arrays:
        ended.append(released.wait(10))
        return run(*words)

    monkeypatch.setattr(BackendSession, "_run", hangs)
    with (
        LotusEngine(null_bundle, deadline=0.2) as engine,
        pytest.raises(DeadlineError, match=r"more than 0\.2 s"),
    ):
        engine.verify()
    assert not ended, "it was waited for"
    released.set()
    for thread in threading.enumerate():
        if thread.name.endswith("and its golden"):
            thread.join(10)
    assert ended == [True]
    assert not buckets.now


@pytest.mark.parametrize("deadline", [1e300, 10**400])
def test_a_deadline_of_ages_is_one(null_bundle: Path, photo: np.ndarray, deadline: float) -> None:
    with LotusEngine(null_bundle, deadline=deadline) as engine:
        assert engine(photo).values.shape == photo.shape[:2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_open": 0},
        {"parallel": 1.5},
        {"parallel": True},
        {"deadline": 0},
        {"deadline": -1.0},
        {"deadline": "5"},
        {"deadline": True},
    ],
)
def test_settings_that_make_no_sense(null_bundle: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(BackendError, match=next(iter(wrong))):
        LotusEngine(null_bundle, **wrong)


def test_one_bad_picture_of_a_list_does_not_lose_the_others(
    null_bundle: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    pictures = [photo, tmp_path / "none.png", photo]
    with LotusEngine(null_bundle) as engine:
        first, bad, last = engine(pictures, on_error="return")
        assert isinstance(bad, ImageError)
        assert "none.png" in str(bad)
        assert np.array_equal(first.values, last.values)
        with pytest.raises(ImageError, match=r"none\.png"):
            engine(pictures)
        with pytest.raises(ImageError, match="on_error"):
            engine(pictures, on_error="ignore")
        with pytest.raises(TypeError, match="max_pixel"):
            engine([], max_pixel=5)


def test_a_seed_that_does_nothing_is_refused(
    null_bundle: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    with LotusEngine(null_bundle) as engine, pytest.raises(ImageError, match="mode D"):
        engine(photo, seed=1)
    generator = write_null_bundle(tmp_path / "g", mode="g")
    with LotusEngine(generator) as engine:
        noise = np.zeros(engine.manifest.noise_shape(engine.manifest.buckets[1]), np.float32)
        with pytest.raises(ImageError, match="not both"):
            engine(photo.transpose(1, 0, 2)[:, :170], seed=1, noise=noise)
