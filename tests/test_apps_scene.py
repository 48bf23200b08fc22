"""`lotus-edge scene`: what it writes is read back by the formats' own readers, and stands right."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from PIL import Image

from apps.__main__ import main
from apps.scene import files
from apps.scene.anchors import read_anchors, read_mask
from runtime.alignment import Anchors
from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.marker import marks
from runtime.mesh import build_mesh
from runtime.reconstruct import Reconstruction, reconstruct
from tiny.render import LOTUS_AXES, Rendered, render

HEIGHT, WIDTH = 48, 80
trimesh = pytest.importorskip("trimesh", reason="extra `scene`")
OpenEXR = pytest.importorskip("OpenEXR", reason="extra `scene`")


@pytest.fixture(scope="module")
def scene() -> Rendered:
    """Wider than high, and no two corners are alike."""
    return render(0, HEIGHT, WIDTH, "room")


@pytest.fixture(scope="module")
def found(scene: Rendered) -> Reconstruction:
    """The scene out of its exact maps, in metres."""
    maps = {"disparity": 1 / scene.depth, "normal": scene.normals * LOTUS_AXES}
    camera = Camera.from_matrix(scene.intrinsics, HEIGHT, WIDTH)
    return reconstruct(maps, camera, anchors=Anchors.from_map(scene.depth))


@pytest.fixture(scope="module")
def meshes(found: Reconstruction, scene: Rendered) -> dict[str, bytes]:
    return files.encode_meshes(found, scene.image, stride=1, island=20, faces=None)[0]


def seen_from_the_camera(found: Reconstruction, vertices: Any) -> np.ndarray:
    """(u, v, z) [N,3] of points of the world."""
    back = np.linalg.inv(files.world_from_camera(found))
    return found.camera.project(np.asarray(vertices) @ back[:3, :3].T + back[:3, 3])


def test_the_mesh_lies_on_the_true_surface_and_stands_straight(
    meshes: dict[str, bytes], found: Reconstruction, scene: Rendered
) -> None:
    for name in ("mesh.glb", "mesh.ply"):
        mesh = trimesh.load(io.BytesIO(meshes[name]), file_type=name[-3:], force="mesh")
        vertices = np.asarray(mesh.vertices)
        u, v, depth = seen_from_the_camera(found, vertices).T
        assert np.allclose(depth, scene.depth[v.astype(int), u.astype(int)], rtol=1e-3)
        assert len(mesh.faces) > HEIGHT * WIDTH
        # The floor is level, at 0, and looks up.
        down = vertices[:, 1] < 0.02
        assert down.sum() > 100
        assert np.abs(vertices[down, 1]).max() < 0.02
        flat = np.abs(vertices[mesh.faces][..., 1]).max(1) < 0.02
        assert (mesh.face_normals[flat][:, 1] > 0.9).mean() > 0.98


def test_the_texture_is_the_picture_the_right_way_round(
    meshes: dict[str, bytes], found: Reconstruction, scene: Rendered
) -> None:
    mesh = trimesh.load(io.BytesIO(meshes["mesh.glb"]), file_type="glb", force="mesh")
    picture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")).astype(int)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(picture - scene.image).mean() < 6  # a JPEG
    # A vertex, projected, is where its texture is.
    seen = seen_from_the_camera(found, mesh.vertices)
    assert np.allclose(mesh.visual.uv[:, 0] * WIDTH, seen[:, 0], atol=0.01)
    assert np.allclose((1 - mesh.visual.uv[:, 1]) * HEIGHT, seen[:, 1], atol=0.01)


def test_the_glb_says_what_gltf_wants(meshes: dict[str, bytes]) -> None:
    """By the specification of GLB 2.0: the header, the chunks, accessors within their buffers."""
    data = meshes["mesh.glb"]
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    body: dict[str, Any] = json.loads(data[20 : 20 + size])
    assert body["asset"]["version"] == "2.0"
    primitive = body["meshes"][0]["primitives"][0]
    assert {"POSITION", "NORMAL", "TEXCOORD_0"} <= set(primitive["attributes"])
    binary = len(data) - 20 - size - 8
    for view in body["bufferViews"]:
        assert view.get("byteOffset", 0) + view["byteLength"] <= binary
    image = body["images"][body["textures"][0]["source"]]
    assert image["mimeType"] == "image/jpeg"
    position = body["accessors"][primitive["attributes"]["POSITION"]]
    assert len(position["min"]) == len(position["max"]) == 3


def test_the_cloud(found: Reconstruction, scene: Rendered) -> None:
    cloud = found.points(stride=2)
    loaded = trimesh.load(
        io.BytesIO(files.encode_cloud(found, cloud, scene.image)), file_type="ply"
    )
    assert np.allclose(loaded.vertices, files.to_world(found, cloud.positions), atol=1e-5)
    assert np.array_equal(loaded.colors[:, :3], scene.image[cloud.rows, cloud.columns])
    raw = loaded.metadata["_ply_raw"]["vertex"]["data"]
    up = np.stack([raw["nx"], raw["ny"], raw["nz"]], 1)
    assert np.allclose(np.linalg.norm(up, axis=1), 1, atol=1e-4)
    floor = np.asarray(loaded.vertices)[:, 1] < 0.02
    assert np.median(up[floor][:, 1]) > 0.99


def test_the_maps(found: Reconstruction, scene: Rendered, tmp_path: Path) -> None:
    contents = files.encode_maps(found)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with np.load(tmp_path / "maps.npz") as maps:
        assert np.allclose(maps["depth"], scene.depth, rtol=1e-4)
        assert np.allclose(maps["intrinsics"], scene.intrinsics)
        assert (str(maps["unit"]), str(maps["task"])) == ("m", "disparity")
        affine = maps["scale"] * (1 / scene.depth) + maps["shift"]
        assert np.allclose(1 / affine, scene.depth, rtol=1e-4)
    depth = OpenEXR.File(str(tmp_path / "depth.exr"))
    for name in "ZY":
        assert np.allclose(depth.channels()[name].pixels, scene.depth, rtol=1e-4)
    assert "unit: m" in depth.header()["comments"]
    normal = OpenEXR.File(str(tmp_path / "normal.exr")).channels()
    grouped = normal["RGB"].pixels  # how the library reads three colours
    assert np.allclose(grouped, scene.normals, atol=1e-6)
    for axis, name in enumerate("XYZ"):
        assert np.allclose(normal[name].pixels, scene.normals[..., axis], atol=1e-6)
    with Image.open(tmp_path / "depth-16bit.png") as deep:
        assert np.abs(np.asarray(deep).astype(float) - scene.depth * 1000).max() < 2
    assert marks(tmp_path / "depth-16bit.png")["Lotus-Unit"].startswith("millimetres")


def test_islands_strides_and_what_is_left(found: Reconstruction) -> None:
    whole, sparse = build_mesh(found, island=1), build_mesh(found, stride=3, island=1)
    assert len(sparse.faces) < len(whole.faces) / 7
    large = build_mesh(found, island=200)
    assert len(large.faces) < len(whole.faces)
    assert large.faces.max() == len(large.vertices) - 1
    corners = whole.vertices[whole.faces]
    front = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((front * corners[:, 0]).sum(-1) < 0).all()  # towards the camera
    with pytest.raises(GeometryError, match="no surface"):
        build_mesh(found, island=10**6)


def run(tmp_path: Path, *options: str, picture: Path | None = None) -> int:
    bundles = [tmp_path / "disparity", tmp_path / "normal"]
    for bundle in bundles:
        if not bundle.exists():
            write_null_bundle(bundle, task=bundle.name)
    if picture is None:
        picture = tmp_path / "picture.png"
        Image.fromarray(render(0, 40, 64, "room").image).save(picture)
    output = str(tmp_path / "out")
    return main(["scene", *map(str, bundles), str(picture), "--output", output, *options])


def test_the_command_writes_all_its_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--fov", "60", "--island", "1", "--stride", "2") == 0, capfd.readouterr()
    said = capfd.readouterr()
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files.FILES)
    camera = json.loads((tmp_path / "out" / "camera.json").read_text())
    assert (camera["width"], camera["height"]) == (64, 40)
    assert camera["field_of_view"]["degrees"] == pytest.approx(60)
    assert camera["depth"]["unit"] == "median depth = 1"
    assert "camera: 60.0 degrees" in said.out
    with Image.open(tmp_path / "out" / "views.png") as views:
        assert views.size == (1280, 480)


def test_an_ensemble_gives_each_point_its_confidence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_null_bundle(tmp_path / "disparity", task="disparity", mode="g")
    assert run(tmp_path, "--fov", "60", "--island", "1", "--ensemble", "3") == 0, capfd.readouterr()
    confidence = np.load(tmp_path / "out" / "maps.npz")["confidence"]
    assert confidence.shape == (40, 64)
    assert 0 <= confidence.min() <= confidence.max() <= 1
    assert b"property float confidence\n" in (tmp_path / "out" / "cloud.ply").read_bytes()
    write_null_bundle(tmp_path / "other" / "disparity", task="disparity")
    assert run(tmp_path / "other", "--ensemble", "3") == 1
    assert "mode D" in capfd.readouterr().err


def test_a_large_picture_is_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.scene.command._MOST_POINTS", 700)
    assert run(tmp_path, "--fov", "60", "--island", "1") == 0  # 64x40: every second row and column
    counts = json.loads((tmp_path / "out" / "camera.json").read_text())["counts"]
    assert counts["stride"] == 2
    assert counts["points"] <= 640


def test_another_pictures_scene_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--fov", "60", "--island", "1")
    assert run(tmp_path, *options) == 0
    assert run(tmp_path, *options) == 0  # its own may be replaced
    other = tmp_path / "other.png"
    Image.fromarray(render(1, 40, 64, "room").image).save(other)
    assert run(tmp_path, *options, picture=other) == 1
    assert "another picture" in capfd.readouterr().err
    assert run(tmp_path, *options, "--overwrite", picture=other) == 0
    (tmp_path / "out" / "camera.json").write_text("{}")
    assert run(tmp_path, *options, picture=other) == 1
    assert "not of a scene" in capfd.readouterr().err


def test_a_turned_picture_comes_out_upright(tmp_path: Path) -> None:
    upright = Image.fromarray(render(0, 40, 64, "room").image)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert run(tmp_path, "--fov", "60", "--island", "1", picture=tmp_path / "turned.png") == 0
    mesh = trimesh.load(tmp_path / "out" / "mesh.glb", force="mesh")
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")).astype(int)
    assert texture.shape == (40, 64, 3)
    assert np.abs(texture - np.asarray(upright)).mean() < 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stride", "0"], "--stride is a positive number"),
        (["--fov", "200"], "between 0 and 180"),
        (["--grazing", "120"], "up to 90"),
        (["--camera-height", "-1"], "--camera-height is a positive number"),
        (["--sky", "nothing.png"], "cannot read the mask"),
        (["--anchors", "nothing.csv"], "cannot read the known distances"),
        (["--intrinsics", "nothing.json"], "cannot read the intrinsics"),
        (["--sensor-width", "6"], "does not say"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run(tmp_path, *options) == 1
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_of_known_distances(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# u v metres\n1.5, 2.5, 3\n\n4 5 6.5\n")
    text = read_anchors(tmp_path / "a.txt", 10, 20)
    assert (text.u.tolist(), text.v.tolist()) == ([1.5, 4], [2.5, 5])
    assert text.depth.tolist() == [3, 6.5]
    deep = np.zeros((10, 20), np.uint16)
    deep[3, 7] = 2500
    Image.fromarray(deep).save(tmp_path / "a.png")
    sensor = read_anchors(tmp_path / "a.png", 10, 20)
    assert (sensor.u[0], sensor.v[0], sensor.depth[0]) == (7.5, 3.5, 2.5)
    np.save(tmp_path / "a.npy", np.array([[1, 2, 3.0]]))
    assert read_anchors(tmp_path / "a.npy", 10, 20).depth.tolist() == [3]
    (tmp_path / "b.txt").write_text("1 2\n")
    for path, size in ((tmp_path / "b.txt", (10, 20)), (tmp_path / "a.png", (20, 10))):
        with pytest.raises(GeometryError, match=path.name):
            read_anchors(path, *size)
    Image.fromarray((deep > 0).astype(np.uint8) * 255).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", 10, 20).sum() == 1
    with pytest.raises(GeometryError, match="20x10"):
        read_mask(tmp_path / "m.png", 5, 5)
