"""Where a bundle lies: a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from runtime.errors import BundleError, SchemaError
from runtime.manifest import Manifest
from runtime.manifest_json import MANIFEST

_HUB_SECONDS = 5.0  # the hub's own client tries for minutes where nothing answers
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a bundle: the one of this name, or else a snapshot of the hub's repository
    "user/bundle" or "user/bundle@revision".

    Only the files that the manifest names are fetched. Where there is a folder "user" here, only
    the form with a revision means the hub. Raises: SchemaError, BundleError.
    """
    folder = Path(bundle)
    match = _ID.fullmatch(bundle) if isinstance(bundle, str) else None
    if match is None or match[1].startswith(".") or os.path.lexists(folder):
        return folder
    name, revision = match.groups()
    # A misspelt folder is no business of the hub.
    if revision is None and os.path.isdir(folder.parent):  # noqa: PTH112  (False for any odd name)
        return folder
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise SchemaError(
            f"there is no folder {folder}. If {name!r} is a repository on the Hugging Face hub: "
            "`pip install huggingface-hub` lets it be fetched."
        ) from None
    # The hub's client raises OSError, ValueError, httpx and hub types of its own for one and the
    # same missing network.
    problem = None
    try:
        HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:
        problem = error
    try:
        return _fetch(name, revision, offline=problem is not None)
    except BundleError:
        raise
    except Exception as error:
        problem = problem or error
        reason = str(problem).strip().splitlines()[:1]
        raise BundleError(
            f"there is no folder {folder}, and the hub's repository {name!r} cannot be read: "
            f"{type(problem).__name__}: {''.join(reason)}"
        ) from problem


def _fetch(name: str, revision: str | None, *, offline: bool) -> Path:
    """The folder of a snapshot: the manifest and what it names, of one commit.

    `offline`: what was fetched before. Raises: BundleError, and what the hub's client raises.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    manifest = Path(hf_hub_download(name, MANIFEST, revision=revision, local_files_only=offline))
    # The folder of a snapshot is named by its commit.
    files = Manifest.read(manifest.parent).files
    snapshot_download(
        name,
        revision=manifest.parent.name,
        allow_patterns=[MANIFEST, *(glob.escape(file.path) for file in files)],
        local_files_only=offline,
    )
    return manifest.parent
