"""`lotus-edge video`: films, pictures and cameras, and what comes out of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_null_bundle
from films import BASE, pictures, read_film, turned, write_film
from PIL import Image

from apps.__main__ import main
from apps.video import source
from apps.video.convert import Scaler, as_picture
from apps.video.source import Choice, Film
from runtime import LotusEngine

av = pytest.importorskip("av", reason="extra `video`")
HEIGHT, WIDTH = 64, 96  # of the null bundle's bucket


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Disparity and normals."""
    return write_null_bundle(tmp_path_factory.mktemp("bundle") / "b", task=("disparity", "normal"))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return pictures(30, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def film(frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 30 frames, variable in rate, with sound."""
    times = [20 * number + 7 * (number % 3) for number in range(len(frames))]
    return write_film(tmp_path_factory.mktemp("film") / "a.mp4", frames, times=times, sound=True)


@pytest.fixture(scope="module")
def shown(film: Path) -> np.ndarray:
    """The film's frames as they are read."""
    return np.stack([frame.rgb for frame in Film(str(film), Choice()).frames()])


def run(bundle: Path, given: object, output: Path, *options: object) -> int:
    return main(["video", str(bundle), str(given), "--output", str(output), *map(str, options)])


def test_a_frame_is_what_the_engine_says_of_it(
    bundle: Path, film: Path, shown: np.ndarray, tmp_path: Path
) -> None:
    assert run(bundle, film, tmp_path / "out", "--form", "npz", "--steady", "off") == 0
    files = sorted((tmp_path / "out").glob("disparity-*.npz"))
    parts = [np.load(path) for path in files]
    values = np.concatenate([part["values"] for part in parts])
    with LotusEngine(bundle) as engine:
        for number in (0, 11, 29):
            expected = engine(shown[number])
            np.testing.assert_array_equal(values[number], expected["disparity"].values)
    numbers = np.concatenate([part["numbers"] for part in parts])
    assert numbers.tolist() == list(range(30))
    seconds = np.concatenate([part["times"] for part in parts])
    exact = [float((20 * number + 7 * (number % 3)) * BASE) for number in range(30)]
    np.testing.assert_allclose(seconds, exact, atol=1e-3)
    assert len(list((tmp_path / "out").glob("normal-*.npz"))) == len(files) == 2
    assert not (tmp_path / "out" / ".lotus-video").exists()


@pytest.mark.parametrize("form", ["color", "beside", "over"])
def test_films_keep_times_and_sound(
    form: str, bundle: Path, film: Path, shown: np.ndarray, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    assert run(bundle, film, output, "--form", form) == 0
    made, times = read_film(output)
    assert made.shape == (30, HEIGHT, WIDTH * (2 if form == "beside" else 1), 3)
    assert times == pytest.approx(read_film(film)[1], abs=1e-4)
    with av.open(str(output)) as container, av.open(str(film)) as before:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        sound, own = (
            [bytes(packet) for packet in each.demux(audio=0) if packet.size]
            for each in (container, before)
        )
        assert sound == own
    if form == "beside":
        assert np.abs(made[:, :, :WIDTH].astype(int) - shown).mean() < 6
    told = json.loads((tmp_path / "out.mp4.json").read_text())
    assert (told["frames"], told["sound_tracks"], told["job"]["steady"]) == (30, 1, "clip")
    assert len(told["steps"]["disparity"]["scale"]) == 30


def test_over_is_half_of_each(bundle: Path, film: Path, shown: np.ndarray, tmp_path: Path) -> None:
    for form in ("color", "over"):
        assert run(bundle, film, tmp_path / f"{form}.mp4", "--form", form) == 0
    colors, over = (read_film(tmp_path / f"{form}.mp4")[0] for form in ("color", "over"))
    expected = (shown.astype(float) + colors) / 2
    assert np.abs(over - expected).mean() < 4


def test_large_frames_are_shrunk_as_the_engine_does(bundle: Path, tmp_path: Path) -> None:
    """By another library; what the network sees differs by less than a level of 255."""
    large = [Image.fromarray(rgb).resize((384, 240)) for rgb in pictures(3, 60, 96)]
    path = write_film(tmp_path / "a.mp4", np.stack([*map(np.asarray, large)]))
    options = ("--form", "npz", "--steady", "off", "--task", "disparity")
    assert run(bundle, path, tmp_path / "out", *options) == 0
    values = np.load(tmp_path / "out" / "disparity-000000.npz")["values"]
    (_, second, _) = Film(str(path), Choice()).frames()
    assert second.rgb.shape == (240, 384, 3)
    with LotusEngine(bundle) as engine:
        exact = engine(second.rgb)["disparity"].values
    assert values[1].shape == exact.shape == (240, 384)
    assert np.abs(values[1] - exact).mean() < 1 / 255


@pytest.mark.parametrize(
    ("pixels", "space", "scale"), [("yuv420p", 5, 1), ("yuvj420p", 5, 2), ("yuv422p10le", 1, 1)]
)
def test_pictures_in_a_film_keep_their_colours(pixels: str, space: int, scale: int) -> None:
    """Also those of old cameras (BT.601), of full range, and of 10 bits."""
    exact = pictures(1, 64, 96)[0]
    frame = av.VideoFrame.from_ndarray(exact, format="rgb24").reformat(
        format=pixels, dst_colorspace=space, dst_color_range=scale
    )
    picture = as_picture(Scaler(), frame, 64, 96)
    assert (picture.format.name, picture.width, picture.height) == ("yuv420p", 96, 64)
    again = picture.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    assert np.abs(again.astype(int) - exact).mean() < 5


def test_colours_are_those_of_the_map(bundle: Path, film: Path, tmp_path: Path) -> None:
    """And not swapped, nor of another range than the film's header says."""
    assert run(bundle, film, tmp_path / "c.mp4", "--task", "normal") == 0
    made, _ = read_film(tmp_path / "c.mp4")
    assert run(bundle, film, tmp_path / "n", "--task", "normal", "--form", "npz") == 0
    values = np.load(tmp_path / "n" / "normal-000000.npz")["values"]
    exact = (values[5] + 1) / 2 * 255
    assert np.abs(made[5].astype(float) - exact).mean() < 4


def test_sixteen_bits_come_back_exactly(bundle: Path, film: Path, tmp_path: Path) -> None:
    for task, pixels in (("disparity", "gray16le"), ("normal", "rgb48le")):
        options = ("--task", task)
        assert run(bundle, film, tmp_path / f"{task}.mkv", "--form", "deep", *options) == 0
        assert run(bundle, film, tmp_path / task, "--form", "frames", *options) == 0
        assert run(bundle, film, tmp_path / f"{task}-n", "--form", "npz", *options) == 0
        made, times = read_film(tmp_path / f"{task}.mkv", pixels)
        told = json.loads((tmp_path / f"{task}.mkv.json").read_text())
        low, high = told["values_of_0_and_65535"][task]
        values = np.concatenate(
            [np.load(path)["values"] for path in sorted((tmp_path / f"{task}-n").glob("*.npz"))]
        )
        decoded = low + made / 65535 * (high - low)
        assert np.abs(decoded - values).max() < 1.01 * (high - low) / 65535
        assert len(times) == 30
        files = sorted((tmp_path / task / task).glob("*.png"))
        assert [path.stem for path in files] == [f"{number:06d}" for number in range(30)]
        if task == "disparity":
            with Image.open(files[7]) as png:
                np.testing.assert_array_equal(np.asarray(png), made[7])
                assert png.info["Lotus-Range"] == "-0.5 1.5"


def test_which_frames(bundle: Path, film: Path, tmp_path: Path) -> None:
    times = read_film(film)[1]
    assert (
        run(bundle, film, tmp_path / "a.mkv", "--every", 3, "--start", 0.2, "--duration", 0.5) == 0
    )
    told = json.loads((tmp_path / "a.mkv.json").read_text())
    wanted = [time for time in times if 0.2 <= time < 0.7][::3]
    assert told["times"] == pytest.approx(wanted, abs=1e-3)
    _, shifted = read_film(tmp_path / "a.mkv")
    assert shifted == pytest.approx(np.array(wanted) - wanted[0], abs=2e-3)
    assert run(bundle, film, tmp_path / "b.mp4", "--max-size", 48) == 0
    assert read_film(tmp_path / "b.mp4")[0].shape[1:3] == (32, 48)
    assert run(bundle, film, tmp_path / "c.mp4", "--start", 100) == 1
    assert not (tmp_path / "c.mp4").exists()


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_a_turned_film_comes_out_upright(quarter: int, frames: np.ndarray, tmp_path: Path) -> None:
    path = turned(write_film(tmp_path / "a.mp4", frames[:3]), quarter)
    (first, *_) = Film(str(path), Choice()).frames()
    expected = np.rot90(frames[0], -quarter)
    assert first.rgb.shape == expected.shape
    assert np.abs(first.rgb.astype(int) - expected).mean() < 8


@pytest.mark.parametrize(
    ("codec", "pixels", "name"),
    [
        ("libx264", "yuv420p10le", "deep.mp4"),
        ("ffv1", "bgra", "alpha.mkv"),
        ("mpeg4", "yuv420p", "old.avi"),
        ("ffv1", "gray16le", "grey.mkv"),
    ],
)
def test_any_samples(
    codec: str, pixels: str, name: str, bundle: Path, frames: np.ndarray, tmp_path: Path
) -> None:
    given = frames[:4]
    if pixels == "bgra":
        given = np.concatenate([given, np.full_like(given[..., :1], 90)], axis=-1)
    path = write_film(tmp_path / name, given, codec=codec, pixels=pixels)
    read = [frame.rgb for frame in Film(str(path), Choice()).frames()]
    assert len(read) == 4
    exact = frames[0].astype(int)
    if pixels == "gray16le":
        exact = exact.mean(-1, keepdims=True)
    assert np.abs(read[0] - exact).mean() < 8
    assert run(bundle, path, tmp_path / "out.mp4") == 0


def test_odd_sizes(bundle: Path, tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", pictures(3, 33, 51), codec="ffv1", pixels="bgr0")
    assert run(bundle, path, tmp_path / "a.mp4", "--form", "beside") == 0
    assert read_film(tmp_path / "a.mp4")[0].shape[1:3] == (34, 104)
    assert run(bundle, path, tmp_path / "b.mkv", "--form", "deep") == 0
    assert read_film(tmp_path / "b.mkv", "gray16le")[0].shape[1:3] == (33, 51)


def test_pictures_of_a_folder(
    bundle: Path, frames: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (1, 2, 10):  # by number, not by letter
        Image.fromarray(frames[number]).save(folder / f"f{number}.png")
    assert run(bundle, folder, tmp_path / "a.mp4", "--rate", 10) == 0
    assert read_film(tmp_path / "a.mp4")[1] == pytest.approx([0, 0.1, 0.2], abs=1e-3)
    read = list(source.open_source(f"{folder}/f*.png", Choice(), 10).frames())
    np.testing.assert_array_equal(read[2].rgb, frames[10])
    Image.fromarray(frames[0][:50]).save(folder / "f11.png")
    assert run(bundle, folder, tmp_path / "b.mp4") == 1
    assert "f11.png has 96x50 pixels" in capfd.readouterr().err


def test_a_camera_until_its_time_is_over(
    bundle: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The film stands in for the camera's device."""
    monkeypatch.setattr(source, "_device", lambda which: (str(film), {}))
    assert run(bundle, "camera:0", tmp_path / "a.mp4", "--duration", 0.5) == 0
    told = json.loads((tmp_path / "a.mp4.json").read_text())
    assert told["job"]["steady"] == "causal"
    assert 0 < told["frames"] <= 15
    for options in (("--steady", "clip"), ("--resume",)):
        assert run(bundle, "camera:0", tmp_path / "b.mp4", *options) == 1


@pytest.mark.parametrize("damage", ["cut", "holes", "empty", "text", "sound", "missing"])
def test_damaged_films(
    damage: str, bundle: Path, frames: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_film(tmp_path / "a.mkv", frames, sound=True, options={"g": "5"})
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) * 2 // 3]
    elif damage == "holes":
        random = np.random.default_rng(0)
        for place in random.integers(len(data) // 4, len(data), 40):
            data[place] ^= 0xFF
    elif damage == "empty":
        data = bytearray()
    elif damage == "text":
        data = bytearray(b"this is no film\n" * 50)
    path.write_bytes(data)
    if damage == "sound":
        with av.open(str(path), "w") as container:
            tone = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            container.mux(tone.encode(frame))
            container.mux(tone.encode(None))
    if damage == "missing":
        path.unlink()
    status = run(bundle, path, tmp_path / "out.mp4")
    said = capfd.readouterr().err
    if damage in ("cut", "holes"):
        assert status == 0, said
        assert 5 < len(read_film(tmp_path / "out.mp4")[1]) <= 30
    else:
        assert status == 1
        assert said.startswith("error: ")
        assert "a.mkv" in said
        assert list(tmp_path.glob("*out*")) == []


def test_sound_that_has_no_place_is_said_to_be_left_out(
    bundle: Path, frames: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        tone = container.add_stream("pcm_u8", rate=44100, layout="mono")
        for rgb in frames[:5]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.uint8), "u8", "mono")
        frame.sample_rate = 44100
        container.mux(tone.encode(frame))
        container.mux(tone.encode(None))
    assert run(bundle, path, tmp_path / "out.mp4") == 0
    assert "the sound (pcm_u8) is left out" in capfd.readouterr().err
    assert run(bundle, path, tmp_path / "out.mkv") == 0
    assert json.loads((tmp_path / "out.mkv.json").read_text())["sound_tracks"] == 1


def test_outputs_are_not_replaced(bundle: Path, film: Path, tmp_path: Path) -> None:
    short = ("--duration", 0.1)
    for output, form in ((tmp_path / "a.mp4", "color"), (tmp_path / "d", "frames")):
        assert run(bundle, film, output, "--form", form, *short) == 0
        assert run(bundle, film, output, "--form", form, *short) == 1
        assert run(bundle, film, output, "--form", form, *short, "--resume") == 0  # done already
        assert run(bundle, film, output, "--form", form, "--overwrite", "--duration", 0.05) == 0
    assert len(list((tmp_path / "d" / "disparity").iterdir())) == 2


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("a.mp4", ["--form", "deep"], "ends with .mkv"),
        ("a.avi", ["--form", "color"], "ends with .mp4, .mov, .mkv"),
        ("a.mp4", ["--form", "npz"], "fills a folder"),
        ("a.mp4", ["--task", "depth"], "this bundle answers disparity, normal"),
        ("a.mp4", ["--every", "0"], "--every is 1, 2, 3"),
        ("a.mp4", ["--start", "-1"], "--start is a time"),
        ("a.mp4", ["--duration", "nan"], "--duration is a time"),
        ("a.mp4", ["--seed", "3"], "this bundle is of mode D"),
        ("a.mp4", ["--preview", "99999"], "--preview is a port"),
    ],
)
def test_what_is_refused(
    output: str,
    options: list[str],
    said: str,
    bundle: Path,
    film: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(bundle, film, tmp_path / output, *options) == 1
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
