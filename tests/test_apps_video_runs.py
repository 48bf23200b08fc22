"""Runs of `lotus-edge video`: killed and resumed, its stages, its memory, and the preview."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_null_bundle
from films import pictures, write_film

from apps.__main__ import main
from apps.video.preview import Preview
from apps.video.stages import run_stages
from apps.video.work import Work
from runtime.errors import LotusError, OutputError

pytest.importorskip("av", reason="extra `video`")
HEIGHT, WIDTH = 64, 96  # of the null bundle's bucket


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Disparity and normals."""
    return write_null_bundle(tmp_path_factory.mktemp("bundle") / "b", task=("disparity", "normal"))


def run(bundle: Path, given: object, output: Path, *options: object) -> int:
    return main(["video", str(bundle), str(given), "--output", str(output), *map(str, options)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", ("--form", "beside", "--steady", "causal")),
        ("a.mp4", ("--form", "beside", "--steady", "clip")),
        # Lossless: what H.264 rounds away would hide where smoothing begins anew.
        ("a.mkv", ("--form", "deep", "--steady", "causal", "--smooth")),
        ("a.mkv", ("--form", "deep", "--steady", "clip", "--smooth")),
    ],
)
def test_killed_and_resumed_is_the_same(
    name: str, options: tuple[str, ...], bundle: Path, tmp_path: Path
) -> None:
    """Killed soon after the first chunk, and in the pass that writes the film."""
    if "--smooth" in options:
        pytest.importorskip("cv2", reason="extra `flow`")
    frames = pictures(150, HEIGHT, WIDTH)
    frames += np.random.default_rng(0).integers(0, 16, frames.shape, np.uint8)  # to be smoothed
    path = write_film(tmp_path / "film.mkv", frames, sound=True, options={"qp": "0"})
    whole, killed = tmp_path / f"whole-{name}", tmp_path / f"killed-{name}"
    assert run(bundle, path, whole, *options) == 0
    command = [sys.executable, "-m", "apps", "video", str(bundle), str(path), "--output"]
    command += [str(killed), *options, "--resume"]
    work = tmp_path / f".{killed.name}.lotus-video"
    for pattern, chunks in (("*-??????.npz", 1), ("done-??????.npz", 3)):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(work.glob(pattern))) < chunks:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not killed.exists()
    assert run(bundle, path, killed, *options) == 1  # an unfinished run lies there
    assert run(bundle, path, killed, *options, "--resume", "--max-size", 50) == 1  # of another job
    if "--smooth" in options:
        assert run(bundle, path, killed, *options[:-1], "--resume") == 1
    assert run(bundle, path, killed, *options, "--resume") == 0
    assert killed.read_bytes() == whole.read_bytes()
    told, expected = (
        json.loads((tmp_path / f"{film.name}.json").read_text()) for film in (killed, whole)
    )
    assert told == expected
    assert not work.exists()


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Work(folder, {"a": 1}, resume=False, anew=False)
    for name in (".done-000000.npz.partial", "000000.partial"):
        (folder / name).touch()
    Work(folder, {"a": 1}, resume=True, anew=False)
    assert [path.name for path in folder.iterdir()] == ["job.json"]


def test_what_a_stage_raises_ends_all() -> None:
    def endless():
        while True:
            yield 1

    def fails(item: int) -> None:
        raise OutputError("full")

    for read, work, write in (
        (endless(), lambda item: item, fails),
        (endless(), fails, lambda item: None),
        ((fails(each) for each in range(3)), lambda item: item, lambda item: None),
    ):
        before = threading.active_count()
        with pytest.raises(LotusError, match="full"):
            run_stages(read, work, write)
        assert threading.active_count() == before


def test_a_camera_drops_old_frames_and_a_file_none() -> None:
    written: list[int] = []

    def slow(item: int) -> int:
        time.sleep(0.002)
        return item

    assert run_stages(range(100), slow, written.append) == 0
    assert written == list(range(100))
    written.clear()
    dropped = run_stages(range(100), slow, written.append, newest=True)
    assert dropped == 100 - len(written) > 0
    assert written[-1] == 99
    assert written == sorted(written)


def test_the_preview_shows_frames_to_this_machine_alone() -> None:
    rgb = np.zeros((32, 48, 3), np.uint8)
    with Preview(0) as preview:
        assert preview.url.startswith("http://127.0.0.1:")
        page = urllib.request.urlopen(preview.url).read()
        assert b"/stream" in page
        preview.show(rgb)
        with urllib.request.urlopen(preview.url + "stream") as stream:
            assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
            assert stream.readline() == b"--frame\r\n"
            stream.readline()
            size = int(stream.readline().split()[1])
            stream.readline()
            assert stream.read(size)[:2] == b"\xff\xd8"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(preview.url + "etc")
        other = urllib.request.Request(preview.url, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(other)
        many = [urllib.request.urlopen(preview.url + "stream") for _ in range(7)]
        with pytest.raises(urllib.error.HTTPError, match="503"):
            for _ in range(3):
                many.append(urllib.request.urlopen(preview.url + "stream"))
        with pytest.raises(OutputError, match="on port"):
            Preview(int(preview.url.rsplit(":", 1)[1].strip("/")))
        for each in many:
            each.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
def test_memory_does_not_grow(bundle: Path, tmp_path: Path) -> None:
    """Of what a process holds at its peak, a film of four times the length takes hardly more."""
    peaks = []
    for count in (100, 400):
        path = write_film(tmp_path / f"{count}.mkv", pictures(count, HEIGHT, WIDTH))
        code = (
            "from apps.__main__ import main; "
            f"main(['video', {str(bundle)!r}, {str(path)!r}, '--output', {str(path)!r} + '.mp4']); "
            # Not ru_maxrss: a child begins with that of the process that forked it.
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        )
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 30_000  # kB
