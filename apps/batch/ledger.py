"""What was done: a table with a row for each picture, which survives whatever ends a run.

A worker that finished some pictures writes a small part of the table into `ledger/`, whole and
after their results. A run begins by merging the parts into `ledger.parquet`; so does the next run
after one that was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute as pc
from pyarrow import csv

from apps.batch.store import Store, without_secrets
from runtime.errors import OutputError
from runtime.writing import PARTIAL

DONE, BAD, UNREAD, FATAL = "done", "bad", "unread", "fatal"
PARTS, BEGUN, SHARDS, RESULTS = "ledger", "begun", "shards", "results"
SCHEMA = pa.schema(
    [
        ("picture", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("status", pa.string()),
        ("note", pa.string()),
        ("result", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("seconds", pa.float64()),
        ("worker", pa.string()),
        ("finished", pa.float64()),
    ]
)
"""`picture`: its name. `size` in bytes and `modified` in nanoseconds tell whether it changed; -1
where nothing is known. `status`: done or bad; `note`: why it is bad, or what is odd about it.
`result`: the shard, or the beginning of its files' names. `finished`: seconds since 1970.

A process answers two more kinds of rows, which are never kept: unread, for a picture that is not
to be had now, through no fault of its own; and fatal, for what ends the work.
"""
MAPS = {"use_dictionary": False, "write_batch_size": 1}
"""How `table_bytes` writes tables with maps. A page of Parquet counts its bytes in 32 bits, and
has at least as many values as are written at a time.
"""
_LEDGER, _RUN, _LOCK = "ledger.parquet", "run.json", "run.lock"
_KEY = ["picture", "size", "modified"]
_ADDED = ("column", "name")  # a run.json of an older version has neither
_OWN = {
    PARTS: re.compile(rf"{PARTS}/[0-9a-f]{{20}}\.parquet"),
    BEGUN: re.compile(rf"{BEGUN}/[0-9a-f]{{20}}"),
    SHARDS: re.compile(rf"{SHARDS}/[0-9a-f]{{20}}(-[0-9]+)?\.parquet"),
}
"""The names that this command gives: see `worker.part_name`, `shards.Shards`."""


class Ledger:
    """The ledger of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._where = without_secrets(store.where)

    @contextlib.contextmanager
    def of(self, identity: Mapping[str, Any]) -> Iterator[None]:
        """Take the store for this work, or go on with it.

        On the disks of a Unix one run at a time does. Raises: OutputError where the store is
        another work's, or no work's.
        """
        found = self._check(identity)
        with self._alone():
            if found != identity:
                text = json.dumps({**found, **identity}, indent=2)
                self._store.write({_RUN: text.encode()})
            yield

    def _check(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """What run.json says; empty where there is none, and nothing else either."""
        stored = self._store.read(_RUN)
        if stored is None:
            names = self._store.names(folders=True)
            # A run that is killed before run.json is there leaves these.
            if there := [name for name in names if name != _LOCK and not PARTIAL.fullmatch(name)]:
                raise OutputError(
                    f"{self._where} is not empty, {there[0]} is there for one, and is not of this "
                    "command. Name another folder for --output."
                )
            return {}
        try:
            found = dict(json.loads(stored))
        except (ValueError, TypeError):
            found = {}
        for name, value in identity.items():
            if found.get(name, value if name in _ADDED else None) != value:
                raise OutputError(
                    f"{self._where} was begun with another {name}: {found.get(name)!r}, now "
                    f"{value!r}. Name another folder for --output."
                )
        return found

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        folder = self._store.folder
        if folder is None or sys.platform == "win32":
            yield
            return
        import fcntl

        try:
            folder.mkdir(parents=True, exist_ok=True)
            stream = (folder / _LOCK).open("w")
        except OSError as error:
            raise OutputError(f"cannot write into {folder}: {error.strerror}") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutputError(f"another run is writing into {folder}; wait for it") from None
            yield

    def merge(self) -> pa.Table:
        """The newest row of each picture, sorted by name; what was in parts is in one file now.

        Shards lose what is not in them by these rows: a picture that was done anew, or one whose
        worker died before it could say so. Files of other names than this command's stay.
        """
        parts = self._own(PARTS)
        tables = [read_table(self._store.read(name)) for name in (_LEDGER, *parts)]
        everything = pa.concat_tables([SCHEMA.empty_table(), *tables])
        merged = _newest(everything)
        self._clean_shards(everything, merged)
        if parts:
            self._store.write({_LEDGER: table_bytes(merged)})
            self._store.delete(parts)
        self._store.delete(self._own(BEGUN))
        return merged

    def forget_bad(self) -> None:
        """Bad pictures lose their rows, and so are tried again."""
        merged = self.merge()
        kept = merged.filter(pc.not_equal(merged["status"], BAD))
        self._store.write({_LEDGER: table_bytes(kept)})

    def _own(self, folder: str) -> list[str]:
        """The files in a folder that have names of this command's form."""
        return [name for name in self._store.names(folder) if _OWN[folder].fullmatch(name)]

    def _clean_shards(self, everything: pa.Table, merged: pa.Table) -> None:
        kept, written = (_counts(table) for table in (merged, everything))
        for shard in self._own(SHARDS):
            if shard not in kept:
                self._store.delete([shard])
            elif kept[shard] != written[shard]:
                here = merged.filter(pc.equal(merged["result"], shard))["picture"]
                table = pq.read_table(io.BytesIO(self._store.read(shard) or b""))
                table = table.filter(pc.is_in(table["picture"], here.combine_chunks()))
                self._store.write({shard: table_bytes(table, **MAPS)})

    def finish(
        self, merged: pa.Table, summary: Mapping[str, Any], unread: Mapping[str, str]
    ) -> None:
        """Write the tables of bad pictures and of those that could not be read, with the reasons,
        and the summary.
        """
        bad = merged.filter(pc.equal(merged["status"], BAD))
        text = json.dumps(summary, indent=2)
        self._store.write(
            {
                "bad.csv": _reasons(bad["picture"], bad["note"]),
                "unread.csv": _reasons([*unread], [*unread.values()]),
                "summary.json": text.encode(),
            }
        )


def _reasons(pictures: Any, reasons: Any) -> bytes:
    """A table of both, as CSV."""
    kinds = pa.schema([("picture", pa.string()), ("reason", pa.string())])
    stream = io.BytesIO()
    csv.write_csv(pa.table({"picture": pictures, "reason": reasons}, schema=kinds), stream)
    return stream.getvalue()


def missing(pictures: pa.Table, merged: pa.Table) -> pa.Table:
    """The pictures that have no row, or were changed since, sorted by name."""
    left = pictures.join(merged.select(_KEY), keys=_KEY, join_type="left anti")
    return left.sort_by("picture")


def without(table: pa.Table, pictures: Iterable[str]) -> pa.Table:
    """The rows of other pictures than these."""
    named = pa.array(list(pictures), pa.string())
    return table.filter(pc.invert(pc.is_in(table["picture"], named)))


def rows(values: list[dict[str, Any]]) -> pa.Table:
    """Rows of a ledger."""
    return pa.Table.from_pylist(values, schema=SCHEMA)


def table_bytes(table: pa.Table, **options: Any) -> bytes:
    """A table as a Parquet file; `options` as of `pyarrow.parquet.write_table`."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **options)
    return buffer.getvalue()


def read_table(content: bytes | None) -> pa.Table:
    """A part of the ledger; empty where there is none. Raises: OutputError for a damaged one."""
    if content is None:
        return SCHEMA.empty_table()
    try:
        return pq.read_table(io.BytesIO(content)).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError) as error:
        raise OutputError(f"a part of the ledger cannot be read: {error}") from error


def _counts(table: pa.Table) -> dict[str, int]:
    """How many rows name each result."""
    return {each["values"]: each["counts"] for each in table["result"].value_counts().to_pylist()}


def _newest(table: pa.Table) -> pa.Table:
    table = table.sort_by([("picture", "ascending"), ("finished", "ascending")])
    numbered = pa.table({"picture": table["picture"], "at": pa.array(np.arange(len(table)))})
    last = numbered.group_by("picture").aggregate([("at", "max")])["at_max"]
    return table.take(np.sort(last.to_numpy()))
