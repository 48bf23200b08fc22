"""The mark that tells our results from photographs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from runtime.files import open_at_once
from runtime.marker import MARKER, made_by_us

PICTURE = Image.fromarray(np.zeros((4, 5, 3), np.uint8))


def png(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    PICTURE.save(path, pnginfo=info)
    return path


def test_the_beginning_of_a_file_is_read_in_small_pieces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    with open_at_once(tmp_path / "a") as stream:
        stream.read(8)
        assert os.lseek(stream.fileno(), 0, os.SEEK_CUR) <= 8192


def test_a_png_with_our_mark_is_ours_whatever_its_name(tmp_path: Path) -> None:
    keyword, text = MARKER
    assert made_by_us(png(tmp_path / "a.png", **{keyword: text}))
    later = png(tmp_path / "b.png", Author="me", **{keyword: f"{text} 1.2"})
    assert made_by_us(str(later))
    assert made_by_us(later.rename(tmp_path / "photo"))


def test_other_files_are_not_ours(tmp_path: Path) -> None:
    keyword, text = MARKER
    for name, texts in (
        ("none.png", {}),
        ("other.png", {keyword: "GIMP"}),
        ("word.png", {"Comment": f"{keyword} {text}"}),
    ):
        assert not made_by_us(png(tmp_path / name, **texts))
    PICTURE.save(tmp_path / "photo.jpg", comment=f"{keyword}\0{text}".encode())
    assert not made_by_us(tmp_path / "photo.jpg")
    ours = png(tmp_path / "ours.png", **{keyword: text}).read_bytes()
    start = ours.index(keyword.encode())
    for length in range(start + len(keyword) + 1):  # cut anywhere before the text is whole
        (tmp_path / "cut.png").write_bytes(ours[:length])
        assert not made_by_us(tmp_path / "cut.png")


@pytest.mark.parametrize("path", ["", "missing.png", "nul\0.png", ".", "x" * 5000, 7.5, None])
def test_it_never_raises(path: object) -> None:
    assert not made_by_us(path)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert not made_by_us(tmp_path / "pipe.png")
