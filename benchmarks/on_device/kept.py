"""Steps that an earlier run has finished, in a folder, so that a later run goes on from there.

A step is kept under a key of everything that decides its result: the commit and the text of the
code, the versions of the libraries, the machine with its power mode, the step's own options, and
the keys of the steps before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from benchmarks.rows import ROOT
from runtime.errors import OutputError
from runtime.manifest_json import MANIFEST
from runtime.writing import write_together

_CODE = ("runtime", "export", "benchmarks")

Outcome = dict[str, Any]
"""Of a step: `result`, or `not_measured` with the reason; `key`, `seconds` and when it began."""


class Kept:
    """The kept steps in `folder`, for one user of it at a time.

    Raises: OutputError where the folder cannot be used, or another run uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: TextIO | None = None
        try:
            (folder / "steps").mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise OutputError(
                f"cannot write into {folder}: {error.strerror or error}; pass another --folder"
            ) from error
        _take(self._lock, folder)

    def close(self) -> None:
        """Let another run use the folder."""
        if self._lock is not None:
            self._lock.close()

    def load(self, name: str, key: str) -> Outcome | None:
        """The outcome kept under this key; None where there is none, or its bundle is gone."""
        found = self._read(name)
        if found.get("key") != key or "result" not in found:
            return None
        result = found["result"]
        if "manifest" in result and identity_of(Path(result["bundle"])) != result["manifest"]:
            return None
        return found

    def ran_out_after(self, name: str, key: str) -> float:
        """Seconds after which this step was stopped for want of time before; 0 where it was not."""
        found = self._read(name)
        return float(found.get("stopped_after", 0)) if found.get("key") == key else 0.0

    def save(self, name: str, outcome: Outcome) -> None:
        """Keep it, whole or not at all. Raises: OutputError."""
        path = self._path(name)
        write_together({path: json.dumps(outcome, indent=1).encode()})

    def _path(self, name: str) -> Path:
        return self.folder / "steps" / f"{name}.json"

    def _read(self, name: str) -> Outcome:
        """What is kept of the step; nothing where the file is missing or damaged."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path(name).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}


def digest(value: Any) -> str:
    """A short hash of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def code_digest() -> str:
    """A hash of the code that measures and is measured, whatever git says of it."""
    total = hashlib.sha256()
    for path in _sources():
        total.update(f"{path.relative_to(ROOT).as_posix()}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def identity_of(bundle: Path) -> str:
    """A hash of the bundle's manifest, which holds the checksums of all its files; "" without
    one.
    """
    try:
        return hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def key_of(
    step_options: Mapping[str, Any], common: Mapping[str, Any], before: Mapping[str, Any]
) -> str:
    """The key of a step with these options, on this machine, after steps with these keys."""
    return digest({"options": step_options, "common": common, "before": before})


def _sources() -> Iterator[Path]:
    for package in _CODE:
        yield from sorted((ROOT / package).rglob("*.py"))


def _take(stream: TextIO, folder: Path) -> None:
    """Hold the folder's lock until the stream is closed, or the process ends."""
    if sys.platform == "win32":  # nothing guards two runs from each other there
        return
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise OutputError(
            f"another run works in {folder}; wait for it, or pass another --folder"
        ) from error
