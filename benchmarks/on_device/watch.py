"""Clocks, temperature, power and memory of a machine while something runs."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.on_device.facts import bus_id, gpu_clocks

Readings = dict[str, list[float]]
"""Values by what they are and their unit."""

_SMI = {
    "clocks.sm": "GPU clock, MHz",
    "clocks.mem": "GPU memory clock, MHz",
    "temperature.gpu": "GPU temperature, C",
    "power.draw": "GPU power, W",
    "memory.used": "GPU memory in use, MiB",
}
_EVERY = 0.5  # seconds
_CHANNELS = (1, 2, 3)  # of a Jetson's sensors of power
_RAILS = {"VDD_IN": "the board"}
"""What a label means; others stand for themselves: a part of the board."""


@contextmanager
def watched(root: Path = Path("/")) -> Iterator[dict[str, dict[str, float]]]:
    """Read while the block runs. The dictionary is filled at its end: least, median and most of
    each reading, by what it is and its unit; empty where the machine tells nothing.
    """
    summary: dict[str, dict[str, float]] = {}
    readings: Readings = {}
    stop = threading.Event()
    sources = _sources(root)
    threads = [
        threading.Thread(target=_poll, args=(sources, readings, stop), daemon=True),
        threading.Thread(target=_follow_smi, args=(readings, stop), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield summary
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=5)
        for name, values in sorted(readings.items()):
            summary[name] = {
                "least": min(values),
                "median": statistics.median(values),
                "most": max(values),
            }


def _sources(root: Path) -> dict[str, Callable[[], float]]:
    """What can be read from files here."""
    found: dict[str, Callable[[], float]] = {
        "memory available, GB": lambda: _available(root),
        "CPU clock, MHz": lambda: _cpu_clock(root),
    }
    for folder in gpu_clocks(root):
        found["GPU clock, MHz"] = lambda folder=folder: _number(folder / "cur_freq") / 1e6
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        with contextlib.suppress(OSError):
            kind = (zone / "type").read_text().strip()
            if "gpu" in kind.lower() or "cpu" in kind.lower():
                found[f"{kind}, C"] = lambda zone=zone: _number(zone / "temp") / 1e3
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        for channel in _CHANNELS:
            with contextlib.suppress(OSError):
                label = (folder / f"in{channel}_label").read_text().strip()
                name = f"power of {_RAILS.get(label, label)}, W"
                found[name] = functools.partial(_watts, folder, channel)
    return found


def _poll(sources: dict[str, Callable[[], float]], into: Readings, stop: threading.Event) -> None:
    while True:
        for name, read in sources.items():
            with contextlib.suppress(OSError, ValueError, IndexError):  # not told here
                value = read()
                into.setdefault(name, []).append(value)
        if stop.wait(_EVERY):
            break


def _follow_smi(into: Readings, stop: threading.Event) -> None:
    """What nvidia-smi tells of the GPU that CUDA takes first, until `stop`."""
    address = bus_id() if shutil.which("nvidia-smi") else ""
    if not address:
        return
    words = ["nvidia-smi", f"--id={address}", f"--query-gpu={','.join(_SMI)}"]
    words += ["--format=csv,noheader,nounits", f"--loop-ms={int(_EVERY * 1000)}"]
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        return
    ends = threading.Thread(target=_end_at, args=(process, stop), daemon=True)
    ends.start()
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            for name, value in zip(_SMI.values(), line.split(","), strict=False):
                with contextlib.suppress(ValueError):  # [N/A]
                    number = float(value)
                    into.setdefault(name, []).append(number)


def _end_at(process: subprocess.Popen[str], stop: threading.Event) -> None:
    stop.wait()
    process.kill()


def _number(path: Path) -> float:
    return float(path.read_text())


def _available(root: Path) -> float:
    text = (root / "proc/meminfo").read_text()
    return int(re.findall(r"MemAvailable:\s+(\d+)", text)[0]) * 1024 / 1e9


def _cpu_clock(root: Path) -> float:
    """The fastest core's, as Linux tells it."""
    files = sorted((root / "sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_cur_freq"))
    if files:
        return max(map(_number, files)) / 1e3
    text = (root / "proc/cpuinfo").read_text(errors="replace")
    return max(map(float, re.findall(r"cpu MHz\s*:\s*([\d.]+)", text)))


def _watts(folder: Path, channel: int) -> float:
    """Of one channel of a sensor: millivolts times milliamperes."""
    return _number(folder / f"in{channel}_input") * _number(folder / f"curr{channel}_input") / 1e6
