"""The loops themselves: plain Python of the kind that Numba compiles.

Each is the arithmetic of a plain way, step by step, and answers its bits. Arrays are contiguous.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_BITS = 22  # of a weight, as Pillow has it: 32, less 8 of a sample and 2 to spare
_HALF = 1 << (_BITS - 1)
_GROUPS = 1024  # of four values, whose colours are found at once: they stay in the cache


@intrinsic  # type: ignore[untyped-decorator]
def _pixel(context: Any, pixels: Any, weights: Any, count: Any) -> tuple[Any, Callable[..., Any]]:
    """The sum of `count` pixels of four bytes times weights of 32 bits, both by their addresses, as
    a pixel; four pixels at once, since Numba makes no such thing of a loop. `count` is 4, 8, ...
    """
    byte, word, size = (ir.IntType(bits) for bits in (8, 32, 64))
    four, sixteen = ir.VectorType(word, 4), ir.VectorType(word, 16)

    def generate(_: Any, builder: Any, signature: Any, given: Any) -> Any:
        def load(kind: Any, address: Any, at: Any) -> Any:
            place = builder.inttoptr(address, word.as_pointer())
            place = builder.bitcast(builder.gep(place, [at]), kind.as_pointer())
            loaded = builder.load(place)
            loaded.align = 4
            return loaded

        def lanes(vector: Any, chosen: list[int]) -> Any:
            mask = ir.VectorType(word, len(chosen))(chosen)
            return builder.shuffle_vector(vector, vector.type(ir.Undefined), mask)

        before = builder.block
        loop, after = builder.append_basic_block("taps"), builder.append_basic_block("sum")
        builder.branch(loop)
        builder.position_at_end(loop)
        at, total = builder.phi(size), builder.phi(sixteen)
        at.add_incoming(size(0), before)
        total.add_incoming(sixteen([_HALF] * 4 + [0] * 12), before)
        samples = builder.zext(load(ir.VectorType(byte, 16), given[0], at), sixteen)
        each = lanes(load(four, given[1], at), [lane // 4 for lane in range(16)])
        more = builder.add(total, builder.mul(samples, each))
        following = builder.add(at, size(4))
        at.add_incoming(following, loop)
        total.add_incoming(more, loop)
        builder.cbranch(builder.icmp_signed("<", following, given[2]), loop, after)
        builder.position_at_end(after)
        quarters = [lanes(more, [4 * part + lane for lane in range(4)]) for part in range(4)]
        whole = builder.add(builder.add(*quarters[:2]), builder.add(*quarters[2:]))
        whole = builder.trunc(builder.lshr(whole, four([_BITS] * 4)), ir.VectorType(byte, 4))
        return builder.bitcast(whole, word)

    return types.uint32(types.int64, types.int64, types.int64), generate


def shrink_rows(words: Any, first: Any, weights: Any, out: Any) -> None:
    """Pixels uint32 [H,W] to [H,w]: as many as there are `weights` [w,K], from `first` [w] on. K is
    4, 8, ...
    """
    for y in range(words.shape[0]):
        row = words[y].ctypes.data
        for x in range(out.shape[1]):
            out[y, x] = _pixel(row + 4 * first[x], weights[x].ctypes.data, weights.shape[1])


def shrink_columns(samples: Any, first: Any, weights: Any, out: Any) -> None:
    """Samples uint8 [H,4w], four to a pixel, to RGB uint8 [h,w,3]: the same for columns."""
    total = np.empty(samples.shape[1], np.int32)
    for y in range(out.shape[0]):
        total[:] = _HALF
        for tap in range(weights.shape[1]):
            weight, row = weights[y, tap], samples[first[y] + tap]
            for x in range(total.size):
                total[x] += np.int32(row[x]) * weight
        for x in range(out.shape[1]):
            for channel in range(3):
                out[y, x, channel] = np.uint8(total[4 * x + channel] >> _BITS)


def normalise(rgb: Any, scale: float, offset: float, out: Any) -> None:
    """Samples uint8 [M,N,3] to planes float32 [M,3,N]: times `scale`, plus `offset`, in float32."""
    for picture in range(rgb.shape[0]):
        for at in range(rgb.shape[1]):
            for channel in range(3):
                sample = np.float32(rgb[picture, at, channel])
                out[picture, channel, at] = sample * scale + offset


def enlarge_columns(wide: Any, first: Any, second: Any, weight: Any, other: Any, out: Any) -> None:
    """float32 [h,W] to [H,W]: of two rows each, by weights in float64."""
    for y in range(out.shape[0]):
        upper, lower, row = wide[first[y]], wide[second[y]], out[y]
        for x in range(out.shape[1]):
            row[x] = np.float32(np.float64(upper[x]) * weight[y] + np.float64(lower[x]) * other[y])


def colour(values: Any, start: float, step: float, table: Any, out: Any) -> None:
    """float32 [N] to RGB uint8 [3N] by the colours uint32 [256] (red is the lowest byte), counted
    from `start` in steps of 1/`step`: `runtime.colors._Ramp.quick`.
    """
    groups = values.size // 4
    fours = values[: 4 * groups].reshape(groups, 4)
    words = out[: 12 * groups].view(np.uint32).reshape(groups, 3)
    indices = np.empty((_GROUPS, 4), np.uint8)
    for top in range(0, groups, _GROUPS):
        block = fours[top : top + _GROUPS].reshape(-1)
        line = indices.reshape(-1)
        for at in range(block.size):
            place = np.rint((np.float64(block[at]) - start) * step)
            line[at] = np.uint8(min(max(place, 0.0), 255.0))
        rows = words[top : top + _GROUPS]
        for at in range(rows.shape[0]):
            one, two = table[indices[at, 0]], table[indices[at, 1]]
            three, four = table[indices[at, 2]], table[indices[at, 3]]
            rows[at, 0] = one | two << np.uint32(24)
            rows[at, 1] = two >> np.uint32(8) | three << np.uint32(16)
            rows[at, 2] = three >> np.uint32(16) | four << np.uint32(8)
    for at in range(4 * groups, values.size):
        place = np.rint((np.float64(values[at]) - start) * step)
        found = table[np.uint8(min(max(place, 0.0), 255.0))]
        for channel in range(3):
            out[3 * at + channel] = np.uint8(found >> np.uint32(8 * channel) & np.uint32(255))


def steps16(values: Any, low: float, span: float, top: float, out: Any) -> None:
    """float32 [N] to uint16 [N] in steps of `span`/`top` from `low`: `runtime.colors.scaled`."""
    whole = low == 0.0 and span == 1.0
    for at in range(values.size):
        place = np.float64(values[at])
        place = place * top if whole else (place - low) / span * top
        out[at] = np.uint16(min(max(np.rint(place), 0.0), top))


def levels(values: Any, low: float, step: float, out: Any) -> None:
    """float32 [N] to uint8 [N] in steps of 1/`step` from `low`: `runtime.colors.in_range`."""
    for at in range(values.size):
        place = np.rint((values[at] - low) * step)
        out[at] = np.uint8(min(max(place, np.float32(0)), np.float32(255)))


def unit(planes: Any, smallest: float, out: Any) -> None:
    """float32 [3,N] to vectors [N,3] of unit length: `runtime.vectors.unit_vectors`."""
    for at in range(out.shape[0]):
        x, y, z = planes[0, at], planes[1, at], planes[2, at]
        length = max(np.sqrt(x * x + y * y + z * z), smallest)
        out[at, 0], out[at, 1], out[at, 2] = x / length, y / length, z / length


def _given(kind: Any, dimensions: int) -> Any:
    """Of an array that is only read, which may be read-only."""
    return types.Array(kind, dimensions, "C", readonly=True)


def _made(kind: Any, dimensions: int) -> Any:
    return types.Array(kind, dimensions, "C")


_PLACES, _FLOATS = _given(types.int64, 1), _given(types.float64, 1)

SIGNATURES: dict[Callable[..., None], Any] = {
    shrink_rows: (
        *(_given(types.uint32, 2), _PLACES, _given(types.int32, 2)),
        _made(types.uint32, 2),
    ),
    shrink_columns: (
        *(_given(types.uint8, 2), _PLACES, _given(types.int32, 2)),
        _made(types.uint8, 3),
    ),
    normalise: (_given(types.uint8, 3), types.float32, types.float32, _made(types.float32, 3)),
    enlarge_columns: (
        *(_given(types.float32, 2), _PLACES, _PLACES, _FLOATS, _FLOATS),
        _made(types.float32, 2),
    ),
    colour: (
        *(_given(types.float32, 1), types.float64, types.float64, _given(types.uint32, 1)),
        _made(types.uint8, 1),
    ),
    steps16: (
        *(_given(types.float32, 1), types.float64, types.float64, types.float64),
        _made(types.uint16, 1),
    ),
    levels: (_given(types.float32, 1), types.float32, types.float32, _made(types.uint8, 1)),
    unit: (_given(types.float32, 2), types.float32, _made(types.float32, 2)),
}
"""What is compiled, and for which arguments."""


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """One of SIGNATURES, kept for the next process where that can be."""
    # Division as NumPy's: by zero it is infinite.
    how = functools.partial(njit, SIGNATURES[function], nogil=True, error_model="numpy")
    try:
        kept: Callable[..., None] = how(cache=True)(function)
    except Exception:  # what was kept is damaged, or nothing can be kept
        kept = how()(function)
    return kept
