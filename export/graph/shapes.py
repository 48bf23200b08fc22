"""Shapes of values. Every graph here is static."""

from __future__ import annotations

import onnx_ir as ir

from export.errors import BuildError


def static_shape(value: ir.Value | None) -> list[int]:
    """The edges of a value. Raises: BuildError where one is unknown."""
    edges = None if value is None or value.shape is None else list(value.shape)
    if edges is None or not all(isinstance(edge, int) for edge in edges):
        raise BuildError(f"the value {getattr(value, 'name', None)!r} has no static shape")
    return [edge for edge in edges if isinstance(edge, int)]
