"""`python -m runtime`: what a person meets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_null_bundle
from PIL import Image

from runtime.__main__ import main
from runtime.manifest import Checkpoint, Manifest


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
        path
    )
    return path


def test_predict_writes_three_files_for_each_image(null_bundle: Path, tmp_path: Path) -> None:
    images = [picture(tmp_path / "a.png"), picture(tmp_path / "b.jpg")]
    assert (
        main(["predict", str(null_bundle), *map(str, images), "--output", str(tmp_path / "out")])
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a-16bit.png", "a.npy", "a.png", "b-16bit.png", "b.npy", "b.png",
    ]  # fmt: skip


def test_folder_goes_on_after_a_bad_image_and_names_it(
    null_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1.png", "sub/3.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "2.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "notes.txt").write_text("not looked at")
    assert (
        main(["predict", str(null_bundle), str(tmp_path / "in"), "--output", str(tmp_path / "out")])
        == 1
    )
    shown = capsys.readouterr().err
    assert "[3/3]" in shown
    assert "1 of 3 images could not be used" in shown
    assert shown.strip().splitlines()[-1].strip().startswith(str(tmp_path / "in" / "2.jpg"))
    assert (tmp_path / "out" / "1.png").is_file()
    assert (tmp_path / "out" / "sub" / "3.png").is_file()


def test_a_second_run_does_not_predict_its_own_output(null_bundle: Path, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    arguments = [
        "predict",
        str(null_bundle),
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "in" / "out"),
    ]
    assert main(arguments) == main(arguments) == 0
    assert len(list((tmp_path / "in" / "out").rglob("*"))) == 3


def test_no_result_overwrites_another(null_bundle: Path, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "a.jpg")
    assert (
        main(["predict", str(null_bundle), str(tmp_path / "in"), "--output", str(tmp_path / "out")])
        == 0
    )
    assert {path.name for path in (tmp_path / "out").glob("*.npy")} == {"a-png.npy", "a-jpg.npy"}
    twice = [str(tmp_path / "in" / "a.png"), str(picture(tmp_path / "other" / "a.png"))]
    assert main(["predict", str(null_bundle), *twice, "--output", str(tmp_path / "out2")]) == 1


def test_an_image_is_never_overwritten_by_its_own_result(null_bundle: Path, tmp_path: Path) -> None:
    for arguments in ([str(tmp_path / "in")], [str(picture(tmp_path / "in" / "a.png"))]):
        before = (picture(tmp_path / "in" / "a.png")).read_bytes()
        assert (
            main(["predict", str(null_bundle), *arguments, "--output", str(tmp_path / "in")]) == 1
        )
        assert (tmp_path / "in" / "a.png").read_bytes() == before
        assert len(list((tmp_path / "in").iterdir())) == 1


def test_endings_are_part_of_what_may_clash(null_bundle: Path, tmp_path: Path) -> None:
    images = [str(picture(tmp_path / "in" / name)) for name in ("a.png", "a-16bit.jpg")]
    assert main(["predict", str(null_bundle), *images, "--output", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_failed_images_are_named_even_if_the_run_ends_early(
    null_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "out").write_text("a file where the folder should be")
    images = [str(tmp_path / "1.png"), str(picture(tmp_path / "2.png"))]
    assert main(["predict", str(null_bundle), *images, "--output", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert "1 of 2 images could not be used" in shown
    assert "error: cannot write" in shown


def test_closed_pipe_is_no_traceback(null_bundle: Path) -> None:
    command = f"{sys.executable} -m runtime info {null_bundle} | true"
    assert (
        subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=True).stderr
        == b""
    )


def test_verify_and_info(null_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(null_bundle)]) == 0
    shown = capsys.readouterr().out
    assert "64x96: differs from the PyTorch reference by 0.00e+00" in shown
    assert "files and golden are right" in shown
    assert main(["info", str(null_bundle)]) == 0
    shown = capsys.readouterr().out
    assert "64x96, 96x64" in shown
    assert "tolerance 0.0001" in shown
    assert "decoder" not in shown


def test_info_names_what_stands_in_for_a_half_of_the_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Checkpoint(id="tiny/taesd", sha256="abcdef" * 10 + "abcd")
    bundle = write_null_bundle(tmp_path / "small", vae_decoder=small)
    assert Manifest.load(bundle).vae_decoder == small
    assert main(["info", str(bundle)]) == 0
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["decoder", "tiny/taesd (sha256 abcdefabcdef)"] in shown
    assert "encoder" not in [line[0] for line in shown]


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "nowhere"],
        ["info", "nowhere"],
        ["predict", "nowhere", "x.png", "--output", "o"],
        ["predict", "BUNDLE", "EMPTY", "--output", "o"],
        ["verify", "BUNDLE", "--backend", "tflite"],
    ],
)
def test_errors_are_one_line_and_status_1(
    arguments: list[str], null_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"BUNDLE": str(null_bundle), "EMPTY": str(tmp_path / "empty")}
    assert main([places.get(argument, argument) for argument in arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


def test_as_a_module(null_bundle: Path) -> None:
    command = [sys.executable, "-m", "runtime", "verify", str(null_bundle)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
