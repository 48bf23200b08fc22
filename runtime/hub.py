"""Where a bundle lies: a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from runtime.errors import BundleError, SchemaError
from runtime.manifest import Manifest
from runtime.manifest_json import MANIFEST

_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a bundle: the one of this name, or else a snapshot of the hub's repository
    "user/bundle" or "user/bundle@revision".

    Only the files that the manifest names are fetched. Raises: SchemaError, BundleError.
    """
    folder = Path(bundle)
    match = _ID.fullmatch(bundle) if isinstance(bundle, str) else None
    if match is None or match[1].startswith(".") or os.path.lexists(folder):
        return folder
    name, revision = match.groups()
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError:
        raise SchemaError(
            f"there is no folder {folder}. If {name!r} is a repository on the Hugging Face hub: "
            "`pip install huggingface-hub` lets it be fetched."
        ) from None
    try:
        manifest = Path(hf_hub_download(name, MANIFEST, revision=revision, etag_timeout=5))
        # The folder of a snapshot is named by its commit: the files are of the same one.
        files = Manifest.read(manifest.parent).files
        snapshot_download(
            name,
            revision=manifest.parent.name,
            allow_patterns=[MANIFEST, *(glob.escape(file.path) for file in files)],
            etag_timeout=5,
        )
    except BundleError:
        raise
    # The hub's client raises OSError, ValueError, httpx and hub types of its own for one and the
    # same missing network.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise BundleError(
            f"there is no folder {folder}, and the hub's repository {name!r} cannot be read: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return manifest.parent
