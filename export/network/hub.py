"""Where checkpoints come from: a local folder, the embedded ones, or the hub. Needs no torch."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from export.embedded import embedded_checkpoints
from export.errors import CheckpointError
from export.network.weights import choose_weights
from export.network.what_it_is import what_it_is
from export.progress import say
from runtime.there import exists, is_dir, is_file

_HUB_SECONDS = 5.0  # the hub's own client tries for two minutes where nothing answers
_CONFIGS = ("*config.json", "model_index.json")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """What a name on the command line may stand for.

    `description` is for a user. Of a repository on the hub `files` are downloaded (patterns), and
    of each of `parts`, a folder and the begin of its file names, one set of weights. `marker` is
    the file that marks a folder of this kind. `usage` is the rest of a command line that takes one
    (with {folder}, {task} and {family}). `offline_names` need no network; `tasks` are those of
    known ids, and `families` those that a folder's configs do not tell.
    """

    description: str
    files: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    marker: str
    usage: str
    offline_names: tuple[str, ...]
    tasks: Mapping[str, str]
    families: Mapping[str, str] = field(default_factory=dict)

    def wanted(self, names: Iterable[str]) -> Iterator[str]:
        """What is downloaded of a repository with these files: one variant of each part, no
        pickles."""
        names = sorted(names)
        yield from (name for name in names if any(fnmatch(name, p) for p in self.files))
        for folder, stem in self.parts:
            inside = {
                path.name: str(path)
                for path in map(PurePosixPath, names)
                if path.parent == PurePosixPath(folder)
            }
            chosen = choose_weights(inside, stem)
            yield from (inside[name] for name in (chosen.names if chosen else ()))


def find_folder(name: str, source: CheckpointSource) -> Path | None:
    """The local folder of a checkpoint, or None where `name` may be an id on the hub.

    Raises: CheckpointError for a name that is neither, and for a path that is something else.
    """
    embedded = name.startswith("tiny/")
    path = embedded_checkpoints() / name.removeprefix("tiny/") if embedded else Path(name)
    if is_dir(path) and is_file(path / source.marker):
        return path
    if exists(path) and not embedded:
        what = what_it_is(path, source.marker)
        end = "\n" if "\n" in what else ". "  # a command stands in a line of its own
        raise CheckpointError(f"{name!r} is {what}{end}Wanted is a {source.description}")
    suggestion = did_you_mean(name, source)
    if embedded:
        known = sorted(
            f"tiny/{marker.relative_to(embedded_checkpoints()).parts[0]}"
            for marker in embedded_checkpoints().glob(f"*/{source.marker}")
        )
        raise CheckpointError(f"no embedded checkpoint {name!r}; there is {known}{suggestion}")
    if name.startswith("random/"):
        known = [other for other in source.offline_names if other.startswith("random/")]
        raise CheckpointError(f"unknown {name!r}; known: {known}{suggestion}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no such folder: {name!r}.{suggestion} Pass a {source.description}, or one of "
            f"{list(source.offline_names)}"
        )
    return None


def split_revision(name: str) -> tuple[str, str | None]:
    """`ID@REVISION` as id and revision: a branch, a tag or a commit of a repository on the hub.

    Raises: CheckpointError where one of the two is empty.
    """
    if "@" not in name or exists(Path(name)):
        return name, None
    bare, _, revision = name.partition("@")
    if not bare or not revision:
        raise CheckpointError(f"{name!r} is not ID@REVISION: id or revision is empty")
    return bare, revision


def did_you_mean(name: str, source: CheckpointSource) -> str:
    """A sentence with the known names that `name` resembles, whole or without their owner. Random
    weights are no model that somebody meant, unless the name begins so.
    """
    known = sorted({*source.offline_names, *source.tasks})
    if not name.startswith("random"):
        known = [other for other in known if not other.startswith("random/")]
    resembling = {end: whole for whole in known for end in (whole, whole.rpartition("/")[2])}
    close = difflib.get_close_matches(name, resembling, n=3, cutoff=0.8)
    found = list(dict.fromkeys(resembling[end] for end in close))
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""


def download(name: str, source: CheckpointSource, *, configs_only: bool = False) -> Path:
    """The folder of a repository on the hub: configs and one set of weights, or `configs_only`.
    `name` is ID or ID@REVISION.

    A token comes from the environment (HF_TOKEN), by the hub's own client, and is written nowhere.
    Where the hub does not answer, what lies in its local cache. Raises: CheckpointError, with what
    to do without network.
    """
    from huggingface_hub import HfApi, snapshot_download

    what = "the configs of " if configs_only else ""
    say(f"downloading {what}{name} (or reading it from the local cache)")
    bare, revision = split_revision(name)
    # The hub's client raises OSError, ValueError, httpx and hub types of its own for one and the
    # same missing network.
    try:
        info = HfApi().model_info(bare, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:
        try:
            cached = snapshot_download(
                bare, revision=revision, allow_patterns=_CONFIGS, local_files_only=True
            )
            return Path(cached)
        except Exception:
            raise _not_fetched(name, source, error) from error
    names = [file.rfilename for file in info.siblings or ()]
    if source.marker and source.marker not in names:
        raise CheckpointError(
            f"{name!r} on the hub has no {source.marker}: it holds {sorted(names)[:8]}. Wanted is "
            f"a {source.description}"
        )
    wanted = list(_CONFIGS) if configs_only else list(source.wanted(names))
    try:
        fetched = snapshot_download(
            bare, revision=revision, allow_patterns=wanted, etag_timeout=_HUB_SECONDS
        )
        return Path(fetched)
    except Exception as error:
        raise _not_fetched(name, source, error) from error


def _not_fetched(name: str, source: CheckpointSource, error: Exception) -> CheckpointError:
    """What to say of a name that is no local folder and did not come from the hub."""
    bare, revision = split_revision(name)
    reason = _without_token(str(error).splitlines()[0]) if str(error) else ""
    folder = Path(bare).name
    family = f" --family {source.families[bare]}" if bare in source.families else ""
    usage = source.usage.format(folder=folder, task=source.tasks.get(bare, "TASK"), family=family)
    advice = did_you_mean(bare, source) if bare not in source.tasks else ""
    words = bare if revision is None else f"{bare} --revision {revision}"
    return CheckpointError(
        f"no such folder: {name!r}, and cannot download it as an id on the hub: "
        f"{type(error).__name__}: {reason}\n"
        + (
            advice.strip()
            or f"A folder is named by its path from here, such as ./{name}. For an id without "
            f"network: on a machine that has it, run `hf download {words} --local-dir {folder}`, "
            f"copy the folder here and pass its path: `python export/build_engine.py {usage}`"
        )
    )


def _without_token(text: str) -> str:
    for name in _TOKENS:
        if token := os.environ.get(name):
            text = text.replace(token, f"${name}")
    return text


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The `config.json` of a module's folder, or another JSON file; empty where there is none.

    Raises: CheckpointError for a file that is no JSON object.
    """
    config = folder / name
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if is_file(config) else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {config}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{config} holds {type(content).__name__}, not an object")
    return content
