"""Cameras: where pixels look, what files say about lenses, and how a camera follows its picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from runtime.camera import Camera
from runtime.errors import GeometryError
from runtime.geometry import unproject


def photo(path: Path, size: tuple[int, int], **lens: float) -> Path:
    """A JPEG of width x height with EXIF's tags of a lens."""
    tags = {"focal": 0x920A, "focal_35mm": 0xA405, "plane": 0xA20E, "unit": 0xA210, "x": 0xA002}
    tags |= {"y": 0xA003, "orientation": 0x0112}
    exif, folder = Image.Exif(), {}
    for name, value in lens.items():
        whole = name in ("focal_35mm", "unit", "x", "y", "orientation")
        number = int(value) if whole else TiffImagePlugin.IFDRational(value)
        (exif if name == "orientation" else folder)[tags[name]] = number
    exif[0x8769] = folder
    Image.new("RGB", size).save(path, exif=exif)
    return path


def test_a_point_seen_through_a_pixel_is_projected_into_its_centre() -> None:
    camera = Camera.from_matrix([[50, 0, 31], [0, 60, 20], [0, 0, 1]], 40, 64)
    depth = np.random.default_rng(0).uniform(1, 9, (40, 64))
    seen = camera.project(unproject(depth, camera))
    rows, columns = np.mgrid[:40, :64]
    assert np.allclose(seen[..., 0], columns + 0.5, atol=1e-4)
    assert np.allclose(seen[..., 1], rows + 0.5, atol=1e-4)
    assert np.allclose(seen[..., 2], depth, rtol=1e-6)


@pytest.mark.parametrize(("axis", "edge"), [("longer", 640), ("x", 480), ("y", 640)])
def test_the_field_of_view_spans_its_edge(axis: str, edge: int) -> None:
    camera = Camera.from_fov(60, axis).at(640, 480)
    assert camera.fx == pytest.approx(edge / 2 / math.tan(math.radians(30)))
    assert (camera.fy, camera.cx, camera.cy) == (camera.fx, 240, 320)
    assert camera.fov == pytest.approx(math.degrees(2 * math.atan(640 / 2 / camera.fx)))


def test_a_camera_follows_its_picture() -> None:
    camera = Camera.from_matrix([[500, 0, 320], [0, 510, 240], [0, 0, 1]], 480, 640)
    small = camera.at(240, 320)
    assert np.allclose(small.matrix[:2], camera.matrix[:2] / 2)
    assert small.at(480, 640) == camera


def test_lenses_of_files(tmp_path: Path) -> None:
    """A focal length in 35 mm goes by the diagonal: 43.27 mm, which is 500 pixels here."""
    by_35mm = photo(tmp_path / "a.jpg", (400, 300), focal_35mm=26)
    camera = Camera.from_exif(by_35mm, 300, 400)
    assert camera.fx == pytest.approx(26 * 500 / math.hypot(36, 24))
    assert "35 mm" in camera.source

    with_sensor = photo(tmp_path / "b.jpg", (400, 300), focal=5.0)
    assert Camera.from_exif(with_sensor, 300, 400, sensor_width_mm=6.4).fx == pytest.approx(312.5)
    assert Camera.from_exif(with_sensor, 400, 300, sensor_width_mm=6.4).fx == pytest.approx(312.5)

    plane = photo(tmp_path / "c.jpg", (400, 300), focal=10, plane=1000, unit=3, x=800, y=600)
    assert Camera.from_exif(plane, 300, 400).fx == pytest.approx(10 * 100 / 2)


def test_a_turned_picture_has_the_same_lens(tmp_path: Path) -> None:
    turned = photo(tmp_path / "a.jpg", (400, 300), focal_35mm=26, orientation=6, x=400, y=300)
    upright = Camera.from_exif(turned, 400, 300)
    assert upright.fx == pytest.approx(26 * 500 / math.hypot(36, 24))
    assert (upright.cx, upright.cy) == (150, 200)


def test_files_that_do_not_tell(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="does not say"):
        Camera.from_exif(photo(tmp_path / "a.jpg", (40, 30)), 30, 40)
    cropped = photo(tmp_path / "b.jpg", (300, 300), focal_35mm=26, x=400, y=300)
    with pytest.raises(GeometryError, match="cropped"):
        Camera.from_exif(cropped, 300, 300)


@pytest.mark.parametrize(
    "body",
    [
        [[100, 0, 40], [0, 100, 30], [0, 0, 1]],
        {"K": [100, 0, 40, 0, 100, 30, 0, 0, 1]},
        {"fx": 200, "fy": 200, "cx": 80, "cy": 60, "height": 120, "width": 160},
    ],
)
def test_intrinsics_of_a_file(tmp_path: Path, body: object) -> None:
    (tmp_path / "k.json").write_text(json.dumps(body))
    camera = Camera.from_file(tmp_path / "k.json", 60, 80)
    assert np.array_equal(camera.matrix, [[100, 0, 40], [0, 100, 30], [0, 0, 1]])


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"fx": "wide"}', '{"K": [[1, 2], [3, 4]]}'])
def test_a_file_without_intrinsics(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(GeometryError, match=r"k\.json"):
        Camera.from_file(tmp_path / "k.json", 60, 80)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[100, 5, 40], [0, 100, 30], [0, 0, 1]], "skew"),
        ([[-100, 0, 40], [0, 100, 30], [0, 0, 1]], "positive"),
        ([[np.nan, 0, 40], [0, 100, 30], [0, 0, 1]], "finite"),
        (np.eye(4), "3x3"),
    ],
)
def test_what_is_no_camera(matrix: object, said: str) -> None:
    with pytest.raises(GeometryError, match=said):
        Camera.from_matrix(matrix, 60, 80)


@pytest.mark.parametrize("size", [(0, 0), (60, 0), (0, 80), (-60, 80)])
def test_a_picture_without_pixels_has_no_camera(size: tuple[int, int]) -> None:
    with pytest.raises(GeometryError, match=f"no size of {size[0]} x {size[1]} pixels"):
        Camera.from_matrix([[100, 0, 40], [0, 100, 30], [0, 0, 1]], *size)


def test_a_camera_without_a_picture_says_what_to_do() -> None:
    with pytest.raises(GeometryError, match="at\\(height, width\\)"):
        _ = Camera.from_fov(60).matrix
    for degrees in (0, 180, -5, math.nan):
        with pytest.raises(GeometryError, match="between 0 and 180"):
            Camera.from_fov(degrees)
