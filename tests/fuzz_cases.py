"""Cases that do what none may, for the tests of the fuzzing harness; each has a name."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.fuzzing.kind import OUTSIDE, Damage, Kind, WrongAnswerError
from runtime.errors import DamagedBundleError, ImageError, SchemaError


def _fail(error: BaseException) -> str:
    raise error


def _hang() -> str:
    time.sleep(1000)
    return "late"


def _spin() -> str:
    """As long as the clock says; a busy machine must not decide a test."""
    before = time.process_time()
    time.process_time = lambda: before + 100  # type: ignore[assignment]
    return "late"


def _allocate() -> str:
    return f"{len(b'x' * (200 << 20))}"


def _natively(path: Path) -> str:
    """What a library in C opens, Python does not hear."""
    return f"{ctypes.CDLL(None).open(os.fsencode(path), os.O_RDONLY)}"


def _start_thread() -> str:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    return "early"


def _filter() -> str:
    warnings.simplefilter("ignore")
    return "quiet"


def _warn() -> str:
    warnings.warn("from a library", RuntimeWarning, stacklevel=2)
    return "warned"


CASES: dict[str, tuple[Callable[[Path], str], str]] = {
    "answers": (lambda _: "right", ""),
    "refuses": (lambda _: _fail(ImageError("no picture")), ""),
    "reads its own": (lambda folder: (folder / "input").read_text(), ""),
    "writes its cache": (lambda folder: str((folder / "cache" / "x").write_text("x")), ""),
    "our line": (lambda _: str(os.write(2, b"lotus-edge: a word\n")), ""),
    "foreign": (lambda _: _fail(RuntimeError("from a library")), "foreign: RuntimeError"),
    "out of memory": (lambda _: _fail(MemoryError()), "foreign: MemoryError"),
    "exit": (lambda _: sys.exit(3), "foreign: SystemExit"),
    "wrong map": (lambda _: _fail(WrongAnswerError("0.17 off")), "wrong answer: 0.17 off"),
    "must be refused": (lambda _: "right", "DamagedBundleError expected"),
    "must be refused otherwise": (lambda _: _fail(SchemaError("x")), "instead of Damaged"),
    "surrogate": (lambda _: _fail(SchemaError("\ud800")), "cannot be printed"),
    "crash": (lambda _: str(os.kill(os.getpid(), signal.SIGSEGV)), "ended by SIGSEGV"),
    "hang": (lambda _: _hang(), "no end after"),
    "slow": (lambda _: _spin(), "100 s of CPU time"),
    "large": (lambda _: _allocate(), "MB of memory"),
    "larger": (lambda _: str(len(bytearray(8 << 30))), "foreign: MemoryError"),
    "reads": (lambda _: Path("/etc/passwd").read_text(), "read /etc/passwd"),
    "lists": (lambda _: str(os.listdir("/etc")), "os.listdir /etc"),
    "writes": (lambda folder: str((folder / "input").write_text("x")), "write "),
    "removes": (lambda folder: str((folder / "input").unlink()), "os.remove "),
    "outside": (lambda folder: _natively(folder.parent / OUTSIDE / "x"), "outside the bundle: x"),
    "starts": (lambda _: str(subprocess.run(["true"], check=False)), "subprocess.Popen"),
    "connects": (lambda _: str(socket.socket()), "socket.__new__"),
    "unpickles": (lambda _: str(pickle.loads(pickle.dumps(Path))), "pickle.find_class"),
    "prints": (lambda _: str(os.write(1, b"libtiff: a word\n")), "on stderr: libtiff"),
    "warns": (lambda _: _warn(), "warning: RuntimeWarning"),
    "filters": (lambda _: _filter(), "filters of warnings"),
    "thread": (lambda _: _start_thread(), "a thread was left"),
}


class Misbehaving(Kind):
    """Case number N is the N-th of CASES."""

    name = "misbehaving"
    seconds = 0.5
    megabytes = 100

    def prepare(self, folder: Path) -> None:
        (folder / OUTSIDE).mkdir()
        (folder / OUTSIDE / "x").write_text("x")

    def damage(self, random: Random, folder: Path) -> Damage:
        (folder / "input").write_text("right")
        (folder / "cache").mkdir()
        name = list(CASES)[int(folder.name)]
        return Damage(
            label=name, must=DamagedBundleError if name.startswith("must be refused") else None
        )

    def run(self, folder: Path) -> str:
        return list(CASES.values())[int(folder.name)][0](folder)


class Broken(Kind):
    """Cannot even make its undamaged inputs."""

    name = "broken"

    def prepare(self, folder: Path) -> None:
        raise LookupError("no inputs")

    def damage(self, random: Random, folder: Path) -> Damage:
        raise NotImplementedError

    def run(self, folder: Path) -> str:
        raise NotImplementedError
