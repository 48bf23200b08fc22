"""`python -m runtime`: what a person meets."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_null_bundle
from PIL import Image

from runtime import LotusEngine
from runtime.__main__ import main
from runtime.backends import installed
from runtime.backends.null import BackendSession
from runtime.backends.session import Tensors
from runtime.call import Call
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
    assert shown.splitlines()[-1] == "2 done, 1 failed"
    assert shown.splitlines()[-2].startswith(f"  {tmp_path / 'in' / '2.jpg'}")
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


def test_an_image_is_never_overwritten_by_its_own_result(null_bundle: Path, tmp_path: Path) -> None:
    for arguments in ([str(tmp_path / "in")], [str(picture(tmp_path / "in" / "a.png"))]):
        before = (picture(tmp_path / "in" / "a.png")).read_bytes()
        assert (
            main(["predict", str(null_bundle), *arguments, "--output", str(tmp_path / "in")]) == 1
        )
        assert (tmp_path / "in" / "a.png").read_bytes() == before
        assert len(list((tmp_path / "in").iterdir())) == 1


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
        ["predict", "BUNDLE", "x.png", "--output", "BUNDLE/manifest.json"],
    ],
)
def test_errors_are_one_line_and_status_1(
    arguments: list[str], null_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"BUNDLE": str(null_bundle), "EMPTY": str(tmp_path / "empty")}
    for place, path in places.items():
        arguments = [argument.replace(place, path) for argument in arguments]
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predict"],
        ["predict", "b", "x.png"],
        ["predict", "b", "", "--output", "o"],
        ["predict", "b", "x.png", "--output", ""],
        ["predict", "b", "x.png", "--output", "o", "--seed", "-1"],
        ["predict", "b", "x.png", "--output", "o", "--max-pixels", "0"],
        ["predict", "b", "x.png", "--output", "o", "--max-pixels", "many"],
        ["predict", "b", "x.png", "--output", "o", "--deadline", "0"],
        ["verify", "b", "--deadline", "nan"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("usage: lotus-edge")
    assert "error: " in shown.splitlines()[-1]


def test_help_and_usage_are_plain_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.14 colours them there, and the console writes control characters out."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    for words in (["--help"], ["predict", "--help"], ["predict"]):
        with pytest.raises(SystemExit):
            main(words)
        shown = "".join(capsys.readouterr())
        assert "usage: lotus-edge" in shown
        assert "x1b" not in shown


def test_the_null_backend_is_not_offered(
    null_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(null_bundle), "--backend", "tflite"]) == 1
    shown = capsys.readouterr().err
    assert "'onnxruntime'" in shown
    assert "null" not in shown
    for words in (["--help"], ["predict", "--help"], ["verify", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
    assert "null" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [["verify"], ["verify", "--backend", "null"]])
def test_a_bundle_cannot_ask_for_the_null_backend(
    words: list[str],
    null_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It answers maps without any network, and a manifest can be signed again by anyone."""
    monkeypatch.delenv("LOTUS_EDGE_NULL")
    assert main([*words, str(null_bundle)]) == 1
    assert "unknown backend 'null'" in capsys.readouterr().err
    assert "null" not in installed()


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_a_bundle_that_never_opens_ends_at_the_deadline(
    command: str,
    null_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    released, opened = threading.Event(), BackendSession._open

    def hangs(session: BackendSession) -> Tensors:
        released.wait(10)
        return opened(session)

    words = [command, str(null_bundle)]
    if command == "predict":
        words += [str(picture(tmp_path / "a.png")), "--output", str(tmp_path / "o")]
    with monkeypatch.context() as patch:
        patch.setattr(BackendSession, "_open", hangs)
        assert main([*words, "--deadline", "0.1"]) == 1
    assert "took more than 0.1 s" in capsys.readouterr().err
    released.set()
    assert main([*words, "--deadline", "60"]) == 0


@pytest.mark.parametrize("command", ["predict", "verify", "info"])
def test_a_bundle_may_be_an_id_on_the_hub(
    command: str, null_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def find_bundle(bundle: object) -> Path:
        asked.append(bundle)
        return null_bundle

    for module in ("runtime.engine", "runtime.__main__"):
        monkeypatch.setattr(f"{module}.find_bundle", find_bundle)
    words = [str(picture(tmp_path / "a.png")), "--output", str(tmp_path / "o")]
    assert main([command, "user/bundle@main", *words * (command == "predict")]) == 0
    assert asked == ["user/bundle@main"]  # as text: a path would not be looked up there


class Asked(Exception):
    """A bug of ours, say."""


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (MemoryError(), 1, "error: not enough memory"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Asked(), None, None),
    ],
)
def test_exceptions_of_others_end_in_words_and_bugs_do_not(
    raised: BaseException,
    status: int | None,
    said: str | None,
    null_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(engine: object) -> None:
        raise raised

    monkeypatch.setattr(LotusEngine, "verify", fail)
    if status is None:
        with pytest.raises(Asked):
            main(["verify", str(null_bundle)])
        return
    assert main(["verify", str(null_bundle)]) == status
    assert capsys.readouterr().err == f"{said}\n"
    if status == 1:
        monkeypatch.setenv("LOTUS_EDGE_DEBUG", "1")
        with pytest.raises(type(raised)):
            main(["verify", str(null_bundle)])


def test_options_reach_the_engine_only_when_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_null_bundle(tmp_path / "g", mode="g")
    given: list[dict[str, object]] = []

    def of(options: dict[str, object]) -> Call:
        given.append(options)
        return Call()

    monkeypatch.setattr(Call, "of", of)
    words = ["predict", str(bundle), str(picture(tmp_path / "a.png")), "--output"]
    assert main([*words, str(tmp_path / "o")]) == 0
    more = ["--max-pixels", "9", "--strict", "--no-icc", "--seed", "7"]
    assert main([*words, str(tmp_path / "p"), *more]) == 0
    assert given == [{}, {"max_pixels": 9, "strict": True, "icc": False, "seed": 7}]


def test_a_seed_without_effect_ends_before_the_first_picture(
    null_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(null_bundle), str(picture(tmp_path / "a.png")), "--seed", "1"]
    assert main([*words, "--output", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().err.startswith("error: this bundle is of mode D")
    assert not (tmp_path / "o").exists()


def test_as_a_module(null_bundle: Path) -> None:
    command = [sys.executable, "-m", "runtime", "verify", str(null_bundle)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
