"""The formats of a result: what each holds and says, and which files are ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, read_png16, write_null_bundle
from PIL import Image

from runtime import LotusEngine, deflate
from runtime.__main__ import main
from runtime.encoding import FORMATS, exr_channels, png
from runtime.errors import OutputError
from runtime.marker import marks
from runtime.prediction import Prediction
from runtime.tasks import TASKS

RANDOM = np.random.default_rng(0)
DEPTH = RANDOM.random((7, 5), dtype=np.float32)
NORMAL = RANDOM.uniform(-1, 1, (7, 5, 3)).astype(np.float32)
NORMAL /= np.linalg.norm(NORMAL, axis=-1, keepdims=True)
BOTH = {"depth": DEPTH, "normal": NORMAL}


def result(task: str = "depth", **more: object) -> Prediction:
    return Prediction({task: BOTH[task]}, **more)


def test_only_what_is_asked_for_is_written(tmp_path: Path) -> None:
    for formats in (["npz"], ["color", "npy"], ["png16"]):
        folder = tmp_path / "-".join(formats)
        saved = result().save(folder / "room", formats=formats)
        wanted = [folder / f"room{FORMATS[name].ending}" for name in sorted(formats, reverse=True)]
        assert saved == wanted
        assert sorted(folder.iterdir()) == sorted(wanted)


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_an_npz_has_the_documented_keys(task: str, tmp_path: Path) -> None:
    (path,) = result(task).save(tmp_path / "room", formats=["npz"])
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive) == {
            task, "task", "meaning", "range", "size", "picture", "generator",
        }  # fmt: skip
        assert np.array_equal(archive[str(archive["task"])], BOTH[task])
        assert str(archive["meaning"]) == TASKS[task].meaning
        assert archive["range"].tolist() == [TASKS[task].low, TASKS[task].high]
        assert archive["size"].tolist() == [7, 5]
        assert str(archive["generator"]) == "lotus-edge"
        assert archive[task].flags.c_contiguous
    assert marks(path)["Lotus-Task"] == task


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_an_exr_holds_the_values_and_says_what_they_are(task: str, tmp_path: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    (path,) = result(task).save(tmp_path / "room", formats=["exr"])
    with OpenEXR.File(str(path), separate_channels=True) as file:
        header, channels = dict(file.header()), file.channels()
        found = {name: channel.pixels for name, channel in channels.items()}
    planes = {"Z": DEPTH, "Y": DEPTH}
    if task == "normal":
        planes = {name: NORMAL[..., at] for name, at in zip("XYZRGB", [0, 1, 2] * 2, strict=True)}
        del planes["Y"]  # G is the same
        assert np.array_equal(found["Y"], NORMAL[..., 1])
        del found["Y"]
    assert found.keys() == planes.keys()
    for name, plane in planes.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], plane)
    assert header["Lotus-Meaning"] == TASKS[task].meaning
    ours = {key: text for key, text in marks(path).items() if key != "type"}  # EXR's own
    assert {key: header[key] for key in ours} == ours
    assert {"Software", "Lotus-Task", "Lotus-Files"} < ours.keys()


def test_disparity_is_not_called_depth_in_an_exr() -> None:
    assert exr_channels(TASKS["disparity"]) == {"disparity": 0, "Y": 0}
    assert exr_channels(TASKS["depth"]) == {"Z": 0, "Y": 0}


def test_the_pngs_say_how_numbers_become_values(tmp_path: Path) -> None:
    values = np.linspace(0.25, 0.5, 35, dtype=np.float32).reshape(5, 7)
    for task, color in (
        ("depth", "Spectral: red is 0.25, blue is 0.5"),
        ("disparity", "Spectral: red is 0.5, blue is 0.25"),
        ("matting", "black is 0, white is 1"),
    ):
        paths = Prediction({task: values}).save(tmp_path / task, formats=["png16", "color"])
        assert [marks(path)["Lotus-Values"] for path in paths] == ["0 is 0, 65535 is 1", color]
    paths = result("normal").save(tmp_path / "n", formats=["png16", "color"])
    assert [marks(path)["Lotus-Values"] for path in paths] == [
        "0 is -1, 65535 is 1",
        "red, green and blue: 0 is -1, 255 is 1",
    ]


def test_files_pass_on_what_the_bundle_says_of_its_map(tmp_path: Path) -> None:
    """Marigold's normals have x the other way; only the bundle knows."""
    words = "normals \u2013 with x\nto the left " + "and so on " * 100
    bundle = write_null_bundle(tmp_path / "b", task="normal", outputs={"normal": words})
    with LotusEngine(bundle) as engine:
        prediction = engine(np.zeros((20, 30, 3), np.uint8))
    color, archive = prediction.save(tmp_path / "room", formats=["color", "npz"])
    assert marks(color)["Lotus-Meaning"].startswith("normals ? with x to the left and so on")
    assert str(np.load(archive)["meaning"]) == words
    assert marks(archive) == {k: v for k, v in marks(color).items() if k != "Lotus-Values"}


def test_the_uncertainty_goes_with_the_formats_that_can_hold_it(tmp_path: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    spread = np.full((7, 5), 0.125, np.float32)
    saved = result(uncertainty={"depth": spread}).save(tmp_path / "a", formats=["exr", "npz"])
    assert [path.name for path in saved] == ["a.npz", "a.exr"]
    with np.load(saved[0]) as archive:
        assert np.array_equal(archive["uncertainty"], spread)
        assert str(archive["uncertainty_unit"]) == TASKS["depth"].uncertainty_unit
    with OpenEXR.File(str(saved[1]), separate_channels=True) as file:
        assert np.array_equal(file.channels()["uncertainty"].pixels, spread)
    saved = result(uncertainty={"depth": spread}).save(tmp_path / "b", formats=["npy", "color"])
    assert [path.name for path in saved] == ["b.npy", "b.png", "b-uncertainty.npy"]


@pytest.mark.parametrize("name", ["..png", "...png", ".png", "..npy"])
def test_a_name_of_dots_and_an_ending_is_a_name(name: str, tmp_path: Path) -> None:
    saved = result().save(tmp_path / name)
    assert [path.name for path in saved] == [
        f"{name}{end}" for end in (".npy", "-16bit.png", ".png")
    ]
    assert all(path.parent == tmp_path and path.exists() for path in saved)


@pytest.mark.parametrize("formats", [["jpeg"], [], ["npy", "tiff"], "png"])
def test_a_format_that_there_is_not_is_refused(formats: object, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="saved as any of npy, png16, color, npz, exr; found"):
        result().save(tmp_path / "room", formats=formats)


def test_one_name_and_repeated_names_are_fine(tmp_path: Path) -> None:
    assert len(result().save(tmp_path / "room", formats="npz")) == 1
    assert len(result().save(tmp_path / "room", formats=["npz", "npz"])) == 1


def test_without_openexr_the_error_names_the_extra_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "OpenEXR" else real(name)
    )
    with pytest.raises(OutputError, match=r"cannot save as exr: this needs the extra `scene`"):
        result().save(tmp_path / "o" / "room", formats=["npy", "exr"])
    assert not (tmp_path / "o").exists()


class TestOwnership:
    """What is replaced: files of this task and picture, and none that nobody can name."""

    @pytest.mark.parametrize("name", ["npz", "exr", "png16", "color"])
    def test_a_marked_file_is_ours_alone(self, name: str, tmp_path: Path) -> None:
        if FORMATS[name].package:
            pytest.importorskip(FORMATS[name].package)
        (path,) = result().save(tmp_path / "room", formats=[name])
        result().save(tmp_path / "room", formats=[name])
        with pytest.raises(OutputError, match="it is the depth of a picture"):
            Prediction({"disparity": DEPTH}).save(tmp_path / "room", formats=[name])
        path.write_bytes(b"PK\3\4 an archive of mine" if name == "npz" else b"\x76\x2f\x31\x01")
        with pytest.raises(OutputError, match="it is not a result of lotus-edge"):
            result().save(tmp_path / "room", formats=[name])
        result().save(tmp_path / "room", formats=[name], overwrite=True)

    def test_another_picture_is_told_by_each(self, tmp_path: Path) -> None:
        for at, name in enumerate(("a.png", "b.png")):
            Image.new("RGB", (5, 7), (at, 0, 0)).save(tmp_path / name)
        result(source=tmp_path / "a.png").save(tmp_path / "o" / "room", formats=["npz"])
        with pytest.raises(OutputError, match="another picture"):
            result(source=tmp_path / "b.png").save(tmp_path / "o" / "room", formats=["npz"])

    def test_an_array_is_ours_where_a_file_beside_it_lists_it(self, tmp_path: Path) -> None:
        for beside in ("npz", "color", "png16"):
            folder = tmp_path / beside
            result().save(folder / "room", formats=["npy", beside])
            result().save(folder / "room", formats=["npy"])
            result().save(folder / "room", formats=[beside])  # the array stays, and is ours
            result().save(folder / "room", formats=["npy", beside])

    def test_an_uncertainty_that_stays_beside_its_array_is_ours(self, tmp_path: Path) -> None:
        ensemble = result(uncertainty={"depth": DEPTH})
        ensemble.save(tmp_path / "room", formats=["npy", "color"])
        result().save(tmp_path / "room", formats=["color"])
        assert (tmp_path / "room-uncertainty.npy").exists()
        ensemble.save(tmp_path / "room", formats=["npy", "color"])
        result().save(tmp_path / "room", formats=["npy", "color"])
        assert not (tmp_path / "room-uncertainty.npy").exists()

    def test_an_array_of_mine_beside_a_result_without_one_stays(self, tmp_path: Path) -> None:
        result().save(tmp_path / "room", formats=["color", "npz"])
        np.save(tmp_path / "room.npy", np.arange(3))
        with pytest.raises(OutputError, match="an array is known by a PNG, NPZ or EXR beside it"):
            result().save(tmp_path / "room", formats=["npy", "color"])
        assert np.load(tmp_path / "room.npy").tolist() == [0, 1, 2]

    def test_results_of_before_there_was_a_choice_are_ours(self, tmp_path: Path) -> None:
        _, _, color = result().save(tmp_path / "room")
        texts = {key: text for key, text in marks(color).items() if key != "Lotus-Files"}
        color.write_bytes(png(np.zeros((2, 2, 3), np.uint8), texts))
        (tmp_path / "room-16bit.png").unlink()
        assert len(result().save(tmp_path / "room")) == 3


def test_the_command_saves_what_it_is_told(
    null_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    words = ["predict", str(null_bundle), str(tmp_path / "a.png"), "--output", str(tmp_path / "o")]
    for _ in range(2):
        assert main([*words, "--save", "npz", "color"]) == 0
    assert sorted(os.listdir(tmp_path / "o")) == ["a.npz", "a.png"]
    assert "a.png" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--save", "jpeg"])
    assert "choose from" in capsys.readouterr().err


def test_the_command_without_openexr_ends_in_words_before_it_opens_the_bundle(
    tmp_path: Path,
) -> None:
    hide = "import sys; sys.modules['OpenEXR'] = None; sys.modules['OpenEXR.x'] = None\n"
    code = hide + (
        "import importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'OpenEXR' else f(n, *a)\n"
        "from runtime.__main__ import main\n"
        "sys.exit(main(['predict', 'none', 'a.png', '--output', 'o', '--save', 'exr']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot save as exr: this needs the extra `scene`")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (300, 700), (70, 1500, 3), (1, 4, 3)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_png_holds_the_pixels_with_and_without_isal(
    fast: bool, shape: tuple[int, ...], kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands are 2^18 bytes: some of these have several."""
    if fast:
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(deflate, "_isal", lambda: None)
    ramp = np.arange(np.prod(shape)).reshape(shape) * 37 // 11
    values = (ramp + RANDOM.integers(0, 50, shape)).astype(kind)
    path = tmp_path / "a.png"
    path.write_bytes(png(values, {"Software": "lotus-edge"}))
    with Image.open(path) as image:  # its decoder checks the checksums, too
        image.load()
        read = np.asarray(image)
    if kind == np.uint16:
        if values.ndim == 2:
            assert np.array_equal(read, values)
        read = read_png16(path)
    assert np.array_equal(read, values)
