"""Values, colours and files of a prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import read_png16
from PIL import Image

from runtime import LotusEngine
from runtime.colors import spectral_table
from runtime.errors import OutputError
from runtime.marker import made_by_us, marks
from runtime.prediction import Prediction
from runtime.tasks import TASKS

RAMP = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(2, 0)


def test_spectral_is_matplotlibs() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    reference = matplotlib.colormaps["Spectral"](np.arange(256), bytes=True)[:, :3]
    assert np.abs(spectral_table().astype(int) - reference).max() <= 1


def test_near_is_red_for_depth_and_disparity() -> None:
    depth = Prediction({"depth": RAMP}).colorize()
    disparity = Prediction({"disparity": RAMP}).colorize()
    assert depth[0, 0].tolist() == [158, 1, 66]
    assert disparity[0, -1].tolist() == [158, 1, 66]
    assert np.array_equal(depth, disparity[:, ::-1])


def test_constant_map_has_colours() -> None:
    colors = Prediction({"depth": np.full((3, 3), 0.5, np.float32)}).colorize()
    assert (colors == colors[0, 0]).all()


def test_normal_colours_are_half_range() -> None:
    values = np.array([[[1, 0, -1]]], np.float32)
    assert Prediction({"normal": values}).colorize().tolist() == [[[255, 128, 0]]]


def test_saved_files_read_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((7, 5), dtype=np.float32)
    array, deep, color = Prediction({"disparity": values}).save(tmp_path / "new" / "folder", "a.b")
    assert np.array_equal(np.load(array), values)
    with Image.open(deep) as image:
        assert image.mode == "I;16"
        assert np.abs(np.asarray(image) / 65535 - values).max() <= 0.5 / 65535 + 1e-7
    with Image.open(color) as image:
        assert (image.mode, image.size) == ("RGB", (5, 7))
    assert len(list(color.parent.iterdir())) == 3


def test_16_bit_normals_hold_16_bits(tmp_path: Path) -> None:
    """Pillow reads 16-bit RGB as its high bytes; the low bytes are in the decompressed stream."""
    values = np.random.default_rng(0).uniform(-1, 1, (4, 6, 3)).astype(np.float32)
    deep = Prediction({"normal": values}).save(tmp_path)[1]
    assert deep == tmp_path / "prediction-16bit.png"
    with Image.open(deep) as image:
        high = np.asarray(image.convert("RGB"), dtype=int)
    expected = np.rint((values.astype(float) + 1) / 2 * 65535).astype(int)
    assert np.array_equal(high, expected >> 8)
    assert np.array_equal(read_png16(deep), expected)


def test_unwritable_folder_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        Prediction({"depth": RAMP}).save(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("path", "name", "stem"),
    [
        ("room", None, "room"),
        ("new/room", None, "new/room"),
        ("new/a.b", None, "new/a.b"),
        ("room.npy", None, "room"),
        ("room.png", None, "room"),
        ("room-16bit.png", None, "room"),
        (".png", None, ".png"),
        ("room.jpg", None, "room.jpg"),
        ("new/", None, "new/prediction"),
        ("there", None, "there/prediction"),
        ("", None, "prediction"),
        (".", None, "prediction"),
        ("new", "room.png", "new/room"),
        ("there", "room", "there/room"),
    ],
)
def test_what_the_files_are_called(
    path: str, name: str | None, stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    saved = Prediction({"depth": RAMP}).save(path, name)
    assert [str(file) for file in saved] == [f"{stem}.npy", f"{stem}-16bit.png", f"{stem}.png"]
    assert sorted(file for file in Path().rglob("*") if file.is_file()) == sorted(saved)


def test_both_pngs_carry_the_mark_and_the_task(tmp_path: Path) -> None:
    for task, values in (("disparity", RAMP), ("normal", np.zeros((4, 6, 3), np.float32))):
        for path in Prediction({task: values}).save(tmp_path / task)[1:]:
            assert made_by_us(path)
            assert {"Software": "lotus-edge", "Lotus-Task": task}.items() <= marks(path).items()
            assert marks(path)["Lotus-Meaning"] == TASKS[task].meaning
            with Image.open(path) as image:  # Pillow reads them too, and checks the checksums
                image.load()
                assert image.text == marks(path)


def test_results_of_ours_are_replaced_and_files_of_others_are_not(tmp_path: Path) -> None:
    prediction = Prediction({"depth": RAMP})
    prediction.save(tmp_path / "room")
    array = Prediction({"depth": RAMP / 2}).save(tmp_path / "room")[0]
    assert np.load(array).max() == 0.5
    for ending in (".npy", "-16bit.png", ".png"):
        photo = tmp_path / f"photo{ending}"
        Image.new("RGB", (4, 4), "red").save(photo, format="PNG")
        before = photo.read_bytes()
        with pytest.raises(OutputError, match="not a result of lotus-edge"):
            prediction.save(tmp_path / "photo")
        assert [*tmp_path.glob("photo*")] == [photo]
        assert photo.read_bytes() == before
        assert len(prediction.save(tmp_path / "photo", overwrite=True)) == 3
        for path in tmp_path.glob("photo*"):
            path.unlink()


def test_a_result_of_another_task_stays(tmp_path: Path) -> None:
    Prediction({"depth": RAMP}).save(tmp_path / "room")
    with pytest.raises(OutputError, match="it is the depth of a picture"):
        Prediction({"disparity": RAMP}).save(tmp_path / "room")
    Prediction({"disparity": RAMP}).save(tmp_path / "room", overwrite=True)
    assert marks(tmp_path / "room.png")["Lotus-Task"] == "disparity"


def test_an_array_alone_and_a_link_are_not_ours(tmp_path: Path) -> None:
    prediction = Prediction({"depth": RAMP})
    prediction.save(tmp_path / "old" / "room")
    (tmp_path / "room.npy").write_bytes((tmp_path / "old" / "room.npy").read_bytes())
    with pytest.raises(OutputError, match=r"room\.npy exists, and it is not a result"):
        prediction.save(tmp_path / "room")
    for target in (tmp_path / "old" / "room.png", tmp_path / "nowhere"):
        link = tmp_path / "linked.png"
        link.symlink_to(target)
        with pytest.raises(OutputError, match=r"linked\.png exists, and it is not a result"):
            prediction.save(tmp_path / "linked")
        link.unlink()


def test_overwriting_a_link_replaces_the_link_alone(tmp_path: Path) -> None:
    (tmp_path / "photo").write_text("precious")
    (tmp_path / "room.png").symlink_to(tmp_path / "photo")
    Prediction({"depth": RAMP}).save(tmp_path / "room", overwrite=True)
    assert (tmp_path / "photo").read_text() == "precious"
    assert made_by_us(tmp_path / "room.png")
    assert not (tmp_path / "room.png").is_symlink()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_the_way_is_our_error_and_nothing_is_written(
    tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "room.npy").mkdir()
    with pytest.raises(OutputError, match="a folder of this name"):
        Prediction({"depth": RAMP}).save(tmp_path / "room", overwrite=overwrite)
    assert [*tmp_path.iterdir()] == [tmp_path / "room.npy"]


@pytest.mark.parametrize("name", ["x" * 247, "é" * 124, "nul\0", "half \ud800"])
def test_names_that_no_file_can_have_are_our_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        Prediction({"depth": RAMP}).save(tmp_path / name)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["x" * 245, "é" * 122])
def test_the_longest_names_that_a_file_can_have_work(tmp_path: Path, name: str) -> None:
    assert len(Prediction({"depth": RAMP}).save(tmp_path / name)) == 3


def test_a_loop_that_saves_under_one_name_does_not_lose_the_others(
    null_bundle: Path, tmp_path: Path
) -> None:
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for level, path in enumerate(pictures):
        Image.new("RGB", (96, 64), (90 * level, 0, 0)).save(path)
    with LotusEngine(null_bundle) as engine:
        first, second = engine(pictures)
        assert first.source == pictures[0]
        first.save(tmp_path / "out" / "it")
        first.save(tmp_path / "out" / "it")
        with pytest.raises(OutputError, match="another picture"):
            second.save(tmp_path / "out" / "it")
        second.save(tmp_path / "out" / "it", overwrite=True)
        assert engine(np.asarray(Image.open(pictures[0]))).source is None


@pytest.mark.parametrize("path", [b"out/x", None, 7])
def test_paths_that_no_result_can_have(path: object) -> None:
    with pytest.raises(OutputError, match="expected the path of a result"):
        Prediction({"depth": RAMP}).save(path)


def test_an_ending_of_ours_is_no_part_of_the_name(tmp_path: Path) -> None:
    for saved in (
        Prediction({"depth": RAMP}).save(tmp_path, "room.png"),
        Prediction({"depth": RAMP}).save(tmp_path / "room-16bit.png"),
    ):
        assert saved == [tmp_path / f"room{ending}" for ending in (".npy", "-16bit.png", ".png")]
