"""What can go wrong while a bundle is built."""

from __future__ import annotations

from runtime.errors import LotusError


class CheckpointError(LotusError):
    """A checkpoint cannot be found, read, or is not a Lotus model."""


class BuildError(LotusError):
    """A bundle cannot be built: wrong request, refused graph, full disk."""
