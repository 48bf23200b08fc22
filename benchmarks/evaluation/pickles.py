"""Pickles of data sets, read without running what is in them."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from export.data_sets import DataSetError

_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and of NumPy 2
_CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"
_ADMITTED = frozenset(
    (
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *((f"{core}.multiarray", "_reconstruct") for core in _CORES),
        *((f"{core}.multiarray", "scalar") for core in _CORES),
        *((f"{core}.numeric", "_frombuffer") for core in _CORES),  # of pickle's protocol 5
    )
)


def read_pickle(content: bytes, where: str) -> dict[str, Any]:
    """A pickled dict of numbers, texts and NumPy arrays. `where` names the file in errors.

    Raises: DataSetError for anything else; nothing of it is called.
    """
    try:
        values = _Arrays(io.BytesIO(content)).load()
    except Exception as error:  # damaged pickles raise whatever their operations do
        raise DataSetError(f"cannot read {where}: {error}") from error
    if not isinstance(values, dict):
        raise DataSetError(f"{where} holds {type(values).__name__}, expected a dict")
    return values


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes, in pickles of protocols before 3
            return _bytes
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only NumPy arrays are admitted"
            )
        for core in _CORES:
            module = module.replace(core, _CORE) if module.startswith(core) else module
        return super().find_class(module, name)


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as latin1, found {encoding!r}")
    return text.encode("latin1")
