"""`lotus-edge bag`: a bag of the test's own comes back with the engine's maps, by two readers."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
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
from bags import (  # noqa: E402
    COUNT,
    DEPTH,
    HEIGHT,
    INFO,
    LIDAR,
    LIDAR_IN_CAMERA,
    STORE,
    TOPIC,
    WIDTH,
    K,
    camera_info,
    compressed,
    depth_image,
    image,
    lidar,
    picture,
    transform,
    truth,
    write_bag,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Disparity and normals."""
    return write_null_bundle(tmp_path_factory.mktemp("bundle") / "b", task=("disparity", "normal"))


@pytest.fixture(scope="module")
def predictions(bundle: Path) -> list[Any]:
    with LotusEngine(bundle) as engine:
        return [engine(picture(number)) for number in range(COUNT)]


@pytest.fixture(scope="module", params=["mcap", "sqlite3"])
def bag(
    request: pytest.FixtureRequest, predictions: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """640x480 pictures with camera info, a lidar, a depth camera, and where they are."""

    def messages() -> Iterator[tuple[str, Any, int]]:
        yield "/tf_static", transform(), 0
        for number in range(COUNT):
            depth = truth(predictions[number]["disparity"].values)
            yield TOPIC, image(picture(number), number), number
            yield INFO, camera_info(number), number
            yield LIDAR, lidar(depth, number), number
            yield DEPTH, depth_image(depth, number), number

    return write_bag(tmp_path_factory.mktemp("bag") / "in", messages(), request.param)


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


@pytest.mark.parametrize("anchor", [LIDAR, DEPTH])
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
    if anchor == LIDAR:
        again = tmp_path / "again"
        assert main([*command[:3], str(again), *command[4:], "--extrinsic", str(with_file)]) == 0


def test_anchors_that_cannot_be_used_cost_their_picture_alone(
    bundle: Path, predictions: list[Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """When the first comes, nothing tells where the lidar is; of the last, half is missing."""

    def messages() -> Iterator[tuple[str, Any, int]]:
        for number in range(COUNT):
            cloud = lidar(truth(predictions[number]["disparity"].values), number)
            if number == COUNT - 1:
                cloud = replace(cloud, data=cloud.data[: len(cloud.data) // 2])
            yield TOPIC, image(picture(number), number), number
            yield INFO, camera_info(number), number
            yield LIDAR, cloud, number
            if number == 0:
                yield "/tf", transform(), number

    given, out = write_bag(tmp_path / "in", messages()), tmp_path / "out"
    command = ["bag", str(bundle), str(given), str(out), "--topic", TOPIC, "--anchor", LIDAR]
    assert main([*command, "--prefix", "/lotus"]) == 0
    told = capfd.readouterr()
    assert "1 pictures before the first usable anchor have no depth" in told.err
    assert "1 pictures without usable anchors have the scale of those before" in told.out
    found = read_with_rosbags(out)
    assert len(found["/lotus/disparity/image"]) == COUNT
    assert [depth.header.stamp.sec for _, depth in found["/lotus/depth/image_rect"]] == [101, 102]


@pytest.mark.parametrize("changes", [{"k": np.zeros(9)}, {"height": 0, "width": 0}])
def test_a_camera_that_is_not_calibrated_is_left_out(
    changes: dict[str, Any],
    bundle: Path,
    predictions: list[Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Registered depth does without it, a cloud does not."""

    def messages() -> Iterator[tuple[str, Any, int]]:
        for number in range(COUNT):
            depth = truth(predictions[number]["disparity"].values)
            yield TOPIC, image(picture(number), number), number
            yield INFO, replace(camera_info(number), **changes), number
            yield DEPTH, depth_image(depth, number), number
            yield LIDAR, lidar(depth, number), number

    given, out = write_bag(tmp_path / "in", messages()), tmp_path / "out"
    command = ["bag", str(bundle), str(given), str(out), "--topic", TOPIC, "--prefix", "/lotus"]
    assert main([*command, "--anchor", DEPTH]) == 0
    assert capfd.readouterr().err.count("holds no camera") == 1
    names = ("disparity/image", "normals/image", "depth/image_rect")
    assert set(read_with_rosbags(out)) == {f"/lotus/{name}" for name in names}
    assert main([*command, "--anchor", LIDAR, "--overwrite"]) == 1
    assert "a cloud needs the camera" in capfd.readouterr().err


def test_compressed_pictures_are_rectified_as_the_topic_says(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Then the camera is P, and no line is bent."""
    p = np.array([400.0, 0, 309.5, 0, 0, 410, 229.5, 0, 0, 0, 1, 0])
    info = replace(camera_info(0), d=np.array([0.1, 0, 0, 0, 0]), p=p)
    topic = "/camera/image_rect_color/compressed"
    messages = [("/camera/camera_info", info, 0), (topic, compressed(picture(0), 0), 0)]
    given, out = write_bag(tmp_path / "in", messages), tmp_path / "out"
    assert main(["bag", str(bundle), str(given), str(out), "--topic", topic]) == 0
    assert "not rectified" not in capfd.readouterr().err
    ((_, made),) = read_with_rosbags(out)["/camera/lotus/camera_info"]
    np.testing.assert_allclose(np.asarray(made.k), p.reshape(3, 4)[:, :3].reshape(-1))


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


def test_a_recording_is_not_replaced_by_its_own_maps(
    bag: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(bag, tmp_path / "mine"))
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    (file,) = (path for path in mine.iterdir() if path.suffix in (".mcap", ".db3"))
    for given in (mine, file):
        command = ["bag", str(bundle), str(given), str(mine), "--topic", TOPIC, "--overwrite"]
        assert main(command) == 1
        assert "is, or lies in, the output" in capfd.readouterr().err
        assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


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
