"""What is there of each visitor, and how it goes away."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from apps.web.studio import Photo

KEPT = 900.0
"""Seconds after which everything of a visitor is deleted; closing the page deletes it at once."""
_MOST = 32  # visitors whose maps stay in memory


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A visitor's photo, the file that it came as, and the folder of what was made of it."""

    photo: Photo
    upload: Path
    folder: Path
    since: float = field(default_factory=time.time)


class Visitors:
    """The visits, by the session of the browser. All files lie below `root`, as uploads do; those
    in `examples` stay.
    """

    def __init__(self, root: Path, examples: Iterable[Path] = ()) -> None:
        self._root = root
        self._examples = frozenset(examples)
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, session: str) -> Visit | None:
        """The visit; None where there was none, or it is over."""
        with self._lock:
            return self._visits.get(session)

    def come(self, session: str, photo: Photo, upload: Path) -> Visit:
        """Begin a visit with an empty folder, which ends an earlier one of the session. The oldest
        visit ends where there are too many.
        """
        earlier = self.get(session)
        if earlier is not None and earlier.upload == upload:
            self._end(session, with_upload=False)
        self.leave(session)
        folder = Path(tempfile.mkdtemp(prefix="visit-", dir=self._root))
        visit = Visit(photo=photo, upload=upload, folder=folder)
        with self._lock:
            self._visits[session] = visit
            oldest = next(iter(self._visits)) if len(self._visits) > _MOST else None
        if oldest is not None:
            self.leave(oldest)
        return visit

    def scene_folder(self, visit: Visit) -> Path:
        """An empty folder for a scene of this visit; the scene before goes."""
        for earlier in visit.folder.glob("scene-*"):
            shutil.rmtree(earlier, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix="scene-", dir=visit.folder))

    def leave(self, session: str) -> None:
        """Delete all that is there of a visitor."""
        self._end(session, with_upload=True)

    def sweep(self, older_than: float = KEPT) -> None:
        """End visits, and delete uploads that nothing came of, that are older than so many
        seconds.
        """
        before = time.time() - older_than
        with self._lock:
            over = [name for name, visit in self._visits.items() if visit.since <= before]
            used = {visit.upload for name, visit in self._visits.items() if name not in over}
            folders = {visit.folder for visit in self._visits.values()}
        for session in over:
            self.leave(session)
        for folder, _, names in os.walk(self._root):  # a folder that goes meanwhile is passed over
            for path in (Path(folder, name) for name in names):
                stays = path in self._examples or path in used or folders & {*path.parents}
                with contextlib.suppress(OSError):  # and so is a file
                    if not stays and path.stat().st_mtime <= before:
                        path.unlink()

    def _end(self, session: str, *, with_upload: bool) -> None:
        with self._lock:
            visit = self._visits.pop(session, None)
            others = {each.upload for each in self._visits.values()}
        if visit is None:
            return
        shutil.rmtree(visit.folder, ignore_errors=True)
        if with_upload and visit.upload not in others | self._examples:
            visit.upload.unlink(missing_ok=True)
