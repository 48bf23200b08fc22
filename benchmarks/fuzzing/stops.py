"""`predict` killed at any moment, and with a disk that is full at any write."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from benchmarks.fuzzing.bundles import picture, write_bundle
from benchmarks.fuzzing.pool import ROOT, Outcome

PICTURES = 4
_SIZE = (240, 320)  # height, width: results large enough to be caught half written
# Ends itself before it opens a file for writing, or renames one, for the n-th time.
_SELF_KILL = """
import os, signal, sys
left = int(sys.argv.pop(1))
def hook(event, arguments):
    global left
    if event == "os.rename" or event == "open" and str(arguments[1])[:1] in ("w", "x"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from runtime.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
_LONGEST = 60.0  # seconds of a command


def killed(count: int, seed: int) -> Iterator[Outcome]:
    """`count` predictions of a folder, killed: a quarter before the n-th opening or renaming of a
    file, a quarter as soon as a file is seen half written, the others at any time.

    Each result must be whole or absent, and the next run must finish the work and leave nothing
    but results.
    """
    with _Place() as place:
        place.predict()  # reads the libraries from the disk
        start = time.perf_counter()
        status, _ = place.predict()
        took = time.perf_counter() - start
        right = place.results()
        if status or len(right) < PICTURES:
            raise RuntimeError(f"the undisturbed run ended with {status} and {sorted(right)}")
        for number in range(count):
            random = Random(f"{seed}/{number}")
            place.clear()
            if number % 4 == 1:
                step = random.randrange(2 * len(right) + 2)
                process, moment = place.start(self_kill=step), f"before step {step}"
                process.wait(_LONGEST)
            elif number % 4 == 3:
                process = place.start()
                moment = _when_writing(place.output, process, random.randrange(len(right) // 2))
            else:
                process, wait = place.start(), random.uniform(0.3 * took, took)
                moment = f"after {wait:.3f} s"
                time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            ended = process.returncode == 0
            left = place.results()
            findings = place.odd(left, right)
            partials = len([path for path in place.files() if path.name.startswith(".")])
            status, errors = place.predict()
            if status or place.results() != right:
                findings.append(f"the next run: status {status}, {errors[-300:]!r}")
            findings += [
                f"{path.name} is left after the next run"
                for path in place.files()
                if path.name.startswith(".")
            ]
            word = _where(ended, partials, len(left))
            yield _outcome(number, f"killed {moment}, {len(left)} results", word, findings)


def disk_full(count: int, seed: int) -> Iterator[Outcome]:
    """`count` predictions onto a disk that has room for more and more of the results.

    The disk is a tmpfs where one may be mounted, else a limit on the size of a file. The command
    must say what it could not write, and leave no half of a file.
    """
    with _Place() as place:
        place.predict()
        right = place.results()
        whole = sum(path.stat().st_size for path in place.files())
        largest = max(path.stat().st_size for path in place.files())
        tmpfs = _mount(place.output, whole)
        for number in range(count):
            room = round((whole * 1.1 if tmpfs else largest * 1.1) * (number + 1) / count)
            place.clear()
            if tmpfs:
                _call("mount", "-o", f"remount,size={room}", str(place.output))
                status, errors = place.predict()
            else:
                status, errors = place.predict(largest=room)
            left = place.results()
            findings = place.odd(left, right)
            findings += [f"{path.name} is left" for path in place.files() if path.name[0] == "."]
            if (status == 0) != (left == right):
                findings.append(f"status {status} with {len(left)} of {len(right)} results")
            if status not in (0, 1) or "Traceback" in errors or (status and not errors):
                findings.append(f"status {status}: {errors[-300:]!r}")
            word = "all written" if status == 0 else "refused"
            disk = "tmpfs" if tmpfs else "limit on a file"
            yield _outcome(number, f"{disk} of {room} bytes, {len(left)} results", word, findings)


STOPS: dict[str, Callable[[int, int], Iterator[Outcome]]] = {"kills": killed, "disk": disk_full}


class _Place:
    """A bundle, pictures and an output folder, all temporary."""

    def __enter__(self) -> _Place:
        self.root = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.output = self.root / "output"
        self.output.mkdir()
        self._bundle = write_bundle(self.root / "bundle", target="null")
        (self.root / "photos").mkdir()
        for number in range(PICTURES):
            image = Image.fromarray(picture(*_SIZE, seed=number))
            image.save(self.root / "photos" / f"{number}.png", compress_level=1)
        return self

    def __exit__(self, *_: object) -> None:
        if os.path.ismount(self.output):
            _call("umount", str(self.output))
        shutil.rmtree(self.root, ignore_errors=True)

    def clear(self) -> None:
        for path in self.output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start(
        self, *, largest: int | None = None, self_kill: int | None = None
    ) -> subprocess.Popen[str]:
        """The command; `largest` limits each file that it writes, in bytes. `self_kill`: it kills
        itself before this step of writing.
        """
        words = ("predict", self._bundle, self.root / "photos", "--output", self.output)
        limit = None if largest is None else partial(_limit_files, largest)
        program = ["-m", "runtime"] if self_kill is None else ["-c", _SELF_KILL, str(self_kill)]
        return subprocess.Popen(
            [sys.executable, *program, *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "LOTUS_EDGE_CACHE": str(self.output / ".cache")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )

    def predict(self, largest: int | None = None) -> tuple[int, str]:
        """The exit status, and what is on stderr."""
        process = self.start(largest=largest)
        _, errors = process.communicate(timeout=_LONGEST)
        return process.returncode, errors

    def files(self) -> list[Path]:
        """What lies in the output folder, the cache aside."""
        return [path for path in self.output.iterdir() if path.name != ".cache"]

    def results(self) -> dict[str, bytes]:
        """The files that are no hidden ones."""
        return {path.name: path.read_bytes() for path in self.files() if path.name[0] != "."}

    def odd(self, left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
        """What is wrong with these results of a run that was stopped."""
        findings = []
        for name, content in left.items():
            if content != right.get(name):
                findings.append(f"{name} has {len(content)} of {len(right.get(name, b''))} bytes")
            elif name.endswith(".npy"):
                np.load(self.output / name, allow_pickle=False)
            else:
                with Image.open(self.output / name) as image:
                    image.load()
        return findings


def _when_writing(folder: Path, process: subprocess.Popen[str], skip: int) -> str:
    """Wait for a file that is being written, `skip` files after the first."""
    seen: set[str] = set()
    while process.poll() is None:
        try:
            hidden = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".partial")]
        except OSError:
            hidden = []
        if set(hidden) - seen:
            seen |= set(hidden)
            if len(seen) > skip:
                return f"at partial file {len(seen)}"
    return "too late"


def _where(ended: bool, partials: int, results: int) -> str:
    if ended:
        return "after the end"
    if partials:
        return "while writing"
    return "between results" if results else "before the first result"


def _mount(folder: Path, size: int) -> bool:
    """Whether a tmpfs could be mounted there."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    return _call("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)) == 0


def _call(*words: str) -> int:
    return subprocess.run(words, capture_output=True, check=False).returncode


def _limit_files(largest: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def _outcome(number: int, label: str, word: str, findings: list[str]) -> Outcome:
    return Outcome(
        number=number, label=label, outcome="finding" if findings else word, findings=findings
    )
