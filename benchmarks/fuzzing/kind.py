"""What a kind of damage is: how a case is made, run and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from runtime.errors import LotusError

Map = NDArray[np.float32]
OUTSIDE = "outside"
"""The name of a folder beside the undamaged inputs, out of which nothing may be opened."""


class WrongAnswerError(Exception):
    """An answer that must not be; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What was done to the input, in words, and of which error type the outcome must be, where
    only one is right.
    """

    label: str
    must: type[LotusError] | None = None


class Kind(ABC):
    """A kind of input and how it is damaged.

    `seconds` of CPU time and `megabytes` beyond what the process held before are the limits of one
    case, `address_space` GB that of the whole process. `crashes`: the input is a program for the
    vendor's library, and so a crash, a time-out, memory and words on stderr are that library's;
    such cases are counted apart.
    """

    name: str
    seconds: float = 20.0
    megabytes: int = 256
    address_space: int = 4
    crashes: bool = False

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Make the undamaged inputs and their answers below `folder`; once in each process."""

    @abstractmethod
    def damage(self, random: Random, folder: Path) -> Damage:
        """Write a damaged input into `folder`, which is empty."""

    @abstractmethod
    def run(self, folder: Path) -> str:
        """Use what lies in `folder`. Returns in a word what came out.

        Raises: LotusError where it is refused, WrongAnswerError, and whatever else happens.
        """
