"""Pictures of published data sets for calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import pack
from PIL import Image

from export.data_sets import DataSetError, calibration_pictures
from export.errors import BuildError
from export.quantize.calibration import Calibration
from runtime.manifest import Bucket

BUCKET = Bucket(height=16, width=24, graph="model.onnx")


def save(path: Path, value: int, *, deep: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (16, 24) if deep else (16, 24, 3)
    Image.fromarray(np.full(shape, value, np.uint16 if deep else np.uint8)).save(path)


@pytest.fixture
def nyuv2(tmp_path: Path) -> Path:
    """The data set as it is unpacked: 4 pictures to train with, 2 of the test."""
    place = tmp_path / "nyuv2" / "nyu_labeled_extracted"
    for number in range(6):
        room = place / ("train" if number < 4 else "test") / "room_0001"
        save(room / f"rgb_{number:04d}.png", 10 * number)
        save(room / f"depth_{number:04d}.png", 1000, deep=True)
    return tmp_path / "nyuv2"


def greys(calibration: Calibration) -> list[int]:
    return [int(rgb[0, 0, 0]) for rgb in calibration._images(BUCKET)]


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_are_those_to_train_with_spread_over_the_set(nyuv2: Path, packed: bool) -> None:
    if packed:
        folder = nyuv2 / "nyu_labeled_extracted"
        pack(folder)
        folder.rename(nyuv2.parent / "away")
    calibration = Calibration(count=2, folder=nyuv2)
    assert len(calibration) == 2
    assert greys(calibration) == [0, 20]
    assert str(calibration) == "2 images of nyuv2"
    inner = next(nyuv2.iterdir())
    assert greys(Calibration(count=9, folder=inner)) == [0, 10, 20, 30]


def test_normals_are_no_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "dsine_eval" / "sintel"
    for number in range(3):
        save(folder / "alley_1" / f"frame_{number:04d}_img.png", number)
        (folder / "alley_1" / f"frame_{number:04d}_normal.exr").write_bytes(b"")
    assert greys(Calibration(count=8, folder=folder)) == [0, 1, 2]


def test_a_folder_of_photographs_stays_one(tmp_path: Path) -> None:
    save(tmp_path / "b.png", 7)
    save(tmp_path / "test" / "rgb_1.png", 9)
    save(tmp_path / "test" / "depth_1.png", 9, deep=True)
    assert greys(Calibration(count=8, folder=tmp_path)) == [7]


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty" / "inner" / "x.png", 1)
    with pytest.raises(BuildError, match="no data set that is known"):
        Calibration(count=1, folder=tmp_path / "empty")
    with pytest.raises(BuildError, match="no folder"):
        Calibration(count=1, folder=tmp_path / "nowhere")
    text = tmp_path / "notes.tar"
    text.write_text("no tar")
    with pytest.raises(DataSetError, match="no complete, uncompressed tar"):
        Calibration(count=1, folder=text)
    assert calibration_pictures(tmp_path / "empty") is None


def test_a_damaged_picture_is_named(nyuv2: Path) -> None:
    path = nyuv2 / "nyu_labeled_extracted/train/room_0001/rgb_0000.png"
    path.write_bytes(b"\x89PNG nothing")
    with pytest.raises(BuildError, match="rgb_0000"):
        greys(Calibration(count=1, folder=nyuv2))
