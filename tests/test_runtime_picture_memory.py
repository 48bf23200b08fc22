"""Peak memory of reading: at most 6 bytes a pixel over the decoded picture, which has 3; of formats
whose decoders take more what `Format.memory` says, by which their pixels are limited.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from runtime.image import load
from runtime.pictures.formats import FORMATS

SIZE = (4000, 3000)
MEASURE = """
import sys, numpy
from PIL import Image
from runtime.image import load
def peak():  # not ru_maxrss: a child inherits it
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
Image.init()
Image.new("RGB", (64, 64)).save(sys.argv[2])
load(sys.argv[2])
before = peak()
rgb = load(sys.argv[1])
print((peak() - before) / (rgb.shape[0] * rgb.shape[1]))
"""


def make(kind: str, path: Path) -> None:
    grey = Image.linear_gradient("L").resize(SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6
    match kind:
        case "jpeg":
            grey.convert("RGB").save(path, "JPEG")
        case "plain jpeg":
            Image.new("RGB", SIZE, "grey").save(path, "JPEG")
        case "plain png":
            Image.new("RGB", SIZE).save(path, "PNG")
        case "turned jpeg":
            grey.convert("RGB").save(path, "JPEG", exif=exif)
        case "progressive jpeg":
            grey.convert("RGB").save(path, "JPEG", progressive=True)
        case "cmyk jpeg":
            grey.convert("CMYK").save(path, "JPEG")
        case "rgba png":
            grey.convert("RGBA").save(path, "PNG", compress_level=1)
        case "deep tiff":
            Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path, "TIFF")
        case "float tiff":
            Image.fromarray(np.asarray(grey, dtype=np.float32) / 255).save(path, "TIFF")
        case "rgba tiff":
            grey.convert("RGBA").save(path, "TIFF")
        case "WEBP":
            grey.convert("RGB").save(path, "WEBP", lossless=True, method=0)
        case "AVIF":
            grey.convert("RGBA").save(path, "AVIF", speed=10)
        case "JPEG2000":
            grey.convert("RGB").save(path, "JPEG2000")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "TIFF"])
def test_no_decoded_picture_waits_for_the_garbage_collector(tmp_path: Path, kind: str) -> None:
    if not FORMATS[kind].available:
        pytest.skip(f"this Pillow has no {kind}")
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "a", kind)

    def alive() -> int:
        return sum(issubclass(type(each), Image.Image) for each in gc.get_objects())

    load(tmp_path / "a")
    gc.collect()
    before = alive()
    gc.disable()
    try:
        load(tmp_path / "a")
        assert alive() == before
    finally:
        gc.enable()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc says how much memory")
@pytest.mark.parametrize(
    "kind",
    [
        *("jpeg", "turned jpeg", "progressive jpeg", "cmyk jpeg", "rgba png", "deep tiff"),
        *("float tiff", "rgba tiff", "plain jpeg", "plain png", "WEBP", "AVIF", "JPEG2000"),
    ],
)
def test_peak_memory(tmp_path: Path, kind: str) -> None:
    if kind in FORMATS and not FORMATS[kind].available:
        pytest.skip(f"this Pillow has no {kind}")
    make(kind, tmp_path / "a")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a"), str(tmp_path / "small.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    most = FORMATS[kind].memory if kind in FORMATS else 9
    assert 3 <= float(done.stdout) <= most
