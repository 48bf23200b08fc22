"""Values, colours and files of a prediction."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import OutputError
from runtime.prediction import Prediction
from runtime.tasks import spectral_table

RAMP = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(2, 0)


def test_spectral_is_matplotlibs() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    reference = matplotlib.colormaps["Spectral"](np.arange(256), bytes=True)[:, :3]
    assert np.abs(spectral_table().astype(int) - reference).max() <= 1


def test_near_is_red_for_depth_and_disparity() -> None:
    depth = Prediction(task="depth", values=RAMP).colorize()
    disparity = Prediction(task="disparity", values=RAMP).colorize()
    assert depth[0, 0].tolist() == [158, 1, 66]
    assert disparity[0, -1].tolist() == [158, 1, 66]
    assert np.array_equal(depth, disparity[:, ::-1])


def test_constant_map_has_colours() -> None:
    colors = Prediction(task="depth", values=np.full((3, 3), 0.5, np.float32)).colorize()
    assert (colors == colors[0, 0]).all()


def test_normal_colours_are_half_range() -> None:
    values = np.array([[[1, 0, -1]]], np.float32)
    assert Prediction(task="normal", values=values).colorize().tolist() == [[[255, 128, 0]]]


def test_saved_files_read_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((7, 5), dtype=np.float32)
    array, deep, color = Prediction(task="disparity", values=values).save(
        tmp_path / "new" / "folder", "a.b"
    )
    assert np.array_equal(np.load(array), values)
    with Image.open(deep) as image:
        assert image.mode == "I;16"
        assert np.abs(np.asarray(image) / 65535 - values).max() <= 0.5 / 65535 + 1e-7
    with Image.open(color) as image:
        assert (image.mode, image.size) == ("RGB", (5, 7))
    assert len(list(color.parent.iterdir())) == 3


def test_16_bit_normals_hold_16_bits(tmp_path: Path) -> None:
    """Pillow reads 16-bit RGB as its high bytes; the low bytes are checked in the decompressed
    stream itself.
    """
    import struct
    import zlib

    values = np.random.default_rng(0).uniform(-1, 1, (4, 6, 3)).astype(np.float32)
    deep = Prediction(task="normal", values=values).save(tmp_path)[1]
    with Image.open(deep) as image:
        high = np.asarray(image.convert("RGB"), dtype=int)
    expected = np.rint((values.astype(float) + 1) / 2 * 65535).astype(int)
    assert np.array_equal(high, expected >> 8)
    content = deep.read_bytes()
    start = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[start - 4 : start])
    rows = np.frombuffer(
        zlib.decompress(content[start + 4 : start + 4 + length]), np.uint8
    ).reshape(4, -1)
    assert (rows[:, 0] == 0).all()
    assert np.array_equal(rows[:, 1:].copy().view(">u2").reshape(4, 6, 3), expected)


def test_unwritable_folder_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        Prediction(task="depth", values=RAMP).save(tmp_path / "file")


def test_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the write fails half-way with an OSError, as
    ENOSPC does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            Prediction(task="depth", values=np.zeros((100, 100), np.float32)).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
