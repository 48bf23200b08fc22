"""Versions of what made a bundle or a row. Imports none of it: what is measured must not carry
torch along.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Sequence


def tool_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of the named distributions; those that are not installed are left out."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
