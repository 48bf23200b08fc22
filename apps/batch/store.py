"""A folder for results: on this machine's disks, or in an object store by its URI."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pyarrow import ArrowException
from pyarrow import fs as arrow

from runtime.errors import ImageError, OutputError
from runtime.writing import write_together


@dataclass(frozen=True)
class Store:
    """The folder `where`, a path or a URI (`s3://`, `gs://`). Names are relative, with `/`.

    It can be sent to another process, which opens its own connection.
    """

    where: str

    @cached_property
    def _shown(self) -> str:
        return without_secrets(self.where)

    @cached_property
    def _opened(self) -> tuple[arrow.FileSystem, str]:
        return open_place(self.where)

    @property
    def folder(self) -> Path | None:
        """The folder on this machine; None in an object store."""
        return None if is_remote(self.where) else Path(self.where)

    def write(self, contents: dict[str, bytes]) -> None:
        """Write these files, each whole or not at all. Raises: OutputError."""
        if self.folder is not None:
            write_together({self.folder / name: data for name, data in contents.items()})
            return
        system, root = self._opened
        try:
            for name, data in contents.items():
                with system.open_output_stream(f"{root}/{name}") as stream:
                    stream.write(data)
        except (OSError, ArrowException) as error:
            raise OutputError(f"cannot write {self._shown}/{name}: {error}") from error

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none. Raises: OutputError."""
        system, root = self._opened
        try:
            with system.open_input_file(f"{root}/{name}") as stream:
                return bytes(stream.readall())
        except FileNotFoundError:
            return None
        except (OSError, ArrowException) as error:
            raise OutputError(f"cannot read {self._shown}/{name}: {error}") from error

    def names(self, folder: str = "", *, folders: bool = False) -> list[str]:
        """The files directly in a folder, by their names in the store; with `folders` whatever is
        there. Raises: OutputError.
        """
        system, root = self._opened
        try:
            chosen = arrow.FileSelector(f"{root}/{folder}".rstrip("/"), allow_not_found=True)
            found = system.get_file_info(chosen)
        except (OSError, ArrowException) as error:
            raise OutputError(f"cannot list {self._shown}/{folder}: {error}") from error
        there = (info.base_name for info in found if folders or info.type == arrow.FileType.File)
        return sorted(f"{folder}/{name}" if folder else name for name in there)

    def delete(self, names: list[str]) -> None:
        """Remove files. Raises: OutputError."""
        system, root = self._opened
        try:
            for name in names:
                system.delete_file(f"{root}/{name}")
        except (OSError, ArrowException) as error:
            raise OutputError(f"cannot remove {self._shown}/{name}: {error}") from error


def is_remote(where: str) -> bool:
    """Whether a place is given by a URI, and is no path of this machine."""
    return "://" in where


def open_place(where: str) -> tuple[arrow.FileSystem, str]:
    """The file system of a path or URI, and the path within. Raises: ImageError."""
    if not is_remote(where):
        return arrow.LocalFileSystem(), os.path.abspath(where)  # noqa: PTH100  (keeps a link)
    try:
        parts = urlsplit(where)
    except ValueError as error:
        raise ImageError(f"{where} is no URI: {error}") from error
    system, root = _system(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
    return system, f"{root.rstrip('/')}/{unquote(parts.path).strip('/')}".rstrip("/")


def uri_in(where: str, path: str) -> str:
    """The URI of a path that the file system of the URI `where` names, with its options."""
    parts = urlsplit(where)
    login, mark, host = parts.netloc.rpartition("@")
    root = _system(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))[1].rstrip("/")
    below = quote(path.removeprefix(root).lstrip("/"))
    return urlunsplit((parts.scheme, f"{login}{mark}{host}", f"/{below}", parts.query, ""))


def name_of_uri(where: str) -> str:
    """What comes after `scheme://`, login and options left out; never raises."""
    return unquote(where.partition("://")[2].partition("?")[0].rpartition("@")[2])


def without_secrets(where: str) -> str:
    """A place as it may be shown and written down: a URI without login and options."""
    if not is_remote(where):
        return where
    return f"{where.partition('://')[0]}://{name_of_uri(where)}"


@lru_cache(maxsize=64)
def _system(bucket: str) -> tuple[arrow.FileSystem, str]:
    """The file system of a URI without a path, and what its paths begin with."""
    try:
        system, root = arrow.FileSystem.from_uri(bucket)
    except (OSError, ValueError, ArrowException) as error:
        raise ImageError(f"{without_secrets(bucket)} cannot be opened: {error}") from error
    return system, root
