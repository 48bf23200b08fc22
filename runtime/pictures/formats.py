"""Which pictures are read. The content decides, never the name; none of these starts a program."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

MAX_PIXELS = 200_000_000
"""Pixels that are read by default: the largest cameras of phones have 200 megapixels. Decoding that
many takes 1.4 GB. Formats whose decoders need more memory have a lower limit."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format with Pillow's (or a plugin's) class for it.

    `needs` is a module that may be missing, `advice` how to get it. `memory` are the bytes that a
    pixel takes at most while it is decoded, with the decoded picture.
    """

    module: str
    decoder: str
    suffixes: tuple[str, ...]
    needs: str = ""
    advice: str = ""
    memory: int = 7

    @property
    def most_pixels(self) -> int:
        """How many are read by default: those that take the memory of MAX_PIXELS of a JPEG."""
        return MAX_PIXELS * 7 // self.memory

    @property
    def available(self) -> bool:
        """Whether this installation decodes it; imports nothing but parent packages."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    def load(self) -> Any:
        """The class that opens a stream of this format."""
        return getattr(importlib.import_module(self.module), self.decoder)


FORMATS = {
    "JPEG": Format(
        module="PIL.JpegImagePlugin",
        decoder="JpegImageFile",
        suffixes=(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    ),
    "PNG": Format(module="PIL.PngImagePlugin", decoder="PngImageFile", suffixes=(".png", ".apng")),
    "WEBP": Format(
        module="PIL.WebPImagePlugin",
        decoder="WebPImageFile",
        suffixes=(".webp",),
        needs="PIL._webp",
        advice="this Pillow has no WebP: `pip install --upgrade pillow`",
        memory=16,
    ),
    "TIFF": Format(
        module="PIL.TiffImagePlugin", decoder="TiffImageFile", suffixes=(".tif", ".tiff")
    ),
    "BMP": Format(module="PIL.BmpImagePlugin", decoder="BmpImageFile", suffixes=(".bmp",)),
    "GIF": Format(module="PIL.GifImagePlugin", decoder="GifImageFile", suffixes=(".gif",)),
    # Not .pfm: in this field it holds a map, often beside its photograph.
    "PPM": Format(
        module="PIL.PpmImagePlugin",
        decoder="PpmImageFile",
        suffixes=(".ppm", ".pgm", ".pbm", ".pnm"),
    ),
    "JPEG2000": Format(
        module="PIL.Jpeg2KImagePlugin",
        decoder="Jpeg2KImageFile",
        suffixes=(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        memory=20,
    ),
    "AVIF": Format(
        module="PIL.AvifImagePlugin",
        decoder="AvifImageFile",
        suffixes=(".avif", ".avifs"),
        needs="PIL._avif",
        advice="`pip install --upgrade pillow` (11.3 or newer)",
        memory=12,
    ),
    "HEIF": Format(
        module="pillow_heif",
        decoder="HeifImageFile",
        suffixes=(".heic", ".heif", ".hif"),
        needs="pillow_heif",
        advice="`pip install pillow-heif`",
    ),
    "TGA": Format(
        module="PIL.TgaImagePlugin",
        decoder="TgaImageFile",
        suffixes=(".tga", ".icb", ".vda", ".vst"),
    ),
}

IMAGE_SUFFIXES = frozenset(
    suffix for each in FORMATS.values() if each.available for suffix in each.suffixes
)
"""Names that a folder is searched for: what this installation decodes."""

_RAW = "camera raw is not read: develop it to JPEG, PNG or TIFF"
_CONVERT = "convert it to JPEG, PNG or TIFF"
_UNREAD = dict.fromkeys(
    (
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf"),
        *(".rw2", ".pef", ".srw", ".x3f", ".3fr", ".erf", ".kdc", ".mrw", ".raw", ".rwl", ".iiq"),
    ),
    _RAW,
) | dict.fromkeys(
    (
        *(".jxl", ".psd", ".exr", ".hdr", ".dds", ".svg", ".ico", ".eps", ".heics", ".pfm", ".qoi"),
        *(".pcx", ".dcx", ".sgi", ".bw", ".rgb", ".rgba", ".dib", ".icns", ".im", ".cur", ".xbm"),
        *(".xpm", ".msp", ".blp", ".fit", ".fits", ".fli", ".flc", ".ftc", ".ftu", ".gbr", ".iim"),
        *(".palm", ".pcd", ".pxr", ".ras", ".ps", ".wmf", ".emf"),
    ),
    _CONVERT,
)


def why_not_read(suffix: str) -> str | None:
    """For the suffix of a picture that is not read here, the reason and what to do; None for those
    that are read, and for what is no picture.

    >>> why_not_read(".CR2")
    'camera raw is not read: develop it to JPEG, PNG or TIFF'
    """
    suffix = suffix.lower()
    for each in FORMATS.values():
        if suffix in each.suffixes:
            return None if each.available else each.advice
    return _UNREAD.get(suffix)


def sniff(head: bytes) -> str | None:
    """The format that the first bytes (64 are enough) name, None where they name none.

    TGA has no mark: a plausible header is taken for one, as the last thing.
    """
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in (8, *range(16, len(head) - 3, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIF" if brands & _HEIF_BRANDS else None
    # Colour map or not, a known kind, a picture that is not empty, 1 to 4 bytes a pixel.
    if (
        len(head) > 18
        and head[1] in (0, 1)
        and head[2] in (1, 2, 3, 9, 10, 11)
        and any(head[12:14])
        and any(head[14:16])
        and head[16] in (1, 8, 15, 16, 24, 32)
    ):
        return "TGA"
    return None


_MARKS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
} | {b"P" + kind: "PPM" for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"f")}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
