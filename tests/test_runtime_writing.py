"""Files appear whole or not at all, and several of them together or none."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from runtime import writing
from runtime.errors import OutputError
from runtime.files import write_atomic
from runtime.prediction import Prediction
from runtime.writing import write_together

MAP = Prediction({"depth": np.zeros((40, 40), np.float32)})


@pytest.fixture(autouse=True)
def _swept_nowhere() -> None:
    writing._sweep.cache_clear()


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced_with_the_folders_above_it(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        assert write_atomic(tmp_path / "new" / "a", content).read_bytes() == content
    assert listed(tmp_path / "new") == ["a"]
    if os.name == "posix":  # as any other file that the user writes
        (tmp_path / "plain").touch()
        assert (tmp_path / "new" / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.fixture
def _disk_of_4_kb() -> Iterator[None]:
    """A limit on file size stands for the full disk: the write fails half-way with an OSError, as
    ENOSPC does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_disk_of_4_kb")
def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*\.npy: File too large"):
        MAP.save(tmp_path / "room")  # 6.5 kB, after PNGs of less
    assert listed(tmp_path) == []


@pytest.mark.usefixtures("_disk_of_4_kb")
def test_full_disk_leaves_the_earlier_results(tmp_path: Path) -> None:
    small = Prediction({"depth": np.zeros((4, 4), np.float32)})
    before = {path: path.read_bytes() for path in small.save(tmp_path / "room")}
    with pytest.raises(OutputError):
        MAP.save(tmp_path / "room")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("call", range(1, 4))
def test_whatever_fails_at_whichever_file_leaves_nothing(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {tmp_path / name: name.encode() for name in "abc"}
    for module, name, failure in (
        (os, "fsync", OSError(errno.EIO, "Input/output error")),
        (Path, "replace", PermissionError(errno.EACCES, "Permission denied")),
        (Path, "replace", KeyboardInterrupt()),
    ):
        calls = []
        real = getattr(module, name)

        def fail(*words: object, calls=calls, real=real, failure=failure) -> object:
            calls.append(words)
            if len(calls) == call:
                raise failure
            return real(*words)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises((OutputError, KeyboardInterrupt)):
                write_together(files)
        assert listed(tmp_path) == []


def test_a_check_that_fails_leaves_everything(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")

    def check() -> None:
        raise OutputError("no")

    with pytest.raises(OutputError, match="no"):
        write_together({tmp_path / "a": b"x", tmp_path / "b": b"x"}, check)
    assert (tmp_path / "a").read_text() == "mine"
    assert listed(tmp_path) == ["a"]


def test_a_file_system_without_fsync_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    assert write_atomic(tmp_path / "a", b"x").read_bytes() == b"x"


@pytest.mark.skipif(os.name == "nt", reason="on Windows no process is asked whether it runs")
def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from runtime.writing import write_together
write_together({{Path({str(tmp_path)!r}) / "room.png": b"x"}},
               lambda: os.kill(os.getpid(), signal.SIGKILL))
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    [leftover] = listed(tmp_path)
    assert leftover.endswith(".partial")
    pid = leftover.split("-")[2]
    others = [
        leftover.replace(f"-{pid}-", f"-{os.getpid()}-"),  # it runs
        leftover.replace(f"-{pid}-", "-1-"),
        f".lotus-{(int(writing.machine_tag(), 16) + 1) % 65536:04x}-{pid}-000000.partial",
        f".{pid}.partial",
        "holiday.partial",
    ]
    for name in others:
        (tmp_path / name).write_text("mine")
    write_atomic(tmp_path / "a", b"x")
    assert listed(tmp_path) == sorted([*others, "a"])


def test_scratch_of_a_killed_process_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import os, signal
from runtime.writing import scratch_folder
with scratch_folder() as folder:
    (folder / "picture.jpg").write_bytes(b"somebody's")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob("*.jpg")] == ["picture.jpg"]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with writing.scratch_folder() as mine:
        with writing.scratch_folder() as other:
            assert sorted(tmp_path.iterdir()) == sorted([mine, other])
        assert listed(tmp_path) == [mine.name]
    assert listed(tmp_path) == []


def test_machines_and_containers_of_one_name_sweep_nothing_of_each_other(tmp_path: Path) -> None:
    """The numbers of one's processes mean others there."""
    for name in "abc":
        for path, text in (("etc/machine-id", "1"), ("proc/self/ns/pid", "")):
            (tmp_path / name / path).parent.mkdir(parents=True)
            (tmp_path / name / path).write_text(text)
        (tmp_path / f"host-{name}/etc").mkdir(parents=True)
        (tmp_path / f"host-{name}/etc/machine-id").write_text(name)
    # Of three not all are equal: two tags of 16 bits may be, by chance.
    assert len({writing.machine_tag(tmp_path / name) for name in "abc"}) > 1
    assert len({writing.machine_tag(tmp_path / f"host-{name}") for name in "abc"}) > 1
