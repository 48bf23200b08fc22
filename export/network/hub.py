"""Where checkpoints come from: a local folder, the embedded ones, or the hub. Needs no torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import CheckpointError
from export.progress import say

TINY = Path(__file__).resolve().parents[2] / "tiny" / "checkpoints"


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """What a name on the command line may stand for.

    `description` is for a user. `files` are what is downloaded of a repository on the hub.
    `marker` is the file that marks an embedded folder. `usage` is the rest of a command line that
    takes a folder of it (with {folder} and {task}). `offline_names` need no network, and `tasks`
    are those of known ids.
    """

    description: str
    files: tuple[str, ...]
    marker: str
    usage: str
    offline_names: tuple[str, ...]
    tasks: Mapping[str, str]


def find_folder(name: str, source: CheckpointSource) -> Path | None:
    """The local folder of a checkpoint, or None where `name` is an id on the hub.

    Raises: CheckpointError for a name that is neither.
    """
    if name.startswith("tiny/"):
        folder = TINY / name.removeprefix("tiny/")
        if not folder.is_dir():
            embedded = sorted(
                f"tiny/{folder.name}"
                for folder in TINY.glob("*")
                if (folder / source.marker).is_file()
            )
            raise CheckpointError(f"no embedded checkpoint {name!r}; there is {embedded}")
        return folder
    folder = Path(name)
    if folder.is_dir():
        return folder
    if name.startswith("random/"):
        known = [other for other in source.offline_names if other.startswith("random/")]
        raise CheckpointError(f"unknown {name!r}; known: {known}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no folder {name!r}. Pass a {source.description}, or one of "
            f"{list(source.offline_names)}"
        )
    return None


def download(name: str, source: CheckpointSource, *, configs_only: bool = False) -> Path:
    """The folder of a repository on the hub: safetensors and configs, or `configs_only`.

    Raises: CheckpointError, with what to do without network.
    """
    from huggingface_hub import snapshot_download

    patterns = ["*config.json"] if configs_only else list(source.files)
    say(
        f"downloading {'the configs of ' if configs_only else ''}{name} "
        "(or reading it from the local cache)"
    )
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=5))
    # The hub's client raises OSError, ValueError, httpx and hub types of its own for one and the
    # same missing network.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        folder = Path(name).name
        usage = source.usage.format(folder=folder, task=source.tasks.get(name, "TASK"))
        raise CheckpointError(
            f"cannot download {name!r}: {type(error).__name__}: {reason}\n"
            f"Without network: on a machine that has it, run "
            f"`hf download {name} --local-dir {folder}`, copy the folder here and pass its path: "
            f"`python export/build_engine.py {usage}`"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a module's folder; empty where there is none.

    Raises: CheckpointError for a file that is no JSON object.
    """
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {config}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{config} holds {type(content).__name__}, not an object")
    return content


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a module's folder, by their headers; 0 where none lie
    there or where a header cannot be read (loading says why)."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(min(length, path.stat().st_size)))
            shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
            total += sum(math.prod(shape) for shape in shapes)
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return 0
    return total
