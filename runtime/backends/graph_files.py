"""Which files an ONNX graph takes its weights from, told without the package onnx.

Inference engines follow rules of their own about these places: ONNX Runtime before 1.24 reads any
file that a graph names, and OpenVINO any address in memory. Ours is one rule, for both: files
beside the graph that its bundle lists, and nothing else. What this reader does not understand is
refused, since another one might.

Source: onnx.proto of ONNX 1.22 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), and
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeAlias

from runtime.errors import BackendError, UnsafePathError
from runtime.files import open_at_once

Fields: TypeAlias = Iterator[tuple[int, int, int]]

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
}
_KEY, _VALUE = 1, 2  # the fields of an entry
_DEEPEST = 100  # messages in one another; readers of protobuf end there too
_LONGEST_NAME = 4096
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # types on the wire
_WIDTH = {_FIXED64: 8, _FIXED32: 4}


def check_weight_files(graph: Path, listed: Collection[str]) -> None:
    """Refuse a graph that takes weights from elsewhere than the files beside it whose names are
    `listed`.

    Raises: UnsafePathError; BackendError for what is no ONNX graph.
    """
    try:
        with (
            open_at_once(graph) as stream,
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
    within: list[tuple[str, Fields]] = [("ModelProto", _fields(content, 0, len(content)))]
    while within:
        kind, fields = within[-1]
        for number, start, end in fields:
            inner = _LEADS_TO[kind].get(number)
            if inner == _ENTRY:
                yield from _locations(content, start, end)
            elif inner is not None:
                if len(within) == _DEEPEST:
                    raise ValueError(f"more than {_DEEPEST} messages in one another")
                within.append((inner, _fields(content, start, end)))
                break
        else:
            within.pop()


def _locations(content: mmap.mmap, start: int, end: int) -> Iterator[str]:
    """All values of an entry that has this key; of several, readers take the last."""
    keys = (
        content[begin:stop] == b"location"
        for number, begin, stop in _fields(content, start, end)
        if number == _KEY and stop - begin == len(b"location")
    )
    if not any(keys):
        return
    empty = True
    for number, begin, stop in _fields(content, start, end):
        if number == _VALUE:
            if stop - begin > _LONGEST_NAME:
                raise ValueError("a file's name that is too long")
            empty = False
            yield content[begin:stop].decode(errors="backslashreplace")
    if empty:
        yield ""


def _fields(content: mmap.mmap, at: int, end: int) -> Fields:
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
