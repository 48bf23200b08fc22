"""The memory of Pillow's images as arrays. Pillow hands an image out through two copies or three,
but has the Arrow C data interface.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

ONE_BLOCK = 2**22
"""Pixels of four bytes that Pillow holds in one piece: its blocks have 16 MB."""


def memory_of(image: Image.Image) -> NDArray[np.float32]:
    """The memory of an image of mode F as an array [H,W], which keeps it alive; a copy where it is
    not in one piece.
    """
    try:
        plane: NDArray[np.float32] = _memory(image).view(np.float32)
    except ValueError:
        return np.array(image)
    return plane


def words_of(image: Image.Image) -> NDArray[np.uint32]:
    """The memory of an image of mode RGB as an array [H,W], which keeps it alive: red is the first
    of four bytes, and the last says nothing. Raises: ValueError where it is not in one piece.
    """
    return _memory(image)


def _memory(image: Image.Image) -> NDArray[np.uint32]:
    from PIL import Image as pillow

    if pillow.core.get_alignment() > 4:  # type: ignore[attr-defined]
        raise ValueError("there may be something between the rows")  # Pillow 12 does not say so
    _, capsule = image.__arrow_c_array__()
    # A prototype of our own: the attribute of `pythonapi` belongs to all of the process.
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    given: Any = _ArrowArray.from_address(pointer(capsule, b"arrow_array"))
    if given.n_children:  # of an array of pixels the child is the array of their samples
        given = given.children[0].contents
    memory = (ctypes.c_char * (4 * image.width * image.height)).from_address(given.buffers[1])
    memory.owner = capsule  # type: ignore[attr-defined]
    return np.frombuffer(memoryview(memory), np.uint32).reshape(image.height, image.width)


class _ArrowArray(ctypes.Structure):
    """Source: Arrow C data interface. Of the two buffers of numbers the second has them."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers")),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
