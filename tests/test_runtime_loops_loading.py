"""When the compiled loops are loaded, and what is done where they cannot be."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, picture
from PIL import Image

from runtime import __main__ as command
from runtime import loops
from runtime.loops import Loops

pytest.importorskip("numba")

WAIT = """
import sys
from runtime import loops
found = [loops.ready(2**27) is not None for _ in range(3)]
for thread in __import__("threading").enumerate():
    if thread.name == "lotus-loops":
        found.append("thread")
        thread.join()
print(*found, loops.ready(1) is not None, loops.load() is not None)
"""


def child(code: str, errors: str = "", **environment: str) -> str:
    plain = {name: text for name, text in os.environ.items() if name != loops.OFF}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=plain | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert errors in done.stderr
    assert errors or not done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("count", "begins"), [(32, False), (33, True)])
def test_predict_begins_where_many_photos_come(
    count: int, begins: bool, null_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1920x1080; smaller ones would have to be more. The first says how large they are."""
    Image.new("RGB", (1920, 1080)).save(tmp_path / "00.jpg")
    for number in range(1, count):
        picture(tmp_path / f"{number:02}.png")
    begun: list[int] = []
    monkeypatch.setattr(loops._state, "after", lambda pixels: begun.append(pixels))
    words = ["predict", str(null_bundle), str(tmp_path), "--output", str(tmp_path / "out")]
    assert command.main(words) == 0
    assert any(pixels >= loops.ENOUGH for pixels in begun) == begins


def test_a_process_loads_them_when_it_has_done_enough() -> None:
    assert child(WAIT) == "False False False thread True True"


@pytest.mark.parametrize(
    ("hide", "environment"),
    [
        ("", {loops.OFF: "0"}),
        ("import sys; sys.modules['numba'] = None", {}),
        ("", {"NUMBA_DISABLE_JIT": "1"}),
    ],
)
def test_where_there_are_none_the_plain_ways_stay(hide: str, environment: dict[str, str]) -> None:
    assert child(hide + WAIT, **environment).endswith("False False")


def test_they_are_compiled_anew_where_nothing_can_be_kept() -> None:
    """Where none of Numba's folders can be written it refuses to keep a function at all."""
    nowhere = {
        "NUMBA_CACHE_DIR": "/proc/nowhere",
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
    }
    assert child(WAIT, **nowhere).endswith("True True")


def test_it_is_said_why_there_are_none() -> None:
    hide = "import sys; sys.modules['numba'] = None" + WAIT
    assert child(hide, "without compiled loops: ModuleNotFoundError", LOTUS_EDGE_DEBUG="1")


@pytest.mark.parametrize("suffix", ["nbc", "nbi"])
def test_what_numba_kept_and_was_damaged_is_made_anew(suffix: str, tmp_path: Path) -> None:
    folder = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert child(WAIT, **folder).endswith("True True")
    kept = [*tmp_path.rglob(f"*.{suffix}")]
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    assert child(WAIT, **folder).endswith("True True")


def test_without_a_thread_the_plain_ways_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no)
    state = loops._State()
    assert [state.after(2**27) for _ in range(4)] == [None] * 4


FORK = """
import os, sys
from runtime import loops
with loops._state._counting, loops._state._loading:
    loops._state._tried = True
    child = os.fork()
    if child == 0:
        found = loops.ready(1), loops.load() is not None
        os._exit(0 if found == (None, True) else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_a_process_that_was_loading_them_loads_its_own() -> None:
    assert child(FORK) == "0"


def test_who_comes_while_they_are_loaded_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling: list[int] = []

    def slow() -> Loops:
        compiling.append(1)
        time.sleep(0.2)
        return Loops(**dict.fromkeys((each.name for each in dataclasses.fields(Loops)), print))

    monkeypatch.delenv(loops.OFF)
    monkeypatch.setattr(loops, "_compiled", slow)
    monkeypatch.setattr(loops, "_proved", lambda found: found)
    state = loops._State()
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: state.load(), range(4))]
    assert compiling == [1]
    assert found == [state._loops] * 4


def test_a_program_ends_though_they_are_not_loaded_yet(tmp_path: Path) -> None:
    code = "from runtime import loops; loops.ready(2**30); print('done')"
    assert child(code, NUMBA_CACHE_DIR=str(tmp_path)) == "done"
    assert len(list(tmp_path.rglob("*.nbi"))) < len(dataclasses.fields(Loops))
