"""A bundle's files as the inference engines accept them: plain files in one folder.

The hub's cache, and people with several disks, keep links instead. OpenVINO and ONNX Runtime
refuse weights whose link leads out of the graph's folder. There the files are put together anew,
by hard links, which copy nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runtime.cache import cache_folder
from runtime.errors import BundleError
from runtime.files import File, real_file
from runtime.writing import private_folder

_SMALL = 32 << 20  # bytes that may be copied: a graph without its weights


@contextmanager
def plain_folder(folder: Path, files: Sequence[File]) -> Iterator[Path]:
    """A folder in which these files of the bundle lie under their own names, as no links.

    It is the bundle's own folder where that holds no links; otherwise a private one, which goes
    when the block ends. (What has mapped a file keeps it.)

    Raises: BundleError where no disk takes the links.
    """
    sources = {file.path: real_file(folder / file.path) for file in files}
    root = Path(os.path.realpath(folder))
    if all(source == root / path for path, source in sources.items()):
        yield folder
        return
    private = _assemble(folder, sources)
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _assemble(folder: Path, sources: dict[str, Path]) -> Path:
    """A private folder with all the sources: on the disk of the largest, or where else they fit."""
    largest = max(sources.values(), key=lambda source: source.stat().st_size)
    cache = cache_folder()
    reasons = []
    for parent in (*([] if cache is None else [cache]), largest.parent, folder):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            private = private_folder(parent)
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror or error}")
            continue
        try:
            for path, source in sources.items():
                _place(source, private / path)
        except OSError as error:
            shutil.rmtree(private, ignore_errors=True)
            reasons.append(f"{parent}: {error.strerror or error}")
            continue
        return private
    raise BundleError(
        f"{folder} holds links, which inference engines do not follow, and its files cannot be "
        f"put together without copying {largest} ({'; '.join(reasons)}). Copy the bundle with its "
        f"files: `cp -rL {folder} COPY`."
    )


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    if source.stat().st_size > _SMALL:
        raise OSError(f"no hard link to {source} can be made there")
    shutil.copyfile(source, target)
