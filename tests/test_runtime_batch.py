"""Many pictures: the batch goes on, replaces nothing that must stay, and says what came out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from PIL import Image

from runtime import LotusEngine
from runtime.__main__ import main
from runtime.call import Call
from runtime.errors import BackendError, OutputError
from runtime.marker import made_by_us, marks

ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path)
    return path


class Run:
    """`predict` in a folder, with the null bundle of a task."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.bundles = {
            task: str(write_null_bundle(folder / f"bundle-{task}", task=task))
            for task in ("disparity", "normal")
        }

    def __call__(self, *words: object, output: object = "o", task: str = "disparity") -> int:
        self.status = main(
            ["predict", self.bundles[task], *map(str, words), "--output", str(output)]
        )
        shown = self.capsys.readouterr()
        assert shown.out == ""
        self.said = shown.err
        self.last = shown.err.splitlines()[-1]
        return self.status

    def arrays(self, folder: str = "o") -> list[str]:
        return sorted(
            path.relative_to(folder).with_suffix("").as_posix()
            for path in Path(folder).rglob("*.npy")
        )


@pytest.fixture
def predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run(tmp_path, capsys)


def test_what_was_done_skipped_and_failed_is_counted(predict: Run) -> None:
    for name in ("1.png", "2.jpg", "sub/3.webp"):
        picture(Path("d", name))
    for name in ("a.HEIC", "b.heif", "notes.txt", "policy.json", "._1.png", "clip.mp4"):
        Path("d", name).touch()
    assert predict("d") == 0
    assert predict.last == (
        "3 done, 2 skipped (1 .heic: `pip install pillow-heif`; 1 .heif: `pip install pillow-heif`)"
    )
    Path("d/b.heif").unlink()
    Path("d/4.png").write_bytes(b"no picture")
    assert predict("d") == 1
    assert predict.last == "3 done, 1 skipped (.heic: `pip install pillow-heif`), 1 failed"
    assert "[3/4] d/4.png  FAILED: d/4.png: " in predict.said


def test_what_is_named_is_tried_whatever_its_ending(predict: Run) -> None:
    picture(Path("a.png")).rename("a.picture")
    Path("b.picture").write_text("words")
    Path("c.heic").write_text("words")
    assert predict("a.picture", "b.picture", "c.heic", "none.png") == 1
    assert predict.last == "1 done, 3 failed"
    assert predict.arrays() == ["a"]


def test_without_a_picture_the_error_says_what_was_left_out(predict: Run) -> None:
    Path("d").mkdir()
    Path("d/a.heic").touch()
    assert predict("d") == 1
    assert predict.last == (
        "error: no images found in what was given (.heic: `pip install pillow-heif` left out)"
    )
    assert not Path("o").exists()


@pytest.mark.parametrize("name", ["x" * 246, "é" * 123, "日" * 82])
def test_a_name_too_long_fails_alone(predict: Run, name: str) -> None:
    picture(Path("d/z.png"))
    picture(Path("d/a.png")).rename(f"d/{name}.png")
    assert predict("d") == 1
    assert predict.last == "1 done, 1 failed"
    assert "File name too long" in predict.said
    assert predict.arrays() == ["z"]


def test_what_links_lead_to(predict: Run) -> None:
    picture(Path("elsewhere/a.png"))
    Path("d").mkdir()
    Path("d/good.png").symlink_to(Path("elsewhere/a.png").resolve())
    Path("d/dangling.png").symlink_to("nowhere")
    Path("d/loop.png").symlink_to("loop.png")
    Path("d/folder").symlink_to(Path("elsewhere").resolve())
    Path("d/up").symlink_to(Path().resolve())
    assert predict("d") == 1
    assert predict.last == "1 done, 2 skipped (links to folders: name those folders), 2 failed"
    assert predict.arrays() == ["good"]
    Path("link").symlink_to("elsewhere")
    assert predict("link", "d/loop.png", output="p") == 1
    assert predict.arrays("p") == ["a"]


def test_names_that_could_steer_the_terminal_are_escaped(predict: Run) -> None:
    odd = "a\nerror: feigned \x1b[31m\u202e.png"
    picture(Path("d/a.png")).rename(f"d/{odd}")
    picture(Path("d/b.png")).rename("d/undecodable \udcff.png")
    assert predict("d") == 0
    assert predict.last == "2 done"
    assert r"a\nerror: feigned \x1b[31m\u202e.png" in predict.said
    assert r"undecodable \udcff.png" in predict.said
    assert len(predict.said.splitlines()) == 3


@pytest.mark.skipif(ROOT_USER, reason="root reads everything")
def test_what_may_not_be_read_fails_alone(predict: Run) -> None:
    for name in ("a/1.png", "b/2.png", "3.png"):
        picture(Path("d", name))
    Path("d/a").chmod(0)
    Path("d/3.png").chmod(0)
    try:
        assert predict("d") == 1
    finally:
        Path("d/a").chmod(0o700)
    assert predict.last == "1 done, 2 failed"


def test_a_folder_that_cannot_be_listed_is_a_failure(
    predict: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.png", "b/2.png"):
        picture(Path("d", name))
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert predict("d") == 1
    assert predict.last == "1 done, 1 failed"
    assert "d/a: the folder cannot be listed: Permission denied" in predict.said


@pytest.mark.parametrize(
    "failure", [OutputError("cannot write: No space left on device"), MemoryError()]
)
def test_a_result_that_cannot_be_written_fails_alone(
    predict: Run, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime import saving

    real = saving.write_together

    def write(*words: Any) -> None:
        if next(iter(words[0])).name.startswith("2"):
            raise failure
        real(*words)

    monkeypatch.setattr(saving, "write_together", write)
    for name in ("1.png", "2.png", "3.png"):
        picture(Path("d", name))
    assert predict("d") == 1
    assert predict.last == "2 done, 1 failed"
    assert predict.arrays() == ["1", "3"]


@pytest.mark.parametrize("failure", [BackendError("gone"), KeyboardInterrupt()])
def test_what_concerns_the_backend_ends_the_batch_and_is_counted(
    predict: Run, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LotusEngine.run

    def run(engine: LotusEngine, pictures: list[Any], call: Call) -> Any:
        if pictures[0].source.name == "2.png":
            raise failure
        return real(engine, pictures, call)

    monkeypatch.setattr(LotusEngine, "run", run)
    for name in ("1.png", "2.png", "3.png"):
        picture(Path("d", name))
    assert predict("d") in (1, 130)
    assert predict.said.splitlines()[-2:] in (
        ["1 done, 2 not tried", "error: gone"],
        ["1 done, 2 not tried", "interrupted"],
    )


def test_results_with_one_name_get_their_ending(predict: Run) -> None:
    for name in ("a.png", "a.jpg", "b.png", "sub/a.png"):
        picture(Path("d", name))
    assert predict("d") == 0
    assert predict.arrays() == ["a-jpg", "a-png", "b", "sub/a"]


def test_a_name_that_is_all_ending_stays_whole(predict: Run) -> None:
    """What is left of `..png` and `...png` without the ending is a folder."""
    for name in ("d/..png", "d/...png", "d/sub/..png"):
        picture(Path(name).with_name("a.png")).rename(name)
    before = os.listdir()
    assert predict("d") == 0, predict.said
    assert predict.arrays() == ["...png", "..png", "sub/..png"]
    assert predict("d/..png", output="p") == 0, predict.said
    assert predict.arrays("p") == ["..png"]
    assert sorted(os.listdir()) == sorted([*before, "o", "p"])


@pytest.mark.parametrize(
    ("words", "results"),
    [
        (["d", "e"], ["c", "d/a", "d/sub/b", "e/A-jpg", "e/a-png", "e/sub/b"]),
        (["d/a.png", "e/a.png"], ["d/a", "e/a"]),
        (["d", "e/a.png"], ["c", "d/a", "e/a", "sub/b"]),
        (["d", "d/sub"], ["a", "b", "c", "sub/b"]),
    ],
)
def test_results_of_two_folders_with_one_name_get_the_folders(
    words: list[str], results: list[str], predict: Run
) -> None:
    for name in ("d/a.png", "d/c.png", "d/sub/b.png", "e/a.png", "e/A.jpg", "e/sub/b.png"):
        picture(Path(name))
    assert predict(*words) == 0, predict.said
    assert predict.arrays() == results


def test_the_same_folder_under_another_name(predict: Run) -> None:
    picture(Path("d/a.png"))
    os.chdir("d")
    assert predict(".", "../d", output="../o") == 0
    assert predict.last == "1 done"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("d/in/a.png", "e/in/a.png"),
        ("d/in/A.png", "e/in/a.png"),
        ("d/in/\u00c9.png", "e/in/E\u0301.png"),
        ("d/in/stra\u00dfe.png", "e/in/STRASSE.png"),
        ("d/a.png", "d/a-16bit.png"),
        ("d/a-16bit.png", "d/a.png"),
    ],
)
def test_no_result_replaces_another_on_any_file_system(
    predict: Run, first: str, second: str
) -> None:
    names = [picture(Path(first)), picture(Path(second), seed=1)]
    assert predict(*names, picture(Path("z.png"))) == 1
    assert predict.last == "2 done, 1 failed"
    assert f"the result of {second} would overwrite that of {first}" in predict.said
    assert len(predict.arrays()) == 2


def test_a_picture_that_is_named_twice_is_done_once(predict: Run) -> None:
    picture(Path("d/a.png"))
    assert predict("d", "d/a.png", Path("d/a.png").resolve()) == 0
    assert predict.last == "1 done"


def test_an_image_is_never_replaced_even_with_the_flag(predict: Run) -> None:
    photos = [picture(Path("d", name)) for name in ("A.png", "c.jpg", "c-16bit.png")]
    before = [path.read_bytes() for path in photos]
    assert predict(*photos, "--overwrite", output="d") == 1
    assert predict.last == "0 done, 3 failed"
    assert "the result of d/A.png would overwrite the image d/A.png" in predict.said
    assert [path.read_bytes() for path in photos] == before
    link = Path("e/a.png")
    link.parent.mkdir()
    link.symlink_to(photos[0].resolve())
    assert predict(link, "--overwrite", output="e") == 1
    assert link.is_symlink()


@pytest.mark.parametrize("name", ["holiday.png", "holiday.npy", "holiday-16bit.png"])
def test_a_file_of_others_is_never_replaced_without_the_flag(predict: Run, name: str) -> None:
    picture(Path("photo.png")).rename(name)
    before = Path(name).read_bytes()
    photos = [picture(Path("other/holiday.jpg")), picture(Path("other/z.jpg"))]
    assert predict(*photos, output=".") == 1
    assert predict.last == "1 done, 1 failed"
    assert f"{name} exists, and it is not a result of lotus-edge" in predict.said
    assert Path(name).read_bytes() == before
    assert not {"holiday.png", "holiday.npy", "holiday-16bit.png"} - {name} & set(os.listdir())
    assert predict(*photos, "--overwrite", output=".") == 0
    assert made_by_us("holiday.png")


def test_a_file_that_appears_while_predicting_is_not_replaced(
    predict: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LotusEngine.run

    def run(engine: LotusEngine, pictures: list[Any], call: Call) -> Any:
        Path("o/a.png").write_text("mine")
        return real(engine, pictures, call)

    monkeypatch.setattr(LotusEngine, "run", run)
    assert predict(picture(Path("a.png"))) == 1
    assert Path("o/a.png").read_text() == "mine"
    assert os.listdir("o") == ["a.png"]


def test_the_same_picture_again_replaces_its_result(predict: Run) -> None:
    picture(Path("d/a.png"))
    assert predict("d") == predict("d") == 0
    shutil.copy("d/a.png", "a.png")
    assert predict("a.png") == 0
    assert predict.arrays() == ["a"]


def test_a_result_of_another_picture_stays(predict: Run) -> None:
    """x/holiday.jpg, then y/holiday.jpg, into one folder."""
    assert predict(picture(Path("x/holiday.png"))) == 0
    before = Path("o/holiday.npy").read_bytes()
    assert predict(picture(Path("y/holiday.png"), seed=1)) == 1
    assert "it is the result of another picture" in predict.said
    assert Path("o/holiday.npy").read_bytes() == before
    assert predict("y/holiday.png", "--overwrite") == 0
    assert Path("o/holiday.npy").read_bytes() != before


def test_a_second_task_is_part_of_the_name_and_stays_so(predict: Run) -> None:
    for name in ("a.png", "b.png", "sub/c.png"):
        picture(Path("d", name))
    assert predict("d") == 0
    plain = {path: path.read_bytes() for path in Path("o").rglob("*.*")}
    for _ in range(2):
        assert predict("d", task="normal") == 0
        assert predict("d") == 0
        assert predict.arrays() == [
            "a", "a-normal", "b", "b-normal", "sub/c", "sub/c-normal",
        ]  # fmt: skip
    assert marks("o/a-normal.png")["Lotus-Task"] == "normal"
    assert {path: path.read_bytes() for path in plain} == plain


def test_results_in_the_folder_of_photos_are_no_photos(predict: Run) -> None:
    picture(Path("d/a.jpg"))
    assert predict("d/a.jpg", output="d") == 0
    assert predict("d/a.jpg", output="d/old") == 0
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save("d/old/mine.png")
    assert predict("d") == 0
    assert predict.last == "2 done, 4 skipped (results of an earlier run)"
    assert predict.arrays() == ["a", "old/mine"]
    assert predict(*Path("d").glob("*.*g"), output="p") == 0
    assert predict.last == "1 done, 2 skipped (results of an earlier run)"


def test_the_output_folder_is_left_out_with_a_word(predict: Run) -> None:
    picture(Path("d/a.jpg"))
    picture(Path("d/o/photo.jpg"))
    for _ in range(2):
        assert predict("d", output="d/o") == 0
        assert "1 done, " in predict.last
        assert "in the --output folder" in predict.last
    picture(Path("out/in/a.jpg"))
    assert predict("out/in", output="out") == 0
    assert predict.last == "1 done"


@pytest.mark.parametrize("output", ["file", "file/below", "x" * 300, "nul\0"])
def test_an_output_that_cannot_be_is_refused_before_any_work(
    predict: Run, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    monkeypatch.setattr(LotusEngine, "prepare", lambda *words: pytest.fail("worked"))
    assert predict(picture(Path("a.png")), output=output) == 1
    assert predict.last.startswith("error: cannot write into ")
