"""Bags of ROS 1 and ROS 2 by `rosbags`: read one, write another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from apps.bag.maps import Made
from runtime.errors import ImageError, OutputError
from runtime.there import exists

_VERSION = 9  # of the format of rosbag2's metadata
_TIME = "builtin_interfaces/msg/Time"
_HEADER = "std_msgs/msg/Header"
_FIELD = "sensor_msgs/msg/PointField"
_ROI = "sensor_msgs/msg/RegionOfInterest"


def _typestore() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_HUMBLE)


class Reader:
    """A bag that is read: the folder of a ROS 2 bag, its .mcap or .db3, or a .bag of ROS 1. Raises:
    ImageError.
    """

    def __init__(self, path: Path) -> None:
        from rosbags.highlevel import AnyReader, AnyReaderError

        if not exists(path):
            raise ImageError(f"there is no bag {path}")
        # A file of a ROS 2 bag stands for its folder.
        if path.suffix in (".mcap", ".db3") and exists(path.parent / "metadata.yaml"):
            path = path.parent
        self._path, self._error = path, AnyReaderError
        try:
            self._reader = AnyReader([path], default_typestore=_typestore())
            self._reader.open()
        except Exception as error:  # what libraries raise for damaged files is of any type
            raise ImageError(
                f"cannot read {path} as a bag: {error or type(error).__name__}"
            ) from error
        self.kinds = {each.topic: str(each.msgtype) for each in self._reader.connections}
        self.counts = {name: topic.msgcount for name, topic in self._reader.topics.items()}

    def messages(self, *topics: str) -> Iterator[tuple[str, int, Any]]:
        """Topic, time in nanoseconds, and message, in the order of time. Raises: ImageError."""
        chosen = [each for each in self._reader.connections if each.topic in topics]
        if not chosen:
            return
        try:
            for connection, time, raw in self._reader.messages(connections=chosen):
                yield connection.topic, time, self._reader.deserialize(raw, connection.msgtype)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except Exception as error:
            raise ImageError(f"{self._path} cannot be read to its end: {error}") from error

    def close(self) -> None:
        """Let go of the files."""
        self._reader.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Writer:
    """A new ROS 2 bag, a folder, which is there when all is written. Raises: OutputError."""

    def __init__(self, path: Path, storage: str) -> None:
        from rosbags.rosbag2 import StoragePlugin
        from rosbags.rosbag2 import Writer as Bag

        self._final, self._store = path, _typestore()
        self._partial = path.with_name(f".{path.name}.partial")
        self._connections: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        plugins = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
        try:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            # The folder's name becomes that of the file in it.
            self._inner = self._partial / path.name
            self._partial.mkdir()
            self._bag = Bag(self._inner, version=_VERSION, storage_plugin=plugins[storage])
            self._bag.open()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    def write(self, made: Made, prefix: str, header: Any, time: int) -> None:
        """Write a message with the stamp and the frame of the picture's `header`."""
        topic = f"{prefix}/{made.name}"
        if topic not in self._connections:
            self._connections[topic] = self._bag.add_connection(
                topic, made.kind, typestore=self._store
            )
        message = self._message(made, header)
        raw = self._store.serialize_cdr(message, made.kind)
        try:
            self._bag.write(self._connections[topic], time, raw)
        except OSError as error:
            raise OutputError(f"cannot write {self._final}: {error.strerror or error}") from error
        self.counts[topic] = self.counts.get(topic, 0) + 1

    def _message(self, made: Made, header: Any) -> Any:
        types = self._store.types
        stamp = types[_TIME](sec=header.stamp.sec, nanosec=header.stamp.nanosec)
        fields = dict(made.fields)
        if "fields" in fields:
            fields["fields"] = [types[_FIELD](**each) for each in fields["fields"]]
        if "k" in fields:
            fields |= {"binning_x": 0, "binning_y": 0}
            fields["roi"] = types[_ROI](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
            fields |= {name: np.asarray(fields[name], np.float64) for name in "dkrp"}
        own = types[_HEADER](stamp=stamp, frame_id=header.frame_id)
        return types[made.kind](header=own, **fields)

    def finish(self, overwrite: bool) -> None:
        """Put the bag in its place. Raises: OutputError."""
        try:
            self._bag.close()
            if overwrite and exists(self._final):
                shutil.rmtree(self._final)
            self._inner.replace(self._final)
            self._partial.rmdir()
        except OSError as error:
            raise OutputError(f"cannot write {self._final}: {error.strerror or error}") from error

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._bag.close()
        shutil.rmtree(self._partial, ignore_errors=True)
