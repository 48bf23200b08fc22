"""`lotus-edge bag`: a bag of the test's own comes back with the engine's maps, by two readers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from PIL import Image

from apps.__main__ import main
from apps.bag.messages import camera_fields, cloud_fields, depth_of, image_fields, points_of, rgb_of
from apps.bag.transforms import Frames, read_extrinsic
from runtime import LotusEngine
from runtime.camera import Camera
from runtime.errors import GeometryError, ImageError

rosbags = pytest.importorskip("rosbags", reason="extra `ros`")
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402

HEIGHT, WIDTH, COUNT = 480, 640, 3
TOPIC = "/camera/color/image_raw"
STORE = get_typestore(Stores.ROS2_HUMBLE)
T = STORE.types
K = [500.0, 0, 319.5, 0, 510, 239.5, 0, 0, 1]
LIDAR_IN_CAMERA = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, 0.3], [0, 0, 0, 1.0]])


def header(number: int, frame: str) -> Any:
    stamp = T["builtin_interfaces/msg/Time"](sec=100 + number, nanosec=250_000_000)
    return T["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def picture(number: int) -> np.ndarray:
    """RGB uint8: bright is near for the null backend, whose answer is the mean of the colours."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    rgb = np.stack([90 + 60 * np.sin(x / 150 + number), 120 + 0 * x, 100 + 80 * y / HEIGHT], -1)
    return rgb.astype(np.uint8)


def truth(values: np.ndarray) -> np.ndarray:
    """Metric depth of a map of disparity."""
    return 1 / (0.6 * values + 0.05)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Disparity and normals."""
    return write_null_bundle(tmp_path_factory.mktemp("bundle") / "b", task=("disparity", "normal"))


@pytest.fixture(scope="module")
def predictions(bundle: Path) -> list[Any]:
    with LotusEngine(bundle) as engine:
        return [engine(picture(number)) for number in range(COUNT)]


def image(rgb: np.ndarray, number: int) -> Any:
    data = np.ascontiguousarray(rgb[..., ::-1]).reshape(-1)
    return T["sensor_msgs/msg/Image"](
        header=header(number, "camera_optical"),
        height=HEIGHT,
        width=WIDTH,
        encoding="bgr8",
        is_bigendian=0,
        step=3 * WIDTH,
        data=data,
    )


def camera_info(number: int) -> Any:
    roi = T["sensor_msgs/msg/RegionOfInterest"](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    return T["sensor_msgs/msg/CameraInfo"](
        header=header(number, "camera_optical"),
        height=HEIGHT,
        width=WIDTH,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=np.array(K),
        r=np.eye(3).reshape(-1),
        p=np.zeros(12),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def lidar(depth: np.ndarray, number: int) -> Any:
    """The camera's points as a lidar has them, some of them, in its own frame."""
    camera = Camera.from_matrix([[500, 0, 320], [0, 510, 240], [0, 0, 1]], HEIGHT, WIDTH)
    x, y = camera.slopes()
    points = np.stack([x * depth, y * depth, depth], -1).reshape(-1, 3)[::173]
    back = np.linalg.inv(LIDAR_IN_CAMERA)
    points = points @ back[:3, :3].T + back[:3, 3]
    record = np.zeros(len(points), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("i", "<f4")])
    for axis, name in enumerate("xyz"):
        record[name] = points[:, axis]
    field = T["sensor_msgs/msg/PointField"]
    return T["sensor_msgs/msg/PointCloud2"](
        header=header(number, "lidar"),
        height=1,
        width=len(points),
        fields=[
            field(name=name, offset=4 * at, datatype=7, count=1)
            for at, name in enumerate(("x", "y", "z", "intensity"))
        ],
        is_bigendian=False,
        point_step=16,
        row_step=16 * len(points),
        data=record.view(np.uint8),
        is_dense=True,
    )


def transform() -> Any:
    """camera_optical is 90 degrees round from the lidar, by way of the base."""
    turn = T["geometry_msgs/msg/Quaternion"](x=-0.5, y=0.5, z=-0.5, w=0.5)
    back = np.linalg.inv(LIDAR_IN_CAMERA)
    move = T["geometry_msgs/msg/Vector3"](**dict(zip("xyz", map(float, back[:3, 3]), strict=True)))
    identity = T["geometry_msgs/msg/Transform"](
        translation=T["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=0.0),
        rotation=T["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=1.0),
    )
    stamped = T["geometry_msgs/msg/TransformStamped"]
    return T["tf2_msgs/msg/TFMessage"](
        transforms=[
            stamped(header=header(0, "base"), child_frame_id="lidar", transform=identity),
            stamped(
                header=header(0, "lidar"),
                child_frame_id="camera_optical",
                transform=T["geometry_msgs/msg/Transform"](translation=move, rotation=turn),
            ),
        ]
    )


def depth_image(depth: np.ndarray, number: int) -> Any:
    data = np.where(np.arange(WIDTH) % 2, depth * 1000, 0).astype("<u2")
    return T["sensor_msgs/msg/Image"](
        header=header(number, "camera_optical"),
        height=HEIGHT,
        width=WIDTH,
        encoding="16UC1",
        is_bigendian=0,
        step=2 * WIDTH,
        data=data.reshape(-1).view(np.uint8),
    )


@pytest.fixture(scope="module", params=["mcap", "sqlite3"])
def bag(
    request: pytest.FixtureRequest, predictions: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """640x480 pictures with camera info, a lidar, a depth camera, and where they are."""
    path = tmp_path_factory.mktemp("bag") / "in"
    plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[request.param]
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}

        def write(topic: str, message: Any, number: int) -> None:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            when = (100 + number) * 10**9 + len(connections)
            writer.write(connections[topic], when, STORE.serialize_cdr(message, kind))

        write("/tf_static", transform(), 0)
        for number in range(COUNT):
            depth = truth(predictions[number]["disparity"].values)
            write(TOPIC, image(picture(number), number), number)
            write("/camera/color/camera_info", camera_info(number), number)
            write("/lidar/points", lidar(depth, number), number)
            write("/camera/depth/image_raw", depth_image(depth, number), number)
    return path


def read_with_rosbags(path: Path) -> dict[str, list[tuple[int, Any]]]:
    from rosbags.highlevel import AnyReader

    found: dict[str, list[tuple[int, Any]]] = {}
    with AnyReader([path], default_typestore=STORE) as reader:
        for connection, when, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            found.setdefault(connection.topic, []).append((when, message))
    return found


def read_with_mcap(path: Path) -> dict[str, list[tuple[int, Any]]]:
    make_reader = pytest.importorskip("mcap.reader", reason="extra `dev`").make_reader
    factory = pytest.importorskip("mcap_ros2.decoder", reason="extra `dev`").DecoderFactory

    found: dict[str, list[tuple[int, Any]]] = {}
    (file,) = path.glob("*.mcap")
    with file.open("rb") as stream:
        for _, channel, record, message in make_reader(
            stream, decoder_factories=[factory()]
        ).iter_decoded_messages():
            found.setdefault(channel.topic, []).append((record.log_time, message))
    return found


def floats(message: Any, channels: int) -> np.ndarray:
    assert message.encoding == f"32FC{channels}"
    assert message.step == 4 * channels * message.width
    array = np.frombuffer(bytes(message.data), "<f4").reshape(message.height, message.width, -1)
    return array if channels > 1 else array[..., 0]


def test_two_readers_find_the_engines_maps(
    bag: Path, bundle: Path, predictions: list[Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["bag", str(bundle), str(bag), str(out), "--topic", TOPIC]) == 0
    for found in (read_with_rosbags(out), read_with_mcap(out)):
        prefix = "/camera/color/lotus"
        assert set(found) == {
            f"{prefix}/disparity/image",
            f"{prefix}/normals/image",
            f"{prefix}/camera_info",
        }
        for number in range(COUNT):
            when, disparity = found[f"{prefix}/disparity/image"][number]
            assert (disparity.header.stamp.sec, disparity.header.stamp.nanosec) == (
                100 + number,
                250_000_000,
            )
            assert disparity.header.frame_id == "camera_optical"
            assert when // 10**9 == 100 + number
            expected = predictions[number]
            np.testing.assert_array_equal(floats(disparity, 1), expected["disparity"].values)
            normals = floats(found[f"{prefix}/normals/image"][number][1], 3)
            # In the optical frame: what faces the camera has z < 0.
            np.testing.assert_array_equal(normals, expected["normal"].values * [1, -1, -1])
            info = found[f"{prefix}/camera_info"][number][1]
            np.testing.assert_allclose(np.asarray(info.k), K)
            assert (info.width, info.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("anchor", ["/lidar/points", "/camera/depth/image_raw"])
def test_metres_from_anchors(
    anchor: str, bag: Path, bundle: Path, predictions: list[Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["bag", str(bundle), str(bag), str(out), "--topic", TOPIC, "--anchor", anchor]
    assert main([*command, "--prefix", "/lotus"]) == 0
    found = read_with_rosbags(out)
    for number in range(COUNT):
        exact = truth(predictions[number]["disparity"].values)
        depth = floats(found["/lotus/depth/image_rect"][number][1], 1)
        np.testing.assert_allclose(depth, exact, rtol=0.01)
        cloud = found["/lotus/points"][number][1]
        points = points_of(cloud).reshape(HEIGHT, WIDTH, 3)
        np.testing.assert_allclose(points[..., 2], depth, rtol=1e-5)
        assert points[0, 0, 0] == pytest.approx((0 - 319.5) / 500 * depth[0, 0], rel=1e-4)
        assert points[0, 0, 1] == pytest.approx((0 - 239.5) / 510 * depth[0, 0], rel=1e-4)
        names = [(field.name, field.offset, field.datatype) for field in cloud.fields]
        assert names == [("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("rgb", 12, 7)]
        color = np.frombuffer(bytes(cloud.data), "<u4").reshape(HEIGHT, WIDTH, 4)[7, 9, 3]
        red, green, blue = picture(number)[7, 9].tolist()
        assert color == red << 16 | green << 8 | blue
    with_file = tmp_path / "matrix.json"
    with_file.write_text(json.dumps(LIDAR_IN_CAMERA.tolist()))
    if anchor == "/lidar/points":
        again = tmp_path / "again"
        assert main([*command[:3], str(again), *command[4:], "--extrinsic", str(with_file)]) == 0


def test_what_is_refused(
    bag: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(*options: str, given: Path = bag, out: Path = tmp_path / "out") -> str:
        capfd.readouterr()
        assert main(["bag", str(bundle), str(given), str(out), *options]) == 1
        assert [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))] == []
        return capfd.readouterr().err

    missing = said("--topic", "/nothing")
    assert "/nothing is not in the bag" in missing
    assert TOPIC in missing
    assert "/tf_static is a tf2_msgs" in said("--topic", "/tf_static")
    assert "there is no bag" in said("--topic", TOPIC, given=tmp_path / "nowhere")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "metadata.yaml").write_text("nonsense: 1\n")
    assert "as a bag" in said("--topic", TOPIC, given=tmp_path / "text")
    assert "is a positive number" in said("--topic", TOPIC, "--every", "0")
    bad = tmp_path / "bad.json"
    bad.write_text("[1, 2]")
    assert "cannot read a 4x4 matrix" in said("--topic", TOPIC, "--extrinsic", str(bad))


def test_an_existing_bag_is_replaced_only_if_asked(bag: Path, bundle: Path, tmp_path: Path) -> None:
    command = ["bag", str(bundle), str(bag), str(tmp_path / "out"), "--topic", TOPIC]
    assert main(command) == 0
    assert main(command) == 1
    assert main([*command, "--overwrite", "--storage", "sqlite3"]) == 0
    assert len(list((tmp_path / "out").glob("*.db3"))) == 1
    (tmp_path / "mine").mkdir()
    assert main([*command[:3], str(tmp_path / "mine"), *command[4:], "--overwrite"]) == 1


def message(**fields: object) -> Any:
    return SimpleNamespace(is_bigendian=0, **fields)


def test_pictures_of_all_encodings() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)

    def read(encoding: str, array: np.ndarray, pad: int = 0) -> np.ndarray:
        rows = array.reshape(3, -1).view(np.uint8)
        rows = np.pad(rows, ((0, 0), (0, pad)))
        return rgb_of(
            message(encoding=encoding, height=3, width=5, step=rows.shape[1], data=rows.reshape(-1))
        )

    np.testing.assert_array_equal(read("rgb8", rgb), rgb)
    np.testing.assert_array_equal(read("bgr8", np.ascontiguousarray(rgb[..., ::-1]), pad=3), rgb)
    alpha = np.concatenate([rgb, rgb[..., :1]], -1)
    np.testing.assert_array_equal(read("rgba8", alpha), rgb)
    np.testing.assert_array_equal(
        read("mono8", np.ascontiguousarray(rgb[..., 0]))[..., 1], rgb[..., 0]
    )
    deep = rgb[..., 0].astype("<u2") << 8
    np.testing.assert_array_equal(read("mono16", deep)[..., 2], rgb[..., 0])
    with pytest.raises(ImageError, match="image_proc"):
        read("bayer_rggb8", rgb[..., 0].copy())
    with pytest.raises(ImageError, match="yuv422"):
        read("yuv422", rgb)
    with pytest.raises(ImageError, match="bytes"):
        rgb_of(message(encoding="rgb8", height=3, width=500, step=15, data=rgb.reshape(-1)))
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    np.testing.assert_array_equal(rgb_of(message(format="png", data=buffer.getvalue())), rgb)
    with pytest.raises(ImageError):
        rgb_of(message(format="jpeg", data=b"nothing"))


def test_depth_and_clouds_come_back() -> None:
    depth = np.array([[1.5, np.nan], [0, 2]], np.float32)
    back = depth_of(SimpleNamespace(**image_fields(depth)))
    np.testing.assert_array_equal(back, [[1.5, np.nan], [np.nan, 2]])
    points = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    fields = cloud_fields(points, np.zeros((2, 3, 3), np.uint8))
    fields["fields"] = [SimpleNamespace(**each) for each in fields["fields"]]
    np.testing.assert_array_equal(points_of(SimpleNamespace(**fields)), points.reshape(-1, 3))
    fields["data"] = fields["data"][:-1]
    with pytest.raises(GeometryError, match="bytes"):
        points_of(SimpleNamespace(**fields))
    info = camera_fields(Camera.from_fov(90).at(100, 200))
    np.testing.assert_allclose(info["k"], [100, 0, 99.5, 0, 100, 49.5, 0, 0, 1])
    np.testing.assert_allclose(info["p"].reshape(3, 4)[:, :3].reshape(-1), info["k"])


def test_frames_that_are_not_connected(tmp_path: Path) -> None:
    frames = Frames()
    frames.add(transform())
    np.testing.assert_allclose(
        frames.between("camera_optical", "lidar"), LIDAR_IN_CAMERA, atol=1e-9
    )
    np.testing.assert_allclose(frames.between("/lidar", "base"), np.eye(4), atol=1e-9)
    with pytest.raises(GeometryError, match="--extrinsic"):
        frames.between("camera_optical", "gps")
    skewed = tmp_path / "a.json"
    skewed.write_text(json.dumps(np.diag([2.0, 1, 1, 1]).tolist()))
    with pytest.raises(GeometryError, match="no rotation"):
        read_extrinsic(skewed)
