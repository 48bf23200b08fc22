"""What this user's machine has found out before: small records in the user's cache folder.

Nothing depends on them: without a record the work is done again. `LOTUS_EDGE_CACHE` names another
folder; "off" keeps no records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import OutputError
from runtime.files import write_atomic

VARIABLE = "LOTUS_EDGE_CACHE"
_LARGEST = 1 << 16  # bytes of a record


def cache_folder() -> Path | None:
    """The folder of the records; None where the user wants none, or has no home."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return None if named in ("", "off") else Path(named)
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "lotus-edge" / "cache"
        home = os.environ.get("XDG_CACHE_HOME")
        return (Path(home) if home else Path.home() / ".cache") / "lotus-edge"
    except RuntimeError:  # no home folder
        return None


def recall(kind: str, key: Mapping[str, Any]) -> Any:
    """What was remembered under exactly this key; None where nothing was."""
    path = place_of(kind, key, ".json")
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            record = json.loads(stream.read(_LARGEST))
        return record["value"] if record["key"] == dict(key) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def remember(kind: str, key: Mapping[str, Any], value: Any) -> None:
    """Keep `value` (JSON) under `key` (JSON); a folder that cannot be written is left alone."""
    path = place_of(kind, key, ".json")
    if path is None:
        return
    text = json.dumps({"key": dict(key), "value": value}, sort_keys=True)
    with contextlib.suppress(OutputError, OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, text.encode())


def forget(kind: str, key: Mapping[str, Any]) -> None:
    """Remove what was remembered under exactly this key; a folder that cannot be written is left
    alone.
    """
    path = place_of(kind, key, ".json")
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def place_of(kind: str, key: Mapping[str, Any], suffix: str = "") -> Path | None:
    """Where what belongs to exactly this key (JSON) lies; None where there is no folder."""
    folder = cache_folder()
    if folder is None:
        return None
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return folder / kind / f"{digest}{suffix}"
