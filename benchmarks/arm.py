"""A Python for 64-bit ARM on Linux for x86, run by QEMU (qemu-aarch64; 10.0 was used, and 7.2 ends
where ONNX Runtime is imported).

Python comes from Debian's packages, by apt and dpkg, and libraries are wheels from PyPI. Programs
take many times as long as on a device. Nothing outside the folder is changed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import LotusError

NAME = "aarch64"
_CPU = "cortex-a76"  # the nearest to a Jetson Orin's; QEMU's own default is a CPU that no one built
_PACKAGES = ("python3", "libgomp1", "libstdc++6")
_PLATFORMS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 37)))


def make_environment(folder: Path, number: str, packages: Sequence[str]) -> None:
    """`bin/python` in this folder is Python `number` for ARM, with these packages of PyPI.

    Raises: LotusError, also where the Debian at hand has another Python.
    """
    emulator = _emulator()
    root, site = folder / "root", folder / "site"
    _unpack_debian(folder / "debian", root)
    binary = root / "usr/bin" / f"python{number}"
    if not binary.exists():
        raise LotusError(f"Debian has no Python {number} here")
    # Markers of requirements (`platform_machine`) are read as those of this machine.
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_aarch64")]
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"),
        *("--python-version", number, "--implementation", "cp", *platforms),
        *("--target", site, *packages),
    )
    (root / "usr/lib/python3/dist-packages/site.pth").write_text(f"{site}\n", encoding="utf-8")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    # By its own name, so that what it starts as `sys.executable` is emulated too.
    words = [emulator, "-cpu", _CPU, "-0", str(python), "-L", str(root), str(binary)]
    home = shlex.quote(f"{root}/usr")
    python.write_text(
        f'#!/bin/sh\nPYTHONHOME={home} exec {shlex.join(words)} "$@"\n', encoding="utf-8"
    )
    python.chmod(0o755)


def describe() -> str:
    """The emulator and its CPU, in words. Raises: LotusError."""
    version = re.search(r"version (\S+)", run(_emulator(), "--version"))
    return f"{NAME} ({_CPU} of QEMU {version[1] if version else 'unknown'})"


def _emulator() -> str:
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None or shutil.which("apt-get") is None:
        raise LotusError("needs qemu-aarch64 (Debian's package qemu-user) and apt-get")
    return emulator


def _unpack_debian(work: Path, root: Path) -> None:
    """Python and what it needs, from the packages of the Debian that this machine has."""
    for name in ("lists/partial", "archives/partial"):
        (work / name).mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
        "Dir::Cache::archives": work / "archives",
        "Dir::State::lists": work / "lists",
        "Dir::State::status": "/dev/null",
    }
    apt = ["apt-get", *(f"-o{name}={value}" for name, value in options.items()), "--quiet"]
    run(*apt, "update")
    words = ("install", "--download-only", "--yes", "--no-install-recommends")
    run(*apt, *words, *_PACKAGES)
    for package in (work / "archives").glob("*.deb"):
        run("dpkg", "-x", package, root)


def run(*words: object) -> str:
    """What a command prints. Raises: LotusError with the last line of what it says of a failure."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        message = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
        raise LotusError(f"{Path(str(words[0])).name}: {message.splitlines()[-1]}")
    return done.stdout
