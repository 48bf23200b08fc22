"""Whether a bundle's files hold what the manifest says, asked once for each state of a file.

A disk loses a sector, a copy is cut and filled with zeros: the graph opens all the same, and the
map is another one. So the SHA-256 of each file is compared before its first answer, beside the
vendor's own work of opening. It is remembered for the file's state: device, inode, size and times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.cache import forget, recall, remember
from runtime.errors import DamagedBundleError
from runtime.files import File, check_content, real_file

_KIND = "contents"
# A file that was just written may be written again without another time of change.
_SETTLED = 2.0  # seconds


class ContentCheck:
    """Compares files of a bundle with its manifest, in a thread of its own until `finish`.

    It knows what a file was when it was read, so that one that is exchanged while the vendor
    opens it does not pass.
    """

    def __init__(self, folder: Path, files: Sequence[File]) -> None:
        self._folder = folder
        self._paths = {file: folder / file.path for file in files}
        self._states = {file: _state(path) for file, path in self._paths.items()}
        self._unknown = [file for file in files if recall(_KIND, self._states[file]) != file.sha256]
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for file in self._unknown:
                check_content(self._folder, file)
        except BaseException as error:  # raised where the answer is asked for
            self._error = error

    def finish(self, *, links_made: bool = False) -> None:
        """Wait for the answer. Raises: DamagedBundleError.

        `links_made`: hard links were made and removed meanwhile (runtime/layout.py), which moves
        the time of a file's last change.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        for file, path in self._paths.items():
            before, after = self._states[file], _state(path)
            if before != (after if not links_made else {**after, "changed": before["changed"]}):
                raise DamagedBundleError(
                    f"{path} was changed while it was opened. Open the bundle again."
                )
            settled = time.time() - after["modified"] / 1e9 > _SETTLED
            if settled and (file in self._unknown or links_made):
                remember(_KIND, after, file.sha256)
                if before != after:  # nothing has that state any more
                    forget(_KIND, before)


def _state(path: Path) -> dict[str, Any]:
    real = real_file(path)
    found = real.stat()
    return {
        "path": str(real),
        "device": found.st_dev,
        "inode": found.st_ino,
        "bytes": found.st_size,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
    }
