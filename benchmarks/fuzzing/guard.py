"""What a case did beside its answer: files, processes, connections, words, warnings, memory.

Python's audit hook sees what Python code opens; the system's own watch (inotify, Linux) sees
whoever opens a file in a watched folder. POSIX only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import site
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import LotusError

ROOT = Path(__file__).resolve().parents[2]
ON_STDERR = "on stderr: "
"""How the note of a library's word begins."""
_OURS = "lotus-edge: "  # how a line begins that we write on stderr
_LIBRARIES = (sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages(), str(ROOT))
_DEVICES = (
    *("/dev/null", "/dev/urandom", "/sys", "/etc/machine-id"),
    *("/proc/cpuinfo", "/proc/self", "/proc/meminfo"),
)
_STARTS = (
    *("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork"),
    *("os.forkpty", "pty.spawn", "os.startfile", "pickle.find_class"),
    *("socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"),
)
_CHANGES = (
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.copyfile", "shutil.move"),
)
_LISTS = ("os.listdir", "os.scandir", "glob.glob")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OPENED = 0x20  # IN_OPEN
_PATIENCE = 1.0  # seconds, with threads that are ending


class Guard:
    """Notes what happens while a case runs. Make one for each process, and call `close` never."""

    def __init__(self, *, address_space: int) -> None:
        """`address_space` in GB limits the process from now on."""
        resource.setrlimit(resource.RLIMIT_AS, (address_space << 30, address_space << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.found: list[str] = []
        self._readable: tuple[str, ...] = ()
        self._writable: tuple[str, ...] = ()
        self._thread = 0
        self._armed = False
        self._watch = _Watch()
        self._words = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (as long as the process)
        for number in (1, 2):
            os.dup2(self._words.fileno(), number)
        sys.addaudithook(self._hear)

    def watch(self, folder: Path) -> None:
        """Whoever opens a file in this folder during a case is noted."""
        self._watch.add(folder)

    @contextlib.contextmanager
    def armed(self, readable: Sequence[Path], writable: Sequence[Path]) -> Iterator[None]:
        """Note into `found` what the block does beside reading and writing below these folders."""
        self.found = []
        self._readable = tuple(os.path.realpath(path) for path in (*readable, *writable))
        self._writable = tuple(os.path.realpath(path) for path in writable)
        filters, threads = list(warnings.filters), threading.active_count()
        self._watch.opened()  # before the case
        self._chatter()
        with _heard_warnings() as heard:
            self._armed = True
            try:
                yield
            finally:
                self._armed = False
        self.found += [f"warning: {text}" for text in heard]
        if list(warnings.filters) != filters:
            self.found.append("the filters of warnings were changed")
        patience = time.monotonic() + _PATIENCE
        while threading.active_count() > threads and time.monotonic() < patience:
            time.sleep(0.01)  # one that is just ending
        if threading.active_count() > threads:
            self.found.append("a thread was left behind")
        self.found += [f"opened outside the bundle: {name}" for name in self._watch.opened()]
        self.found += self._chatter()

    def _chatter(self) -> list[str]:
        """What was written on stdout and stderr, our own lines aside."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
            sys.stdout.flush()
        self._words.seek(0)
        text = self._words.read().decode(errors="replace")
        self._words.seek(0)
        self._words.truncate()
        lines = [line for line in text.splitlines() if line and not line.startswith(_OURS)]
        return [f"{ON_STDERR}{lines[0][:200]}"] if lines else []

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event == "open":
            self._hear_open(*arguments)
        elif event in _CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
                self._hear_path(event, path, self._writable)
        elif event in _LISTS:
            self._hear_path(event, arguments[0], (*self._readable, *_LIBRARIES, *_DEVICES))
        elif event in _STARTS:
            self.found.append(f"{event} {str(arguments)[:200]}")
            raise PermissionError(f"{event} is not for a case")

    def _hear_open(self, path: Any, mode: Any, flags: Any) -> None:
        writes = (isinstance(flags, int) and flags & _WRITES) or any(
            letter in str(mode or "") for letter in "wax+"
        )
        if writes:
            self._hear_path("write", path, (*self._writable, "/dev/null"))
        else:
            self._hear_path("read", path, (*self._readable, *_LIBRARIES, *_DEVICES))

    def _hear_path(self, event: str, path: Any, roots: Sequence[str]) -> None:
        if path is None or isinstance(path, int):  # the working folder; opened before
            return
        real = os.path.realpath(os.fsdecode(path))
        own = real.replace(f"/proc/{os.getpid()}", "/proc/self", 1)
        if not any(own == root or own.startswith(f"{root.rstrip('/')}/") for root in roots):
            self.found.append(f"{event} {own}")


class Memory:
    """The memory that a process takes beyond what it held at the beginning, in MB. Linux."""

    def __init__(self) -> None:
        self._before = _status("VmRSS")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """The most since then."""
        return (_status("VmHWM") - self._before) / 1024


class _Watch:
    """Opened files of folders, as the system tells; nothing where it does not."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        start = getattr(self._libc, "inotify_init1", None)
        self._number = -1 if start is None else start(os.O_NONBLOCK)

    def add(self, folder: Path) -> None:
        if self._number >= 0:
            self._libc.inotify_add_watch(self._number, os.fsencode(folder), _OPENED)

    def opened(self) -> list[str]:
        if self._number < 0:
            return []
        try:
            events = os.read(self._number, 1 << 16)
        except BlockingIOError:
            return []
        names = set()
        at = 0
        while at + 16 <= len(events):
            length = int.from_bytes(events[at + 12 : at + 16], sys.byteorder)
            names.add(events[at + 16 : at + 16 + length].rstrip(b"\0").decode(errors="replace"))
            at += 16 + length
        return sorted(names - {""})  # "" is the folder itself


@contextlib.contextmanager
def _heard_warnings() -> Iterator[list[str]]:
    """Warnings that are not of our own types, instead of on stderr."""
    heard: list[str] = []
    show = warnings.showwarning

    def hear(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if not category.__module__.startswith(LotusError.__module__.partition(".")[0]):
            heard.append(f"{category.__name__}: {str(message)[:200]}")

    warnings.showwarning = hear
    try:
        yield heard
    finally:
        warnings.showwarning = show


def _status(name: str) -> int:
    """A line of /proc/self/status in kB; 0 where there is none."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)
