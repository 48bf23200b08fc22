"""The device's own times of a session of the TensorRT backend, by CUDA events.

Never run on a GPU so far: tests run it against a fake CUDA.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks.on_device.repeats import repeat
from export.graph.stages import STAGES
from runtime.backends.session import Arrays
from runtime.backends.tensorrt import BackendSession
from runtime.errors import LotusError

_STAGE = re.compile(rf"\b({'|'.join(STAGES)})/")
OTHER = "other"
SEVERAL = "several stages"
_PLAIN = 7  # runs of which the first do not count, which load and initialise: so many
_COLD = 2


class Evented:
    """Stands before a `Cuda` and records an event before and after each copy and each launch of a
    graph, outside captures. One thread at a time; `times` after each synchronised run.
    """

    def __init__(self, cuda: Any) -> None:
        self.module = cuda.module
        self._cuda = cuda
        self._capturing = False
        self._marks: list[tuple[str, Any, Any]] = []
        self._events: list[Any] = []
        self._used = 0

    def __call__(self, name: str, *arguments: Any) -> Any:
        if name == "cudaStreamBeginCapture":
            self._capturing = True
        kind = None if self._capturing else self._kind(name, arguments)
        if kind is None:
            value = self._cuda(name, *arguments)
            self._capturing &= name != "cudaStreamEndCapture"
            return value
        before, after = self._event(), self._event()
        stream = arguments[-1]
        self._cuda("cudaEventRecord", before, stream)
        value = self._cuda(name, *arguments)
        self._cuda("cudaEventRecord", after, stream)
        self._marks.append((kind, before, after))
        return value

    def release(self, name: str, *arguments: Any) -> Any:
        """As `Cuda.release`."""
        if name == "cudaStreamEndCapture":  # the capture failed
            self._capturing = False
        return self._cuda.release(name, *arguments)

    def times(self) -> dict[str, float]:
        """Seconds of the last run on the device: "copy in", "execute" and "copy out" of a plain
        run, "graph" of a replayed one, and "all".
        """
        marks, self._marks, self._used = self._marks, [], 0
        found: dict[str, float] = {}
        for kind in dict.fromkeys(kind for kind, _, _ in marks):
            own = [(before, after) for each, before, after in marks if each == kind]
            found[kind] = self._between(own[0][0], own[-1][1])
        if {"copy in", "copy out"} <= set(found):
            last_in = [after for kind, _, after in marks if kind == "copy in"][-1]
            first_out = next(before for kind, before, _ in marks if kind == "copy out")
            found["execute"] = self._between(last_in, first_out)
        found["all"] = self._between(marks[0][1], marks[-1][2])
        return found

    def close(self) -> None:
        """Destroy the events. The session goes on with the `Cuda` behind."""
        for event in self._events:
            self._cuda.release("cudaEventDestroy", event)
        self._events.clear()

    def _kind(self, name: str, arguments: tuple[Any, ...]) -> str | None:
        if name == "cudaGraphLaunch":
            return "graph"
        if name != "cudaMemcpyAsync":
            return None
        kinds = self.module.cudaMemcpyKind
        return "copy in" if arguments[3] == kinds.cudaMemcpyHostToDevice else "copy out"

    def _event(self) -> Any:
        if self._used == len(self._events):
            self._events.append(self._cuda("cudaEventCreate"))
        self._used += 1
        return self._events[self._used - 1]

    def _between(self, before: Any, after: Any) -> float:
        return float(self._cuda("cudaEventElapsedTime", before, after)) / 1e3  # it tells ms


def device_times(session: BackendSession, inputs: Arrays, seconds: float) -> dict[str, float]:
    """Medians, in seconds: of plain runs "copy in", "execute" and "copy out"; of those that the
    session makes, from its third on, "replayed": its graph's, or all where the vendor captures.
    """
    evented = Evented(session._cuda)
    session._cuda = evented  # type: ignore[assignment]
    try:
        with session._runners.borrow(session._new_runner) as runner:
            plains = [evented.times() for _ in _plain_runs(session, runner, inputs, _PLAIN)]
        for _ in range(2):  # the second captures
            session(inputs)
            evented.times()
        runs: list[float] = []

        def replay() -> None:
            session(inputs)
            runs.append(evented.times()["all"])

        repeat(replay, seconds=seconds, most=100)
        names = [name for name in plains[0] if name != "all"]
        plain = {name: statistics.median(each[name] for each in plains[_COLD:]) for name in names}
        return plain | {"replayed": statistics.median(runs)}
    finally:
        session._cuda = evented._cuda
        evented.close()


def layer_times(session: BackendSession, inputs: Arrays, runs: int = 5) -> dict[str, float]:
    """Seconds of one run by stage, as the vendor's own profiler tells them of each layer. What it
    merged over several stages is "several stages", and what names none "other".

    Of a session that has not run yet: no run is captured here. Raises: LotusError where the
    profiler tells nothing.
    """
    vendor = session._vendor
    times: defaultdict[str, float] = defaultdict(float)

    class Profiler(vendor.IProfiler):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            vendor.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            found = {*_STAGE.findall(layer_name)}
            times[SEVERAL if len(found) > 1 else found.pop() if found else OTHER] += ms / 1e3

    profiler = Profiler()
    with session._runners.borrow(session._new_runner) as runner:
        context = runner.context
        context.profiler = profiler  # before a vendor captures
        for turn in _plain_runs(session, runner, inputs, runs + 1):
            if turn == 0:  # it initialises
                times.clear()
    if not times:
        raise LotusError("the engine's profiler told nothing of any layer")
    return {stage: seconds / runs for stage, seconds in times.items()}


def _plain_runs(session: BackendSession, runner: Any, inputs: Arrays, runs: int) -> Iterator[int]:
    """Run so many times without a capture; the number of each run, from 0, once it has ended."""
    for name, array in inputs.items():
        runner.buffers[name].array[...] = array
    for number in range(runs):
        session._enqueue(runner)
        session._cuda("cudaStreamSynchronize", runner.stream)
        yield number
