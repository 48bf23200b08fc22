"""A graph takes weights from the files of its bundle, wherever in it they are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.backends.graph_files import check_weight_files
from runtime.errors import BackendError, UnsafePathError

onnx = pytest.importorskip("onnx", reason="writes graphs; `pip install 'lotus-edge[export]'`")

LISTED = ["model.onnx.data"]


def tensor(place: str = "elsewhere") -> Any:
    """Of weights that lie in another file."""
    made = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=1)
    for key, value in (("offset", "8"), ("location", place), ("length", "16")):
        made.external_data.add(key=key, value=value)
    return made


def node(**attributes: Any) -> Any:
    return onnx.helper.make_node("Constant", [], ["y"], **attributes)


def model(*nodes: Any, **fields: Any) -> Any:
    graph = onnx.GraphProto(name="g", node=nodes, **fields)
    return onnx.helper.make_model(graph, ir_version=10)


def sparse() -> Any:
    return onnx.SparseTensorProto(values=tensor(), indices=tensor(LISTED[0]), dims=[4])


def branch() -> Any:
    return onnx.GraphProto(name="branch", initializer=[tensor()])


def with_function() -> Any:
    made = model()
    made.functions.add(name="f", domain="d", node=[node(value=tensor())])
    return made


def with_training() -> Any:
    made = model()
    made.training_info.add(algorithm=branch())
    return made


def twice() -> Any:
    """Readers of protobuf merge a field that comes again."""
    made = model(initializer=[tensor(LISTED[0])])
    again = onnx.ModelProto(graph=branch())
    return made.SerializeToString() + again.SerializeToString()


def two_values() -> Any:
    """A text that comes again counts from its last place on."""
    place = onnx.StringStringEntryProto(key="location", value=LISTED[0]).SerializeToString()
    return _entry(place + onnx.StringStringEntryProto(value="elsewhere").SerializeToString())


def value_first() -> Any:
    key = onnx.StringStringEntryProto(key="location").SerializeToString()
    return _entry(onnx.StringStringEntryProto(value="elsewhere").SerializeToString() + key)


def long_sizes() -> Any:
    """Sizes may be written with more bytes than they need."""
    content = model(initializer=[tensor()]).SerializeToString()
    assert content.count(b"\x09elsewhere") == 1
    entry = onnx.StringStringEntryProto(key="location", value="elsewhere").SerializeToString()
    return _entry(entry.replace(b"\x09elsewhere", b"\x89\x80\x00elsewhere"))


def _entry(content: bytes) -> bytes:
    """A model whose one weight has this entry for its place."""

    def field(number: int, held: bytes) -> bytes:
        assert len(held) < 128
        return bytes([number << 3 | 2, len(held)]) + held

    weights = onnx.TensorProto(data_type=1, dims=[4], data_location=1).SerializeToString()
    graph = field(5, weights + field(13, content))
    return model().SerializeToString() + field(7, graph)


@pytest.mark.parametrize(
    "make",
    [
        lambda: model(initializer=[tensor()]),
        lambda: model(sparse_initializer=[sparse()]),
        lambda: model(node(value=tensor())),
        lambda: model(node(values=[tensor(LISTED[0]), tensor()])),
        lambda: model(node(sparse_value=sparse())),
        lambda: model(node(values=[sparse()])),
        lambda: model(node(then_branch=branch())),
        lambda: model(node(branches=[branch()])),
        with_function,
        with_training,
        twice,
        two_values,
        value_first,
        long_sizes,
    ],
)
def test_a_file_that_is_not_listed_is_found_wherever_it_is_named(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    made = make()
    content = made if isinstance(made, bytes) else made.SerializeToString()
    read = onnx.ModelProto.FromString(content)  # the real reader takes it
    assert b"elsewhere" in read.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UnsafePathError, match="'elsewhere', which is none of the bundle's files"):
        check_weight_files(path, LISTED)
    check_weight_files(path, [*LISTED, "elsewhere"])


@pytest.mark.parametrize("place", ["../model.onnx.data", "./model.onnx.data", "/etc/passwd", ""])
def test_another_path_to_a_file_is_another_file(place: str, tmp_path: Path) -> None:
    onnx.save(model(initializer=[tensor(place)]), tmp_path / "model.onnx")
    with pytest.raises(UnsafePathError):
        check_weight_files(tmp_path / "model.onnx", LISTED)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<net name='x' version='11'/>",
        b"\x3b\x3c",  # a group
        b"\x3a\x7f",  # a field that is longer than the file
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xba\x80\x80\x80\x70\x00",  # a field's number of more than 32 bits
        b"\x3a",
    ],
)
def test_what_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    """A reader that is more lenient would see another graph than this one."""
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BackendError, match="is no ONNX graph"):
        check_weight_files(tmp_path / "model.onnx", LISTED)


def test_the_fields_are_those_of_the_package() -> None:
    """Each field of ONNX's messages that holds a message on the way to a tensor."""
    from runtime.backends.graph_files import _LEADS_TO

    kinds = {kind: getattr(onnx, kind).DESCRIPTOR for kind in _LEADS_TO}
    for kind, described in kinds.items():
        found = {
            field.number: field.message_type.name
            for field in described.fields
            if field.message_type is not None and field.message_type.name in kinds
        }
        if kind != "TensorProto":  # what else says texts by key
            found = {number: name for number, name in found.items() if "StringString" not in name}
        assert found == {**_LEADS_TO[kind]} | (
            {16: "StringStringEntryProto"} if kind == "TensorProto" else {}
        )
