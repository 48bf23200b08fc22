"""Types of options of commands, for argparse: what they refuse, they refuse in words."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def named(text: str) -> str:
    """Any text but an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def path(text: str) -> Path:
    """A path that is not empty."""
    return Path(named(text))


def natural(text: str) -> int:
    """0, 1, 2, ..."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0, 1, 2, ..., found {text!r}")
    return int(text)


def positive(text: str) -> int:
    """1, 2, 3, ..."""
    number = natural(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1, 2, 3, ..., found {text!r}")
    return number


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, found {text!r}")
    return number
