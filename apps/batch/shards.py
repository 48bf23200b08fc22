"""Maps of many pictures in one file: what `--format parquet` writes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from apps.batch.ledger import MAPS, SHARDS, table_bytes
from apps.batch.store import Store
from runtime.manifest import Manifest
from runtime.prediction import Prediction

SHARD_BYTES = 256 * 2**20
"""A shard with so many bytes of maps is full."""
LARGEST = 2**31 - 2**20
"""Bytes of the largest map that a page of Parquet holds: it counts them in 32 bits, with sign."""


class Shards:
    """The shards of a part of the pictures: `NAME-0.parquet`, `NAME-1.parquet`, ...

    A row has the name of a picture, and for each task of the bundle its map as the bytes of a .npy
    file. A shard is written when it is full, so that memory holds one at most.
    """

    def __init__(self, store: Store, name: str, manifest: Manifest) -> None:
        meaning = {task: manifest.outputs[task] for task in manifest.tasks}
        self._schema = pa.schema(
            [("picture", pa.string()), *((task, pa.large_binary()) for task in meaning)],
            metadata={"lotus-edge": f"bundle {manifest.name}", **meaning},
        )
        self._store, self._name = store, name
        self._rows: list[dict[str, Any]] = []
        self._bytes = self._written = 0

    def add(self, picture: str, prediction: Prediction) -> str:
        """Take the maps of a picture, none larger than LARGEST. Returns the name of its shard,
        which may not be written yet. Raises: OutputError.
        """
        shard = self._shard
        maps = {task: _npy(each.values) for task, each in prediction.items()}
        self._rows.append({"picture": picture, **maps})
        self._bytes += sum(map(len, maps.values()))
        if self._bytes >= SHARD_BYTES:
            self.write()
        return shard

    def write(self) -> None:
        """Write the shard that is not full, if it has anything. Raises: OutputError."""
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._rows = []  # their copies are in the table
        self._store.write({self._shard: table_bytes(table, **MAPS)})
        self._bytes, self._written = 0, self._written + 1

    @property
    def _shard(self) -> str:
        return f"{SHARDS}/{self._name}-{self._written}.parquet"


def _npy(values: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
