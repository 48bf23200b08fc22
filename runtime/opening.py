"""Opening one bucket: its files are checked while the vendor opens them, then it proves itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runtime import compiled
from runtime.backends import Backend, find_backend, open_session
from runtime.backends.cores import usable_cores
from runtime.backends.session import Session
from runtime.compiled import Kept
from runtime.console import one_line, say
from runtime.contents import ContentCheck
from runtime.errors import BackendError, DamagedBundleError, VerificationError
from runtime.golden import GoldenError, golden_error
from runtime.layout import plain_folder
from runtime.machine import describe_machine, knows_target
from runtime.manifest import Bucket, Manifest
from runtime.memory import Room
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
    keep: bool = True
    make: bool = True
    parallel: int = 1
    device: str | None = None
    threads: int | None = None

    def room(self, most: int | None) -> Room:
        """How many buckets may be open at once. Raises: BackendError."""
        return Room(
            manifest=self.manifest,
            backend=self.backend,
            most=most,
            device=self.device,
            parallel=self.parallel,
            is_kept=self._is_kept,
        )

    def __call__(self, bucket: Bucket) -> Session:
        """Raises: BundleError, BackendError, VerificationError."""
        if (kept := self._from_kept(bucket)) is not None:
            session, entry = kept
            try:
                return self._proved(session)
            except (VerificationError, BackendError, DamagedBundleError):
                entry.discard()  # the bundle itself may be right
        return self._proved(self._open(bucket))

    def measure(self, bucket: Bucket) -> tuple[GoldenError, str]:
        """How far the bucket's golden is off, and what it was opened from (`Session.opened_from`).

        It is closed here too: a thread that is left behind at a deadline keeps nobody waiting.
        Raises: BundleError, BackendError, VerificationError.
        """
        with self(bucket) as session:
            return golden_error(session), session.opened_from

    def _proved(self, session: Session) -> Session:
        try:
            if self.prove:
                prove(session)
        except BaseException:
            session.close()
            raise
        return session

    def _open(
        self, bucket: Bucket, kept: Kept | None = None, keep_in: Path | None = None
    ) -> Session:
        files = self.manifest.files_of(bucket)
        checks: list[ContentCheck] = []
        # What is kept answers for all that open this bundle later, also for those who check.
        if keep_in is not None or (self.check and os.environ.get(UNCHECKED) != "0"):
            checks.append(ContentCheck(self.folder, files))
        if kept is not None:
            checks.append(ContentCheck(kept.folder, kept.files))
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
                    compiled=kept,
                    keep_in=keep_in,
                )
            for check in checks:
                check.finish(links_made=plain != self.folder)
        except BaseException as error:
            if session is not None:
                session.close()
            elif isinstance(error, Exception):
                for check in checks:  # a damaged file explains what the vendor says of it
                    check.finish(links_made=True)
            raise
        return session

    def _from_kept(self, bucket: Bucket) -> tuple[Session, Kept] | None:
        """The bucket, opened from what was compiled before, with the entry; it is compiled and kept
        first where that was not done yet. None where it is not worth it, or cannot be kept.
        """
        key = self._key(bucket)
        if key is None:
            return None
        kept = None
        try:
            kept = compiled.find(key)
            if kept is None and self.make:
                growth = find_backend(self.backend).growth
                size = round(growth * bytes_of(self.manifest, bucket))
                kept = compiled.make(key, size, partial(self._keep, bucket))
            return None if kept is None else (self._open(bucket, kept), kept)
        except (BackendError, DamagedBundleError):
            # The entry is not what it was, or the disk was full: without it, then. If the bundle is
            # to blame it will say so.
            if kept is not None:
                kept.discard()
            return None

    def _is_kept(self, bucket: Bucket) -> bool:
        key = self._key(bucket)
        return key is not None and compiled.find(key) is not None

    def _key(self, bucket: Bucket) -> dict[str, Any] | None:
        """Under which the bucket is kept, compiled; None where it is not."""
        backend = find_backend(self.backend)
        worth = self.keep and is_worth_keeping(self.manifest, bucket, backend)
        if not (worth and knows_target(backend, self.device)):
            return None
        key = {
            "format": compiled.FORMAT,
            "bundle": self.manifest.checksum,
            "bucket": str(bucket),
            "machine": describe_machine(backend),
            "parallel": self.parallel,
        }
        return key if backend.on_gpu else {**key, "threads": self.threads, "cores": usable_cores()}

    def _keep(self, bucket: Bucket, folder: Path) -> None:
        name = one_line(f"{self.manifest.name} ({bucket})")
        say(f"lotus-edge: keeping {name}, compiled, for the next opening: {folder.parent}")
        self._open(bucket, keep_in=folder).close()


def is_worth_keeping(manifest: Manifest, bucket: Bucket, backend: Backend) -> bool:
    """Whether the bucket takes so long to compile that what comes out is kept."""
    return manifest.precision in backend.keeps and bytes_of(manifest, bucket) >= compiled.SMALLEST


def bytes_of(manifest: Manifest, bucket: Bucket) -> int:
    """Of the files that opening this bucket reads."""
    return sum(file.bytes for file in manifest.files_of(bucket))
