"""Killed at any moment, full disk, two builds at once: a whole bundle, old or new, or none."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, write_null_bundle

from benchmarks.kill_build import Aim, count_operations, in_child, next_build, run_killed, state
from export.bundle import replace
from export.bundle.replace import clear_up, exchange
from export.bundle.write import staged
from export.errors import BuildError
from export.progress import Progress
from runtime import LotusEngine
from runtime.manifest import Manifest


def build(output: Path, command: str = "new") -> None:
    with staged(output, overwrite=True) as stage:
        write_null_bundle(stage, command=command)


def verify(output: Path) -> None:
    with LotusEngine(output) as engine:
        engine.verify()


@pytest.mark.parametrize("before", ["old", "absent"])
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_before_any_file_operation_leaves_a_whole_bundle(
    before: str, exchanges: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "engines"
    output, old = folder / "bundle", tmp_path / "old"
    write_null_bundle(old, command="old")

    def prepare() -> None:
        assert next_build(output, old) == [], "nothing is left beside it"
        if before == "absent":
            shutil.rmtree(output)

    prepare()
    outcomes = []
    operations = count_operations(lambda: build(output), folder)
    assert operations > 20
    for operation in range(operations):
        prepare()
        aim = Aim(operation=operation, exchange=exchanges)
        assert run_killed(lambda: build(output), folder, aim) == -signal.SIGKILL
        found = state(output, verify)
        outcomes.append(found)
        clear_up(output)
        after = state(output, verify)
        assert after in ("new", before), operation
        assert after == found or not exchanges, "no moment without a bundle"
    assert {before, "new"} <= set(outcomes)
    assert ("absent" in outcomes) == (before == "absent" or not exchanges)


def test_what_lives_is_not_swept_and_what_is_dead_is(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with staged(output, overwrite=True) as living:
        write_null_bundle(living, command="slow")
        in_child(lambda: build(output, "fast"))
        assert living.is_dir()
        assert state(output, verify) == "fast"
        aim = Aim(operation=10)
        assert run_killed(lambda: build(output), tmp_path, aim) == -signal.SIGKILL
        assert len(list(tmp_path.glob(".bundle.partial-*"))) == 2
        clear_up(output)
        assert list(tmp_path.glob(".bundle.partial-*")) == [living]
    assert state(output, verify) == "slow", "the last one wins, whole"
    assert os.listdir(tmp_path) == ["bundle"]


def test_folders_of_other_machines_are_named_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, other = tmp_path / "bundle", tmp_path / "boot"
    other.write_text("00000000-1111-2222-3333-444444444444\n")
    with monkeypatch.context() as patch:
        patch.setattr(replace, "_BOOT_ID", other)
        assert run_killed(lambda: build(output), tmp_path, Aim(operation=10)) == -signal.SIGKILL
    (foreign,) = tmp_path.glob(".bundle.partial-*")
    neighbour = tmp_path / ".bundle.partial-2.partial-x"  # of a bundle called `bundle.partial-2`
    neighbour.mkdir()
    stream = io.StringIO()
    with Progress(stream):
        build(output)
    assert foreign.is_dir()
    assert neighbour.is_dir()
    assert f"{foreign} was left by a build on another machine" in stream.getvalue()
    with monkeypatch.context() as patch:  # a system that has no such number
        patch.setattr(replace, "_BOOT_ID", tmp_path / "none")
        assert run_killed(lambda: build(output), tmp_path, Aim(operation=10)) == -signal.SIGKILL
        left = set(tmp_path.glob(".bundle.partial-*"))
        build(output, "again")
        assert set(tmp_path.glob(".bundle.partial-*")) == left
    assert state(output, verify) == "again"


def test_without_locks_nothing_is_swept_and_builds_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    assert run_killed(lambda: build(output), tmp_path, Aim(operation=10)) == -signal.SIGKILL
    left = list(tmp_path.glob(".bundle.partial-*"))
    monkeypatch.setattr(replace, "_lock", lambda folder, *, wait: None)
    build(output)
    assert list(tmp_path.glob(".bundle.partial-*")) == left


_BUILDS = """
import os, sys
from pathlib import Path
from export.bundle import replace
from test_export_kill import build
if sys.argv[2] == "False":
    replace.exchange = lambda first, second: False
for number in range(10):
    build(Path(sys.argv[1]), f"{os.getpid()}-{number}")
"""


@pytest.mark.parametrize("exchanges", [True, False])
def test_many_builds_at_once_leave_one_whole_bundle(exchanges: bool, tmp_path: Path) -> None:
    """Processes of their own: a fork beside other threads may wait for a lock of theirs."""
    output = tmp_path / "bundle"
    build(output, "first")
    command = [sys.executable, "-c", _BUILDS, str(output), str(exchanges)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    builds = [subprocess.Popen(command, env=env) for _ in range(4)]
    while any(each.poll() is None for each in builds):
        if exchanges:  # there is never a moment without a whole manifest
            Manifest.load(output)
    assert [each.returncode for each in builds] == [0] * 4
    assert state(output, verify).endswith("-9")
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize("what", ["file", "empty folder", "own folder", "pipe", "link to a file"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_something_else_occupies_is_refused(
    what: str, overwrite: bool, tmp_path: Path
) -> None:
    place = tmp_path / "bundle"
    if what == "file":
        place.write_text("mine")
    elif what == "pipe":
        os.mkfifo(place)
    elif what == "link to a file":
        (tmp_path / "file").write_text("mine")
        place.symlink_to(tmp_path / "file")
    else:
        place.mkdir()
        if what == "own folder":
            (place / "golden.npz").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BuildError), staged(place, overwrite=overwrite):
        pytest.fail("nothing is built")
    assert sorted(tmp_path.rglob("*")) == before


def limit_file_size(limit: int) -> None:
    """Writing more fails with an OSError, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_disk_that_is_full_at_any_write_leaves_the_old_bundle(tmp_path: Path) -> None:
    output = tmp_path / "engines" / "bundle"
    write_null_bundle(tmp_path / "old", command="old")
    next_build(output, tmp_path / "old")
    largest = max(file.bytes for file in Manifest.load(output).files)

    def expect(limit: int) -> None:
        limit_file_size(limit)
        with pytest.raises(BuildError, match="cannot write the bundle"):
            build(output)

    for limit in (0, 1, 600, 1100, 1300, 2000, 5000, largest - 1):
        assert in_child(lambda limit=limit: expect(limit)) == 0, limit
        assert state(output, verify) == "old"
        assert os.listdir(output.parent) == ["bundle"]
    assert in_child(lambda: (limit_file_size(largest), build(output))) == 0
    assert state(output, verify) == "new"


def test_exchange_swaps_folders_or_changes_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    (first / "a").mkdir(parents=True)
    assert not exchange(first, second), "there is no second"
    assert (first / "a").is_dir()
    second.mkdir()
    if not exchange(first, second):
        pytest.skip("this file system cannot")
    assert not (first / "a").exists()
    assert (second / "a").is_dir()


def test_everything_is_on_the_disk_before_the_old_bundle_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the exchange must not leave an empty manifest."""
    output = tmp_path / "bundle"
    build(output, "old")
    done: list[str] = []
    sync, swap = os.fsync, replace.exchange

    def record(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        sync(descriptor)

    def recorded_exchange(first: Path, second: Path) -> bool:
        done.append("exchange")
        return swap(first, second)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(replace, "exchange", recorded_exchange)
    build(output)
    stage = next(name for name in done if name.startswith(".bundle.partial-"))
    assert set(done[: done.index("exchange")]) == {
        *("manifest.json", "golden.npz", "model-64x96.onnx", stage)
    }
    assert done[-1] == tmp_path.name
