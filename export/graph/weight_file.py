"""One file of weights for all graphs of a bundle."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

WEIGHTS = "model.onnx.data"
# Smaller constants stay in the graph, where shape inference and parsers look for them.
_INLINE_BYTES = 1024
_ALIGNMENT = 4096  # lets a runtime map a tensor straight from the file


class WeightFile:
    """Appends tensors to one file, each content once, and points graphs at them. `bytes_by_type`
    are those that lie in the file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offsets: dict[tuple[str, int], int] = {}
        self.bytes_by_type: Counter[str] = Counter()

    def externalise(self, graph: ir.Graph) -> None:
        """Move every initialiser of 1 KiB or more out of `graph`."""
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < _INLINE_BYTES:
                continue
            offset = self._store(tensor)
            value.const_value = ir.ExternalTensor(
                WEIGHTS,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
                base_dir=Path(self._stream.name).parent,
            )

    def _store(self, tensor: ir.TensorProtocol) -> int:
        data = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
        key = (hashlib.sha256(data).hexdigest(), tensor.nbytes)
        if key not in self._offsets:
            self._stream.seek(-self._stream.tell() % _ALIGNMENT, 1)
            self._offsets[key] = self._stream.tell()
            self._stream.write(data)
            self.bytes_by_type[tensor.dtype.numpy().name] += len(data)
        return self._offsets[key]
