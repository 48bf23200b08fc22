"""`lotus-edge web`: what it computes, and the page in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from PIL import Image

from runtime.engine import LotusEngine
from runtime.errors import ImageError
from tiny.render import render

trimesh = pytest.importorskip("trimesh", reason="extra `web`")
pytest.importorskip("OpenEXR", reason="extra `web`")

from apps.web.studio import MOST_PIXELS, Studio, colors  # noqa: E402
from apps.web.visitors import Visitors  # noqa: E402

FILES = {
    *("disparity.png", "disparity.npy", "normal.png", "normal.npy", "mesh.glb", "mesh.ply"),
    *("cloud.ply", "maps.npz", "depth.exr", "normal.exr", "depth-16bit.png"),
}


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Callable[..., Studio]]:
    opened: list[LotusEngine] = []

    def make(*bundles: dict[str, Any], max_pixels: int = 10**7) -> Studio:
        for number, bundle in enumerate(bundles):
            folder = write_null_bundle(tmp_path / f"bundle-{number}", **bundle)
            opened.append(LotusEngine(folder))
        return Studio(opened, max_pixels)

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(render(0, 64, 96, "room").image).save(path)
    return path


def test_maps_scene_and_files(studio: Callable[..., Studio], photo: Path, tmp_path: Path) -> None:
    joint = studio({"task": ("disparity", "normal")})
    assert (joint.tasks, joint.takes_seed) == (["disparity", "normal"], False)
    seen = joint.see(photo)
    assert {task: values.shape for task, values in seen.values.items()} == {
        "disparity": (64, 96),
        "normal": (64, 96, 3),
    }
    assert re.fullmatch(r"disparity and normal by null \(null, fp32\): \d+ ms", seen.engines[0]), (
        seen.engines
    )
    scene = joint.build(seen, tmp_path, None, 0.5)
    assert (round(scene.fov), {path.name for path in scene.downloads}) == (60, FILES)
    assert scene.glb is not None
    mesh = trimesh.load(scene.glb, force="mesh")
    assert len(mesh.faces) > 100
    assert round(joint.build(seen, tmp_path, 90, 0.5).fov) == 90
    colored = np.asarray(Image.open(tmp_path / "normal.png"))
    assert np.array_equal(colored, colors(seen, "normal"))


def test_a_bundle_without_distance_has_maps_and_says_why_there_is_no_scene(
    studio: Callable[..., Studio], photo: Path, tmp_path: Path
) -> None:
    normals = studio({"task": "normal"})
    scene = normals.build(normals.see(photo), tmp_path, None, 0.04)
    assert scene.glb is None
    assert {path.name for path in scene.downloads} == {"normal.png", "normal.npy"}
    assert "There is none: points need a map of depth" in scene.words


def test_two_bundles_and_a_seed(studio: Callable[..., Studio], photo: Path) -> None:
    both = studio({"task": "depth", "mode": "g"}, {"task": "normal"})
    assert both.takes_seed
    first, second = both.see(photo, 1), both.see(photo, 2)
    assert not np.array_equal(first.values["depth"], second.values["depth"])
    assert np.array_equal(first.values["normal"], second.values["normal"])
    assert len(first.engines) == 2
    assert [rgb.shape for rgb in both.examples()] == [(64, 96, 3), (96, 64, 3)]


def test_large_pictures_and_what_is_none(studio: Callable[..., Studio], tmp_path: Path) -> None:
    alone = studio({}, max_pixels=5_000_000)
    large = tmp_path / "large.png"
    Image.new("RGB", (3000, 1500)).save(large)
    seen = alone.see(large)
    assert (seen.size, seen.rgb.shape[:2]) == ((3000, 1500), (1000, 2000))
    assert seen.rgb.shape[0] * seen.rgb.shape[1] <= MOST_PIXELS
    Image.new("1", (4000, 4000)).save(large)
    with pytest.raises(ImageError, match="16,000,000 pixels"):
        alone.see(large)
    large.write_text("no picture")
    with pytest.raises(ImageError, match=r"^is not a picture of a known format"):
        alone.see(large)


def test_a_photo_that_is_gone_and_too_little_memory_are_said_in_words(
    studio: Callable[..., Studio], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = studio({})
    with pytest.raises(ImageError, match=r"^the photo is not here any more: give it again$"):
        alone.see(tmp_path / "session" / "gone.png")

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("apps.web.studio.load", fail)
    with pytest.raises(ImageError, match=r"^there is not enough memory for it now"):
        alone.see(photo)


def test_the_field_of_view_comes_from_exif(studio: Callable[..., Studio], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 20  # the focal length in 35 mm
    path = tmp_path / "lens.jpg"
    Image.fromarray(render(0, 64, 96, "room").image).save(path, exif=exif)
    joint = studio({"task": ("disparity", "normal")})
    assert joint.build(joint.see(path), tmp_path, None, 0.5).fov == pytest.approx(84, abs=1)


def test_what_is_there_of_a_visitor_goes(
    studio: Callable[..., Studio], photo: Path, tmp_path: Path
) -> None:
    root = tmp_path / "uploads"
    root.mkdir()
    seen = studio({}).see(photo)
    uploads = [root / name / "photo.png" for name in "abcd"]
    for upload in uploads:
        upload.parent.mkdir()
        upload.touch()
    visitors = Visitors(root, uploads[:1])
    first = visitors.come("first", seen, uploads[0])
    second = visitors.come("second", seen, uploads[1])
    assert visitors.scene_folder(first).is_dir()
    again = visitors.come("first", seen, uploads[1])  # another photo, the one that second has too
    assert not first.folder.exists()
    assert uploads[0].exists(), "an example stays"
    visitors.leave("first")
    assert (again.folder.exists(), uploads[1].exists()) == (False, True)
    visitors.sweep()
    assert all(upload.exists() for upload in uploads), "nothing is old yet"
    visitors.sweep(older_than=-1)
    assert [upload.exists() for upload in uploads] == [True, False, False, False]
    assert not second.folder.exists()
    assert visitors.get("second") is None


def test_what_goes_while_it_is_swept_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio, and visitors who leave, delete folders too."""
    root = tmp_path / "uploads"
    uploads = [root / name / "photo.png" for name in "abc"]
    for upload in uploads:
        upload.parent.mkdir(parents=True)
        upload.touch()
    (root / "old.png").touch()
    stat = Path.stat

    def late(path: Path, **options: Any) -> Any:
        if path in uploads:
            for upload in uploads:
                shutil.rmtree(upload.parent, ignore_errors=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", late)
    Visitors(root).sweep(older_than=-1)
    assert list(root.iterdir()) == []


def test_the_oldest_visit_makes_room(
    studio: Callable[..., Studio], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.web.visitors._MOST", 2)
    seen, visitors = studio({}).see(photo), Visitors(tmp_path)
    visits = [visitors.come(name, seen, tmp_path / name) for name in "abc"]
    assert [visit.folder.exists() for visit in visits] == [False, True, True]
