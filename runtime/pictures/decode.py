"""From a file or a Pillow image to decoded pixels, with limits and without chatter.

No switch of the whole process is touched: not Pillow's `LOAD_TRUNCATED_IMAGES`,
`MAX_IMAGE_PIXELS` or `MAX_TEXT_CHUNK`, not the filters of `warnings` (`warnings.catch_warnings`
changes those of all threads). Instead the decoder gets a cleaned container and is opened by its
class, not with `Image.open`, which would warn by Pillow's own limit on pixels.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from runtime.errors import ImageError
from runtime.pictures.avif import read_avif
from runtime.pictures.formats import FORMATS, MAX_PIXELS, sniff
from runtime.pictures.gif import read_gif
from runtime.pictures.jpeg import read_jpeg
from runtime.pictures.metadata import orientation
from runtime.pictures.png import read_png
from runtime.pictures.pnm import read_pnm
from runtime.pictures.source import Samples, Source, open_regular
from runtime.pictures.tiff import described, read_tiff
from runtime.pictures.webp import read_webp

_READERS: dict[str, Callable[[BinaryIO], Source]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "PPM": read_pnm,
    "AVIF": read_avif,
    "GIF": read_gif,
    "TIFF": read_tiff,
    "WEBP": read_webp,
}
_MAKE_ROOM = {"WEBP", "AVIF", "HEIF", "GIF"}  # their plugins decode into memory of their own
_DECODERS = {"WEBP", "AVIF"}  # of these they stay, with all their memory, as long as the picture
_BYTES_PER_PIXEL = 10  # of a file: 16-bit RGBA has 8
_SMALLEST_LIMIT = 2**26  # bytes of a file, for few pixels
_DARK = "has 16 bits, of which Pillow keeps the high bytes, and those are nearly black"
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture. `low` has the low bytes of 16-bit colour, where they are needed. `notes`
    are what a strict reader refuses.
    """

    image: Image.Image
    low: Image.Image | None = None
    orientation: int = 1
    icc: bytes | None = None
    samples: Samples = field(default_factory=Samples)
    notes: list[str] = field(default_factory=list)


def decode_file(file: Path | bytes, *, strict: bool, max_pixels: int | None) -> Picture:
    """The first picture of a file, or of a file's content, decoded.

    Raises: ImageError, and whatever a decoder raises.
    """
    largest = max(_SMALLEST_LIMIT, _BYTES_PER_PIXEL * (max_pixels or MAX_PIXELS))
    with io.BytesIO(file) if isinstance(file, bytes) else open_regular(file, largest) as stream:
        source = _examined(stream, max_pixels)
        if strict and source.damage:
            raise ImageError("; ".join(source.damage))

        def opened(stream: BinaryIO, swap: bool = False) -> Any:
            return _opened(source, stream, max_pixels, swap)

        with _quiet_libtiff() if source.format == "TIFF" else contextlib.nullcontext():
            image, notes = _loaded(opened, source)
            low = None
            # A full range of 16 bits needs no low bytes: the high ones are the answer.
            if source.samples.deep and (source.samples.full or 0) < 65535 and _peak(image) < 64:
                if source.format == "JPEG2000":
                    raise ImageError(f"{_DARK}; save it as PNG or TIFF of 16 bits")
                low, _ = _loaded(partial(opened, swap=True), source)
                if source.samples.paired:  # read as four channels: high and low byte of each sample
                    low = Image.merge(image.mode, [low.getchannel(1)] * len(image.getbands()))
    if source.size is not None and source.size != image.size:
        held, said = ("{}x{}".format(*size) for size in (source.size, image.size))
        notes.append(f"it holds {held} pixels, stretched to the {said} of its header")
    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    return Picture(
        image=image,
        low=low,
        orientation=source.orientation or orientation(exif, xmp),
        icc=source.icc or image.info.get("icc_profile"),
        samples=source.samples,
        notes=[*source.damage, *notes],
    )


def exif_of(path: Path) -> bytes | None:
    """The EXIF block of a file, which is not decoded; None without one.

    Raises: ImageError for what is no picture, MemoryError.
    """
    with open_regular(path, sys.maxsize) as file:
        source = _examined(file, sys.maxsize)
        if source.exif is not None:
            return source.exif
        try:
            source.stream.seek(0)
            found = FORMATS[source.format].load()(source.stream).info.get("exif")
        except MemoryError:
            raise
        except Exception as error:  # whatever decoders raise
            raise ImageError(f"{path} cannot be read: {error or type(error).__name__}") from error
    return found if isinstance(found, bytes) else None


def decode_image(image: Image.Image, *, max_pixels: int | None) -> Picture:
    """A Pillow image, decoded if it was not yet; Pillow's own warnings may come.

    Raises: ImageError, and whatever a decoder raises.
    """
    _check_pixels(image.size, image.format or "", max_pixels)
    # Colour and alpha of 16 bits, of which Pillow keeps the high byte.
    deep = image.mode in ("RGB", "RGBA", "LA") and ";16" in str(getattr(image, "tile", ""))
    if image.format == "JPEG2000" and getattr(image, "tile", None):
        deep = _jpeg_2000_samples(image.fp).deep  # type: ignore[attr-defined]
    with _quiet_libtiff() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    if deep and _peak(image) < 64:
        other = "save it as PNG or TIFF of 16 bits"
        raise ImageError(f"{_DARK}; {other if image.format == 'JPEG2000' else 'pass the path'}")
    samples, tags = Samples(), getattr(image, "tag_v2", None)
    if tags is not None:
        known = {tag: tags[tag] for tag in (258, 262, 281, 338, 339, 341) if tag in tags}
        samples = described(
            {tag: value if isinstance(value, tuple) else (value,) for tag, value in known.items()}
        )
    elif image.format == "PPM" and image.mode != "F":  # scaled by Pillow
        samples = Samples(full=65535)
    turn = 1
    with contextlib.suppress(Exception):  # EXIF that says nothing turns nothing
        turn = int(image.getexif().get(0x0112, 1))
    return Picture(
        image=image,
        orientation=turn if 1 <= turn <= 8 else 1,
        icc=image.info.get("icc_profile"),
        samples=samples,
    )


def _examined(file: BinaryIO, max_pixels: int | None) -> Source:
    head = file.read(64)
    file.seek(0)
    name = sniff(head)
    if name is None:
        raise ImageError(f"is not a picture of a known format ({', '.join(FORMATS)})")
    if not FORMATS[name].available:
        raise ImageError(f"cannot be decoded here: {FORMATS[name].advice}")
    if name == "WEBP" and (size := _webp_size(head)):  # its plugin makes room when it is opened
        _check_pixels(size, name, max_pixels)
    if name in _READERS:
        return _READERS[name](file)
    samples = _jpeg_2000_samples(file) if name == "JPEG2000" else Samples()
    return Source(stream=file, format=name, samples=samples)


def _opened(source: Source, stream: BinaryIO, max_pixels: int | None, swap: bool) -> Any:
    stream.seek(0)
    image = FORMATS[source.format].load()(stream)
    _check_pixels(image.size, source.format, max_pixels)
    if source.format == "TIFF":
        # Made here, since Pillow checks its own limit where it makes it.
        image.im = Image.new(image.mode, image.size).im
    if source.format in _DECODERS:

        def prepare() -> None:
            image._decoder = None  # with its canvases: the first picture is out
            del image.load_prepare  # this function, which holds the picture
            image.load_prepare()

        image.load_prepare = prepare
    tiles = [tuple(tile) for tile in image.tile]
    if source.tile:
        tiles = [("raw", (0, 0, *image.size), source.tile[0], (source.tile[1], 0, 1))]
    if swap and source.samples.paired:  # Pillow has no raw mode for the low bytes
        image._mode = "RGBA"
        tiles = [(*tile[:3], _four_bytes(tile[3])) for tile in tiles]
    elif swap:
        tiles = [(*tile[:3], _swapped(tile[3])) for tile in tiles]
    if tiles and (swap or source.tile):
        make = getattr(type(image.tile[0]), "_make", tuple)  # a plain tuple in older Pillows
        image.tile = [make(tile) for tile in tiles]
    return image


def _swapped(args: Any) -> Any:
    """The raw mode that takes the other byte of each 16-bit sample for the high one."""
    if isinstance(args, str):
        return args[:-1] + _SWAPPED[args[-1]]
    return (_swapped(args[0]), *args[1:])


def _four_bytes(args: Any) -> Any:
    """The raw mode that takes grey and alpha of 16 bits for four channels."""
    return "RGBA" if isinstance(args, str) else ("RGBA", *args[1:])


def _loaded(opened: Callable[..., Any], source: Source) -> tuple[Image.Image, list[str]]:
    """The picture decoded, with a note if some rows were missing at its end.

    How many are missing is found by decoding twice, over black and over white, a JPEG also with two
    ends: rows that were not decoded differ. At most a tenth may be missing (of small pictures up to
    a third, and 24: the last blocks of a JPEG); each repeats the row above.
    """
    image = opened(source.stream)
    cut = source.cut
    try:
        image.load()
        # With this switch of the process on, decoders say nothing about what is missing.
        whole = not (cut and source.other) and not ImageFile.LOAD_TRUNCATED_IMAGES
    except MemoryError:  # says nothing about the file
        raise
    except Exception:
        if not cut:
            raise
        whole = False
    if source.format in _MAKE_ROOM:
        return image, []
    if whole:
        if not _ends_plain(image):
            return image, []
        cut = True  # it may be, without a word of the decoder
    sums = _row_sums(image)
    del image  # one at a time is in memory; of the rows that count both have the same
    other = opened(source.other() if source.other else source.stream)
    count = len(other.getbands())
    other.im = Image.new(other.mode, other.size, (255,) * count if count > 1 else 255).im
    try:
        other.load()
    except MemoryError:
        raise
    except Exception:  # the rows that are missing stay white
        pass
    other.tile = []  # what was decoded is all there is
    missing = np.flatnonzero(sums != _row_sums(other)).tolist()
    height = other.height
    if source.other and missing:
        missing = list(range(missing[0], height))  # in what is made up rows may agree by chance
    if len(missing) > max(height // 10, min(24, height // 3)) or (missing and not cut):
        raise ImageError(f"is cut short: {len(missing)} of {height} rows are missing")
    for row in missing:
        other.paste(other.crop((0, row - 1, other.width, row)), (0, row))
    return other, [f"{len(missing)} of {height} rows repeat the one above"] if missing else []


def _ends_plain(image: Image.Image) -> bool:
    """Whether one of the last two rows ends in pixels of one value.

    Where a file ends in good order before its last row, decoders say nothing: PNG, TIFF and JPEG
    2000 leave what was there, JPEG gives grey.
    """
    left, top = max(0, image.width - 8), max(0, image.height - 2)
    rows = np.asarray(image.crop((left, top, image.width, image.height)))
    return any(bool((row == row[:1]).all()) for row in rows)


def _row_sums(image: Image.Image) -> NDArray[np.uint32]:
    """A checksum of each row."""
    image.tile = []  # type: ignore[attr-defined]  # not to be decoded again
    sums = [
        zlib.crc32(row.tobytes())
        for top, bottom in bands(image)
        for row in np.asarray(image.crop((0, top, image.width, bottom)))
    ]
    return np.array(sums, np.uint32)


def bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    """(top, bottom) of bands of rows, some 2^18 pixels each: what is worked on stays in the cache,
    and no second picture is ever in memory.
    """
    rows = max(1, 2**18 // image.width)
    for top in range(0, image.height, rows):
        yield top, min(top + rows, image.height)


def _peak(image: Image.Image) -> int:
    extrema: Any = [image.getchannel(band).getextrema() for band in image.getbands() if band != "A"]
    return int(max(high for _, high in extrema))


def _check_pixels(size: tuple[int, int], name: str, max_pixels: int | None) -> None:
    if 0 in size:
        raise ImageError(f"the image is empty ({size[0]}x{size[1]})")
    kind = FORMATS.get(name, FORMATS["JPEG"])
    pixels, most = size[0] * size[1], max_pixels or kind.most_pixels
    if pixels > most:
        of_format = f" for {name}" if max_pixels is None and most < MAX_PIXELS else ""
        raise ImageError(
            f"has {size[0]}x{size[1]} = {pixels:,} pixels; the limit{of_format} is {most:,}: pass "
            f"a smaller copy, or raise max_pixels (it takes {pixels * kind.memory / 1e9:.2g} GB)"
        )


def _jpeg_2000_samples(file: BinaryIO) -> Samples:
    """Pillow shifts grey up to 16 bits, so white is all of them, and colour down to 8. But a file
    that says 16 may hold fewer, as any other file of 16 bits.
    """
    place = file.tell()
    file.seek(0)
    head = file.read(2**20)
    file.seek(place)
    at = head.find(b"\xff\x4f\xff\x51")  # SOC and SIZ
    if at < 0 or len(head) < at + 43:
        return Samples()
    components, depth = int.from_bytes(head[at + 40 : at + 42], "big"), head[at + 42] & 0x7F
    if depth < 15:
        return Samples(full=65535)
    return Samples(deep=components > 1)


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height, from the RFC 9649 headers."""
    if head[12:16] == b"VP8X":
        return (
            int.from_bytes(head[24:27], "little") + 1,
            int.from_bytes(head[27:30], "little") + 1,
        )
    if head[12:16] == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if head[12:16] == b"VP8 ":
        return (
            int.from_bytes(head[26:28], "little") & 0x3FFF,
            int.from_bytes(head[28:30], "little") & 0x3FFF,
        )
    return None


_libtiff_lock = threading.Lock()
_libtiff_users = 0
_libtiff_handlers: tuple[Any, Any] = (None, None)


@contextlib.contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """libtiff without its messages while any thread is inside; Pillow raises its errors anyway.

    It prints to descriptor 2 from C. Pillow offers no switch, and pointing the descriptor elsewhere
    would swallow what other threads write. libtiff has handlers for its messages, for the whole
    process; the first thread to come takes them away, the last to go puts them back. Where libtiff
    is linked into Pillow and hides its names (Windows), its messages stay.
    """
    global _libtiff_users, _libtiff_handlers
    setters = []
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(str(Image.core.__file__))  # type: ignore[attr-defined]
        setters = [library.TIFFSetErrorHandler, library.TIFFSetWarningHandler]
    for setter in setters:
        setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    with _libtiff_lock:
        _libtiff_users += 1
        if _libtiff_users == 1 and setters:
            _libtiff_handlers = (setters[0](None), setters[1](None))
    try:
        yield
    finally:
        with _libtiff_lock:
            _libtiff_users -= 1
            if _libtiff_users == 0 and setters:
                for setter, handler in zip(setters, _libtiff_handlers, strict=True):
                    setter(handler)
