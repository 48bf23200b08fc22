"""Kill builds at random moments, and check what is left.

    python -m benchmarks.kill_build

Half of the kills come at a random second. The others are aimed: at a file operation (open, rename,
remove, link, sync) on the bundle or beside it, just before it or within 0.3 s after, and half
of these with renames in place of an exchange. Whatever the moment, there must be no bundle, the old
one, or the new one that verifies; and the next build must leave nothing else. Nine in ten
builds copy the graphs that tracing would write again, which takes most of the time. Unix only.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import parse_arguments, write_rows
from export.bundle import replace
from export.bundle.replace import clear_up
from export.bundle.write import staged
from runtime import LotusEngine
from runtime.manifest import MANIFEST, Manifest

_EVENTS = {
    *("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod"),
    *("shutil.rmtree", "os.fsync", "ctypes.dlsym"),
}
_DELAYS = 0.001, 0.3  # seconds after an operation; the golden runs for about as long
_KILLED = -signal.SIGKILL


@dataclass(frozen=True, kw_only=True)
class Aim:
    """When a build is killed: `seconds` after its start, or `delay` seconds after its file
    operation number `operation`. `exchange` is False where the system cannot exchange paths.
    `traces`: whether the graphs are traced, which takes most of a build's time; else copied.
    """

    traces: bool = True
    seconds: float | None = None
    operation: int | None = None
    delay: float = 0.0
    exchange: bool = True

    @property
    def label(self) -> str:
        """The row of the table it belongs to."""
        if self.operation is None:
            return "at a random moment"
        moment = "before a file operation" if self.delay == 0 else "within 0.3 s after one"
        return moment if self.exchange else f"{moment}, where folders cannot be exchanged"


def watch_operations(folder: Path, act: Callable[[int, str], None]) -> None:
    """From now on call `act(number, event)` before each file operation of this process below
    `folder`. Cannot be undone: for a process that ends with it.
    """
    sync, number = os.fsync, 0

    def announced(descriptor: int) -> None:
        sys.audit("os.fsync", descriptor)
        sync(descriptor)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if event not in _EVENTS or not _concerns(event, arguments, str(folder)):
            return
        number += 1
        act(number - 1, event)

    os.fsync = announced
    sys.addaudithook(hook)


def _concerns(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    if event == "ctypes.dlsym":  # just before the exchange
        return "renameat2" in arguments
    paths = [str(a) for a in arguments if isinstance(a, str | os.PathLike)]
    return event == "os.fsync" or any(path.startswith(folder) for path in paths)


def in_child(work: Callable[[], None], *, kill_after: float | None = None) -> int:
    """Run `work` in a child and return its exit status, negative for a signal.

    `kill_after`: kill it after so many seconds.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_killed(build: Callable[[], None], folder: Path, aim: Aim) -> int:
    """Run `build`, which writes below `folder`, in a child that is killed as `aim` says."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def act(number: int, event: str) -> None:
        if number == aim.operation and aim.delay == 0:
            kill()
        elif number == aim.operation:
            threading.Timer(aim.delay, kill).start()

    def work() -> None:
        if not aim.exchange:
            replace.exchange = lambda first, second: False  # type: ignore[assignment]
        if aim.operation is not None:
            watch_operations(folder, act)
        build()

    return in_child(work, kill_after=aim.seconds)


def count_operations(build: Callable[[], None], folder: Path) -> int:
    """How many file operations below `folder` a build has; it is run for that, in a child."""
    listing = folder.with_name(f"{folder.name}.operations")

    def work() -> None:
        seen: list[str] = []
        watch_operations(folder, lambda number, event: seen.append(event))
        build()
        listing.write_text("\n".join(seen))

    if in_child(work) != 0:
        raise SystemExit("the build fails without being killed")
    count = len(listing.read_text().splitlines())
    listing.unlink()
    return count


def state(output: Path, verify: Callable[[Path], None]) -> str:
    """ "absent", or the command in the manifest of the bundle at `output`, verified.

    Raises: LotusError where something else lies there.
    """
    if not output.exists():
        return "absent"
    verify(output)
    return Manifest.load(output).command


def next_build(output: Path, old: Path) -> list[str]:
    """Put the old bundle at `output` as the next build would; what lies beside it then."""
    with staged(output, overwrite=True) as stage:
        for path in old.iterdir():
            shutil.copy(path, stage / path.name)
    return sorted(set(os.listdir(output.parent)) - {output.name})


def build_tiny(output: Path, command: str, *, graphs: Path | None = None) -> None:
    """Build a toy network, with this command in its manifest; an old bundle is replaced.

    `graphs`: a bundle whose graphs are copied, where tracing would write the same ones.
    """
    from export import pipeline
    from export.settings import BuildSettings

    def copy_graphs(network: object, plan: object, stage: Path, ranges: object) -> None:
        for path in graphs.glob("model*") if graphs else ():
            shutil.copyfile(path, stage / path.name)

    if graphs is not None:
        pipeline.write_graphs = copy_graphs
    pipeline.build(
        BuildSettings(
            checkpoint="tiny/disparity-d",
            resolutions=((64, 64),),
            output=output,
            overwrite=True,
            command=command,
        )
    )


def _verify(output: Path) -> None:
    """In a child: what forks must have no threads."""

    def work() -> None:
        with LotusEngine(output) as engine:
            engine.verify()

    if in_child(work) != 0:
        raise RuntimeError(f"{output} lies there and does not verify")


def _aims(count: int, seconds: tuple[float, float], operations: int, seed: int) -> Iterator[Aim]:
    """`seconds` that a build takes, with graphs traced and copied."""
    draw = random.Random(seed)
    for number in range(count):
        traces = number % 10 == 9
        if number % 2:
            yield Aim(seconds=draw.uniform(0, seconds[not traces]), traces=traces)
        else:
            delay = draw.choice((0.0, math.exp(draw.uniform(*map(math.log, _DELAYS)))))
            operation = draw.randrange(operations)
            exchange = draw.random() < 0.5
            yield Aim(operation=operation, delay=delay, exchange=exchange, traces=False)


class Range:
    """A folder in which builds are killed, and what came of it."""

    def __init__(self, scratch: Path) -> None:
        self._folder = scratch / "engines"
        self._output, self._old = self._folder / "bundle", scratch / "old"
        self.table: dict[str, Counter[str]] = {}  # outcomes by moment
        self.faults: list[str] = []

    def _build(self, command: str, *, traces: bool) -> None:
        build_tiny(self._output, command, graphs=None if traces else self._old)

    def set_up(self) -> tuple[tuple[float, float], int]:
        """Build the old bundle. The seconds that a build takes, traced and copied, and its file
        operations.
        """
        times = [time.monotonic()]
        if in_child(lambda: self._build("old", traces=True)) != 0:
            raise SystemExit("the build fails without being killed")
        times.append(time.monotonic())
        shutil.copytree(self._output, self._old)
        again = count_operations(lambda: self._build("old", traces=False), self._folder)
        times.append(time.monotonic())
        next_build(self._output, self._old)
        return (times[1] - times[0], times[2] - times[1]), again

    def shoot(self, aim: Aim, before: str) -> str:
        """Kill one build over the old bundle, or over none; a line that says what is left."""
        if before == "absent":
            shutil.rmtree(self._output)
        build = functools.partial(self._build, "new", traces=aim.traces)
        status = run_killed(build, self._folder, aim)
        if not aim.exchange:  # between two renames there is none: the next build brings it back
            in_child(functools.partial(clear_up, self._output))
        known = len(self.faults)
        try:
            found = state(self._output, _verify)
            if found not in (before, "new"):
                self.faults.append(f"{aim}: {before} became {found}")
        except Exception as error:
            found = "broken"
            self.faults.append(f"{aim}: {error}")
        in_child(functools.partial(next_build, self._output, self._old))
        left = sorted(set(os.listdir(self._folder)) - {self._output.name})
        same = (self._output / MANIFEST).read_bytes() == (self._old / MANIFEST).read_bytes()
        if left or not same:
            self.faults.append(f"{aim}: the next build leaves {left}")
        moment = aim.label if status == _KILLED else "not killed, done before"
        outcome = "new" if found == "new" else "as_before"
        counts = self.table.setdefault(moment, Counter(as_before=0, new=0, faults=0))
        counts["faults" if len(self.faults) > known else outcome] += 1
        return f"{moment}: {before} -> {found}"


def main(argv: list[str] | None = None) -> int:
    """Run the command. Exit status: 0 where each kill left what it may, else 1."""
    parser = argparse.ArgumentParser(prog="kill_build", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parse_arguments(parser, argv)
    import export.pipeline  # noqa: F401  # once, for all children

    with tempfile.TemporaryDirectory() as scratch:
        shots = Range(Path(scratch))
        seconds, operations = shots.set_up()
        print(f"a build takes {seconds[0]:.1f} s, with copied graphs {seconds[1]:.1f} s; it has")
        print(f"{operations} file operations", flush=True)
        aims = _aims(arguments.count, seconds, operations, arguments.seed)
        for number, aim in enumerate(aims):
            line = shots.shoot(aim, "old" if number % 4 < 2 else "absent")
            print(f"{number + 1}/{arguments.count} {line}", flush=True)
    rows = [{"moment": moment, **counts} for moment, counts in sorted(shots.table.items())]
    print(*rows, *shots.faults, f"{len(shots.faults)} faults", sep="\n")
    print(f"rows: {write_rows('kills', rows, dirty=arguments.dirty).name}")
    return 1 if shots.faults else 0


if __name__ == "__main__":
    sys.exit(main())
