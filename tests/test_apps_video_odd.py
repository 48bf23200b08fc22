"""`lotus-edge video` with films that are odd or break off, and with outputs in which other things
lie.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_null_bundle
from films import pictures, read_film, write_film
from PIL import Image

from apps.__main__ import main
from apps.video import source
from apps.video.forms import FORMS, Settings
from apps.video.frames import Answer
from apps.video.packets import Clock, open_film
from apps.video.source import Choice, Film
from runtime.errors import OutputError

av = pytest.importorskip("av", reason="extra `video`")
COUNT, HEIGHT, WIDTH = 12, 64, 96  # the size of the null bundle's bucket


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Disparity and normals."""
    return write_null_bundle(tmp_path_factory.mktemp("bundle") / "b", task=("disparity", "normal"))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return pictures(COUNT, HEIGHT, WIDTH)


def run(bundle: Path, given: object, output: Path, *options: object) -> int:
    return main(["video", str(bundle), str(given), "--output", str(output), *map(str, options)])


def sound_of(path: Path) -> list[float]:
    """The times of a film's packets of sound, in seconds."""
    with open_film(str(path)) as container:
        return [
            float(packet.dts * packet.time_base)
            for packet in container.demux(audio=0)
            if packet.dts is not None
        ]


class Breaking:
    """A container of which one kind of stream cannot be read beyond so many packets."""

    def __init__(self, container: Any, kind: str, count: int) -> None:
        self._container, self._kind, self._count = container, kind, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def __enter__(self) -> Breaking:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def demux(self, streams: Any) -> Iterator[Any]:
        for number, packet in enumerate(self._container.demux(streams)):
            if number == self._count and packet.stream.type == self._kind:
                raise av.FFmpegError(5, "Input/output error")
            yield packet


def test_all_frames_before_a_break_come_out(
    frames: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those too that the decoder still holds."""
    path, opened = write_film(tmp_path / "a.mkv", frames), source._opened
    monkeypatch.setattr(source, "_opened", lambda name: Breaking(opened(name), "video", 9))
    film = Film(str(path), Choice())
    assert len(list(film.frames())) == 9
    assert film.notes == ["it cannot be read to its end: Input/output error"]


def test_sound_is_kept_up_to_a_break(
    bundle: Path,
    frames: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path, opened = write_film(tmp_path / "a.mkv", frames, sound=True), av.open
    whole = sound_of(path)

    def breaking(name: str, *rest: object, **options: object) -> Any:
        container = opened(name, *rest, **options)
        return Breaking(container, "audio", 3) if name == str(path) else container

    monkeypatch.setattr(av, "open", breaking)
    assert run(bundle, path, tmp_path / "out.mkv") == 0
    said = "warning: {}: the sound cannot be read to its end: Input/output error"
    assert said.format(path) in capfd.readouterr().err
    assert len(read_film(tmp_path / "out.mkv")[1]) == COUNT
    assert len(sound_of(tmp_path / "out.mkv")) == 3 < len(whole)


def test_sound_that_nothing_decodes_is_left_out(
    bundle: Path, frames: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_film(tmp_path / "a.mkv", frames, sound=True)
    data = path.read_bytes()
    assert data.count(b"A_AAC") == 1  # Matroska's name of the codec
    path.write_bytes(data.replace(b"A_AAC", b"A_NEW"))
    assert run(bundle, path, tmp_path / "out.mkv") == 0
    assert "the sound (unknown) is left out" in capfd.readouterr().err
    assert len(read_film(tmp_path / "out.mkv")[1]) == COUNT


def test_words_about_a_film_may_be_in_any_encoding(
    bundle: Path, frames: np.ndarray, tmp_path: Path
) -> None:
    path = write_film(tmp_path / "a.mkv", frames, sound=True, title="cafQQ")
    data = path.read_bytes()
    assert data.count(b"cafQQ") == 3  # of the film and of both tracks
    path.write_bytes(data.replace(b"cafQQ", b"caf\xe9\xff"))
    assert run(bundle, path, tmp_path / "out.mkv") == 0
    assert len(read_film(tmp_path / "out.mkv")[1]) == COUNT
    assert len(sound_of(tmp_path / "out.mkv")) == len(sound_of(path))


def test_sound_is_cut_as_the_film_is(bundle: Path, tmp_path: Path) -> None:
    """The pictures begin at second 2, the sound at 0."""
    times = [1200 + 20 * number for number in range(30)]
    frames = pictures(30, HEIGHT, WIDTH)
    path = write_film(tmp_path / "in.mkv", frames, times=times, sound=True)
    assert run(bundle, path, tmp_path / "a.mkv", "--duration", 0.5) == 0
    assert read_film(tmp_path / "a.mkv")[1][-1] < 2.5
    assert sound_of(tmp_path / "a.mkv")[-1] == pytest.approx(2.5, abs=0.07)  # a packet has 64 ms
    assert run(bundle, path, tmp_path / "b.mkv", "--start", 0.2, "--duration", 0.5) == 0
    assert read_film(tmp_path / "b.mkv")[1][-1] < 0.5
    assert sound_of(tmp_path / "b.mkv")[-1] == pytest.approx(0.5, abs=0.07)


def test_time_goes_on_where_time_stamps_jump_back(
    bundle: Path, frames: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where two files of MPEG-TS were made one."""
    path = write_film(tmp_path / "a.ts", frames, sound=True)
    path.write_bytes(2 * path.read_bytes())
    assert run(bundle, path, tmp_path / "out.mp4") == 0
    steps = np.diff(read_film(tmp_path / "out.mp4")[1])
    assert len(steps) == 2 * COUNT - 1
    np.testing.assert_allclose(np.delete(steps, COUNT - 1), 1 / 30, atol=1e-3)
    assert 0 < steps[COUNT - 1] < 1 / 20
    said = capfd.readouterr().err
    assert f"{path}: its time stamps jump back: time goes on from there" in said
    assert f"{path}: the sound ends at 0.3 s: its time stamps jump back there" in said


def test_a_clock() -> None:
    """Missing stamps, equal ones, some that come a little late, and a jump with what follows."""
    clock = Clock(20)
    given = [None, None, 40, 40, 35, 60, 140, 80, 100, 160]
    assert [clock(pts) for pts in given] == [0, 20, 40, 41, 42, 60, 140, 141, 142, 160]
    assert not clock.jumped
    assert [clock(pts) for pts in (5, 25, None, 65)] == [180, 200, 220, 240]
    assert clock.jumped
    early = Clock(20)
    assert [early(pts) for pts in (-40, -20, 0, 20)] == [0, 1, 2, 20]
    assert not early.jumped


def test_a_run_that_ends_early_leaves_no_pictures(
    bundle: Path, frames: np.ndarray, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(frames[number]).save(folder / f"{number}.png")
    Image.fromarray(frames[3][:50]).save(folder / "3.png")
    assert run(bundle, folder, output, "--steady", "causal") == 1
    assert not output.exists()
    (folder / "3.png").unlink()
    assert run(bundle, folder, output, "--steady", "causal") == 0
    assert len(list((output / "normal").iterdir())) == 3


def test_what_others_put_into_the_output_stays(
    bundle: Path, frames: np.ndarray, tmp_path: Path
) -> None:
    path, output = write_film(tmp_path / "a.mkv", frames), tmp_path / "out"
    assert run(bundle, path, output) == 0
    others = [output / "photos" / "000001.png", output / "mine-000001.npz"]
    others[0].parent.mkdir()
    for each in others:
        each.write_bytes(b"mine")
    assert run(bundle, path, output, "--overwrite", "--duration", 0.1) == 0
    assert [each.read_bytes() for each in others] == [b"mine", b"mine"]
    assert len(list((output / "disparity").iterdir())) == 3


def test_an_input_is_not_replaced(
    bundle: Path, frames: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, output = write_film(tmp_path / "a.mp4", frames), tmp_path / "out"
    assert run(bundle, path, output, "--duration", 0.1) == 0
    maps = output / "disparity"
    files = [path, *sorted(maps.iterdir())]
    before = [each.read_bytes() for each in files]
    given = [(path, path), (maps, output), (maps, maps), (f"{output}/disp*/*.png", output)]
    for each, into in given:
        assert run(bundle, each, into, "--overwrite") == 1
        assert f"{each} is, or lies in, the output {into}" in capfd.readouterr().err
        assert [file.read_bytes() for file in files] == before
    below = tmp_path / "pictures"
    below.mkdir()
    Image.fromarray(frames[0]).save(below / "a.png")
    for options in ((), ("--overwrite",)):
        assert run(bundle, below, below / "maps", *options) == 0


def test_a_chunk_of_arrays_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(folder=tmp_path, tasks=("disparity", "normal"), steady=False)
    chunk = FORMS["npz"].open(settings, 0)
    maps = {"disparity": np.zeros((4, 4), np.float32), "normal": np.ones((4, 4, 3), np.float32)}
    chunk.add(Answer(number=0, time=0.0, pts=0, size=(4, 4), maps=maps, steps={}))
    saved = np.savez

    def full(stream: Any, **arrays: Any) -> None:
        if arrays["values"].ndim == 4:  # the second task
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved(stream, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OutputError, match="No space left"):
        chunk.close()
    assert list(tmp_path.iterdir()) == []
