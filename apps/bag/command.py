"""`lotus-edge bag BUNDLE IN OUT --topic T`: maps of the camera in a ROS bag, as another bag."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.bag.bags import Reader, Writer
from apps.bag.maps import IMAGE, Metric, anchors_of, made_of
from apps.bag.messages import camera_of, is_distorted, rgb_of
from apps.bag.transforms import Frames, read_extrinsic
from runtime.alignment import Anchors
from runtime.camera import Camera
from runtime.console import say, show
from runtime.engine import LotusEngine
from runtime.errors import GeometryError, ImageError, OutputError
from runtime.extras import require
from runtime.tasks import TASKS
from runtime.there import exists

_PICTURES = (IMAGE, "sensor_msgs/msg/CompressedImage")
_ANCHORS = (IMAGE, "sensor_msgs/msg/PointCloud2")
_TRANSFORMS = ("/tf_static", "/tf")
_COMPRESSED = "/compressed"  # image_transport's, after the name of the pictures
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--anchor", {"metavar": "TOPIC", "help": "a lidar's cloud, or depth registered to T: metres"}),
    (
        "--within",
        {"type": float, "default": 0.1, "metavar": "SECONDS", "help": "of an anchor (0.1)"},
    ),
    (
        "--extrinsic",
        {
            "type": Path,
            "metavar": "FILE",
            "help": "JSON, 4x4: from the cloud's frame to T's; "
            "default: /tf and /tf_static of the bag",
        },
    ),
    ("--camera-info", {"metavar": "TOPIC", "help": "default: camera_info beside T"}),
    ("--prefix", {"metavar": "TOPIC", "help": "of what is written; default: lotus beside T"}),
    ("--every", {"type": int, "default": 1, "metavar": "N", "help": "every N-th picture (1)"}),
    ("--stride", {"type": int, "default": 1, "help": "points of every N-th row and column (1)"}),
    ("--seed", {"type": int, "help": "noise of mode G, the same for each picture"}),
    ("--backend", {"help": "default: the bundle's target"}),
    ("--storage", {"choices": ("mcap", "sqlite3"), "default": "mcap"}),
    ("--overwrite", {"action": "store_true", "help": "replace the bag OUT"}),
)


def add_bag(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`bag BUNDLE IN OUT --topic T`."""
    bag = commands.add_parser(
        "bag",
        help="maps of the camera in a ROS bag",
        description="Predict for the pictures of a topic of a ROS 1 or ROS 2 bag, and write a "
        "ROS 2 bag with the maps. With --anchor also depth in metres and points, as REP 118 has "
        "them.",
    )
    bag.add_argument("bundle")
    bag.add_argument("input", type=Path, metavar="IN")
    bag.add_argument("output", type=Path, metavar="OUT")
    bag.add_argument("--topic", required=True, metavar="T", help="of the pictures")
    for name, option in _OPTIONS:
        bag.add_argument(name, **option)
    bag.set_defaults(run=_bag)


def _bag(arguments: argparse.Namespace) -> int:
    require("rosbags")
    for name in ("every", "stride", "within"):
        if not getattr(arguments, name) > 0:
            raise ImageError(f"--{name} is a positive number, found {getattr(arguments, name)}")
    _check_free(arguments.input, arguments.output, arguments.overwrite)
    extrinsic = read_extrinsic(arguments.extrinsic) if arguments.extrinsic else None
    with Reader(arguments.input) as reader, Reader(arguments.input) as beside:
        topics = _Topics.of(reader, arguments)
        with LotusEngine(arguments.bundle, arguments.backend) as engine:
            engine.check_seed(arguments.seed)
            if arguments.anchor and all(
                TASKS[name].space is None for name in engine.manifest.tasks
            ):
                raise GeometryError("--anchor needs a bundle that answers depth or disparity")
            writer = Writer(arguments.output, arguments.storage)
            try:
                metric = Metric() if arguments.anchor else None
                anchors = _Nearest(beside, topics, arguments.within, extrinsic)
                _write(reader, engine, writer, topics, arguments, metric, anchors)
                writer.finish(arguments.overwrite)
            except BaseException:
                writer.abandon()
                raise
    for topic, count in writer.counts.items():
        show(f"{topic}: {count} messages")
    if metric is not None:
        _tell(metric, anchors)
    return 0


def _write(
    reader: Reader,
    engine: LotusEngine,
    writer: Writer,
    topics: _Topics,
    arguments: argparse.Namespace,
    metric: Metric | None,
    anchors: _Nearest,
) -> None:
    total = -(-reader.counts[topics.picture] // arguments.every)
    said = begin = time.monotonic()
    for number, (_, when, message) in enumerate(reader.messages(topics.picture)):
        if number % arguments.every:
            continue
        rgb = rgb_of(message)
        camera, known = anchors.at(message, rgb.shape[0], rgb.shape[1])
        prediction = engine(rgb, seed=arguments.seed)
        for made in made_of(prediction, rgb, camera, metric, known, arguments.stride):
            writer.write(made, topics.prefix, message.header, when)
        done, now = number // arguments.every + 1, time.monotonic()
        if now - said > 10:
            said = now
            say(f"{done}/{total} pictures, {done / (now - begin):.1f} a second")
    if not writer.counts:
        raise ImageError(f"{topics.picture} has no picture")


@dataclass(frozen=True, kw_only=True)
class _Topics:
    """The topics of a run; `info` and `anchor` may be missing."""

    picture: str
    info: str | None
    anchor: str | None
    prefix: str

    @classmethod
    def of(cls, reader: Reader, arguments: argparse.Namespace) -> _Topics:
        """Raises: ImageError for topics that the bag does not have, or of another kind."""
        picture: str = arguments.topic
        _need(reader, picture, _PICTURES)
        above = picture.removesuffix(_COMPRESSED).rpartition("/")[0]
        info = arguments.camera_info or f"{above}/camera_info"
        if arguments.camera_info or info in reader.kinds:
            _need(reader, info, ("sensor_msgs/msg/CameraInfo",))
        else:
            say(f"there is no {info} in the bag: no camera info and no points are written")
            info = None
        if arguments.anchor:
            _need(reader, arguments.anchor, _ANCHORS)
            if info is None and reader.kinds[arguments.anchor] != IMAGE:
                raise ImageError("a cloud needs the camera: name its topic with --camera-info")
        prefix = (arguments.prefix or f"{above}/lotus").rstrip("/")
        return cls(picture=picture, info=info, anchor=arguments.anchor, prefix=prefix)

    @property
    def rectified(self) -> bool:
        """Whether the name of the pictures' topic says so, as image_proc names them."""
        return "rect" in self.picture.removesuffix(_COMPRESSED).rpartition("/")[2]


def _need(reader: Reader, topic: str, kinds: tuple[str, ...]) -> None:
    kind = reader.kinds.get(topic)
    if kind in kinds:
        return
    words = " or ".join(each.rpartition("/")[2] for each in kinds)
    fitting = sorted(name for name, each in reader.kinds.items() if each in kinds)
    raise ImageError(
        f"{topic} is {'not in the bag' if kind is None else f'a {kind}'}, and wanted is {words}; "
        f"there is {', '.join(fitting) or 'none'}"
    )


class _Nearest:
    """Camera and anchors at the time of a picture: a second walk through the bag, just ahead."""

    def __init__(self, reader: Reader, topics: _Topics, within: float, extrinsic: Any) -> None:
        self._topics, self._within, self._extrinsic = topics, within, extrinsic
        wanted = [each for each in (topics.info, topics.anchor, *_TRANSFORMS) if each]
        self._walk: Iterator[tuple[str, int, Any]] = reader.messages(*wanted)
        self._frames = Frames()
        for _, _, message in reader.messages("/tf_static"):
            self._frames.add(message)
        self._info: Any = None
        self._before: Any = None
        self._after: Any = None
        self._warned: set[str] = set()
        self.problem = ""

    def at(self, picture: Any, height: int, width: int) -> tuple[Camera | None, Anchors | None]:
        """For a picture of this size; None where there is none that can be used. `problem` says
        what was wrong with the last anchor.
        """
        when = _seconds(picture)
        while self._after is None or _seconds(self._after) < when:
            following = next(self._walk, None)
            if following is None:
                break
            self._take(*following)
            if self._topics.anchor is None and self._info is not None:
                break  # a camera's info seldom changes
        camera = self._camera(height, width)
        near = [each for each in (self._before, self._after) if each is not None]
        near = [each for each in near if abs(_seconds(each) - when) <= self._within]
        if not near:
            self.problem = self.problem or f"no anchor within {self._within:g} s"
            return camera, None
        chosen = min(near, key=lambda each: abs(_seconds(each) - when))
        try:
            return camera, self._anchors(chosen, camera, picture.header.frame_id, height, width)
        except (GeometryError, ImageError) as error:
            self.problem = str(error)
            self._warn("anchor", f"an anchor cannot be used: {error}")
            return camera, None

    def _anchors(
        self, chosen: Any, camera: Camera | None, target: str, height: int, width: int
    ) -> Anchors:
        """Raises: GeometryError, ImageError."""
        if camera is None and not hasattr(chosen, "encoding"):
            raise GeometryError("a cloud needs the camera, which is not known")
        view = camera or Camera.assumed().at(height, width)  # of a depth picture its size alone
        return anchors_of(chosen, view, target, self._frames, self._extrinsic)

    def _take(self, topic: str, time: int, message: Any) -> None:
        if topic == self._topics.info:
            self._info = message
        elif topic == self._topics.anchor:
            self._before, self._after = self._after, message
        else:
            self._frames.add(message)

    def _camera(self, height: int, width: int) -> Camera | None:
        if self._info is None:
            return None
        try:
            camera = camera_of(self._info, self._topics.rectified).at(height, width)
        except GeometryError as error:
            self._warn(
                "camera",
                f"{self._topics.info} holds no camera ({error}): no points are written, and no "
                "camera info. Calibrate it, or name another topic with --camera-info",
            )
            return None
        if not self._topics.rectified and is_distorted(self._info):
            self._warn(
                "lines",
                f"{self._topics.picture} is not rectified, and its camera bends lines: points are "
                "off towards the edges. Name the topic that image_proc rectifies",
            )
        return camera

    def _warn(self, what: str, words: str) -> None:
        """Say so, once for each `what`."""
        if what not in self._warned:
            say(f"warning: {words}")
        self._warned.add(what)


def _seconds(message: Any) -> float:
    stamp = message.header.stamp
    return float(stamp.sec + stamp.nanosec * 1e-9)


def _check_free(given: Path, output: Path, overwrite: bool) -> None:
    """Refuse an output that is there, but for another bag to be replaced. Raises: OutputError."""
    read = (given, *Path(os.path.realpath(given)).parents)
    if exists(given) and exists(output) and any(map(output.samefile, read)):
        raise OutputError(f"{given} is, or lies in, the output {output}: choose another name")
    if exists(output) and not (overwrite and exists(output / "metadata.yaml")):
        what = "is no bag, so it is not overwritten" if overwrite else "exists: pass --overwrite"
        raise OutputError(f"{output} {what}")


def _tell(metric: Metric, anchors: _Nearest) -> None:
    if metric.residuals:
        middle = float(np.nanmedian(metric.residuals))
        show(
            f"metres from the anchors of {len(metric.residuals)} pictures; they fit to {middle:.1%}"
        )
    if metric.reused:
        show(f"{metric.reused} pictures without usable anchors have the scale of those before")
    if metric.without:
        say(f"warning: {metric.without} pictures before the first usable anchor have no depth")
    if not metric.residuals:
        raise GeometryError(
            f"no picture got a scale: {anchors.problem or 'the anchors do not fit the maps'}. See "
            "--within, --extrinsic and --camera-info"
        )
