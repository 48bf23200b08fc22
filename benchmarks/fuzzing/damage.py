"""Damage to bytes, of which nothing is known but where lengths and parts lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

Order = Literal["big", "little"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """A number in a file: where it lies, its bytes, and their order ("big", "little")."""

    offset: int
    size: int
    order: Order = "big"
    name: str = ""


def _as_is(data: bytearray) -> bytes:
    return bytes(data)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The numbers and the parts (start, end) of a file; `repair` renews its checksums."""

    fields: Sequence[Field] = ()
    parts: Sequence[tuple[int, int]] = ()
    repair: Callable[[bytearray], bytes] = field(default=_as_is)


def damage_bytes(random: Random, data: bytes, other: bytes = b"") -> tuple[str, bytes]:
    """`data` with one blind damage, and its name. `other` is what it may be spliced with."""
    name = random.choice([*_BLIND, *(["splice"] if other else [])])
    if name == "splice":
        return name, data[: _cut(random, data)] + other[_cut(random, other) :]
    return name, bytes(_BLIND[name](random, bytearray(data)))


def damage_layout(random: Random, data: bytes, layout: Layout) -> tuple[str, bytes]:
    """`data` with one to three fields or parts changed and its checksums renewed, and their
    names.
    """
    names = []
    damaged = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        if layout.fields and (not layout.parts or random.random() < 0.6):
            names.append(_set_field(random, damaged, random.choice(layout.fields)))
        elif layout.parts:
            name, damaged = _move_part(random, damaged, layout.parts)
            names.append(name)
            if len(damaged) != len(data):  # the other offsets are no longer right
                break
    return ", ".join(names) or "nothing", layout.repair(damaged)


def boundary(random: Random, bits: int, now: int = 0) -> int:
    """An unsigned number that programs get wrong, beside what is there now."""
    top = 1 << bits
    picked = random.choice(
        (
            *(0, 1, 2, 3, 7, 8, 255, 256, 1000, 10_000, 16_384, 30_000, 65_535, 100_000),
            *(top - 1, top - 2, top // 2, top // 2 - 1, top // 4, top // 8 + 1),
            *(now + 1, now - 1, now * 2, now // 2, now ^ (1 << random.randrange(bits))),
            random.randrange(top),
        )
    )
    return picked % top


def _set_field(random: Random, data: bytearray, place: Field) -> str:
    span = slice(place.offset, place.offset + place.size)
    now = int.from_bytes(data[span], place.order)
    value = boundary(random, 8 * place.size, now)
    if len(data[span]) == place.size:
        data[span] = value.to_bytes(place.size, place.order)
    return f"{place.name or 'field'} {now}->{value}"


def _move_part(
    random: Random, data: bytearray, parts: Sequence[tuple[int, int]]
) -> tuple[str, bytearray]:
    start, end = random.choice(parts)
    part = data[start:end]
    name = random.choice(("drop", "repeat", "swap", "cut", "inside", "many"))
    if name == "drop":
        return "part dropped", data[:start] + data[end:]
    if name == "repeat":
        return "part repeated", data[:end] + part + data[end:]
    if name == "many":
        times = random.choice((10, 100, 1000)) if len(part) < 4096 else 10
        return f"part {times} times", data[:end] + part * times + data[end:]
    if name == "swap":
        first, last = random.choice(parts)
        if end <= first:
            return "parts swapped", data[:start] + data[first:last] + data[end:first] + part + data[
                last:
            ]
    if name == "cut":
        return "part cut", data[: start + random.randrange(len(part) + 1)] + data[end:]
    if part:
        kind, changed = damage_bytes(random, bytes(part))
        return f"{kind} inside a part", data[:start] + changed + data[end:]
    return "nothing", data


def _cut(random: Random, data: bytes | bytearray) -> int:
    return random.randrange(len(data) + 1)


def _span(random: Random, data: bytearray) -> slice:
    start = _cut(random, data)
    return slice(start, start + random.choice((1, 4, 16, 64, 512, 4096)))


def _flip(random: Random, data: bytearray) -> bytearray:
    for _ in range(random.choice((1, 1, 2, 8, 64)) if data else 0):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return data


def _noise(random: Random, data: bytearray) -> bytearray:
    span = _span(random, data)
    data[span] = random.randbytes(len(data[span]))
    return data


def _constant(random: Random, data: bytearray) -> bytearray:
    span = _span(random, data)
    data[span] = random.choice((b"\0", b"\xff", b"\x7f", b" ")) * len(data[span])
    return data


def _truncate(random: Random, data: bytearray) -> bytearray:
    few = random.random() < 0.3
    return data[: max(0, len(data) - random.randrange(1, 17)) if few else _cut(random, data)]


def _extend(random: Random, data: bytearray) -> bytearray:
    return data + random.randbytes(random.choice((1, 100, 10_000)))


def _delete(random: Random, data: bytearray) -> bytearray:
    del data[_span(random, data)]
    return data


def _insert(random: Random, data: bytearray) -> bytearray:
    at = _cut(random, data)
    return data[:at] + random.randbytes(random.choice((1, 2, 4, 100))) + data[at:]


def _repeat(random: Random, data: bytearray) -> bytearray:
    span = _span(random, data)
    return data[: span.stop] + data[span] * random.choice((1, 2, 100)) + data[span.stop :]


def _number(random: Random, data: bytearray) -> bytearray:
    size = random.choice((1, 2, 4, 8))
    at = _cut(random, data)
    order: Order = "big" if random.random() < 0.5 else "little"
    data[at : at + size] = boundary(random, 8 * size).to_bytes(size, order)
    return data


_BLIND: dict[str, Callable[[Random, bytearray], bytearray]] = {
    "flip": _flip,
    "noise": _noise,
    "constant": _constant,
    "truncate": _truncate,
    "extend": _extend,
    "delete": _delete,
    "insert": _insert,
    "repeat": _repeat,
    "number": _number,
}
