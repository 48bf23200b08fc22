"""What each process of the pool does: predicts for some pictures, writes the results, then says so
in the ledger.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apps.batch.ledger import (
    BAD,
    BEGUN,
    DONE,
    FATAL,
    PARTS,
    RESULTS,
    SCHEMA,
    SHARDS,
    read_table,
    rows,
    table_bytes,
)
from apps.batch.store import Store, is_remote, open_place
from runtime.engine import LotusEngine
from runtime.errors import ImageError, ImageWarning, LotusError, OutputError
from runtime.prediction import Prediction
from runtime.saving import save_together, saved_paths, task_stems

TRIES = 3
"""So often a part is begun. Ray does it again whenever its process died."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every process needs to know. `options` are those of a call of the engine;
    `threads` is for engines on CPUs.
    """

    bundle: str
    backend: str
    store: Store
    shards: bool = False
    column: str = ""
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Labeller:
    """Called with a part of the pictures (`sources.PICTURES`), answers its rows of the ledger; none
    for a part that killed its process too often.

    The engine is opened with the first part, and stays open. What concerns the bundle or the store
    is answered as a row of its own, with status `fatal`.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._group: tuple[tuple[bytes, int], list[Any]] | None = None

    def __call__(self, part: pa.Table) -> pa.Table:
        try:
            return self._labelled(part)
        except LotusError as error:
            return rows([{"picture": "", "status": FATAL, "note": str(error)}])

    @cached_property
    def _engine(self) -> LotusEngine:
        return LotusEngine(self._job.bundle, self._job.backend, threads=self._job.threads)

    def _labelled(self, part: pa.Table) -> pa.Table:
        name = part_name(part)
        # Where this process replaces one that died, the part may have been finished.
        if (stored := self._job.store.read(f"{PARTS}/{name}.parquet")) is not None:
            return read_table(stored)
        begun = int(self._job.store.read(f"{BEGUN}/{name}") or 0)
        if begun == TRIES:
            return SCHEMA.empty_table()
        self._job.store.write({f"{BEGUN}/{name}": str(begun + 1).encode()})
        entries = part.to_pylist()
        most = max(bucket.batch for bucket in self._engine.manifest.buckets)
        done: list[dict[str, Any]] = []
        maps: list[dict[str, Any]] = []
        for at in range(0, len(entries), most):
            for entry, answer in self._answers(entries[at : at + most]):
                if self._job.shards and answer.prediction is not None:
                    maps.append(_shard_row(entry["picture"], answer.prediction))
                    answer.result = f"{SHARDS}/{name}.parquet"
                elif answer.prediction is not None:
                    self._save(entry, answer)
                done.append(_row(entry, answer))
        if maps:
            self._job.store.write({f"{SHARDS}/{name}.parquet": _shard(maps, self._engine)})
        table = rows(done)
        self._job.store.write({f"{PARTS}/{name}.parquet": table_bytes(table)})
        return table

    def _answers(self, entries: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], _Answer]]:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="lotus-edge-") as scratch:
            paths = [self._local(entry, Path(scratch, str(at))) for at, entry in enumerate(entries)]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ImageWarning)
                predictions = self._predict(paths)
        seconds = (time.perf_counter() - start) / len(entries)
        said = [str(each.message) for each in caught]
        for entry, path, each in zip(entries, paths, predictions, strict=True):
            own = [words for words in said if words.startswith(f"{path}: ")]
            words = [str(each)] if isinstance(each, ImageError) else own
            note = "; ".join(text.removeprefix(f"{path}: ") for text in words)
            prediction = None if isinstance(each, ImageError) else each
            yield entry, _Answer(prediction=prediction, note=note, seconds=seconds)

    def _predict(self, paths: list[Path | ImageError]) -> list[Prediction | ImageError]:
        """Where memory does not suffice for several at once, each alone."""
        ready = [path for path in paths if isinstance(path, Path)]
        try:
            found = iter(self._engine(ready, on_error="return", **self._job.options))
        except MemoryError as error:
            if len(paths) > 1:
                return [answer for path in paths for answer in self._predict([path])]
            return [ImageError(f"not enough memory ({error})")]
        return [next(found) if isinstance(path, Path) else path for path in paths]

    def _local(self, entry: dict[str, Any], scratch: Path) -> Path | ImageError:
        """A file of this machine with the picture."""
        path = os.fsdecode(entry["path"])
        if entry["row"] < 0 and not is_remote(path):
            return Path(path)
        try:
            if entry["row"] >= 0:
                content = self._from_table(entry["path"], entry["row"])
            else:
                system, name = open_place(path)
                with system.open_input_file(name) as stream:
                    content = bytes(stream.readall())
        except (OSError, pa.ArrowException) as error:
            return ImageError(f"cannot be read: {error}")
        except ImageError as error:
            return error
        scratch.write_bytes(content)
        return scratch

    def _from_table(self, where: bytes, row: int) -> bytes:
        """A picture out of a Parquet file, whose row group is kept for the next one."""
        system, path = open_place(os.fsdecode(where))
        with pq.ParquetFile(path, filesystem=system) as file:
            group = 0
            while row >= file.metadata.row_group(group).num_rows:
                row -= file.metadata.row_group(group).num_rows
                group += 1
            if self._group is None or self._group[0] != (where, group):
                table = file.read_row_group(group, columns=[self._job.column])
                self._group = (where, group), table.column(0).to_pylist()
        content = self._group[1][row]
        content = content.get("bytes") if isinstance(content, dict) else content
        if not content:
            raise ImageError("the table has no picture in this row")
        return bytes(content)

    def _save(self, entry: dict[str, Any], answer: _Answer) -> None:
        """Write the files that `lotus-edge predict` writes."""
        assert answer.prediction is not None
        name = f"{RESULTS}/{entry['picture']}"
        folder = self._job.store.folder
        try:
            if folder is not None:
                _write(folder / name, answer.prediction)
            else:
                with tempfile.TemporaryDirectory(prefix="lotus-edge-") as scratch:
                    files = _write(Path(scratch, Path(name).name), answer.prediction)
                    above = name.rpartition("/")[0]
                    self._job.store.write(
                        {f"{above}/{file.name}": file.read_bytes() for file in files}
                    )
        except OutputError as error:
            # A full disk is no fault of this picture.
            if getattr(error.__cause__, "errno", None) != errno.ENAMETOOLONG:
                raise
            answer.note = str(error)
        else:
            answer.result = name


@dataclass(kw_only=True)
class _Answer:
    """What came out for a picture; `result` is None until it is written."""

    prediction: Prediction | None
    note: str
    seconds: float
    result: str | None = None


def _row(entry: dict[str, Any], answer: _Answer) -> dict[str, Any]:
    """A row of the ledger."""
    row = {name: entry[name] for name in ("picture", "size", "modified")} | {
        "status": BAD,
        "note": answer.note,
        "seconds": answer.seconds,
        "worker": _worker(),
        "finished": time.time(),
    }
    if answer.result is None or answer.prediction is None:
        return row
    height, width = next(iter(answer.prediction.items()))[1].values.shape[:2]
    return row | {"status": DONE, "result": answer.result, "height": height, "width": width}


def part_name(part: pa.Table) -> str:
    """The same for the same pictures, so that a second attempt replaces the first."""
    digest = hashlib.sha256()
    for column in ("picture", "size", "modified"):
        digest.update("\0".join(map(str, part[column].to_pylist())).encode())
    return digest.hexdigest()[:20]


def _write(stem: Path, prediction: Prediction) -> list[Path]:
    stems = task_stems(stem, prediction)
    maps = {stems[task]: each for task, each in prediction.items()}
    save_together(maps, overwrite=True)
    return [file for each in maps for file in saved_paths(each)]


def _shard_row(picture: str, prediction: Prediction) -> dict[str, Any]:
    arrays = {}
    for task, each in prediction.items():
        stream = io.BytesIO()
        np.save(stream, each.values, allow_pickle=False)
        arrays[task] = stream.getvalue()
    return {"picture": picture, **arrays}


def _shard(maps: list[dict[str, Any]], engine: LotusEngine) -> bytes:
    """A Parquet file: picture, and for each task its map as the bytes of a .npy file."""
    meaning = {task: engine.manifest.outputs[task] for task in engine.manifest.tasks}
    schema = pa.schema(
        [("picture", pa.string()), *((task, pa.large_binary()) for task in meaning)],
        metadata={"lotus-edge": f"bundle {engine.manifest.name}", **meaning},
    )
    return table_bytes(pa.Table.from_pylist(maps, schema=schema))


def _worker() -> str:
    import ray

    return f"{ray.util.get_node_ip_address()}:{os.getpid()}"
