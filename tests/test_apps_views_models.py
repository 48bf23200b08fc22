"""Models of several views: what they say is read as those who write them mean it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from views_models import Room, make_room, write_colmap, write_transforms

from apps.views.model import Lens, Model, View, find_model, read_model
from apps.views.pictures import Prepared, prepare
from runtime.errors import GeometryError, LotusError
from tiny.around import world_points

trimesh = pytest.importorskip("trimesh", reason="extra `views`")
pycolmap = pytest.importorskip("pycolmap", reason="extra `views`")


@pytest.fixture(scope="module")
def room() -> Room:
    return make_room(2, 3, 60, 80)


@pytest.fixture
def colmap(room: Room, tmp_path: Path) -> Path:
    return write_colmap(room, tmp_path / "colmap")


@pytest.fixture
def nerf(room: Room, tmp_path: Path) -> Path:
    return write_transforms(room, tmp_path / "nerf")


def edit(folder: Path, **fields: Any) -> Path:
    """Change a transforms.json; None takes a field away."""
    path = folder / "transforms.json"
    body = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in body.items() if value is not None}))
    return path


def test_text_and_binary_are_the_same(colmap: Path, room: Room) -> None:
    sparse = colmap / "sparse" / "0"
    text = read_model(sparse)
    pycolmap.Reconstruction(str(sparse)).write_binary(str(sparse))
    binary = read_model(sparse)
    assert binary.known_by != text.known_by  # other files
    for model in (text, binary):
        assert (model.kind, model.tracked) == ("COLMAP", True)
        assert [view.name for view in model.views] == ["00.png", "01.png", "02.png"]
        for number, view in enumerate(model.views):
            assert np.allclose(view.camera_from_world, room.views[number].camera_from_world)
            assert len(view.points) == room.seen[:, number].sum()
            assert np.allclose(
                np.sort(view.points, 0), np.sort(room.points[room.seen[:, number]], 0)
            )
            assert view.picture.samefile(colmap / "images" / view.name)
            fx, _, cx, _ = (*room.views[0].intrinsics[0], 0)
            assert view.lens.pinhole is not None
            assert view.lens.pinhole[::2] == pytest.approx((fx, cx))


def test_a_model_is_found_in_the_folders_that_tools_make(colmap: Path, nerf: Path) -> None:
    sparse = colmap / "sparse" / "0"
    for path in (colmap, colmap / "sparse", sparse):
        assert find_model(path).path.samefile(sparse)
    for path in (nerf, nerf / "transforms.json"):
        assert find_model(path).path.samefile(nerf / "transforms.json")
    shutil.move(sparse, colmap / "flat")
    assert len(read_model(colmap / "flat").views) == 3
    with pytest.raises(GeometryError, match="neither a COLMAP model"):
        find_model(colmap)
    with pytest.raises(GeometryError, match="no such folder"):
        find_model(colmap / "nothing")
    with pytest.raises(GeometryError, match=r"or a \.json file"):
        find_model(colmap / "flat" / "images.txt")
    shutil.move(colmap / "images", colmap / "pictures")
    with pytest.raises(GeometryError, match="--images"):
        read_model(colmap / "flat")
    assert read_model(colmap / "flat", colmap / "pictures").views[0].picture.is_file()


def test_damaged_models_are_refused(colmap: Path) -> None:
    sparse = colmap / "sparse" / "0"
    images = (sparse / "images.txt").read_text()
    (sparse / "images.txt").write_text(images.replace(" 1 00.png", " 7 00.png"))
    with pytest.raises(GeometryError, match="cannot read the COLMAP model"):
        read_model(sparse)
    (sparse / "images.txt").write_text("")
    with pytest.raises(GeometryError):
        read_model(sparse)


def test_the_axes_of_transforms(nerf: Path, room: Room) -> None:
    model = read_model(nerf)
    assert (model.kind, model.tracked) == ("transforms.json", False)
    for number, view in enumerate(model.views):
        assert np.allclose(view.camera_from_world, room.views[number].camera_from_world)
        assert np.allclose(view.points, room.points)
    picture = prepare(model.views[0], 640)
    assert np.allclose(picture.camera.matrix, room.views[0].intrinsics, rtol=1e-6)
    assert np.array_equal(picture.rgb, room.views[0].image)


def test_the_scenes_of_nerf_say_an_angle_alone(nerf: Path, room: Room) -> None:
    body = json.loads((nerf / "transforms.json").read_text())
    for frame in body["frames"]:
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    focal = room.views[0].intrinsics[0, 0]
    nothing = dict.fromkeys(("w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "camera_model"))
    edit(nerf, **nothing, frames=body["frames"], camera_angle_x=2 * math.atan(40 / focal))
    view = read_model(nerf).views[1]
    assert view.name == "images/01"
    assert prepare(view, 640).camera.fx == pytest.approx(focal)


def test_a_frame_has_its_own_camera(nerf: Path) -> None:
    body = json.loads((nerf / "transforms.json").read_text())
    body["frames"][1] |= {"fl_x": 111, "fl_y": 112}
    edit(nerf, frames=body["frames"])
    assert prepare(read_model(nerf).views[1], 640).camera.fx == 111


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"transform_matrix": [[1, 2], [3, 4]]}, "no pose"),
        ({"transform_matrix": (np.eye(4) * 2).tolist()}, "no pose"),
        ({"transform_matrix": np.diag([1, 1, -1, 1]).tolist()}, "no pose"),
        ({"file_path": None}, "no file_path"),
        ({"file_path": "images/00.png"}, "names this picture before"),
        ({"fl_x": -3}, "fl_x, fl_y"),
        ({"fl_x": "wide"}, "camera cannot be used"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR is not known"),
        ({"w": 0}, "fl_x"),
    ],
)
def test_bad_frames_have_a_problem(nerf: Path, change: dict[str, Any], problem: str) -> None:
    body = json.loads((nerf / "transforms.json").read_text())
    body["frames"][1] |= change
    edit(nerf, frames=body["frames"])
    problems = [view.problem for view in read_model(nerf).views if view.problem]
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "cannot read"), ("[1]", "no list `frames`"), ('{"frames": []}', "no list `frames`")],
)
def test_what_is_no_transforms_json(nerf: Path, text: str, said: str) -> None:
    (nerf / "transforms.json").write_text(text)
    with pytest.raises(GeometryError, match=said):
        read_model(nerf)


def test_points_that_are_none(nerf: Path) -> None:
    (nerf / "sparse_pc.ply").write_text("ply\n")
    with pytest.raises(GeometryError, match="cannot read the points"):
        read_model(nerf)
    (nerf / "sparse_pc.ply").unlink()
    with pytest.raises(GeometryError, match="cannot read the points"):
        read_model(nerf)


def one_view(path: Path, lens: Lens) -> View:
    return View(
        name="a", picture=path, lens=lens, camera_from_world=np.eye(4), points=np.zeros((0, 3))
    )


def seen_at(prepared: Prepared, points: np.ndarray) -> np.ndarray:
    """The colours of the picture where these points [N,3] of the world are."""
    own = points @ prepared.camera_from_world[:3, :3].T + prepared.camera_from_world[:3, 3]
    u, v, _ = prepared.camera.project(own).T
    return prepared.rgb[v.astype(int), u.astype(int)].astype(int)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_with_exif_comes_out_upright_and_its_camera_turns_with_it(
    room: Room, tmp_path: Path, orientation: int
) -> None:
    """Structure from motion saw it as it is stored."""
    view = room.views[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(view.image).save(tmp_path / "a.png", exif=exif)
    (fx, _, cx), (_, fy, cy), _ = view.intrinsics.tolist()
    lens = Lens(model="PINHOLE", params=(fx, fy, cx + 3, cy - 2), width=80, height=60)
    prepared = prepare(one_view(tmp_path / "a.png", lens), 640)
    with Image.open(tmp_path / "a.png") as picture:
        from PIL import ImageOps

        assert np.array_equal(prepared.rgb, np.asarray(ImageOps.exif_transpose(picture)))
    rows, columns = np.array([5, 20, 50, 33]), np.array([70, 10, 44, 31])
    rays = np.stack([(columns + 0.5 - cx - 3) / fx, (rows + 0.5 - cy + 2) / fy, np.ones(4)], axis=1)
    assert np.array_equal(seen_at(prepared, 3 * rays), view.image[rows, columns])
    # Where only the upright picture fits the model, that is what the model saw.
    if orientation in (6, 8):
        upright = Lens(model="PINHOLE", params=(fx, fy, cy, cx), width=60, height=80)
        assert prepare(one_view(tmp_path / "a.png", upright), 640).camera.cx == cy


def test_a_picture_of_another_size(room: Room, tmp_path: Path) -> None:
    Image.fromarray(room.views[0].image).save(tmp_path / "a.png")
    double = Lens(model="SIMPLE_PINHOLE", params=(140.0, 80.0, 60.0), width=160, height=120)
    camera = prepare(one_view(tmp_path / "a.png", double), 40).camera
    assert (camera.width, camera.height) == (40, 30)
    assert (camera.fx, camera.cx, camera.cy) == (35, 20, 15)
    wide = Lens(model="SIMPLE_PINHOLE", params=(140.0, 80.0, 60.0), width=160, height=100)
    with pytest.raises(GeometryError, match="80x60 pixels, and the model's camera is for 160x100"):
        prepare(one_view(tmp_path / "a.png", wide), 40)


@pytest.mark.parametrize(
    "lens",
    [
        Lens(model="SIMPLE_RADIAL", params=(300.0, 160.0, 120.0, -0.3), width=320, height=240),
        Lens(
            model="OPENCV",
            params=(300.0, 310.0, 165.0, 118.0, -0.3, 0.03, 0.002, -0.001),
            width=320,
            height=240,
        ),
        Lens(
            model="OPENCV_FISHEYE",
            params=(300.0, 300.0, 160.0, 120.0, 0.02, 0.0, 0.0, 0.0),
            width=320,
            height=240,
        ),
    ],
    ids=lambda lens: lens.model,
)
def test_distortion_is_taken_out(lens: Lens, tmp_path: Path) -> None:
    """A distorted picture of a pattern on the rays, by the camera model's own formula."""
    points = np.random.default_rng(0).uniform((-0.3, -0.2), (0.3, 0.2), (12, 2))
    x, y = points.T
    r2, radius = x * x + y * y, np.hypot(x, y)
    p = lens.params
    if lens.model == "SIMPLE_RADIAL":
        u, v = (p[0] * each * (1 + p[3] * r2) + c for each, c in ((x, p[1]), (y, p[2])))
    elif lens.model == "OPENCV":
        radial = 1 + p[4] * r2 + p[5] * r2**2
        u = p[0] * (x * radial + 2 * p[6] * x * y + p[7] * (r2 + 2 * x * x)) + p[2]
        v = p[1] * (y * radial + 2 * p[7] * x * y + p[6] * (r2 + 2 * y * y)) + p[3]
    else:
        theta = np.arctan(radius)
        factor = theta * (1 + p[4] * theta**2) / radius
        u, v = p[0] * x * factor + p[2], p[1] * y * factor + p[3]
    rows, columns = np.mgrid[:240, :320] + 0.5
    picture = np.zeros((240, 320, 3))
    for number in range(12):  # a soft spot of its own brightness at each point
        spot = np.exp(-((columns - u[number]) ** 2 + (rows - v[number]) ** 2) / 8)
        picture[..., number % 3] = np.maximum(picture[..., number % 3], 250 * spot)
    Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "a.png")
    prepared = prepare(one_view(tmp_path / "a.png", lens), 1000)
    rays = np.column_stack([points, np.ones(12)])
    colors = seen_at(prepared, rays)
    assert (colors[np.arange(12), np.arange(12) % 3] > 180).all()
    plain = Lens(model="PINHOLE", params=(p[0], p[0], 160.0, 120.0))
    bent = seen_at(prepare(one_view(tmp_path / "a.png", plain), 1000), rays)
    assert (bent[np.arange(12), np.arange(12) % 3] < 180).any()  # without it they are elsewhere


def test_a_camera_that_nobody_can_undistort(room: Room, tmp_path: Path) -> None:
    Image.fromarray(room.views[0].image).save(tmp_path / "a.png")
    lens = Lens(model="WONDERFUL", params=(1.0, 2.0), width=80, height=60)
    with pytest.raises(LotusError, match="cannot be undistorted"):
        prepare(one_view(tmp_path / "a.png", lens), 640)


def test_a_lens_of_zeros_needs_no_library() -> None:
    zeros = Lens(model="OPENCV", params=(5.0, 6.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0))
    assert zeros.pinhole == (5, 6, 7, 8)
    assert Lens(model="SIMPLE_RADIAL", params=(5.0, 7.0, 8.0, 0.0)).pinhole == (5, 5, 7, 8)
    assert Lens(model="SIMPLE_RADIAL", params=(5.0, 7.0, 8.0, 0.1)).pinhole is None
    assert Lens(model="OPENCV_FISHEYE", params=(5.0, 6.0, 7.0, 8.0, 0, 0, 0, 0)).pinhole is None


def test_points_behind_others_are_not_anchors(nerf: Path, room: Room) -> None:
    from apps.views.solve import _seen

    model: Model = read_model(nerf)
    prepared = prepare(model.views[0], 640)
    wall = world_points(room.views[0])[10:50:8, 10:70:8].reshape(-1, 3)
    center = -prepared.camera_from_world[:3, :3].T @ prepared.camera_from_world[:3, 3]
    behind = center + 2 * (wall - center)
    seen, kept = _seen(np.concatenate([wall, behind]), prepared, tracked=False)
    assert np.allclose(kept, wall)
    assert np.allclose(seen[:, 2], room.views[0].depth[10:50:8, 10:70:8].ravel(), rtol=1e-5)
    assert len(_seen(np.concatenate([wall, behind]), prepared, tracked=True)[0]) == 2 * len(wall)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_binary_file_that_was_cut_short_is_refused(colmap: Path, name: str) -> None:
    """pycolmap alone would read some of them for ever."""
    sparse = colmap / "sparse" / "0"
    pycolmap.Reconstruction(str(sparse)).write_binary(str(sparse))
    path = sparse / f"{name}.bin"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole + b"\0", b"", b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(GeometryError, match=rf"{name}\.bin is cut short"):
            read_model(sparse)
