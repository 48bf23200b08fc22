"""Damaged pictures, predicted with a bundle that needs no network."""

from __future__ import annotations

import math
import re
from pathlib import Path
from random import Random

from benchmarks.fuzzing.bundles import open_engine, write_bundle
from benchmarks.fuzzing.damage import boundary, damage_bytes, damage_layout
from benchmarks.fuzzing.kind import Damage, Kind, WrongAnswerError
from benchmarks.fuzzing.layouts import find_layout
from benchmarks.fuzzing.originals import crafted, originals

_SUFFIXES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm", "jp2", "avif", "tga")
_CRAFTED = 0.01  # of all cases


class Pictures(Kind):
    """Every format, damaged where its structure is known, and blindly."""

    name = "pictures"
    megabytes = 2048  # the default limit on pixels admits large photographs
    address_space = 6

    def prepare(self, folder: Path) -> None:
        self._bundle = write_bundle(folder / "bundle", target="null")
        self._originals = originals()
        self._crafted = crafted()
        self._layouts = {name: find_layout(data) for name, data in self._originals.items()}
        self._engine = open_engine(self._bundle, folder / "cache")

    def damage(self, random: Random, folder: Path) -> Damage:
        if random.random() < _CRAFTED:
            name = random.choice(sorted(self._crafted))
            how, data = "crafted", self._crafted[name]
        else:
            name = random.choice(sorted(self._originals))
            how, data = self._damage(random, name)
            if random.random() < 0.2:
                more, data = damage_bytes(random, data)
                how = f"{how}, {more}"
        suffix = random.choice(_SUFFIXES)
        (folder / f"picture.{suffix}").write_bytes(data)
        return Damage(label=f"{name} as .{suffix}: {how}")

    def run(self, folder: Path) -> str:
        (path,) = folder.glob("picture.*")
        values = self._engine(path).values
        if values.ndim != 2 or not values.size:
            raise WrongAnswerError(f"a map of shape {values.shape}")
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high) and low >= -0.001 and high <= 1.001):
            raise WrongAnswerError(f"a map with values from {low} to {high}")
        return "decoded"

    def _damage(self, random: Random, name: str) -> tuple[str, bytes]:
        data = self._originals[name]
        other = self._originals[random.choice(sorted(self._originals))]
        layout = self._layouts[name]
        if name.startswith(("ppm", "pfm", "xbm")) and random.random() < 0.6:
            return _number_in_text(random, data)
        if random.random() < 0.7:
            return damage_layout(random, data, layout)
        return damage_bytes(random, data, other)


def _number_in_text(random: Random, data: bytes) -> tuple[str, bytes]:
    """A number of a header in plain text, made another."""
    numbers = list(re.finditer(rb"\d+", data[:64]))
    if not numbers:
        return damage_bytes(random, data)
    number = random.choice(numbers)
    value = str(boundary(random, 32, int(number[0]))).encode()
    value = random.choice((value, value, b"-" + value, value + b".5", b"1e9", value * 20, b""))
    return f"{number[0]!r}->{value[:40]!r}", data[: number.start()] + value + data[number.end() :]
