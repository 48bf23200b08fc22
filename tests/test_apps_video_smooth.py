"""`lotus-edge video --smooth`: maps are smoothed along motion after they are made steady."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_null_bundle
from films import pictures, write_film

from apps.__main__ import main
from apps.video.frames import NO_STEP, Answer
from apps.video.smooth import Smoothing
from apps.video.source import Choice, Film
from runtime.motion import Smoother, to_grey

pytest.importorskip("av", reason="extra `video`")
pytest.importorskip("cv2", reason="extra `flow`")
HEIGHT, WIDTH = 64, 96  # of the null bundle's bucket
COUNT, CUT = 40, 30


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Disparity and normals."""
    return write_null_bundle(tmp_path_factory.mktemp("bundle") / "b", task=("disparity", "normal"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures that move, with a cut to darker ones."""
    random = np.random.default_rng(0)
    frames = pictures(COUNT, HEIGHT, WIDTH).astype(int)
    frames += random.integers(-15, 16, frames.shape)
    frames[CUT:] //= 4
    frames = frames.clip(0, 255).astype(np.uint8)
    folder = tmp_path_factory.mktemp("film")
    return write_film(folder / "a.mkv", frames, codec="ffv1", pixels="bgr0")


def run(bundle: Path, given: object, output: Path, *options: object) -> int:
    return main(["video", str(bundle), str(given), "--output", str(output), *map(str, options)])


def values(folder: Path, task: str) -> np.ndarray:
    return np.concatenate([np.load(path)["values"] for path in sorted(folder.glob(f"{task}-*"))])


@pytest.mark.parametrize("steady", ["off", "causal", "clip"])
def test_what_is_steady_is_smoothed(steady: str, bundle: Path, film: Path, tmp_path: Path) -> None:
    """As `Smoother` does it; both tasks with one motion, and anew from the cut on."""
    options = ("--form", "npz", "--steady", steady)
    assert run(bundle, film, tmp_path / "a", *options) == 0
    assert run(bundle, film, tmp_path / "b", *options, "--smooth") == 0
    tasks = ("disparity", "normal")
    before, after = ({task: values(tmp_path / name, task) for task in tasks} for name in "ab")
    smoother = Smoother()
    for number, frame in enumerate(Film(str(film), Choice()).frames()):
        maps = {task: before[task][number] for task in tasks}
        grey = to_grey(frame.rgb, HEIGHT, WIDTH)
        expected = smoother(grey, maps, cut=number in (0, CUT))
        for task in tasks:
            np.testing.assert_array_equal(after[task][number], expected[task])
            changed = (after[task][number] != before[task][number]).any()
            assert changed == (number not in (0, CUT))
    told, plain = (json.loads((tmp_path / name / "video.json").read_text()) for name in "ba")
    assert (
        told["steady"] == plain["steady"] + "; then smoothed along motion, from the frames before"
    )
    assert (told["job"]["smooth"], plain["job"]["smooth"]) == (True, False)
    assert told["steps"] == plain["steps"]
    assert told["first_frames_of_shots"]["disparity"] == [0, CUT]


def test_a_cut_that_only_the_maps_tell_begins_anew() -> None:
    random = np.random.default_rng(0)
    smoothing = Smoothing()
    for number, cut in enumerate((True, False, True)):
        values = random.random((HEIGHT, WIDTH), np.float32)
        answer = Answer(
            number=number,
            time=number / 30,
            pts=number,
            size=(HEIGHT, WIDTH),
            maps={"disparity": values},
            steps={"disparity": replace(NO_STEP, cut=cut)},
            thumb=np.zeros((8, 12, 3), np.uint8),
            grey=np.zeros((HEIGHT, WIDTH), np.uint8),
        )
        same = smoothing(answer).smoothed["disparity"] == values
        assert same.all() if cut else same.mean() < 0.1


@pytest.mark.parametrize("steady", ["causal", "clip"])
def test_normals_alone_find_the_cut_in_the_picture(
    steady: str, bundle: Path, film: Path, tmp_path: Path
) -> None:
    options = ("--form", "npz", "--task", "normal", "--steady", steady)
    assert run(bundle, film, tmp_path / "a", *options) == 0
    assert run(bundle, film, tmp_path / "b", *options, "--smooth") == 0
    before, after = (values(tmp_path / name, "normal") for name in "ab")
    same = [bool((one == other).all()) for one, other in zip(before, after, strict=True)]
    assert [number for number, equal in enumerate(same) if equal] == [0, CUT]


def test_smoothed_is_another_run(
    bundle: Path, film: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.mp4"
    assert run(bundle, film, output, "--smooth") == 0
    assert run(bundle, film, output, "--smooth", "--resume") == 0  # done already
    assert run(bundle, film, output, "--resume") == 1
    assert "a.mp4 exists" in capfd.readouterr().err


@pytest.mark.parametrize("size", [(5, 7), (16, 128), (2, 300)])
def test_small_and_low_films(size: tuple[int, int], bundle: Path, tmp_path: Path) -> None:
    """The network sees the second with 12 rows, the last with one."""
    path = write_film(tmp_path / "a.mkv", pictures(4, *size), codec="ffv1", pixels="bgr0")
    assert run(bundle, path, tmp_path / "out", "--form", "npz", "--smooth") == 0
    assert values(tmp_path / "out", "normal").shape == (4, *size, 3)
