"""Small undamaged pictures of every format and mode that the runtime may meet, made with Pillow."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_WIDTH, _HEIGHT = 40, 28
# Format of Pillow, mode, settings of the writer.
_WANTED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")),
    ("PNG", "RGB", {"exif": True, "icc": True}),
    ("PNG", "RGB", {"save_all": True, "append": 2}),
    *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
    ("JPEG", "RGB", {"progressive": True, "exif": True}),
    ("JPEG", "RGB", {"icc": True, "restart_marker_rows": 1, "comment": b"made here"}),
    ("MPO", "RGB", {"save_all": True, "append": 1}),
    *(("WEBP", mode, {"lossless": flag}) for mode in ("RGB", "RGBA") for flag in (True, False)),
    ("WEBP", "RGB", {"exif": True, "icc": True}),
    ("WEBP", "RGBA", {"save_all": True, "append": 2}),
    ("GIF", "P", {}),
    ("GIF", "L", {"save_all": True, "append": 2, "transparency": 0}),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(
        ("TIFF", mode, {})
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F")
    ),
    *(
        ("TIFF", "RGB", {"compression": name})
        for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "zstd", "lzma")
    ),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "RGB", {"big_tiff": True}),
    ("TIFF", "RGB", {"exif": True, "icc": True, "save_all": True, "append": 1}),
    *(("PPM", mode, {}) for mode in ("1", "L", "RGB", "I", "I;16")),
    ("PFM", "F", {}),
    *(("JPEG2000", mode, {}) for mode in ("L", "RGB", "RGBA", "I;16")),
    ("JPEG2000", "RGB", {"no_jp2": True, "tile_size": (16, 16)}),
    *(("AVIF", mode, {"speed": 10}) for mode in ("RGB", "RGBA")),
    ("AVIF", "RGB", {"speed": 10, "exif": True, "icc": True}),
    *(
        ("TGA", mode, {"compression": rle})
        for mode in ("L", "P", "RGB")
        for rle in (None, "tga_rle")
    ),
    # What a photograph is not; a file of any name may be one of them.
    *((name, "RGB", {}) for name in ("EPS", "PDF", "ICO", "DDS", "PCX", "SGI", "IM", "QOI")),
    ("MSP", "1", {}),
    ("XBM", "1", {}),
    ("SPIDER", "F", {}),
    ("BLP", "P", {}),
    ("DIB", "RGB", {}),
)


def originals() -> dict[str, bytes]:
    """The files by a name that says what they are. What this Pillow cannot write is left out."""
    files = {}
    for number, (kind, mode, wanted) in enumerate(_WANTED):
        settings = dict(wanted)
        frames = [_picture(mode, seed) for seed in range(1 + settings.pop("append", 0))]
        if settings.pop("exif", False):
            settings["exif"] = _exif()
        if settings.pop("icc", False):
            settings["icc_profile"] = ImageCms.ImageCmsProfile(
                ImageCms.createProfile("sRGB")
            ).tobytes()
        if len(frames) > 1:
            settings["append_images"] = frames[1:]
        stream = io.BytesIO()
        # A library that this Pillow lacks, or a format on its way out.
        with contextlib.suppress(KeyError, OSError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames[0].save(stream, format=kind, **settings)
            files[f"{kind.lower()}-{mode.replace(';', '')}-{number}"] = stream.getvalue()
    return files


def crafted() -> dict[str, bytes]:
    """Files that are short and ask for much, or for what they must not get."""
    long_text = b"tEXt" + b"Comment\0" + b"x" * 3_000_000
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"
        b"(lotus) (w) file\nshowpage\n"
    )
    return {
        "webp-large": bytes.fromhex(
            "524946461a000000574542505650384c0e0000002fb7e42d09071011fd0f4444ff03"
        ),
        "postscript": postscript,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "empty": b"",
        "many-scans": _many_scans(),
        "text-chunk": _with_chunk(long_text),
        "packed-text": _with_chunk(b"zTXtComment\0\0" + _packed(64_000_000)),
        "packed-profile": _with_chunk(b"iCCPsRGB\0\0" + _packed(64_000_000)),
        **{
            f"ppm-{width}x{height}": f"P6 {width} {height} 255\n".encode() + bytes(64)
            for width, height in itertools.product((1, 30_000, 2**31), (60_000, 2**31, 10**40))
        },
        "ppm-digits": b"P6 " + b"1" * 5000 + b" 2 255\n",
        "pgm-text": b"P2 4 4 255\n" + b"9" * 10_000,
    }


def _picture(mode: str, seed: int) -> Image.Image:
    """Noise over a ramp, so that compressed data are not trivial."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, _WIDTH)[None, :, None] + random.integers(0, 56, (_HEIGHT, _WIDTH, 3))
    rgb = Image.fromarray(ramp.astype(np.uint8))
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        return ImageCms.applyTransform(rgb, to_lab) or rgb
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.float32) / 255)
    if mode == "P":
        return rgb.quantize(32)
    return rgb.convert(mode)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    exif[0x010E] = "a description"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    return exif


def _packed(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def _with_chunk(chunk: bytes) -> bytes:
    """A PNG with this chunk (type and content) after its header."""
    stream = io.BytesIO()
    _picture("RGB", 0).save(stream, format="PNG")
    content = stream.getvalue()
    whole = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return content[:33] + whole + content[33:]


def _many_scans() -> bytes:
    """A progressive JPEG of 1024x1024 whose last scan comes 1,000 times."""
    stream = io.BytesIO()
    Image.new("L", (1024, 1024), 77).save(stream, format="JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rfind(b"\xff\xda")
    return content[:last] + content[last:-2] * 1000 + content[-2:]
