"""Opening one bucket: its files are checked while the vendor opens them, then it proves itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runtime.backends import open_session
from runtime.backends.session import Session
from runtime.contents import ContentCheck
from runtime.files import File
from runtime.layout import plain_folder
from runtime.manifest import Bucket, Manifest
from runtime.proof import prove

UNCHECKED = "LOTUS_EDGE_CHECK"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How buckets of the bundle in `folder` are opened: the settings of `LotusEngine`."""

    folder: Path
    manifest: Manifest
    backend: str
    prove: bool = True
    check: bool = True
    parallel: int = 1
    device: str | None = None
    threads: int | None = None

    def __call__(self, bucket: Bucket) -> Session:
        """Raises: BundleError, BackendError, VerificationError."""
        files = files_of(self.manifest, bucket)
        check = None
        if self.check and os.environ.get(UNCHECKED) != "0":
            check = ContentCheck(self.folder, files)
        session = None
        try:
            with plain_folder(self.folder, files) as plain:
                session = open_session(
                    self.backend,
                    self.folder,
                    self.manifest,
                    bucket,
                    model_folder=plain,
                    parallel=self.parallel,
                    device=self.device,
                    threads=self.threads,
                )
            if check is not None:
                check.finish(links_made=plain != self.folder)
            if self.prove:
                prove(session)
        except BaseException as error:
            if session is not None:
                session.close()
            elif check is not None and isinstance(error, Exception):
                check.finish(links_made=True)  # a damaged file explains what the vendor says of it
            raise
        return session


def files_of(manifest: Manifest, bucket: Bucket) -> list[File]:
    """What opening this bucket reads: all listed files but those of other buckets."""
    others = {name for other in manifest.buckets for name in (other.graph, other.engine)}
    others -= {bucket.graph, bucket.engine}
    return [file for file in manifest.files if file.path not in others]
