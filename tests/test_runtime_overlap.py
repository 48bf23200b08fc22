"""Reading ahead and writing behind: order, bounds, ends, and that they overlap at all."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, bucket, write_null_bundle
from PIL import Image

from runtime import LotusEngine, batch, overlap, saving
from runtime.__main__ import main
from runtime.errors import BackendError
from runtime.overlap import Behind, ahead

WAIT = 20.0  # seconds until a test gives up; none waits for them


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of several sizes."""
    (tmp_path / "d").mkdir()
    for number in range(12):
        rgb = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(tmp_path / "d" / f"{number:02}.png")
    return tmp_path / "d"


def predict(bundle: Path, folder: Path, *words: str) -> tuple[int, Path]:
    output = folder.parent / "o"
    return main(["predict", str(bundle), str(folder), "--output", str(output), *words]), output


class TestAhead:
    def test_results_come_in_order_and_no_more_than_so_many_are_begun(self) -> None:
        begun: list[int] = []

        def work(number: int) -> int:
            begun.append(number)
            time.sleep(random.Random(number).random() / 500)
            return number

        taken = 0
        for result in ahead(work, range(40), most=5, workers=3):
            assert result == taken
            taken += 1
            assert len(begun) <= taken + 5
        assert taken == 40

    def test_an_error_is_raised_at_its_place(self) -> None:
        def work(number: int) -> int:
            if number == 3:
                raise ValueError("three")
            return number

        results = ahead(work, range(9), most=4, workers=2)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(results)

    def test_closed_it_begins_nothing_more_and_leaves_no_thread(self) -> None:
        begun: list[int] = []

        def work(number: int) -> None:
            begun.append(number)
            time.sleep(0.01)

        before = threading.active_count()
        results = ahead(work, range(100), most=20, workers=1)
        next(results)
        results.close()
        assert threading.active_count() == before
        assert len(begun) <= 4  # of the twenty that it would have done


class TestBehind:
    def test_at_most_so_many_wait_and_all_is_done_at_the_end(self) -> None:
        gate, done, given = threading.Event(), [], []

        def give() -> None:
            with Behind(most=2, workers=1) as behind:
                for number in range(5):
                    behind(lambda number=number: (gate.wait(WAIT), done.append(number)))  # type: ignore[misc]
                    given.append(number)

        giver = threading.Thread(target=give)
        giver.start()
        while len(given) < 2:
            time.sleep(0.001)
        time.sleep(0.02)
        assert given == [0, 1]  # the third waits
        gate.set()
        giver.join(WAIT)
        assert done == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("error", [RuntimeError("else"), KeyboardInterrupt()])
    def test_whatever_happens_what_was_given_is_finished(self, error: BaseException) -> None:
        done: list[int] = []

        def work() -> None:
            time.sleep(0.01)
            done.append(1)

        with pytest.raises(type(error)), Behind(most=9, workers=1) as behind:
            for _ in range(5):
                behind(work)
            raise error
        assert len(done) == 5

    def test_an_error_of_the_work_is_not_lost(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), Behind(most=2, workers=1) as behind:
            behind(fail)


def test_the_next_is_read_and_the_last_is_written_while_the_network_runs(
    null_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network of each picture waits until both have happened: one after the other would never
    end.
    """
    read = [threading.Event() for _ in range(13)]
    written = [threading.Event() for _ in range(13)]
    read[12].set()
    prepare, run, save = LotusEngine.prepare, LotusEngine.run, batch.save_together

    def slow_prepare(engine: LotusEngine, image: Any, call: Any, position: int = 0) -> Any:
        read[position].set()
        return prepare(engine, image, call, position)

    def slow_run(engine: LotusEngine, pictures: Any, call: Any) -> Iterator[Any]:
        number = pictures[0].position
        assert read[number + 1].wait(WAIT)
        assert number == 0 or written[number - 1].wait(WAIT)
        yield from run(engine, pictures, call)

    def slow_save(maps: Any, **options: Any) -> None:
        save(maps, **options)
        written[int(next(iter(maps)).name)].set()

    monkeypatch.setattr(LotusEngine, "prepare", slow_prepare)
    monkeypatch.setattr(LotusEngine, "run", slow_run)
    monkeypatch.setattr(batch, "save_together", slow_save)
    assert predict(null_bundle, folder)[0] == 0


def test_no_more_is_held_than_the_bounds_say(
    null_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that were read and are not written yet, with a slow writer."""
    prepare, save = LotusEngine.prepare, batch.save_together
    held, most, lock = 0, 0, threading.Lock()

    def count(step: int) -> None:
        nonlocal held, most
        with lock:
            held += step
            most = max(most, held)

    def counted_prepare(*words: Any) -> Any:
        count(1)
        return prepare(*words)

    def counted_save(*words: Any, **options: Any) -> None:
        time.sleep(0.01)
        save(*words, **options)
        count(-1)

    monkeypatch.setattr(LotusEngine, "prepare", counted_prepare)
    monkeypatch.setattr(batch, "save_together", counted_save)
    assert predict(null_bundle, folder)[0] == 0
    assert held == 0
    assert most <= 2 * (1 + overlap.WORKERS) + 1


@pytest.mark.parametrize("batches", [(1,), (1, 3)])
def test_lines_are_in_order_and_results_are_those_of_the_engine(
    batches: tuple[int, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = write_null_bundle(folder.parent / "b", buckets=[bucket(count) for count in batches])
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "12.png").write_bytes((folder / "11.png").read_bytes()[:-300])
    real = saving.write_together

    def slow(*words: Any) -> None:
        time.sleep(random.Random(str(words[0])).random() / 50)
        real(*words)

    monkeypatch.setattr(saving, "write_together", slow)
    status, output = predict(bundle, folder)
    said = capsys.readouterr().err.splitlines()
    assert status == 1
    lines = [line for line in said if line.startswith("[")]
    assert [line.split()[0] for line in lines] == [f"[{number}/13]" for number in range(1, 14)]
    assert [line for line in lines if "FAILED" in line] == [lines[3]]
    at = said.index(lines[12])
    assert said[at + 1].startswith("  warning: ")  # beside its picture
    assert "rows" in said[at + 1]
    assert said[-1] == "12 done, 1 failed"
    with LotusEngine(bundle) as engine:
        for path in sorted(folder.iterdir()):
            if path.name not in ("03.png", "12.png"):
                values = engine(path).values
                assert np.array_equal(np.load(output / f"{path.stem}.npy"), values)


def test_memory_that_was_short_once_is_tried_again_alone(
    null_bundle: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, tries = LotusEngine.prepare, {5: 1, 8: 2}

    def short(engine: LotusEngine, image: Any, call: Any, position: int = 0) -> Any:
        if tries.get(position, 0):
            tries[position] -= 1
            raise MemoryError("too large")
        return prepare(engine, image, call, position)

    monkeypatch.setattr(LotusEngine, "prepare", short)
    status, output = predict(null_bundle, folder)
    assert status == 1
    assert (output / "05.npy").exists()
    said = capsys.readouterr().err
    assert f"[9/12] {folder / '08.png'}  FAILED: {folder / '08.png'}: not enough memory" in said
    assert said.splitlines()[-1] == "11 done, 1 failed"


def test_what_is_known_when_an_error_ends_the_batch_is_said(
    null_bundle: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "02.png").write_bytes(b"no picture")
    prepare, known = LotusEngine.prepare, threading.Event()

    def noted(engine: LotusEngine, image: Any, call: Any, position: int = 0) -> Any:
        try:
            return prepare(engine, image, call, position)
        finally:
            if position == 2:
                known.set()

    def fail(engine: LotusEngine, pictures: Any, call: Any) -> Any:
        assert known.wait(WAIT)
        raise BackendError("gone")

    monkeypatch.setattr(LotusEngine, "prepare", noted)
    monkeypatch.setattr(LotusEngine, "run", fail)
    assert predict(null_bundle, folder)[0] == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"[3/12] {folder / '02.png'}  FAILED: ")
    assert said[-2:] == ["0 done, 1 failed, 11 not tried", "error: gone"]


def test_a_large_result_is_written_alone(
    null_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    save = batch.save_together

    def where(*words: Any, **options: Any) -> None:
        threads.append(threading.current_thread().name)
        save(*words, **options)

    monkeypatch.setattr(batch, "save_together", where)
    monkeypatch.setattr(batch, "_LARGE", 30 * 26)
    assert predict(null_bundle, folder)[0] == 0
    assert [name == "MainThread" for name in threads] == [False] * 7 + [True] * 5


def test_a_bug_in_the_writer_is_not_swallowed(
    null_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(batch, "save_together", fail)
    with pytest.raises(ZeroDivisionError):
        predict(null_bundle, folder)


STOPPED = """
import sys, time
from runtime.__main__ import main
from runtime.errors import BackendError
from runtime.backends import null
real = null.BackendSession._run
def run(self, runner, inputs):
    time.sleep(0.02)
    return real(self, runner, inputs)
null.BackendSession._run = run
sys.exit(main(["predict", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_nothing_is_half_written(
    number: signal.Signals, null_bundle: Path, folder: Path
) -> None:
    output = folder.parent / "o"
    words = [str(null_bundle), str(folder), "--output", str(output), "--save", "npy", "color"]
    command = [sys.executable, "-c", STOPPED, *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while len([*output.glob("[0-9]*.npy")]) < 2 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        said = process.communicate(timeout=WAIT)[1]
    arrays = {path.stem for path in output.glob("*.npy")}
    assert 2 <= len(arrays) < 12
    for name in arrays:
        assert np.load(output / f"{name}.npy").shape == (20 + int(name), 30)
        with Image.open(output / f"{name}.png") as image:
            image.load()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert sorted(os.listdir(output)) == sorted(
            f"{name}{ending}" for name in arrays for ending in (".npy", ".png")
        )
        done, left = map(int, re.findall(r"(\d+) (?:done|not tried)", said.splitlines()[-2]))
        assert (done, done + left) == (len(arrays), 12)  # all that is there was said
    assert predict(null_bundle, folder, "--save", "npy", "color")[0] == 0
    assert len(os.listdir(output)) == 24  # what a killed run left is swept
