"""A graph takes weights from the files of its bundle, wherever in it they are named."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tensorrt_fakes import make_manifest

from runtime.backends import BACKENDS
from runtime.backends.graph_files import _DEEPEST, _LEADS_TO, check_weight_files
from runtime.backends.session import Arrays, Session, Tensor, Tensors
from runtime.errors import BackendError, UnsafePathError
from runtime.files import File

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
    entry = onnx.StringStringEntryProto(key="location", value="elsewhere").SerializeToString()
    assert entry.count(b"\x09elsewhere") == 1
    return _entry(entry.replace(b"\x09elsewhere", b"\x89\x80\x00elsewhere"))


# Fields that ONNX does not have, of 4 and of 8 bytes, in which a wrong width sees other fields.
UNKNOWN = b"\xfd\x01\x3a\x80\x80\x80" + b"\xf9\x01\x3a\x7f\x7f\x7f\x7f\x7f\x7f\x7f"


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
        lambda: UNKNOWN + model(initializer=[tensor()]).SerializeToString(),
        lambda: model(initializer=[tensor()]).SerializeToString() + UNKNOWN,
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


@pytest.mark.parametrize(
    "place", ["../model.onnx.data", "./model.onnx.data", "/etc/passwd", "", "a" * 5000]
)
def test_another_path_to_a_file_is_another_file(place: str, tmp_path: Path) -> None:
    onnx.save(model(initializer=[tensor(place)]), tmp_path / "model.onnx")
    with pytest.raises(BackendError if len(place) > 4096 else UnsafePathError):
        check_weight_files(tmp_path / "model.onnx", LISTED)


def test_a_place_without_a_value_and_one_that_is_no_text(tmp_path: Path) -> None:
    key = onnx.StringStringEntryProto(key="location").SerializeToString()
    (tmp_path / "model.onnx").write_bytes(_entry(key))
    with pytest.raises(UnsafePathError, match="from '',"):
        check_weight_files(tmp_path / "model.onnx", LISTED)
    (tmp_path / "model.onnx").write_bytes(_entry(key + b"\x12\x05ab\xffcd"))
    with pytest.raises(UnsafePathError):
        check_weight_files(tmp_path / "model.onnx", ["abcd"])


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
        b"\x08" + b"\x80" * 10 + b"\x01",  # a number of more than 64 bits
        b"\x3a\x04\x2a\x04ab",  # a tensor that is longer than its graph
        b"\x3a\x05\x2a\x05abc\x08\x01",
        b"\x3a\x03\xfd\x01\x00",  # a field of 4 bytes that is longer than its message
    ],
)
def test_what_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    """A reader that is more lenient would see another graph than this one."""
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BackendError, match="is no ONNX graph"):
        check_weight_files(tmp_path / "model.onnx", LISTED)


def test_the_fields_are_those_of_the_package() -> None:
    """Each field of ONNX's messages that holds a message on the way to a tensor."""
    for kind, leads_to in _LEADS_TO.items():
        found = {
            field.number: field.message_type.name
            for field in getattr(onnx, kind).DESCRIPTOR.fields
            if field.name == "external_data"
            or (field.message_type is not None and field.message_type.name in _LEADS_TO)
        }
        assert found == leads_to


def test_graphs_within_graphs_end_where_readers_end(tmp_path: Path) -> None:
    content = b""
    for number in [7, *[1, 5, 6] * (_DEEPEST // 3)][::-1]:  # graph; node, attribute, graph
        size = len(content)
        content = bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BackendError, match="100 messages in one another"):
        check_weight_files(tmp_path / "model.onnx", LISTED)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A list of what is still to be read would be many times as large as the file."""
    path = tmp_path / "model.onnx"
    nodes = b"\x0a\x00" * 500_000  # of a graph, empty
    size = b"\xc0\x84\x3d"
    assert len(nodes) == 0x40 | 0x04 << 7 | 0x3D << 14
    path.write_bytes(b"\x3a" + size + nodes)
    tracemalloc.start()
    check_weight_files(path, LISTED)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 100_000


def opened(folder: Path, graph: str, *files: str) -> Session:
    """A session of a bundle with this graph, which lists these files."""
    manifest = make_manifest("null", "")
    bucket, other = (
        dataclasses.replace(manifest.buckets[0], graph=name, engine=None)
        for name in (graph, "other.onnx")
    )
    listed = [File(path=name, bytes=0, sha256="0" * 64) for name in (graph, "other.onnx", *files)]
    manifest = dataclasses.replace(manifest, buckets=[bucket, other], files=listed)
    return Reader(folder, manifest, bucket, BACKENDS["null"])


class Reader(Session):
    """Looks at its graph, and opens nothing."""

    def _open(self) -> Tensors:
        self._graph()
        shapes = self.input_shapes | self.output_shapes
        return {name: Tensor("float32", shape) for name, shape in shapes.items()}

    def _run(self, runner: None, inputs: Arrays) -> Arrays:
        return inputs

    def _close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("graph", "place", "files", "fine"),
    [
        ("model.onnx", "w", ["w"], True),
        ("sub/model.onnx", "w", ["sub/w"], True),
        ("sub/model.onnx", "w", ["w"], False),  # engines look beside the graph
        ("model.onnx", "sub/w", ["sub/w"], False),
        ("model.onnx", "other.onnx", [], False),  # of another bucket, and not compared
        ("model.onnx", "*/_ORT_MEM_ADDR_/*", ["*/_ORT_MEM_ADDR_/*"], False),  # an address
        ("model.xml", "w", ["w"], False),  # OpenVINO's own format, by its ending
        ("model.ort", "w", ["w"], False),
    ],
)
def test_what_a_session_lets_a_graph_name(
    graph: str, place: str, files: list[str], fine: bool, tmp_path: Path
) -> None:
    (tmp_path / graph).parent.mkdir(exist_ok=True)
    (tmp_path / graph).write_bytes(model(initializer=[tensor(place)]).SerializeToString())
    with nullcontext() if fine else pytest.raises(UnsafePathError):
        opened(tmp_path, graph, *files).close()
