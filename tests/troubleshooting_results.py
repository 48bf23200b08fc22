"""The rows of the troubleshooting tables about results: each provokes the error of that message."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from conftest import ROOT
from PIL import Image

from runtime import Prediction
from runtime.__main__ import main as lotus_edge

if TYPE_CHECKING:
    from test_docs import Try


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return shutil.copy(ROOT / "tiny" / "samples" / "room.png", path)


def in_place(t: Try) -> None:
    photo(t.folder / "a.png")
    t.command("predict", t.bundle, t.folder, "--output", t.folder)


def not_ours(t: Try) -> None:
    photo(t.folder / "out" / "a.png")
    t.command("predict", t.bundle, photo(t.folder / "a.png"), "--output", t.folder / "out")


def of_another_picture(t: Try) -> None:
    words = ("predict", t.bundle, photo(t.folder / "a.png"), "--output", t.folder / "out")
    lotus_edge([*map(str, words)])
    Image.new("RGB", (9, 8)).save(t.folder / "a.png")
    t.command(*words)


def of_another_task(t: Try) -> None:
    t.predict().save(t.folder / "a")
    Prediction({"depth": np.zeros((4, 4), np.float32)}).save(t.folder / "a")


def one_name(t: Try) -> None:
    photos = (photo(t.folder / "b" / "a.png"), photo(t.folder / "c" / "b" / "A.png"))
    t.command("predict", t.bundle, *photos, "--output", t.folder / "out")


def not_listed(t: Try) -> None:
    photo(t.folder / "a.png")
    (t.folder / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    t.patch.setattr(os, "scandir", scandir)
    t.command("predict", t.bundle, t.folder, "--output", t.folder / "out")


def full_stdout(t: Try) -> None:
    stream = io.StringIO()
    t.patch.setattr(stream, "flush", lambda: os.write(-1, b""))
    t.patch.setattr(sys, "stdout", stream)
    t.command("info", t.bundle)


def cannot_write(t: Try) -> None:
    (t.folder / "file").write_text("")
    t.predict().save(t.folder / "file" / "below")


RESULTS: dict[str, Callable[[Try], object]] = {
    "cannot write": cannot_write,
    "not a result of lotus-edge": not_ours,
    "it is the result of another picture": of_another_picture,
    "of a picture, and this is its": of_another_task,
    "would overwrite": one_name,
    "the folder cannot be listed": not_listed,
    "File name too long": lambda t: t.command(
        "predict", t.bundle, photo(t.folder / f"{'x' * 250}.png"), "--output", t.folder / "out"
    ),
    "cannot write to standard output": full_stdout,
    "no images found in what was given": lambda t: t.command(
        "predict", t.bundle, t.folder, "--output", t.folder / "out"
    ),
    "is the folder of the images": in_place,
}
