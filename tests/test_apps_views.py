"""`lotus-edge scene --views`: a rendered room from known poses comes out as one surface."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from PIL import Image
from views_models import Room, make_room, write_colmap, write_transforms

from apps.__main__ import main
from apps.views import files
from runtime.errors import BackendError, GeometryError
from runtime.prediction import TaskMap
from tiny.around import room_size, world_points

pytest.importorskip("pycolmap", reason="extra `views`")
trimesh = pytest.importorskip("trimesh", reason="extra `views`")
from apps.views.fuse import load_open3d, nearest  # noqa: E402

try:
    open3d = load_open3d()
except (ModuleNotFoundError, GeometryError) as missing:
    pytest.skip(f"extra `views`: {missing}", allow_module_level=True)
Run = Callable[..., int]


@pytest.fixture(scope="module")
def room() -> Room:
    return make_room(0, 12, 72, 96)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_bundle(tmp_path_factory.mktemp("bundle") / "b", task=("disparity", "normal"))


@pytest.fixture
def asked(room: Room, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the views that a network was asked for, which answers the truth, with an affine
    change of its own for each.
    """
    names: list[str] = []

    def ask(engines: Any, rgb: np.ndarray, **options: Any) -> dict[str, TaskMap]:
        number, values = room.answer(rgb)
        names.append(f"{number:02}.png")
        return {"disparity": TaskMap(task="disparity", values=values)}

    monkeypatch.setattr("apps.views.maps.ask", ask)
    return names


@pytest.fixture
def model(room: Room, tmp_path: Path) -> Path:
    return write_colmap(room, tmp_path / "model")


@pytest.fixture
def run(bundle: Path, model: Path, tmp_path: Path, asked: list[str]) -> Run:
    def run(*options: str, views: Path = model, output: str = "out", voxel: str = "0.15") -> int:
        words = ["scene", str(bundle), "--views", str(views), "--output", str(tmp_path / output)]
        return main([*words, *(["--voxel", voxel] if voxel else []), *options])

    return run


def report(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return body


def off(room: Room, vertices: Any) -> np.ndarray:
    """How far points are from the true surface, in sizes of the room."""
    truth = np.concatenate([world_points(view).reshape(-1, 3) for view in room.fine])
    return nearest(np.asarray(vertices), truth) / room_size(room.seed)


def test_a_room_comes_out_where_it_is(
    run: Run, room: Room, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--metric", voxel="") == 0, capfd.readouterr()
    out, said = tmp_path / "out", capfd.readouterr()
    assert {path.name for path in out.iterdir()} == {*files.FILES, "depth", "maps"}
    mesh = trimesh.load(out / "mesh.ply")
    far = off(room, mesh.vertices)
    assert np.median(far) < 0.0013  # half a pixel off would be 0.0019
    assert np.percentile(far, 95) < 0.005
    # It covers what was seen, and faces the cameras.
    truth = np.concatenate([world_points(view).reshape(-1, 3)[::17] for view in room.views])
    assert np.median(nearest(truth, mesh.vertices)) / room_size(0) < 0.01
    inside = np.array([view.camera_from_world for view in room.views])
    middle = np.mean([-pose[:3, :3].T @ pose[:3, 3] for pose in inside], axis=0)
    towards = ((middle - mesh.triangles_center) * mesh.face_normals).sum(1)
    assert (towards > 0).mean() > 0.8
    body = report(out)
    assert (body["unit"], body["views_used"], body["views_left_out"]) == ("m", 12, 0)
    for row in body["views"]:
        assert row["residual"] < 0.01
        assert row["confirmed"] > 0.5 * row["pixels"]
        assert f"{row['name']}: {row['points']} points" in said.out
    assert "[12/12] 11.png" in said.err


def test_its_files_open_elsewhere(run: Run, room: Room, tmp_path: Path) -> None:
    assert run() == 0
    out = tmp_path / "out"
    mesh = trimesh.load(out / "mesh.ply", process=False)
    same = open3d.io.read_triangle_mesh(str(out / "mesh.ply"))
    assert np.allclose(mesh.vertices, np.asarray(same.vertices), atol=1e-6)
    assert same.has_vertex_colors()
    assert same.has_vertex_normals()
    cloud = open3d.io.read_point_cloud(str(out / "cloud.ply"))
    assert cloud.has_colors()
    assert cloud.has_normals()
    assert np.median(off(room, cloud.points)) < 0.005
    # A point of the cloud has the colour of the picture at its place.
    first = room.views[0]
    own = np.asarray(cloud.points) @ first.camera_from_world[:3, :3].T
    own += first.camera_from_world[:3, 3]
    u, v, _ = first.intrinsics @ (own / own[:, 2:]).T
    row, column = np.clip(v.astype(int), 0, 71), np.clip(u.astype(int), 0, 95)
    shown = (own[:, 2] > 0) & (np.abs(first.depth[row, column] / own[:, 2] - 1) < 0.01)
    assert shown.sum() > 100
    far = np.abs(np.asarray(cloud.colors) * 255 - first.image[row, column])[shown]
    assert np.median(far) < 12
    scene = trimesh.load(out / "mesh.glb")
    (placed,) = scene.dump()
    assert len(placed.faces) == len(mesh.faces)
    # The GLB stands with y up: the rendered world has it so too.
    assert np.ptp(placed.vertices[:, 1]) == pytest.approx(np.ptp(mesh.vertices[:, 1]), rel=0.1)
    assert len(open3d.io.read_triangle_model(str(out / "mesh.glb")).meshes) == 1
    with Image.open(out / "views.png") as picture:
        assert picture.size == (1280, 480)
        assert len(picture.getcolors(100_000) or []) > 100
    row = report(out)["views"][3]
    with np.load(out / row["depth"]) as depth:
        truth = room.views[3].depth
        near = depth["mask"]
        assert np.median(np.abs(depth["depth"][near] / truth[near] - 1)) < 1e-3
        assert np.allclose(depth["intrinsics"], room.views[3].intrinsics, rtol=1e-5)
        back = np.linalg.inv(depth["world_from_camera"])
        assert np.allclose(back, room.views[3].camera_from_world, atol=1e-6)


def test_a_killed_run_goes_on_and_ends_the_same(
    run: Run, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(output="whole") == 0
    assert len(asked) == 12
    from apps.views import maps

    answer = maps.ask

    def dies(*words: Any, **options: Any) -> Any:
        if len(asked) == 12 + 5:
            raise BackendError("the device is gone")
        return answer(*words, **options)

    monkeypatch.setattr(maps, "ask", dies)
    assert run() == 1
    monkeypatch.setattr(maps, "ask", answer)
    kept = sorted((tmp_path / "out" / "maps").iterdir())
    assert len(kept) == 5
    assert not (tmp_path / "out" / "report.json").exists()
    kept[0].write_bytes(kept[0].read_bytes()[:-100])  # as a full disk might leave it
    asked.clear()
    assert run() == 0
    assert len(asked) == 12 - 5 + 1
    whole, again = tmp_path / "whole", tmp_path / "out"
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(names) == 12 + 12 + len(files.FILES)
    for name in names:
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name
    asked.clear()
    assert run("--size", "64") == 0  # another size is another map
    assert len(asked) == 12


def test_bad_views_are_left_out_and_named(
    run: Run, room: Room, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = room.seen.copy()
    seen[np.flatnonzero(seen[:, 4])[4:], 4] = False  # four points are left
    model = write_colmap(dataclasses.replace(room, seen=seen), tmp_path / "bad")
    images = model / "images"
    (images / "01.png").unlink()
    (images / "02.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    with Image.open(images / "03.png") as picture:
        picture.resize((96, 96)).save(images / "03.png")
    assert run(views=model) == 0
    said = capfd.readouterr()
    body = report(tmp_path / "out")
    reasons = {row["name"]: row["reason"] for row in body["views"] if not row["used"]}
    assert set(reasons) == {"01.png", "02.png", "03.png", "04.png"}
    assert "96x96 pixels" in reasons["03.png"]
    assert "4 sparse points" in reasons["04.png"]
    for name in reasons:
        assert f"{name}: left out" in said.out
        assert f"{name}  LEFT OUT" in said.err
    assert body["views_used"] == 8


def test_a_view_with_a_wrong_pose_confirms_nothing(
    run: Run, model: Path, tmp_path: Path, room: Room
) -> None:
    path = model / "sparse" / "0" / "images.txt"
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(" 05.png"))
    words = lines[at].split()
    words[5:8] = [str(float(word) + 1.5) for word in words[5:8]]  # moved by 2.6 m
    lines[at] = " ".join(words)
    path.write_text("\n".join(lines) + "\n")
    assert run() == 0
    row = report(tmp_path / "out")["views"][5]
    assert not row["used"] or row["confirmed"] < 0.1 * row["pixels"]
    mesh = trimesh.load(tmp_path / "out" / "mesh.ply")
    assert np.median(off(room, mesh.vertices)) < 0.005


def test_transforms_with_points(
    run: Run, room: Room, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_transforms(room, tmp_path / "nerf")
    assert run(views=folder) == 0, capfd.readouterr()
    mesh = trimesh.load(tmp_path / "out" / "mesh.ply")
    assert np.median(off(room, mesh.vertices)) < 0.005
    path = folder / "transforms.json"
    body = json.loads(path.read_text())
    del body["ply_file_path"]
    path.write_text(json.dumps(body))
    assert run(views=path, output="none") == 1
    assert "scale and shift of each view's map are unknown" in capfd.readouterr().err
    assert run("--points", str(folder / "sparse_pc.ply"), views=path, output="given") == 0
    made = [(tmp_path / name / "mesh.ply").read_bytes() for name in ("out", "given")]
    assert made[0] == made[1]


def test_another_scene_stays(
    run: Run, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert run("--agree", "3") == 0  # its own may be replaced
    other = shutil.copytree(model, tmp_path / "other")
    with (other / "sparse" / "0" / "points3D.txt").open("a") as stream:
        stream.write("# another\n")
    assert run(views=other) == 1
    assert "another model" in capfd.readouterr().err
    (tmp_path / "out" / "report.json").write_text("{}")
    assert run() == 1
    assert "not of a scene of several views" in capfd.readouterr().err
    assert run("--overwrite") == 0


def test_depth_of_a_view_that_is_gone_goes_too(run: Run, model: Path, tmp_path: Path) -> None:
    assert run() == 0
    (model / "images" / "03.png").unlink()
    assert run() == 0
    listed = {row["depth"] for row in report(tmp_path / "out")["views"] if row["used"]}
    there = {f"depth/{path.name}" for path in (tmp_path / "out" / "depth").iterdir()}
    assert there == listed
    assert len(listed) == 11


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fov", "60"], "--fov is for one picture"),
        (["--stride", "2"], "--stride is for one picture"),
        (["--size", "8"], "--size is at least 32"),
        (["--tolerance", "2"], "--tolerance is a share"),
        (["--agree", "0"], "--agree is a number of views"),
        (["--voxel", "-1"], "--voxel is a positive number"),
        (["--voxel", "1e-6"], "does not suit a scene"),
        (["--sky", "mask.png"], "--sky is auto or keep"),
        (["--images", "nowhere"], "there is no such folder"),
        (["--points", "a.ply"], "is for a transforms.json"),
        (["--ensemble", "3"], "mode D"),
        (["--agree", "12"], "no view confirms another"),
        (["--island", "10000000"], "no surface is left"),
    ],
)
def test_what_is_refused(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run(*options, voxel="" if "--voxel" in options else "0.15") == 1
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


def test_options_of_views_need_views(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["scene", str(bundle), "a.png", "--output", str(tmp_path / "out"), "--voxel", "1"]
    assert main(words) == 1
    assert "--voxel is for several pictures" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["scene", str(bundle), "--output", str(tmp_path / "out")])
    assert "IMAGE" in capfd.readouterr().err


def test_two_bundles_before_views(bundle: Path, run: Run, tmp_path: Path) -> None:
    """The last of them is not taken for a picture."""
    assert run(str(bundle)) == 0


def test_a_png_of_two_sides_leaves_out_what_looks_away() -> None:
    from apps.scene.views import two_sides

    points = np.array([[0.0, 0, 2]] * 50)
    colors = np.full((50, 3), 10, np.uint8)
    drawn = [
        (two_sides(points, colors, 0.05, 50, normals=np.array([[0, 0, z]] * 50)) == 10).any()
        for z in (-1.0, 1.0)
    ]
    assert drawn == [True, False]
