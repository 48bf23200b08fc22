"""What each process of the pool does: predicts for some pictures, writes the results, then says so
in the ledger.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute as pc

from apps.batch.ledger import (
    BAD,
    BEGUN,
    DONE,
    FATAL,
    PARTS,
    RESULTS,
    SCHEMA,
    UNREAD,
    read_table,
    rows,
    table_bytes,
)
from apps.batch.shards import LARGEST, Shards
from apps.batch.store import Store, is_remote, open_place
from runtime.engine import LotusEngine
from runtime.errors import ImageError, ImageWarning, LotusError, OutputError
from runtime.files import open_at_once
from runtime.prediction import Prediction
from runtime.saving import save_together, saved_paths, task_stems
from runtime.writing import scratch_folder

TRIES = 3
"""So often a part is begun. Ray does it again whenever its process died."""
_SEEKING = (errno.EINVAL, errno.EOVERFLOW)  # where a damaged file sends a decoder nowhere


class UnreadError(ImageError):
    """A picture is not to be had now: its place does not give it, or memory does not hold it."""


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

    The engine is opened with the first part, and stays open. A picture that is not to be had now is
    answered with status `unread`, and gets no row in the store. What concerns the bundle or the
    store is answered as a row of its own, with status `fatal`.
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
        shards = Shards(self._job.store, name, self._engine.manifest)
        done: list[dict[str, Any]] = []
        for at in range(0, len(entries), most):
            for entry, answer in self._answers(entries[at : at + most]):
                if answer.prediction is not None:
                    self._keep(entry, answer, answer.prediction, shards)
                done.append(_row(entry, answer))
        shards.write()
        table = rows(done)
        kept = table.filter(pc.not_equal(table["status"], UNREAD))
        if len(kept):
            self._job.store.write({f"{PARTS}/{name}.parquet": table_bytes(kept)})
        return table

    def _answers(self, entries: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], _Answer]]:
        start = time.perf_counter()
        with scratch_folder() as scratch:
            paths = [self._local(entry, scratch / str(at)) for at, entry in enumerate(entries)]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ImageWarning)
                found = self._predict(paths)
            found = [_judged(each, path) for path, each in zip(paths, found, strict=True)]
        seconds = (time.perf_counter() - start) / len(entries)
        said = [str(each.message) for each in caught]
        for entry, path, each in zip(entries, paths, found, strict=True):
            own = [words for words in said if words.startswith(f"{path}: ")]
            words = [str(each)] if isinstance(each, ImageError) else own
            yield (
                entry,
                _Answer(
                    prediction=None if isinstance(each, ImageError) else each,
                    note="; ".join(text.removeprefix(f"{path}: ") for text in words),
                    seconds=seconds,
                    otherwise=UNREAD if isinstance(each, UnreadError) else BAD,
                ),
            )

    def _predict(self, paths: list[Path | ImageError]) -> list[Prediction | ImageError]:
        """Where memory does not suffice for several at once, each alone."""
        ready = [path for path in paths if isinstance(path, Path)]
        try:
            found = iter(self._engine(ready, on_error="return", **self._job.options))
        except MemoryError as error:
            if len(paths) > 1:
                return [answer for path in paths for answer in self._predict([path])]
            return [UnreadError(f"not enough memory ({error})")]
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
        except (OSError, MemoryError, pa.ArrowException, ImageError) as error:
            return UnreadError(f"cannot be read: {str(error) or type(error).__name__}")
        if content is None:
            return ImageError("the table has no picture in this row")
        scratch.write_bytes(content)
        return scratch

    def _from_table(self, where: bytes, row: int) -> bytes | None:
        """A picture out of a Parquet file, whose row group is kept for the next one; None where the
        row has none.
        """
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
        return bytes(content) if content else None

    def _keep(
        self, entry: dict[str, Any], answer: _Answer, prediction: Prediction, shards: Shards
    ) -> None:
        """Write the maps of a picture, or give them to the shards, and note where they are."""
        largest = max(each.values.nbytes for _, each in prediction.items())
        if not self._job.shards:
            self._save(f"{RESULTS}/{entry['picture']}", answer, prediction)
        elif largest <= LARGEST:
            answer.result = shards.add(entry["picture"], prediction)
        else:
            answer.note = (
                f"its map has {largest:,} bytes, and Parquet takes {LARGEST:,}: use --format files "
                "or --network-size"
            )

    def _save(self, name: str, answer: _Answer, prediction: Prediction) -> None:
        """Write the files that `lotus-edge predict` writes."""
        folder = self._job.store.folder
        try:
            if folder is not None:
                _write(folder / name, prediction)
            else:
                with scratch_folder() as scratch:
                    files = _write(scratch / Path(name).name, prediction)
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
    """What came out for a picture; `result` is None until it has a place, and the status is
    `otherwise` if it never gets one.
    """

    prediction: Prediction | None
    note: str
    seconds: float
    otherwise: str
    result: str | None = None


def _judged(answer: Prediction | ImageError, path: Path | ImageError) -> Prediction | ImageError:
    """The answer for a picture; an UnreadError in place of an error that its content is not to
    blame for: the system did not give the file, or does not give it now.
    """
    if not isinstance(answer, ImageError) or not isinstance(path, Path):
        return answer
    cause = answer.__cause__
    while cause is not None:
        number = getattr(cause, "errno", None)
        if number is not None and number not in _SEEKING:
            return UnreadError(str(answer))
        cause = cause.__cause__
    try:
        if stat.S_ISREG(path.stat().st_mode):
            with open_at_once(path) as stream:
                stream.read(1)
    except OSError as error:
        return UnreadError(f"cannot be read: {error.strerror or error}")
    except ValueError:  # a name that no file can have
        pass
    return answer


def _row(entry: dict[str, Any], answer: _Answer) -> dict[str, Any]:
    """A row of the ledger."""
    row = {name: entry[name] for name in ("picture", "size", "modified")} | {
        "status": answer.otherwise,
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


def _worker() -> str:
    import ray

    return f"{ray.util.get_node_ip_address()}:{os.getpid()}"
