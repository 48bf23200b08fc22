"""Work goes on without a listener, and the exit status is that of the work."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from runtime import console

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
COMMAND = f"{sys.executable} -m runtime"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash; its status is that of the first part of a pipe."""
    return subprocess.run(
        ["bash", "-c", f"{line}\nexit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def six(tmp_path: Path) -> Path:
    folder = tmp_path / "six"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(np.full((8, 9, 3), number, np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    "streams",
    [
        "2>&1 | head -1",
        "2>&1 | true",
        "2> >(true)",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        pytest.param("2>/dev/full", marks=FULL),
        pytest.param(">/dev/full 2>&1", marks=FULL),
    ],
)
def test_six_are_done_whoever_listens(
    streams: str, six: Path, null_bundle: Path, tmp_path: Path
) -> None:
    done = shell(f"{COMMAND} predict {null_bundle} {six} --output {tmp_path / 'o'} {streams}")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "o").glob("*.npy"))) == 6
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == streams.endswith("head -1")


@pytest.mark.parametrize("streams", ["2>&1 | true", ">&- 2>&-"])
def test_a_failure_counts_though_nobody_listens(
    streams: str, six: Path, null_bundle: Path, tmp_path: Path
) -> None:
    (six / "3.png").write_text("no picture")
    line = f"{COMMAND} predict {null_bundle} {six} --output {tmp_path / 'o'} {streams}"
    assert shell(line).returncode == 1
    assert len(list((tmp_path / "o").glob("*.npy"))) == 5


def test_with_stderr_closed_no_result_takes_its_number(
    six: Path, null_bundle: Path, tmp_path: Path
) -> None:
    """A library that writes to file 2 would write into a result."""
    code = f"""
import os, sys
from runtime.__main__ import main
from runtime import saving
real = saving.write_together
def write(contents, check):
    def chatter():
        os.write(2, b"chatter of a library")
        check()
    real(contents, chatter)
saving.write_together = write
sys.exit(main(["predict", {str(null_bundle)!r}, {str(six)!r}, "--output", {str(tmp_path / "o")!r}]))
"""
    done = shell(f"{sys.executable} -c '{code.replace(chr(39), chr(34))}' <&- >&- 2>&-")
    assert done.returncode == 0
    for path in (tmp_path / "o").glob("*.png"):
        with Image.open(path) as image:
            image.load()
    assert not any(b"chatter" in path.read_bytes() for path in (tmp_path / "o").iterdir())


NO_SPACE = "error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("words", "streams", "status", "said"),
    [
        ("info BUNDLE", "| true", 0, ""),
        ("info BUNDLE", ">&-", 0, ""),
        ("info BUNDLE", "2>&- >/dev/null", 0, ""),
        ("verify BUNDLE", "| true", 0, ""),
        pytest.param("info BUNDLE", "> /dev/full", 1, NO_SPACE, marks=FULL),
        pytest.param("info BUNDLE", "> /dev/full 2>&1", 1, "", marks=FULL),
        pytest.param("verify BUNDLE", "> /dev/full", 1, NO_SPACE, marks=FULL),
        pytest.param("predict --help", "> /dev/full", 1, NO_SPACE, marks=FULL),
    ],
)
def test_a_result_on_stdout_that_cannot_be_written_is_an_error(
    words: str, streams: str, status: int, said: str, null_bundle: Path
) -> None:
    done = shell(f"{COMMAND} {words.replace('BUNDLE', str(null_bundle))} {streams}")
    assert (done.returncode, done.stderr) == (status, said)


@pytest.mark.parametrize("streams", [">&- 2>&-", "2>&1 | true"])
def test_errors_keep_their_status(streams: str, tmp_path: Path) -> None:
    assert shell(f"{COMMAND} verify {tmp_path} {streams}").returncode == 1
    assert shell(f"{COMMAND} nonsense {streams}").returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16"])
def test_a_console_without_the_letters_shows_escapes(
    encoding: str, null_bundle: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "caf\u00e9 \u65e5 \U0001f600.png"
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(photo)
    command = [sys.executable, "-m", "runtime", "predict", null_bundle, photo, tmp_path / "no.png"]
    done = subprocess.run(
        [*map(str, command), "--output", str(tmp_path / "o")],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    shown = done.stderr.decode(encoding)
    assert shown.splitlines()[-1] == "1 done, 1 failed"
    assert (tmp_path / "o" / photo.with_suffix(".npy").name).is_file()
    for letter in photo.name:
        escaped = letter.encode(encoding, "backslashreplace").decode(encoding)
        assert escaped in shown


def test_interrupted_is_counted_and_has_its_status(
    six: Path, null_bundle: Path, tmp_path: Path
) -> None:
    code = f"""
import sys, time
from runtime import LotusEngine
from runtime.__main__ import main
LotusEngine.run = lambda *words: time.sleep(60)
sys.exit(main(["predict", {str(null_bundle)!r}, {str(six)!r}, "--output", {str(tmp_path / "o")!r}]))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "o").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        shown = process.communicate()[1]
    assert process.returncode == 130
    assert shown == "0 done, 6 not tried\ninterrupted\n"


def test_streams_that_are_no_files_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, or where there is no console at all."""
    memory = io.StringIO()
    for stream in (None, memory):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        console.prepare()
        console.say("progress")
        console.show("result")
        console.release()
        if stream is None:
            sys.stdout.close()
            sys.stderr.close()
    assert memory.getvalue() == "progress\nresult\n"
    memory.close()
    console.say("nobody hears this")
    console.release()


@FULL
def test_the_library_leaves_a_broken_stderr_to_its_program() -> None:
    """A notice of the library once led all of the process's stderr away."""
    code = (
        "import os; from runtime import console; before = os.fstat(2); console.say('notice'); "
        "print(os.path.samestat(before, os.fstat(2)))"
    )
    done = shell(f'{sys.executable} -c "{code}" 2>/dev/full')
    assert (done.returncode, done.stdout) == (0, "True\n")
