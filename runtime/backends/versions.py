"""What is known of the vendors' versions, and how versions are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class KnownVersions:
    """For graphs of ONNX opset `opset`, up to that of the next row: the vendor's first version that
    opens them and answers right.

    Later versions are taken to be right; the golden proves or refutes them.
    """

    opset: int
    oldest: str


def version_of(vendor: Any) -> str:
    """The version that a vendor's module names; "unknown" where it names none."""
    return str(getattr(vendor, "__version__", "unknown"))


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2026, 4, 1) of "2026.4.1-21920-abc". Empty where
    there are none.
    """
    match = re.match(r"\d+(\.\d+)*", version.strip())
    return tuple(map(int, match[0].split("."))) if match else ()


def too_old(version: str, known: tuple[KnownVersions, ...], opset: int) -> str | None:
    """What to do about a version that is known to be wrong for a graph of this opset, in words;
    None for a version that may be right.
    """
    here = numbers(version)
    rows = [row for row in known if row.opset <= opset]
    if not here or not rows:
        return None
    row = max(rows, key=lambda row: row.opset)
    if here >= numbers(row.oldest):
        return None
    needed = f"needs {row.oldest} or newer"
    usable = [other.opset for other in rows if here >= numbers(other.oldest)]
    if usable:
        needed += f", or a bundle of opset {min(usable)}: `--opset {min(usable)}`"
    return needed
