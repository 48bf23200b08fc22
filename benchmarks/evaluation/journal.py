"""What is kept of each picture while a set is measured, so that a run that was stopped goes on.

A record is a line of JSON in `images.jsonl`: `name`; `bytes` of its files; `size`, its height and
width; `fed`, those of what went in; `bucket` and `how` it lies in it; `pixels` that count;
`metrics`; `counts` of pixel errors in the protocol's bins; `seconds` by stage. The keys of angles,
of which the pooled median is made, lie in `angles/`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from benchmarks.evaluation.protocol import Keys, Measured, Record
from export.data_sets import DataSetError
from runtime.files import write_atomic


class Journal:
    """The records of one set in a folder. One process at a time may write there.

    `identity` says what the records were made with. Raises: DataSetError where the folder has those
    of something else, or another process works there.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._angles = folder / "angles"
        _claim(folder, identity)
        self._path = folder / "images.jsonl"
        self._stream = self._path.open("ab")
        try:
            _lock(self._stream, folder)
            self._records = {record["name"]: record for record in self._whole_lines()}
        except DataSetError:
            self._stream.close()
            raise

    def get(self, name: str, files: list[int]) -> Record | None:
        """The record of a picture whose files have these sizes; None where it is not measured."""
        record = self._records.get(name)
        return record if record is not None and record["bytes"] == files else None

    def add(self, record: Record, measured: Measured) -> None:
        """Keep the record: from here on a kill does not take it away."""
        if measured.keys is not None:
            path = self._keys_of(record["name"])
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("wb") as stream:
                np.savez_compressed(stream, keys=measured.keys, counts=measured.key_counts)
            partial.replace(path)
        line = json.dumps(record) + "\n"
        self._stream.write(line.encode())
        self._stream.flush()
        self._records[record["name"]] = record

    def load_keys(self, record: Record) -> Keys:
        """The keys of a picture's angles, and how many have each. Raises: DataSetError."""
        path = self._keys_of(record["name"])
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["keys"], arrays["counts"]
        except (OSError, ValueError, KeyError) as error:
            raise DataSetError(f"cannot read {path}: {error}. Remove {self.folder}") from error

    def close(self) -> None:
        """Let other processes write there."""
        self._stream.close()

    def _keys_of(self, name: str) -> Path:
        return self._angles / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"

    def _whole_lines(self) -> list[Record]:
        """The records; a last line that a kill cut short is taken away."""
        content = self._path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            self._stream.truncate(end)
        try:
            return [json.loads(line) for line in content[:end].splitlines()]
        except ValueError as error:
            raise DataSetError(f"{self._path} is damaged ({error}). Remove it") from error


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    mark = folder / "identity.json"
    text = json.dumps(identity, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = mark.read_text() if mark.exists() else text
    except OSError as error:
        raise DataSetError(f"cannot use {folder}: {error.strerror or error}") from error
    if found != text:
        raise DataSetError(
            f"{folder} holds measurements of another build, seed or version; remove it, or pass "
            "another --output"
        )
    if not mark.exists():
        write_atomic(mark, text.encode())


def _lock(stream: BinaryIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nothing guards two runs from each other
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DataSetError(
            f"another run works in {folder}; wait for it, or pass --output"
        ) from error
