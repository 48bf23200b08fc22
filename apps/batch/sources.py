"""Which pictures a source holds: a folder, a list, or a table of paths or of pictures.

The answer is a table, `PICTURES`. It is made before any picture is read, so that what is done
already can be left out.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import dataset as arrow_dataset
from pyarrow import fs as arrow

from apps.batch.store import is_remote, name_of_uri, open_place, uri_in, without_secrets
from runtime.console import one_line
from runtime.errors import ImageError
from runtime.files import ending
from runtime.image import IMAGE_SUFFIXES, why_not_read
from runtime.marker import made_by_us
from runtime.there import exists, is_dir

PICTURES = pa.schema(
    [
        ("picture", pa.string()),
        ("path", pa.binary()),
        ("row", pa.int64()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
    ]
)
"""`picture`: the name, which no two share. `path`: the file, as the system spells it; of a table
with pictures in it the table's, and `row` the row there, else -1.
"""
_TABLES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json"}
_LISTS = (".txt", ".lst")
_USUAL = ("image", "picture", "path", "file_name", "file", "url")
_BLOCK = 65536  # rows; Python's own objects of so many pictures exist at a time


@dataclass(frozen=True, kw_only=True)
class Found:
    """The pictures of a source, how many files were left out for each reason, and the column of a
    table that has them.
    """

    table: pa.Table
    skipped: Counter[str]
    column: str = ""


def find(source: str, output: str, *, column: str | None = None, name: str | None = None) -> Found:
    """The pictures of a source. `output` is left out where it lies in it.

    `column` of a table has the paths or the pictures; `name` has names for the latter. Raises:
    ImageError where nothing is found, or where it is not clear what is meant.
    """
    skipped: Counter[str] = Counter()
    kind = posixpath.splitext(source.partition("?")[0])[1].lower()
    used = ""
    if kind in _TABLES or _holds_tables(source):
        opened = _open_table(source, _TABLES.get(kind, "parquet"))
        used = _column(source, opened.schema, column)
        table = _collected(_rows_of_table(source, opened, used, name))
    elif kind in _LISTS:
        table = _collected(_named(source, _lines(source)))
    elif kind in IMAGE_SUFFIXES:
        table = _collected(_named(source, [source]))
    elif is_remote(source):
        table = _collected(_remote_folder(source, output, skipped))
    else:
        table = _collected(_local_folder(Path(source), Path(output), skipped))
    if not len(table):
        words = "; ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        raise ImageError(
            f"no images found in {without_secrets(source)}{f' ({words} left out)' if words else ''}"
        )
    counts = table["picture"].value_counts()
    if len(counts) != len(table):
        twice = next(each["values"] for each in counts.to_pylist() if each["counts"] > 1)
        raise ImageError(f"{source} has several pictures of the name {twice!r}; names tell apart")
    return Found(table=table, skipped=skipped, column=used)


def _holds_tables(source: str) -> bool:
    """Whether a folder has Parquet files and nothing else that is not hidden."""
    names = [name for name in _entries(source) if not name.startswith((".", "_"))]
    return bool(names) and all(name.lower().endswith(".parquet") for name in names)


def _entries(source: str) -> list[str]:
    """The names directly in a folder; none where it is no folder, or cannot be listed remotely:
    whoever reads it says so.
    """
    if not is_remote(source):
        return os.listdir(source) if os.path.isdir(source) else []  # noqa: PTH112
    system, root = open_place(source)
    try:
        found = system.get_file_info(arrow.FileSelector(root, allow_not_found=True))
    except (OSError, pa.ArrowException):
        return []
    return [info.base_name for info in found]


def _collected(rows: Iterable[tuple[Any, ...]]) -> pa.Table:
    blocks, block = [], []
    for row in rows:
        block.append(row)
        if len(block) == _BLOCK:
            blocks.append(_block(block))
            block = []
    return pa.Table.from_batches([*blocks, _block(block)], schema=PICTURES)


def _block(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    arrays = [pa.array([row[at] for row in rows], each.type) for at, each in enumerate(PICTURES)]
    return pa.RecordBatch.from_arrays(arrays, schema=PICTURES)


def _local_folder(folder: Path, output: Path, skipped: Counter[str]) -> Iterator[tuple[Any, ...]]:
    """Pictures below a folder by their endings; results of this project are left out."""
    if not is_dir(folder):
        what = "is no folder, list, table or picture" if exists(folder) else "does not exist"
        raise ImageError(
            f"{folder} {what}. A source is a folder, a list (.txt, a path in each line), or a "
            "table (.parquet, .csv, .jsonl)."
        )
    root, results = os.path.realpath(folder), os.path.realpath(output)
    if root == results:
        raise ImageError(f"--output {output} is the folder of the images; name another")
    unlisted: list[OSError] = []
    for here, folders, names in os.walk(root, onerror=unlisted.append):
        folders[:] = sorted(each for each in folders if str(Path(here, each)) != results)
        for name in sorted(names):
            path = str(Path(here, name))
            reason = _why_not(Path(path))
            if reason is None:
                yield (_shown(os.path.relpath(path, root)), os.fsencode(path), -1, *_state(path))
            elif reason:
                skipped[reason] += 1
    for error in unlisted:
        raise ImageError(f"{error.filename}: the folder cannot be listed: {error.strerror}")


def _why_not(path: Path) -> str | None:
    """Why a file is left out; None for a picture, empty for what is none."""
    suffix = ending(path).lower()
    if path.name.startswith("._"):  # what macOS writes beside a file
        return ""
    if suffix not in IMAGE_SUFFIXES:
        reason = why_not_read(suffix)
        return f"{suffix}: {reason}" if reason else ""
    return "results of an earlier run" if suffix == ".png" and made_by_us(path) else None


def _remote_folder(source: str, output: str, skipped: Counter[str]) -> Iterator[tuple[Any, ...]]:
    system, root = open_place(source)
    results = open_place(output)[1] if is_remote(output) else None
    try:
        found = system.get_file_info(arrow.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise ImageError(f"{without_secrets(source)} cannot be listed: {error}") from error
    for info in sorted(found, key=lambda info: info.path):
        if info.type != arrow.FileType.File:
            continue
        if results is not None and info.path.startswith(f"{results}/"):
            continue
        suffix = posixpath.splitext(info.path)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            where, name = uri_in(source, info.path), info.path[len(root) + 1 :]
            name = _below(_shown(name))
            yield name, where.encode(), -1, info.size or 0, info.mtime_ns or -1
        elif reason := why_not_read(suffix):
            skipped[f"{suffix}: {reason}"] += 1


def _lines(source: str) -> Iterator[str]:
    system, path = open_place(source)
    try:
        with system.open_input_stream(path) as stream:
            text = os.fsdecode(bytes(stream.read()))
    except (OSError, pa.ArrowException) as error:
        raise ImageError(f"the list {without_secrets(source)} cannot be read: {error}") from error
    return (line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n") if line.strip())


def _named(source: str, entries: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    """Pictures that are named one by one; what is relative begins at the folder of the list.

    Below that folder a picture's name is the path from there, elsewhere the whole path. Each file
    counts once.
    """
    remote = is_remote(source)
    base = posixpath.dirname(open_place(source)[1])
    seen: dict[str, str] = {}
    for entry in entries:
        if is_remote(entry):
            path, name = entry, name_of_uri(entry)
        else:
            name = posixpath.normpath(posixpath.join(base, entry))
            path = uri_in(source, name) if remote else name
        name = _shown(_below(name[len(base) + 1 :] if name.startswith(f"{base}/") else name))
        while seen.get(name, path) != path:  # another file whose name would be the same
            name += "_"
        if name not in seen:
            seen[name] = path
            size, modified = (-1, -1) if is_remote(path) else _state(path)
            yield name, os.fsencode(path), -1, size, modified


def _open_table(source: str, kind: str) -> Any:
    system, path = open_place(source)
    try:
        return arrow_dataset.dataset(path, filesystem=system, format=kind)
    except (OSError, pa.ArrowException) as error:
        raise ImageError(f"the table {without_secrets(source)} cannot be read: {error}") from error


def _rows_of_table(
    source: str, table: Any, column: str, name: str | None
) -> Iterator[tuple[Any, ...]]:
    """The rows of a table: paths as a list has them, or pictures themselves."""
    kind = table.schema.field(column).type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            batches = table.to_batches(columns=[column])
            entries = (each or "" for batch in batches for each in batch.column(0).to_pylist())
            first = table.files[0]
            yield from _named(uri_in(source, first) if is_remote(source) else first, entries)
            return
        if not isinstance(table.format, arrow_dataset.ParquetFileFormat):
            raise ImageError(f"{source}: pictures inside a table are read from Parquet alone")
        for fragment in table.get_fragments():
            yield from _inside(source, fragment, name)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ImageError(f"the table {without_secrets(source)} cannot be read: {error}") from error


def _inside(source: str, fragment: Any, name: str | None) -> Iterator[tuple[Any, ...]]:
    """A row for each picture in a Parquet file."""
    file = fragment.path
    where = os.fsencode(uri_in(source, file) if is_remote(source) else file)
    if name is None:
        label = posixpath.basename(file)
        names: Iterable[str] = (f"{label}/{row}" for row in range(fragment.count_rows()))
    else:
        batches = fragment.to_batches(columns=[name])
        names = (_shown(str(each)) for batch in batches for each in batch.column(0).to_pylist())
    for row, each in enumerate(names):
        yield _below(each), where, row, -1, -1


def _below(name: str) -> str:
    """The name as a path below a folder, wherever it began."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def _column(source: str, schema: pa.Schema, asked: str | None) -> str:
    """The column with the pictures or their paths. Raises: ImageError where that is not clear."""
    able = [field.name for field in schema if _can_hold(field.type)]
    usual = [each for each in _USUAL if each in able]
    if asked is not None and asked in able:
        return asked
    if asked is None and (usual or len(able) == 1):
        return (usual or able)[0]
    words = f"no column {asked!r} with" if asked is not None else "several columns or none with"
    raise ImageError(
        f"{source} has {words} paths or pictures; its columns are {', '.join(schema.names)}, of "
        f"which {', '.join(able) or 'none'} could hold them. Name one with --column."
    )


def _can_hold(kind: pa.DataType) -> bool:
    """Text, bytes, or a struct with `bytes` as Hugging Face's data sets have it."""
    if pa.types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _state(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; -1 where there is no file."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError):
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _shown(name: str) -> str:
    """A name that every file system and terminal can show; `/` stays."""
    return one_line(name.replace(os.sep, "/"))
