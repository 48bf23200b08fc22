"""Damaged weights and goldens, signed again and not."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.fuzzing.bundles import (
    GOLDEN,
    GRAPH,
    WEIGHTS,
    compare,
    copy_bundle,
    open_engine,
    predict,
    sign_files,
    write_bundle,
)
from benchmarks.fuzzing.damage import Field, Layout, boundary, damage_bytes, damage_layout
from benchmarks.fuzzing.kind import Damage, Kind
from runtime.errors import DamagedBundleError

_LONG_AGO = 1_600_000_000  # seconds


class Weights(Kind):
    """Flipped bits, lost sectors and more. Not signed again: it must be found, also in a bundle
    that was good a moment ago. Signed again: the golden sample refuses it, or it makes no
    difference.
    """

    name = "weights"
    seconds = 10.0

    def prepare(self, folder: Path) -> None:
        self._bundle = write_bundle(folder / "bundle", target="onnxruntime")
        self._right = predict(self._bundle, folder / "cache")[0]

    def damage(self, random: Random, folder: Path) -> Damage:
        bundle = copy_bundle(self._bundle, folder / "bundle")
        name = random.choice((WEIGHTS, WEIGHTS, WEIGHTS, GRAPH, GOLDEN))
        path = bundle / name
        signed = name == WEIGHTS and random.random() < 0.5
        known = not signed and random.random() < 0.3
        if known:  # found good, and remembered
            for each in bundle.iterdir():
                os.utime(each, (_LONG_AGO, _LONG_AGO))
            predict(bundle, folder / "cache")
        clean = path.read_bytes()
        label, damaged = _damage_weights(random, clean)
        if damaged == clean:
            label, damaged = "one bit", bytes([clean[0] ^ 1]) + clean[1:]
        path.write_bytes(damaged)
        if signed:
            sign_files(bundle, [name])
        elif known:
            os.utime(path, (_LONG_AGO, _LONG_AGO))
        state = "signed again" if signed else "known good" if known else "not signed"
        return Damage(
            label=f"{name}, {state}: {label}", must=None if signed else DamagedBundleError
        )

    def run(self, folder: Path) -> str:
        values, golden = predict(folder / "bundle", folder / "cache")
        return compare(values, golden, [self._right])


class Goldens(Kind):
    """The archive's and the arrays' own structure damaged; most are signed again."""

    name = "goldens"

    def prepare(self, folder: Path) -> None:
        self._bundle = write_bundle(folder / "bundle", target="null")
        self._right = predict(self._bundle, folder / "cache")[0]
        self._clean = (self._bundle / GOLDEN).read_bytes()
        with zipfile.ZipFile(self._bundle / GOLDEN) as archive:
            self._arrays = {name: archive.read(name) for name in archive.namelist()}

    def damage(self, random: Random, folder: Path) -> Damage:
        bundle = copy_bundle(self._bundle, folder / "bundle")
        if random.random() < 0.4:
            label, content = damage_layout(random, self._clean, _zip_layout(self._clean))
        elif random.random() < 0.2:
            label, content = damage_bytes(random, self._clean)
        else:
            arrays = dict(self._arrays)
            name = random.choice(sorted(arrays))
            label, arrays[name] = _damage_array(random, arrays[name])
            label, content = f"{name}: {label}", _pack(random, arrays)
        (bundle / GOLDEN).write_bytes(content)
        signed = random.random() < 0.9
        if signed:
            sign_files(bundle, [GOLDEN])
        unsigned = DamagedBundleError if content != self._clean and not signed else None
        return Damage(label=f"{'signed again' if signed else 'not signed'}: {label}", must=unsigned)

    def run(self, folder: Path) -> str:
        values, golden = predict(folder / "bundle", folder / "cache")
        word = compare(values, golden, [self._right])
        with open_engine(folder / "bundle", folder / "cache") as engine:
            engine.verify()  # reads those of the other bucket too
        return word


def _damage_weights(random: Random, data: bytes) -> tuple[str, bytes]:
    how = random.choice(("sector", "flip", "float", "swap", "blind"))
    size = random.choice((16, 64, 512, 4096))
    start = random.randrange(max(1, len(data) - size))
    if how == "sector":
        fill = random.choice((b"\0", b"\xff"))
        return f"{size} bytes of {fill!r}", data[:start] + fill * size + data[start + size :]
    if how == "flip":
        bit = random.randrange(8)
        changed = bytes([data[start] ^ 1 << bit])
        return f"bit {bit} of {start}", data[:start] + changed + data[start + 1 :]
    if how == "float":
        start -= start % 4
        value = random.choice((float("nan"), float("inf"), 1e30, -1e-38, 0.0, 1.0))
        return f"{value} at {start}", data[:start] + struct.pack("<f", value) + data[start + 4 :]
    if how == "swap":
        first, last = data[start : start + size], data[:size]
        return f"{size} bytes swapped", first + data[size:start] + last + data[start + size :]
    return damage_bytes(random, data)


def _zip_layout(data: bytes) -> Layout:
    """The numbers in the headers of each entry and of the archive's directory."""
    fields = []
    for magic, places in (
        (b"PK\3\4", ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
        (
            b"PK\1\2",
            ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)),
        ),
        (b"PK\5\6", ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
    ):
        at = data.find(magic)
        while at >= 0:
            fields += [
                Field(offset=at + skip, size=size, order="little", name=f"{magic!r}+{skip}")
                for skip, size in places
            ]
            at = data.find(magic, at + 4)
    starts = sorted({place.offset for place in fields if place.name.endswith(("+4'", "+8"))})
    parts = list(zip(starts, [*starts[1:], len(data)], strict=True))
    return Layout(fields=fields, parts=parts)


def _damage_array(random: Random, data: bytes) -> tuple[str, bytes]:
    """A `.npy` with another header, other values, or blind damage."""
    array = np.load(io.BytesIO(data))
    how = random.choice(("type", "shape", "order", "header", "values", "huge", "pickle", "blind"))
    stream = io.BytesIO()
    if how == "type":
        kind = random.choice(
            (">f4", "<f8", "<f2", "|u1", "<i4", "|b1", "<c8", "<M8[s]", "|S4", "<U2")
        )
        np.save(stream, array.astype(kind))
        return kind, stream.getvalue()
    if how == "shape":
        shape = random.choice(
            ((array.size,), (1, *array.shape), array.shape[::-1], (0,), array.shape[1:])
        )
        np.save(stream, array[:0] if shape == (0,) else np.resize(array, shape))
        return f"shape {shape}", stream.getvalue()
    if how == "order":
        np.save(stream, np.asfortranarray(array))
        return "Fortran's order", stream.getvalue()
    if how == "values":
        changed = array.astype(np.float32)
        changed.flat[random.randrange(changed.size)] = random.choice(
            (np.nan, np.inf, 1e30, -1, 0.5)
        )
        np.save(stream, changed.astype(array.dtype))
        return "a value", stream.getvalue()
    if how == "pickle":
        np.save(stream, np.array([OSError("unpickled"), None], dtype=object), allow_pickle=True)
        return "objects", stream.getvalue()
    if how == "huge":
        shape = f"({boundary(random, 40)}, {boundary(random, 20)}, 3)".encode()
        return f"header {shape!r}", data.replace(str(array.shape).encode(), shape, 1)
    if how == "header":
        kind, head = damage_bytes(random, data[:128])
        return f"{kind} in the header", head + data[128:]
    return damage_bytes(random, data)


def _pack(random: Random, arrays: dict[str, bytes]) -> bytes:
    """The arrays as an archive, packed in one of the ways that there are."""
    stream = io.BytesIO()
    ways = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(stream, "w", random.choice((*ways, zipfile.ZIP_LZMA))) as archive:
        for name, data in arrays.items():
            archive.writestr(name, data)
            if random.random() < 0.02:
                archive.writestr(f"../{name}", data)
        if random.random() < 0.02:
            bomb = random.choice((name, "another.npy"))
            archive.writestr(bomb, bytes(30_000_000), random.choice(ways[:2]))
    return stream.getvalue()
