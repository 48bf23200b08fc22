"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import re
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

from runtime.errors import OutputError

Piece: TypeAlias = bytes | memoryview
Content: TypeAlias = "bytes | Sequence[Piece] | Callable[[BinaryIO], object]"
"""What a file shall hold: in one piece; in several, which are not copied together; or what writes
it when its turn comes, so that no two files are in memory at once.
"""

# Short, so that it is no longer than a name may be where the file's own name is not. The machine's
# tag is in it because process numbers mean nothing on another one that shares the folder.
PARTIAL = re.compile(r"\.lotus-([0-9a-f]{4})-(\d+)-[0-9a-f]{6}\.partial")
_PRIVATE = re.compile(r"(?:\.lotus-edge|lotus-edge-scratch)-([0-9a-f]{4})-(\d+)-\w+")
# What a file system answers that has no such call.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def write_together(
    contents: Mapping[Path, Content], check: Callable[[], None] = lambda: None
) -> None:
    """Write these files, and the folders above them: all or none, and each whole or not at all.

    They appear one after the other in the order given; where one cannot, those before it are taken
    away again, unless they replaced a file. What is on the disk survives a power cut. A link in
    the place of a file is replaced, not followed. `check` is called when all is written and nothing
    is in place yet; what it raises goes on.

    Raises: OutputError.
    """
    partials: list[Path] = []
    placed: list[Path] = []
    path, done = Path(), False
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            partials.append(path.parent / _partial_name())
            _write_new(partials[-1], content)
        check()
        for path, partial in zip(contents, partials, strict=True):
            fresh = not os.path.lexists(path)
            partial.replace(path)
            if fresh:
                placed.append(path)
        done = True
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {path}: {reason}") from error
    finally:
        for leftover in () if done else (*partials, *placed):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _write_new(path: Path, content: Content) -> None:
    with path.open("xb") as stream:
        if callable(content):
            content(stream)
        else:
            stream.writelines([content] if isinstance(content, bytes) else content)
        stream.flush()
        try:
            os.fsync(stream.fileno())
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


def _partial_name() -> str:
    return f".lotus-{machine_tag()}-{os.getpid()}-{secrets.token_hex(3)}.partial"


@functools.cache
def machine_tag(root: Path = Path("/")) -> str:
    """This machine in the names of files that only its processes may sweep: those that see the same
    numbers of processes, which containers of one name do not. `root` is where /etc and /proc lie.
    """
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append((root / "etc/machine-id").read_text(errors="replace"))
    with contextlib.suppress(OSError):
        facts.append(str((root / "proc/self/ns/pid").stat().st_ino))
    return f"{zlib.crc32(' '.join(facts).encode('utf-8', 'replace')) & 0xFFFF:04x}"


@functools.lru_cache(maxsize=1024)
def _sweep(folder: Path) -> None:
    """Remove what killed processes left in this folder; once in a process for each folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            private = _PRIVATE.fullmatch(entry.name)
            match = private or PARTIAL.fullmatch(entry.name)
            if match is None or match[1] != machine_tag() or is_running(int(match[2])):
                continue
            if private:
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()


def private_folder(parent: Path, kind: str = ".lotus-edge") -> Path:
    """A new folder in `parent`, of this process alone. Those of processes of this machine that were
    killed before this one began go first. Raises: OSError.
    """
    _sweep(parent)
    prefix = f"{kind}-{machine_tag()}-{os.getpid()}-"
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A `private_folder` among the system's temporary files, removed at the end, as far as it can
    be. What a process that was killed left there, pictures too, goes when the next one of this
    machine begins; not on Windows, where `is_running` knows of none. Raises: OSError.
    """
    # Web servers give away no file below a name with a dot.
    folder = private_folder(Path(tempfile.gettempdir()), "lotus-edge-scratch")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_running(process: int) -> bool:
    """Whether a process of this number runs; on Windows, where a look could end it, True."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
