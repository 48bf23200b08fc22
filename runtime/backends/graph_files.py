"""Which files an ONNX graph takes its weights from, told without the package onnx.

Inference engines follow rules of their own about these places: ONNX Runtime before 1.24 reads any
file that a graph names, and OpenVINO any address in memory. Ours is one rule for all: a graph may
name the files of its bundle, which are compared with their checksums, and nothing else.

Source: onnx.proto of ONNX 1.22 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), and
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path

from runtime.errors import BackendError, UnsafePathError

_TENSOR, _ENTRY = "TensorProto", "StringStringEntryProto"
# The fields in which messages hold messages that lead to a tensor, by their numbers.
_LEADS_TO = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},  # external_data
    _ENTRY: {},
}
_KEY, _VALUE = 1, 2  # the fields of an entry
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # types on the wire
_WIDTH = {_FIXED64: 8, _FIXED32: 4}


def check_weight_files(graph: Path, listed: Collection[str]) -> None:
    """Refuse a graph that takes weights from elsewhere than the files of its bundle, whose names
    are `listed`.

    Raises: UnsafePathError; BackendError for what is no ONNX graph.
    """
    try:
        with (
            graph.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            for place in _places(content):
                if place not in listed:
                    raise UnsafePathError(
                        f"{graph} takes weights from {place!r}, which is none of the bundle's "
                        "files. Do not use this bundle."
                    )
    except (ValueError, IndexError) as error:  # ValueError: the file is empty, too
        raise BackendError(
            f"{graph} is no ONNX graph ({error}). `python -m runtime verify` tells whether the "
            "bundle is whole."
        ) from error


def _places(content: mmap.mmap) -> Iterator[str]:
    """Every value that may be a tensor's location. Raises: ValueError, IndexError."""
    found = [("ModelProto", 0, len(content))]
    while found:
        kind, start, end = found.pop()
        if kind == _ENTRY:
            texts = [
                (number, content[begin:stop])
                for number, begin, stop in _fields(content, start, end)
            ]
            if (_KEY, b"location") in texts:
                for number, text in texts:
                    if number == _VALUE:
                        yield text.decode(errors="backslashreplace")
            continue
        leads_to = _LEADS_TO[kind]
        for number, begin, stop in _fields(content, start, end):
            if number in leads_to:
                found.append((leads_to[number], begin, stop))


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of bytes in a message."""
    while at < end:
        tag, at = _varint(content, at)
        if tag >> 32:
            raise ValueError("a field's number of more than 32 bits")
        kind = tag & 7
        if kind == _BYTES:
            size, at = _varint(content, at)
            yield tag >> 3, at, at + size
            at += size
        elif kind == _VARINT:
            _, at = _varint(content, at)
        elif kind in _WIDTH:
            at += _WIDTH[kind]
        else:
            raise ValueError(f"a field of type {kind}")
    if at != end:
        raise ValueError("a field is longer than its message")


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """The number at this place, and the place after it."""
    byte = content[at]
    if byte < 0x80:
        return byte, at + 1
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
